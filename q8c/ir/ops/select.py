"""Ops that write to places told by indices, and ops that find the largest elements."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from q8c.errors import InputError
from q8c.ir.graph import Array
from q8c.ir.ops.movement import normalize_axis
from q8c.ir.ops.registry import AttrSpec, OpDef, Operands, register
from q8c.ir.types import DType, TensorType

REDUCTIONS = ("none", "add", "mul", "max", "min")


def _scatter_nd(o: Operands) -> Sequence[TensorType]:
    x, indices, updates = o.type(0), o.type(1), o.type(2)
    o.expect(indices.dtype is DType.i64 and indices.rank >= 1, "expected i64 indices of rank >= 1")
    depth = indices.shape[-1]
    o.expect(isinstance(depth, int) and 0 <= depth <= x.rank, "expected index tuples no longer than the rank")
    assert isinstance(depth, int)
    o.expect(x.dtype is updates.dtype, "expected updates of the operand's type")
    o.expect(o.attrs["reduction"] in REDUCTIONS, f"expected a reduction of {', '.join(REDUCTIONS)}")
    wanted = (*indices.shape[:-1], *x.shape[depth:])
    o.expect(len(wanted) == updates.rank, "expected an update for each index tuple")
    for a, b in zip(wanted, updates.shape, strict=True):
        o.same(a, b)
    return [x]


def scatter_nd(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """x with x[indices[..., 0], indices[..., 1], …] set to the updates, or combined with them, in their order.

    Raises InputError for an index out of range.
    """
    x, indices, updates = args
    sizes = np.array(x.shape[:indices.shape[-1]], dtype=np.int64)
    if ((indices < -sizes) | (indices >= sizes)).any():
        raise InputError(f"scatter_nd: an index is out of the range of {sizes.tolist()}")
    y = x.copy()
    combine = _COMBINE[attrs["reduction"]]
    with np.errstate(all="ignore"):
        for place in np.ndindex(indices.shape[:-1]):
            where = tuple(indices[place])
            y[where] = combine(y[where], updates[place])
    return [y]


_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new, "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _top_k(o: Operands) -> Sequence[TensorType]:
    x, k = o.type(0), o.attrs["k"]
    axis = normalize_axis(o, o.attrs["axis"], x.rank)
    o.expect(not isinstance(k, int) or k >= 0, f"k is {k}")
    size = x.shape[axis]
    o.expect(not (isinstance(k, int) and isinstance(size, int)) or k <= size, f"k is {k}, more than {size}")
    return [TensorType(DType.i64, tuple(k if i == axis else d for i, d in enumerate(x.shape)))]


def top_k(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """The indices of the k largest (or smallest) elements along an axis, the best first, of equals the first.

    NaN is larger than every number.
    """
    x, axis = args[0], attrs["axis"]
    rows = np.moveaxis(x, axis, -1)
    if rows.dtype.kind == "b":
        rows = rows.astype(np.uint8)
    rank = np.unique(rows, return_inverse=True, equal_nan=True)[1].reshape(rows.shape).astype(np.int64)
    order = np.argsort(-rank if attrs["largest"] else rank, axis=-1, kind="stable")
    return [np.ascontiguousarray(np.moveaxis(order[..., :attrs["k"]], -1, axis)).astype(np.int64)]


def _nonzero(o: Operands) -> Sequence[TensorType]:
    x, count = o.type(0), o.attrs["count"]
    o.expect(x.rank > 0, "expected an operand with axes")
    return [TensorType(DType.i64, (x.rank, count))]


register(OpDef("nonzero", "x", _nonzero, lambda a, k: [np.array(np.nonzero(a[0]), np.int64)],
               {"count": AttrSpec("dim")},
               doc="The indices [rank, count] of elements that are not 0; `count` is a size of its own. Import leaves "
                   "none in a graph."))
def _span(o: Operands) -> Sequence[TensorType]:
    o.expect(o.type(0) == o.type(1) == TensorType(DType.i64, ()), "expected start and end as i64[]")
    return [TensorType(DType.i64, (o.attrs["count"],))]


register(OpDef("span", "start end", _span, lambda a, k: [np.arange(a[0], a[1])], {"count": AttrSpec("dim")},
               doc="The integers [count] from start on, before end; `count` is a size of its own. Import leaves none."))
register(OpDef("scatter_nd", "x indices updates", _scatter_nd, scatter_nd, {"reduction": AttrSpec("str", "none")},
               doc="x with elements or slices set by index tuples, one after the other."))
register(OpDef("top_k", "x", _top_k, top_k, {
    "k": AttrSpec("dim"), "axis": AttrSpec("int", -1), "largest": AttrSpec("bool", True)},
    doc="The indices of the k best elements along an axis."))
