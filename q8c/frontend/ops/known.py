"""Ops whose results have as many elements as their operands' elements say: these must be known at compile time."""
from __future__ import annotations

import numpy as np

from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, constant
from q8c.ir.graph import Array, Value
from q8c.ir.ops import OPS, attributes
from q8c.ir.types import DType

_DEEPEST = 20  # nodes from what makes a tensor of one element to where it is looked at


def _numbers(c: Call, index: int, purpose: str) -> Array:
    x = c.input(index)
    if x.known is None or x.is_symbolic:
        c.unknown(x, purpose)
    return x.known


@importer("NonZero")
def nonzero(c: Call) -> Tensor:
    """The indices of elements that are not zero, an axis a row; how many is a size of its own until it is resolved.

    A scalar has no axes, so its result is [0, 1] or [0, 0], which numpy would make a vector of first.
    """
    x = c.input(0)
    if (x.known is None or x.is_symbolic) and x.rank:
        element = None if x.value is None else same_element(x.value)
        if element is None:
            return c.emit("nonzero", x, count=c.builder.fresh_size("nonzero"))
        return every_place(c, x) if element.any() else constant(np.zeros((x.rank, 0), np.int64))
    places = np.argwhere(_numbers(c, 0, "how many are not zero"))
    return constant(np.ascontiguousarray(places.T, dtype=np.int64))


def same_element(value: Value, depth: int = _DEEPEST) -> Array | None:
    """The element [1] that all of a value are, whatever its sizes; None if that is not plain to see."""
    node = value.producer
    if value.data is not None:
        first = value.data.reshape(-1)[:1]
        return first if first.size and (value.data == first).all() else None
    if node is None or not depth or node.op not in ("broadcast_to", "reshape") and not OPS[node.op].elementwise:
        return None
    operands = [same_element(v, depth - 1) for v in node.operands]
    if node.op in ("broadcast_to", "reshape"):
        return operands[0]
    return None if any(x is None for x in operands) else OPS[node.op].reference(operands, attributes(node))[0]


def every_place(c: Call, x: Tensor) -> Tensor:
    """The indices of all elements, an axis a row."""
    def row(axis: int) -> Tensor:
        line = c.emit("iota", size=x.shape[axis], dtype=DType.i64)
        apart = c.builder.reshape(line, tuple(d if i == axis else 1 for i, d in enumerate(x.shape)))
        return c.builder.reshape(c.builder.broadcast(apart, x.shape), (1, x.type.size))

    return c.emit("concat", *map(row, range(x.rank)), axis=0)


@importer("Compress", since=9)
def compress(c: Call) -> Tensor:
    """The slices of an axis, or of the flattened operand, whose condition is true."""
    x, flags = c.input(0), _numbers(c, 1, "the condition")
    given = c.attr("axis", "INT")
    if given is None:
        x = c.builder.reshape(x, (x.type.size,))
    axis = 0 if given is None else c.axis(int(given), x.rank)
    return c.emit("gather", x, constant(np.flatnonzero(flags).astype(np.int64)), axis=axis)


@importer("Unique", since=11)
def unique(c: Call) -> list[Tensor]:
    """The distinct elements or slices, where each was first, which of them each one is, and how often it is there."""
    x = _numbers(c, 0, "how many are distinct")
    given = c.attr("axis", "INT")
    axis = None if given is None else c.axis(int(given), x.ndim)
    values, first, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    inverse = inverse.reshape(-1)
    if not c.attr_int("sorted", 1):
        order = np.argsort(first)
        values = np.take(values, order, axis=0 if axis is None else axis)
        first, counts, inverse = first[order], counts[order], np.argsort(order)[inverse]
    return [constant(values), *(constant(t.astype(np.int64)) for t in (first, inverse, counts))]
