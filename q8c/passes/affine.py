"""Integer tensors that are affine in their own positions: `offset + sum(step[axis] * position[axis])`.

Exporters index with such tensors (`arange` unsqueezed, expanded, added up) where they mean a reshape or a slice, and
compare them where the answer is known.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from q8c.ir import DType, Node, Value
from q8c.ir.dims import Dim, compare, floordiv, nonnegative
from q8c.passes.rules import attr

_MOST = 2**31  # larger constants are no positions and sizes, and sums with them may wrap around
_MAX_NODES = 64  # more than any exporter needs for an index, few enough to look at for every comparison


@dataclass(frozen=True)
class Affine:
    """offset + sum(steps[axis] * position[axis]) over positions in `shape`; a step along an axis of size 1 is 0."""

    shape: tuple[Dim, ...]
    offset: Dim
    steps: tuple[Dim, ...]

    def lies_within(self, size: Dim) -> bool:
        """Whether all elements are in [0, size), as far as can be proved."""
        low, high = self.low, self.high
        return low is not None and high is not None and compare(low, -1) == 1 and compare(high, size) == -1

    @property
    def low(self) -> Dim | None:
        """A value no element is below (of a tensor that is not empty); None if the sign of a step is not known."""
        return self._bound(-1)

    @property
    def high(self) -> Dim | None:
        """A value no element is above (of a tensor that is not empty); None if the sign of a step is not known."""
        return self._bound(1)

    def _bound(self, sign: int) -> Dim | None:
        total = self.offset
        for size, step in zip(self.shape, self.steps, strict=True):
            if nonnegative(step * sign):
                total = total + step * (size - 1)
            elif not nonnegative(step * -sign):
                return None
        return total

    def counted(self) -> tuple[Dim, ...] | None:
        """The shape with 1 for the axes that do not matter, if along the others the elements count on in order."""
        expected: Dim = 1
        for size, step in zip(self.shape[::-1], self.steps[::-1], strict=True):
            if step != 0:
                if step != expected:
                    return None
                expected = expected * size
        return tuple(1 if step == 0 else size for size, step in zip(self.shape, self.steps, strict=True))


Known: TypeAlias = "dict[Value, Affine | None]"


def affine(value: Value, known: Known | None = None) -> Affine | None:
    """What an i32 or i64 tensor's elements are if they are affine in their positions, else None.

    `known` keeps the answers of one question, since a value may be reached many times. Overflow is not looked at:
    sizes and positions are far from where it starts, and constants that are not are left out.
    """
    known = {} if known is None else known
    if value not in known:
        known[value] = None  # counts against the limit from here on, so that long chains end
        known[value] = _read(value, known)
    return known[value]


def _read(value: Value, known: Known) -> Affine | None:
    if value.dtype not in (DType.i32, DType.i64) or len(known) > _MAX_NODES:
        return None
    if value.data is not None:
        return _constant(value)
    node = value.producer
    reader = None if node is None else _READERS.get(node.op)
    return None if node is None or reader is None else reader(node, known)


def _make(shape: Sequence[Dim], offset: Dim, steps: Sequence[Dim]) -> Affine:
    return Affine(tuple(shape), offset, tuple(0 if n == 1 else s for n, s in zip(shape, steps, strict=True)))


def _constant(value: Value) -> Affine | None:
    data = value.array()
    if data.size == 0:
        return None
    offset = int(data.reshape(-1)[0])
    steps = [int(np.take(data, 1, axis).reshape(-1)[0]) - offset if n > 1 else 0 for axis, n in enumerate(data.shape)]
    if any(abs(n) >= _MOST for n in (offset, *steps)):
        return None
    expected = np.full(data.shape, offset, dtype=np.int64)
    for axis, step in enumerate(steps):
        expected += step * np.arange(data.shape[axis]).reshape([-1 if a == axis else 1 for a in range(data.ndim)])
    return _make(value.shape, offset, steps) if np.array_equal(expected, data) else None


def _iota(node: Node, known: Known) -> Affine | None:
    return _make(node.output.shape, 0, (1,))


def _sizes(node: Node, known: Known) -> Affine | None:
    values = attr(node, "values")
    return _make((1,), values[0], (0,)) if len(values) == 1 else None


def _cast(node: Node, known: Known) -> Affine | None:
    return affine(node.input(0), known)


def _reshape(node: Node, known: Known) -> Affine | None:
    """Adds and drops axes of size 1; merging or splitting axes is affine only for what counts on in order."""
    x = affine(node.input(0), known)
    if x is None:
        return None
    shape = node.output.shape
    kept = [(n, s) for n, s in zip(x.shape, x.steps, strict=True) if n != 1]
    if [n for n, _ in kept] == [n for n in shape if n != 1]:
        steps = iter([s for _, s in kept])
        return _make(shape, x.offset, [0 if n == 1 else next(steps) for n in shape])
    if x.counted() == x.shape:
        return _make(shape, x.offset, row_major(shape))
    return None


def row_major(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """How far apart neighbours along each axis lie in a dense array."""
    strides: list[Dim] = []
    stride: Dim = 1
    for size in reversed(shape):
        strides.insert(0, stride)
        stride = stride * size
    return tuple(strides)


def _broadcast(node: Node, known: Known) -> Affine | None:
    x = affine(node.input(0), known)
    return None if x is None else _stretch(x, node.output.shape)


def _stretch(x: Affine, shape: tuple[Dim, ...]) -> Affine:
    return _make(shape, x.offset, (0,) * (len(shape) - len(x.shape)) + x.steps)


def _transpose(node: Node, known: Known) -> Affine | None:
    x = affine(node.input(0), known)
    perm = attr(node, "perm")
    return None if x is None else _make(node.output.shape, x.offset, [x.steps[p] for p in perm])


def _slice(node: Node, known: Known) -> Affine | None:
    x = affine(node.input(0), known)
    if x is None:
        return None
    offset = x.offset
    for start, step in zip(attr(node, "starts"), x.steps, strict=True):
        offset = offset + start * step
    steps = [a * b for a, b in zip(x.steps, attr(node, "steps"), strict=True)]
    return _make(node.output.shape, offset, steps)


def _linear(sign: int) -> Callable[[Node, Known], Affine | None]:
    def reader(node: Node, known: Known) -> Affine | None:
        a, b = affine(node.input(0), known), affine(node.input(1), known)
        if a is None or b is None:
            return None
        shape = node.output.shape
        a, b = _stretch(a, shape), _stretch(b, shape)
        return _make(shape, a.offset + b.offset * sign,
                     [x + y * sign for x, y in zip(a.steps, b.steps, strict=True)])
    return reader


def _mul(node: Node, known: Known) -> Affine | None:
    a, b = affine(node.input(0), known), affine(node.input(1), known)
    if a is None or b is None:
        return None
    if any(s != 0 for s in b.steps):
        a, b = b, a
    if any(s != 0 for s in b.steps):
        return None
    a = _stretch(a, node.output.shape)
    return _make(a.shape, a.offset * b.offset, [s * b.offset for s in a.steps])


def _div(node: Node, known: Known) -> Affine | None:
    """Exact quotients of single sizes, such as `heads * 32 / 32`."""
    a, b = affine(node.input(0), known), affine(node.input(1), known)
    if a is None or b is None or any(s != 0 for s in a.steps + b.steps) or b.offset == 0:
        return None
    if not isinstance(b.offset, int):
        return None  # it may be 0 at run time
    quotient = floordiv(a.offset, b.offset)
    return _make(node.output.shape, quotient, (0,) * len(node.output.shape)) if (
        quotient * b.offset == a.offset) else None


def _extreme(sign: int) -> Callable[[Node, Known], Affine | None]:
    def reader(node: Node, known: Known) -> Affine | None:
        """max (sign 1) or min (-1) where one operand is never the other's lesser (greater)."""
        a, b = affine(node.input(0), known), affine(node.input(1), known)
        if a is None or b is None:
            return None
        order = never_below(a, b) if sign > 0 else never_below(b, a)
        if order:
            return _stretch(a, node.output.shape)
        order = never_below(b, a) if sign > 0 else never_below(a, b)
        return _stretch(b, node.output.shape) if order else None
    return reader


def difference(a: Affine, b: Affine) -> Affine:
    """a - b with broadcasting."""
    rank = max(len(a.shape), len(b.shape))
    shapes = [(1,) * (rank - len(x.shape)) + x.shape for x in (a, b)]
    shape = tuple(n if n != 1 else m for n, m in zip(*shapes, strict=True))
    a, b = _stretch(a, shape), _stretch(b, shape)
    return _make(shape, a.offset - b.offset, [x - y for x, y in zip(a.steps, b.steps, strict=True)])


def never_below(a: Affine, b: Affine) -> bool:
    """Whether a >= b holds for all pairs of elements that meet, as far as can be proved."""
    low = difference(a, b).low
    return low is not None and compare(low, -1) == 1


def never_above(a: Affine, b: Affine) -> bool:
    """Whether a <= b holds for all pairs of elements that meet, as far as can be proved."""
    return never_below(b, a)


def above(a: Affine, b: Affine) -> bool:
    """Whether a > b holds for all pairs of elements that meet, as far as can be proved."""
    low = difference(a, b).low
    return low is not None and compare(low, 0) == 1


_READERS: dict[str, Callable[[Node, Known], Affine | None]] = {
    "iota": _iota, "sizes": _sizes, "cast": _cast, "reshape": _reshape, "broadcast_to": _broadcast,
    "transpose": _transpose, "slice": _slice, "add": _linear(1), "sub": _linear(-1), "mul": _mul, "div": _div,
    "max": _extreme(1), "min": _extreme(-1)}
