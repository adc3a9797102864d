"""Mixtures of experts: rows sorted by the expert each goes to, and products whose weight depends on that."""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from q8c.errors import InputError
from q8c.ir.dims import Dim
from q8c.ir.graph import Array
from q8c.ir.ops.registry import AttrSpec, OpDef, Operands, register
from q8c.ir.types import DType, TensorType


def _route(o: Operands) -> Sequence[TensorType]:
    ids = o.type(0)
    o.expect(ids.dtype in (DType.i32, DType.i64) and ids.rank == 1, "expected i32[rows] or i64[rows]")
    o.expect(o.attrs["experts"] > 0, "expected at least 1 expert")
    rows = TensorType(DType.i64, ids.shape)
    return [rows, rows, TensorType(DType.i64, (o.attrs["experts"],))]


def route(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """Of rows by their experts' numbers (order), where each row went (place), and where each expert's rows end (ends).

    Rows of one expert stay in their order. Negative numbers count from the end; raises InputError for one out of range.
    """
    ids, experts = args[0].astype(np.int64), attrs["experts"]
    if ((ids < -experts) | (ids >= experts)).any():
        raise InputError(f"route: a number of an expert is out of the range of {experts}")
    ids = np.where(ids < 0, ids + experts, ids)
    order = np.argsort(ids, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return [order, place, np.bincount(ids, minlength=experts).cumsum()]


def own_cols(o: Operands, cols: Dim, ends: int) -> Dim:
    """Columns of one expert, of a weight with the columns of all side by side; `ends` is an operand's number, and all
    are one's if it is not there."""
    t = o.types[ends]
    if t is None:
        return cols
    o.expect(t.dtype is DType.i64 and t.rank == 1 and isinstance(t.shape[0], int), "expected ends as i64[experts]")
    o.expect(o.type(0).rank == 2, "expected rows [rows, depth] where there are experts")
    experts = t.shape[0]
    assert isinstance(experts, int)
    o.expect(isinstance(cols, int) and cols % experts == 0, f"{cols} columns are not as many for each of {experts}")
    return cols if not isinstance(cols, int) else cols // experts


def by_expert(args: Sequence[Any], ends: Array, by_row: Collection[int],
              compute: Callable[[Sequence[Any]], Array]) -> Array:
    """What `compute` gives for the rows of each expert, one after the other: operands `by_row` are cut by rows, the
    others by columns."""
    parts, first = [], 0
    for expert, last in enumerate(ends):
        given = [a if a is None else a[first:last] if i in by_row else _columns(a, expert, len(ends))
                 for i, a in enumerate(args)]
        parts.append(compute(given))
        first = last
    return np.concatenate(parts)


def _columns(x: Array, expert: int, experts: int) -> Array:
    cols = x.shape[-1] // experts
    return x[..., expert * cols:(expert + 1) * cols]


def _expert_matmul(o: Operands) -> Sequence[TensorType]:
    x, w = o.type(0), o.type(1)
    o.expect(x.dtype is DType.f32 and w.dtype is DType.f32 and w.rank == 2,
             "expected (f32[rows, depth], f32[depth, experts * cols])")
    o.same(x.shape[-1], w.shape[0])
    return [TensorType(DType.f32, (*x.shape[:-1], own_cols(o, w.shape[1], 2)))]


def expert_matmul(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """x[i] @ w's columns of the expert whose rows end behind i."""
    with np.errstate(all="ignore"):
        return [by_expert(args[:2], args[2], {0}, lambda given: np.asarray(given[0] @ given[1]))]


register(OpDef("route", "ids", _route, route, {"experts": AttrSpec("int")},
               doc="Rows sorted by the experts they go to: (order, place, ends)."))
register(OpDef("expert_matmul", "x w ends", _expert_matmul, expert_matmul,
               doc="Rows sorted by expert, each times the columns of its own."))
