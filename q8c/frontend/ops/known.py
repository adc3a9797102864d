"""Ops whose results have as many elements as their operands' elements say: these must be known at compile time."""
from __future__ import annotations

import numpy as np

from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, constant
from q8c.ir.graph import Array


def _numbers(c: Call, index: int, purpose: str) -> Array:
    x = c.input(index)
    if x.known is None or x.is_symbolic:
        c.unknown(x, purpose)
    return x.known


@importer("NonZero")
def nonzero(c: Call) -> Tensor:
    """The indices of elements that are not zero, an axis a row; how many is a size of its own until it is resolved."""
    x = c.input(0)
    if (x.known is None or x.is_symbolic) and x.rank:
        return c.emit("nonzero", x, count=c.builder.fresh_size("nonzero"))
    return constant(np.array(np.nonzero(np.atleast_1d(_numbers(c, 0, "how many are not zero"))), dtype=np.int64))


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
