"""Ops that write to places told by indices: ScatterND, ScatterElements, TensorScatter."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from q8c.frontend.ops.movement import as_index
from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, from_elements, from_size
from q8c.ir.dims import Dim
from q8c.ir.ops.select import REDUCTIONS
from q8c.ir.types import DType


@importer("ScatterND", since=11)
def scatter_nd(c: Call) -> Tensor:
    """Elements or slices set by index tuples, or combined with what is there."""
    data, indices, updates = c.input(0), c.builder.cast(as_index(c, c.input(1)), DType.i64), c.input(2)
    reduction = _reduction(c)
    if reduction == "none" and (data.is_symbolic or updates.is_symbolic):
        return _known(c, data, indices, updates)
    return c.emit("scatter_nd", data, indices, updates, reduction=reduction)


def _known(c: Call, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Sizes in a vector of sizes, as exporters write shapes."""
    if data.known is None or updates.known is None or indices.known is None or indices.is_symbolic:
        c.unsupported("sizes together with data computed at run time")
    found = data.known.astype(object)
    try:
        for place in np.ndindex(indices.known.shape[:-1]):
            found[tuple(indices.known[place])] = updates.known.astype(object)[place]
    except (IndexError, ValueError) as error:
        c.fail(str(error))
    return from_elements(found, data.dtype)


def _reduction(c: Call) -> str:
    name = c.attr_str("reduction", "none")
    if name not in REDUCTIONS:
        c.fail(f"reduction is {name!r}, expected one of {', '.join(REDUCTIONS)}")
    return _LOGICAL.get(name, name) if c.input(0).dtype is DType.bool else name


_LOGICAL = {"add": "max", "mul": "min"}
"""Reductions that are the same of truth values, as numpy adds and multiplies them."""


@importer("Scatter", since=9)
@importer("ScatterElements", since=11)
def scatter_elements(c: Call) -> Tensor:
    """x[indices[i, j, …], j, …] set to updates[i, j, …] for axis 0, or combined with what is there."""
    x, indices, updates = c.input(0), c.builder.cast(as_index(c, c.input(1)), DType.i64), c.input(2)
    if not x.rank == indices.rank == updates.rank or not x.rank:
        c.fail(f"expected operands of one rank, got {x.type}, {indices.type} and {updates.type}")
    axis = c.axis(c.attr_int("axis", 0), x.rank)
    rows = _whole_rows(x, indices, updates) if axis == 0 else None
    if rows is not None:
        return c.emit("scatter_nd", x, rows, updates, reduction=_reduction(c))
    columns = [indices if i == axis else position(c, indices.shape, i) for i in range(x.rank)]
    return c.emit("scatter_nd", x, tuples(c, columns), updates, reduction=_reduction(c))


def _whole_rows(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor | None:
    """The index [rows, 1] of each row, where all elements of a row go to the same row of x."""
    node = None if indices.value is None else indices.value.producer
    if x.rank != 2 or x.shape[1] != updates.shape[1] or node is None or node.op != "broadcast_to":
        return None
    source = node.input(0)
    return Tensor(source.type, value=source) if source.shape == (updates.shape[0], 1) else None


@importer("TensorScatter", since=24)
def tensor_scatter(c: Call) -> Tensor:
    """The cache with the update written from an index of each batch on, around the end if circular."""
    cache, update, starts = c.input(0), c.input(1), c.optional(2)
    axis = c.axis(c.attr_int("axis", -2), cache.rank)
    mode = c.attr_str("mode", "linear")
    if axis == 0 or mode not in ("linear", "circular"):
        c.fail(f"axis {axis} and mode {mode!r}; expected an axis behind the batch, linear or circular")
    shape = update.shape[:axis + 1]
    index = position(c, shape, axis)
    if starts is not None:
        first = c.builder.reshape(c.builder.cast(starts, DType.i64), (starts.shape[0], *[1] * axis))
        index = c.emit("add", index, first)
    if mode == "circular":
        index = c.emit("mod", index, from_size(cache.shape[axis]))
    columns = [*(position(c, shape, i) for i in range(axis)), c.builder.broadcast(index, shape)]
    return c.emit("scatter_nd", cache, tuples(c, columns), update)


def position(c: Call, shape: Sequence[Dim], axis: int) -> Tensor:
    """Each element's own index along an axis of a shape."""
    numbers = c.emit("iota", size=shape[axis], dtype=DType.i64)
    apart = [d if i == axis else 1 for i, d in enumerate(shape)]
    return c.builder.broadcast(c.builder.reshape(numbers, apart), shape)


def tuples(c: Call, columns: Sequence[Tensor]) -> Tensor:
    """Index tensors of one shape as tuples along a new last axis."""
    apart = [c.builder.reshape(t, (*t.shape, 1)) for t in columns]
    return apart[0] if len(apart) == 1 else c.emit("concat", *apart, axis=columns[0].rank)
