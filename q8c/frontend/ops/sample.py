"""GridSample: an image at places that follow from data, from the nearest element or from a few weighted ones."""
from __future__ import annotations

import itertools
from dataclasses import dataclass

from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, from_size
from q8c.ir.dims import Dim, product
from q8c.ir.types import DType

_MODES = {"bilinear": "linear", "bicubic": "cubic"}  # as they were called before opset 20
_SHARPNESS = -0.75
"""Of cubic interpolation (R. Keys, 1981), as ONNX has it."""


@dataclass(frozen=True)
class _Tap:
    """One element along an axis for each place [batch, places]: its index, its weight (None: 1), and whether it is in
    the image (None: always)."""

    index: Tensor
    weight: Tensor | None
    inside: Tensor | None


@importer("GridSample", since=16)
def grid_sample(c: Call) -> Tensor:
    """y[b, c, ...] = x[b, c, at grid[b, ...]], places being in [-1, 1], the last axis of x first."""
    x, grid = c.input(0), c.input(1)
    if not x.dtype.is_float or not grid.dtype.is_float or x.rank < 3 or grid.rank != x.rank:
        c.unsupported(f"an image {x.type} at {grid.type}; expected floats of one rank, 3 or more")
    axes = x.rank - 2
    if grid.shape[-1] != axes:
        c.fail(f"expected {axes} numbers for each place, got {grid.type}")
    c.builder.same(x.shape[0], grid.shape[0])
    batch, channels, places = x.shape[0], x.shape[1], product(grid.shape[1:-1])
    flat = c.builder.reshape(c.builder.cast(grid, x.dtype), (batch, places, axes))
    taps = [_taps(c, c.builder.reshape(c.builder.slice_axis(flat, 2, axes - 1 - axis, 1), (batch, places)), size)
            for axis, size in enumerate(x.shape[2:])]
    rows = c.builder.transpose(x, (0, *range(2, x.rank), 1))
    rows = c.builder.reshape(rows, (batch, product(x.shape[2:]), channels))
    total: Tensor | None = None
    for chosen in itertools.product(*taps):
        y = _picked(c, rows, chosen, x.shape[2:])
        total = y if total is None else c.emit("add", total, y)
    assert total is not None
    return c.builder.reshape(c.builder.transpose(total, (0, 2, 1)), (batch, channels, *grid.shape[1:-1]))


def _picked(c: Call, rows: Tensor, taps: tuple[_Tap, ...], sizes: tuple[Dim, ...]) -> Tensor:
    """[batch, places, channels] of rows [batch, elements, channels]: the element that one tap of each axis names, times
    their weights."""
    index, weight, inside = taps[0].index, taps[0].weight, taps[0].inside
    for tap, size in zip(taps[1:], sizes[1:], strict=True):
        index = c.emit("add", c.emit("mul", index, from_size(size)), tap.index)
        if weight is not None and tap.weight is not None:
            weight = c.emit("mul", weight, tap.weight)
        if inside is not None and tap.inside is not None:
            inside = c.emit("and", inside, tap.inside)
    y = c.emit("gather_nd", rows, c.builder.reshape(index, (*index.shape, 1)), batch_dims=1)
    if inside is not None:
        y = c.emit("where", c.builder.reshape(inside, (*inside.shape, 1)), y, c.scalar(0, y))
    return y if weight is None else c.emit("mul", y, c.builder.reshape(weight, (*weight.shape, 1)))


def _taps(c: Call, place: Tensor, size: Dim) -> list[_Tap]:
    """The elements along an axis that places in [-1, 1] are made of."""
    mode = c.attr_str("mode", "bilinear" if c.opset < 20 else "linear")
    mode, padding = _MODES.get(mode, mode), c.attr_str("padding_mode", "zeros")
    if mode not in ("nearest", "linear", "cubic") or padding not in ("zeros", "border", "reflection"):
        c.unsupported(f"mode {mode!r} with padding {padding!r}")
    axis = _Axis(c, size, place, bool(c.attr_int("align_corners", 0)), padding)
    at = axis.place(place)
    if mode == "nearest":
        return [axis.tap(axis.within(c.emit("round", at)), None)]
    at = at if mode == "cubic" else axis.within(at)  # there each of four comes back by itself, as in PyTorch
    first = c.emit("floor", at)
    part = c.emit("sub", at, first)
    weights = _cubic(c, part) if mode == "cubic" else [c.emit("sub", c.scalar(1, part), part), part]
    before = 1 if mode == "cubic" else 0
    return [axis.tap(c.emit("add", first, c.scalar(n - before, at)), w) for n, w in enumerate(weights)]


def _cubic(c: Call, part: Tensor) -> list[Tensor]:
    """The weights of four neighbours of a place `part` behind the second."""
    def polynomial(x: Tensor, *factors: float) -> Tensor:
        total = c.scalar(factors[0], x)
        for factor in factors[1:]:
            total = c.emit("add", c.emit("mul", total, x), c.scalar(factor, x))
        return total

    a, rest = _SHARPNESS, c.emit("sub", c.scalar(1, part), part)
    far, near = (a, -5 * a, 8 * a, -4 * a), (a + 2, -(a + 3), 0, 1)
    return [polynomial(c.emit("add", part, c.scalar(1, part)), *far), polynomial(part, *near), polynomial(rest, *near),
            polynomial(c.emit("add", rest, c.scalar(1, part)), *far)]


class _Axis:
    """What is done with places along an axis of `size` elements."""

    def __init__(self, c: Call, size: Dim, like: Tensor, corners: bool, padding: str) -> None:
        self.c, self.corners, self.padding = c, corners, padding
        self.size = c.builder.cast(from_size(size), like.dtype)
        self.zero, self.last = c.scalar(0, like), c.emit("sub", self.size, c.scalar(1, like))
        half = c.scalar(0.5, like)
        self.low = self.zero if corners else c.scalar(-0.5, like)
        self.high = self.last if corners else c.emit("sub", self.size, half)

    def place(self, at: Tensor) -> Tensor:
        """Places in [-1, 1] as places among elements 0, 1, ...: -1 and 1 are the outer ones, or their outer borders."""
        c, one, two = self.c, self.c.scalar(1, at), self.c.scalar(2, at)
        at = c.emit("add", at, one)
        if self.corners:
            return c.emit("mul", c.emit("div", at, two), self.last)
        return c.emit("div", c.emit("sub", c.emit("mul", at, self.size), one), two)

    def within(self, at: Tensor) -> Tensor:
        """Places beyond the borders brought back, unless nothing is there."""
        if self.padding == "zeros":
            return at
        c = self.c
        outside = c.emit("or", c.emit("less", at, self.low), c.emit("greater", at, self.high))
        return c.emit("where", outside, self._clamped(at) if self.padding == "border" else self._reflected(at), at)

    def tap(self, at: Tensor, weight: Tensor | None) -> _Tap:
        """The element at a whole place; places that are no number are 0, whose weights are none either."""
        c, inside = self.c, None
        if self.padding == "zeros":
            inside = c.emit("and", c.emit("greater_equal", at, self.zero), c.emit("less_equal", at, self.last))
        elif self.padding == "reflection":
            at = self._reflected(at)
        at = c.emit("where", c.emit("is_nan", at), self.zero, self._clamped(at))
        return _Tap(c.builder.cast(at, DType.i64), weight, inside)

    def _clamped(self, at: Tensor) -> Tensor:
        return self.c.emit("max", self.c.emit("min", at, self.last), self.zero)

    def _reflected(self, at: Tensor) -> Tensor:
        """Places beyond the borders mirrored at them, as often as it takes."""
        c = self.c
        twice = c.emit("mul", c.emit("sub", self.high, self.low), c.scalar(2, at))
        away = c.emit("mod", c.emit("abs", c.emit("sub", at, self.low)), twice)
        return c.emit("add", self.low, c.emit("min", away, c.emit("sub", twice, away)))
