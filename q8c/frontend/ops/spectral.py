"""Fourier transforms as products with a matrix, constant where the length is: DFT, STFT."""
from __future__ import annotations

import math

import numpy as np

from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, constant, from_size
from q8c.ir.dims import Dim, floordiv
from q8c.ir.graph import Array
from q8c.ir.types import DType

_LIMIT = 1 << 24  # elements of a matrix


@importer("DFT", since=17)
def old_dft(c: Call) -> Tensor:
    """DFT with the axis as an attribute."""
    return _dft(c, c.attr_int("axis", 1))


@importer("DFT", since=20)
def dft(c: Call) -> Tensor:
    """The Fourier transform along an axis of numbers, real or complex (the last axis)."""
    return _dft(c, c.numbers(2, "the axis")[0] if c.has(2) else -2)


def _dft(c: Call, given: int) -> Tensor:
    x = c.input(0)
    axis = c.axis(given, x.rank)
    if axis == x.rank - 1:
        c.fail(f"axis {given} is that of real and imaginary parts")
    if c.attr_int("inverse", 0):
        c.unsupported("the inverse transform")
    size = x.shape[axis]
    length = c.sizes(1, "the length")[0] if c.has(1) else size
    if isinstance(size, int) and isinstance(length, int) and size < length:
        after = tuple(length - size if i == axis else 0 for i in range(x.rank))
        x = c.emit("pad", x, before=(0,) * x.rank, after=after)
    x = c.builder.slice_axis(x, axis, 0, length)
    order = [*(i for i in range(x.rank) if i not in (axis, x.rank - 1)), axis, x.rank - 1]
    y = transformed(c, c.builder.transpose(x, order), length, bool(c.attr_int("onesided", 0)))
    return c.builder.transpose(y, [order.index(i) for i in range(x.rank)])


def transformed(c: Call, x: Tensor, length: Dim, onesided: bool) -> Tensor:
    """[..., bins, 2] of x [..., length, 1 or 2]."""
    *lead, _, parts = x.shape
    if parts not in (1, 2) or not x.dtype.is_float:
        c.fail(f"expected floats, their real and imaginary parts along the last axis, got {x.type}")
    assert isinstance(parts, int)
    bins = floordiv(length, 2) + 1 if onesided else length
    if isinstance(length, int):
        table = constant(_matrix(c, length, parts, onesided).astype(x.dtype.numpy))
    else:
        table = c.builder.cast(_computed_matrix(c, length, bins, parts), x.dtype)
    rows = c.builder.reshape(x, (*(lead or [1]), length * parts))
    rows = c.builder.reshape(rows, (1, *rows.shape)) if rows.rank < 2 else rows
    return c.builder.reshape(c.emit("matmul", rows, table), (*lead, bins, 2))


def _matrix(c: Call, length: int, parts: int, onesided: bool) -> Array:
    """[length * parts, bins * 2]: what each part of a number counts in the parts of a bin."""
    bins = length // 2 + 1 if onesided else length
    if length * parts * bins * 2 > _LIMIT or length < 1:
        c.unsupported(f"a length of {length}")
    turns = np.outer(np.arange(length), np.arange(bins)) % length / length  # exact before the angle is rounded
    real, imaginary = np.cos(2 * math.pi * turns), -np.sin(2 * math.pi * turns)
    table = np.stack([np.stack([real, imaginary], -1), np.stack([-imaginary, real], -1)], 1)
    return np.asarray(table[:, :parts].reshape(length * parts, bins * 2))


def _computed_matrix(c: Call, length: Dim, bins: Dim, parts: int) -> Tensor:
    """The same for a length that varies, f32, made when it is known."""
    place, bin_ = (c.builder.reshape(c.emit("iota", size=n, dtype=DType.i64), shape)
                   for n, shape in ((length, (length, 1, 1, 1)), (bins, (1, 1, bins, 1))))
    turns = c.builder.cast(c.emit("mod", c.emit("mul", place, bin_), from_size(length)), DType.f32)
    turns = c.emit("div", turns, c.builder.cast(from_size(length), DType.f32))
    angle = c.emit("mul", turns, c.scalar(2 * math.pi, DType.f32))
    real, sine = c.emit("cos", angle), c.emit("sin", angle)
    imaginary = c.emit("neg", sine)
    table = c.emit("concat", real, imaginary, axis=3)
    if parts == 2:
        table = c.emit("concat", table, c.emit("concat", sine, real, axis=3), axis=1)
    return c.builder.reshape(table, (length * parts, bins * 2))


@importer("STFT", since=17)
def stft(c: Call) -> Tensor:
    """The Fourier transforms of windows of the signal, `frame_step` apart."""
    signal, window = c.input(0), c.optional(2)
    step = c.numbers(1, "frame_step")[0]
    if c.has(3):
        length = c.numbers(3, "frame_length")[0]
    else:
        size = signal.shape[1] if window is None else window.shape[0]
        length = size if isinstance(size, int) else c.unsupported(f"a length of {size}; it must be the same always")
    if signal.rank != 3 or step < 1 or length < 1:
        c.fail(f"expected [batch, length, 1 or 2], a step and a length, got {signal.type}, {step} and {length}")
    frames = floordiv(signal.shape[1] - length, step) + 1
    starts = c.emit("mul", c.emit("iota", size=frames, dtype=DType.i64), c.scalar(step, DType.i64))
    places = c.emit("add", c.builder.reshape(starts, (frames, 1)), c.emit("iota", size=length, dtype=DType.i64))
    x = c.emit("gather", signal, places, axis=1)
    if window is not None:
        x = c.emit("mul", x, c.builder.reshape(window, (length, 1)))
    return transformed(c, x, length, bool(c.attr_int("onesided", 1)))
