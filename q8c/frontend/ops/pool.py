"""Pooling: the largest, the mean or the norm of windows, or of all spatial axes."""
from __future__ import annotations

import math

import numpy as np

from q8c.frontend.ops.windows import Windows, windows
from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor
from q8c.ir.dims import product
from q8c.ir.types import DType


def _windows(c: Call, x: Tensor) -> Windows:
    kernel = c.attr_ints("kernel_shape")
    if kernel is None:
        c.fail("attribute kernel_shape is missing")
    return windows(c, x, kernel)


@importer("MaxPool")
def max_pool(c: Call) -> list[Tensor]:
    """The largest element of each window, and where it is in the whole operand if asked for."""
    x = c.input(0)
    w = _windows(c, x)
    lowest = -math.inf if x.dtype.is_float else float(np.iinfo(x.dtype.value).min)
    parts = w.shifted(c, w.padded(c, x, lowest))
    if c.outputs == 1:
        return [_chain(c, "max", parts)]
    values, places = (_stack(c, t) for t in (parts, w.shifted(c, w.padded(c, _places(c, x)))))
    axis = x.rank
    best = c.emit("argmax", values, axes=(axis,), keepdims=True)
    return [c.builder.reshape(c.emit("gather_elements", t, best, axis=axis), t.shape[:-1]) for t in (values, places)]


def _places(c: Call, x: Tensor) -> Tensor:
    """The index of every element in the flattened operand, spatial axes in column-major order if so asked."""
    lead, spatial = x.shape[:2], x.shape[2:]
    if not c.attr_int("storage_order", 0):
        return c.builder.reshape(c.emit("iota", size=x.type.size, dtype=DType.i64), x.shape)
    turned = c.builder.reshape(c.emit("iota", size=x.type.size, dtype=DType.i64), (*lead, *reversed(spatial)))
    return c.builder.transpose(turned, (0, 1, *reversed(range(2, x.rank))))


def _stack(c: Call, parts: list[Tensor]) -> Tensor:
    apart = [c.builder.reshape(t, (*t.shape, 1)) for t in parts]
    return apart[0] if len(apart) == 1 else c.emit("concat", *apart, axis=parts[0].rank)


def _chain(c: Call, op: str, parts: list[Tensor]) -> Tensor:
    found, *rest = parts
    for part in rest:
        found = c.emit(op, found, part)
    return found


@importer("AveragePool")
def average_pool(c: Call) -> Tensor:
    """The mean of each window, of the elements that are there or, with count_include_pad, of the padding too."""
    return mean_of_windows(c, c.input(0))


def mean_of_windows(c: Call, x: Tensor) -> Tensor:
    """What AveragePool makes of x."""
    w = _windows(c, x)
    total = _chain(c, "add", w.shifted(c, w.padded(c, x)))
    if not w.pads:
        return c.emit("div", total, c.scalar(w.size, x))
    include = bool(c.attr_int("count_include_pad", 0))
    sizes = [d + b + a if include else d for d, b, a in zip(x.shape[2:], w.before, w.after, strict=True)]
    ones = c.builder.broadcast(c.scalar(1, x), (1, 1, *sizes))
    return c.emit("div", total, _chain(c, "add", w.shifted(c, w.padded(c, ones, pads=not include))))


@importer("LpPool")
def lp_pool(c: Call) -> Tensor:
    """The p-norm of each window."""
    x = c.input(0)
    w = _windows(c, x)
    p = c.attr_int("p", 2)
    return _root(c, _chain(c, "add", w.shifted(c, w.padded(c, _powers(c, x, p)))), p)


def _powers(c: Call, x: Tensor, p: int) -> Tensor:
    size = c.emit("abs", x)
    return size if p == 1 else c.emit("mul", x, x) if p == 2 else c.emit("pow", size, c.scalar(p, x))


def _root(c: Call, x: Tensor, p: int) -> Tensor:
    return x if p == 1 else c.emit("sqrt", x) if p == 2 else c.emit("pow", x, c.scalar(1 / p, x))


@importer("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(c: Call) -> Tensor:
    """The mean, the largest or the norm over all spatial axes, which stay with size 1."""
    x = c.input(0)
    if x.rank < 2:
        c.fail(f"expected batch and channels, got {x.type}")
    rows = c.builder.reshape(x, (*x.shape[:2], product(x.shape[2:])))
    if c.op == "GlobalLpPool":
        p = c.attr_int("p", 2)
        y = _root(c, c.emit("reduce_sum", _powers(c, rows, p), axes=(2,), keepdims=True), p)
    else:
        y = c.emit("reduce_mean" if c.op == "GlobalAveragePool" else "reduce_max", rows, axes=(2,), keepdims=True)
    return c.builder.reshape(y, (*x.shape[:2], *[1] * (x.rank - 2)))
