"""Resize and Upsample: an axis at a time, from the nearest elements or from a few weighted ones.

Sizes may vary: where each new element is among the old ones is arithmetic in float64, done at compile time where all
sizes are known.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import TypeVar

import numpy as np

from q8c.frontend.numbers import Numbers
from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, constant
from q8c.ir.dims import Dim, floordiv
from q8c.ir.graph import Array
from q8c.ir.types import DType

_LIMIT = 1 << 24  # elements of a matrix of weights
_Distances = TypeVar("_Distances", Array, Numbers)


@dataclass(frozen=True)
class _Axis:
    """An axis of a size that becomes another; `scale` is how much longer, if the sizes do not say."""

    axis: int
    old: Dim
    new: Dim
    scale: float | None
    region: tuple[float, float] | None


@importer("Upsample")
def upsample(c: Call) -> Tensor:
    """Resize of opset 9 and before."""
    scales = [float(s) for s in (c.attr("scales", "FLOATS") or [])] if not c.has(1) else _scales(c, 1)
    return _asymmetric(c, scales)


@importer("Resize", since=10)
def old_resize(c: Call) -> Tensor:
    """Resize of opset 10: scales alone, elements where they are divided by them."""
    return _asymmetric(c, _scales(c, 1))


def _asymmetric(c: Call, scales: list[float]) -> Tensor:
    x = c.input(0)
    axes = [_Axis(a, d, _scaled(d, s), s, None) for a, (d, s) in enumerate(zip(x.shape, scales, strict=True))]
    return _resized(c, x, c.attr_str("mode", "nearest"), axes, "asymmetric", "floor")


@importer("Resize", since=11)
def resize(c: Call) -> Tensor:
    """x in other sizes: the nearest, linear or cubic interpolation of its elements."""
    x = c.input(0)
    axes = [c.axis(a, x.rank) for a in c.attr_ints("axes") or range(x.rank)]
    scales = _scales(c, 2) if c.has(2) and c.input(2).type.size != 0 else []
    targets = c.sizes(3, "the sizes") if c.has(3) and c.input(3).type.size != 0 else []
    if bool(scales) == bool(targets) or len(scales or targets) != len(axes):
        c.fail(f"{len(scales)} scales and {len(targets)} sizes for {len(axes)} axes; expected one of them for each")
    place = c.attr_str("coordinate_transformation_mode", "half_pixel")
    region = _floats(c, 1) if place == "tf_crop_and_resize" else []
    if region and len(region) != 2 * len(axes):
        c.fail(f"{len(region)} numbers in roi for {len(axes)} axes")
    old = [x.shape[a] for a in axes]
    new = _keeping_ratio(c, targets, old) if targets else [_scaled(d, s) for d, s in zip(old, scales, strict=True)]
    plan = [_Axis(axis, old[i], new[i], scales[i] if scales else None,
                  (region[i], region[i + len(axes)]) if region else None) for i, axis in enumerate(axes)]
    return _resized(c, x, c.attr_str("mode", "nearest"), plan, place, c.attr_str("nearest_mode", "round_prefer_floor"))


def _scaled(size: Dim, scale: float) -> Dim:
    exact = Fraction(scale)
    return floordiv(size * exact.numerator, exact.denominator)


def _keeping_ratio(c: Call, new: list[Dim], old: list[Dim]) -> list[Dim]:
    """The sizes, or those of the image's own ratio that are no larger or no smaller."""
    policy = c.attr_str("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return new
    ratios = [Fraction(n, d) for n, d in zip(new, old, strict=True) if isinstance(n, int) and isinstance(d, int)]
    if len(ratios) < len(new):
        c.unsupported(f"keep_aspect_ratio_policy {policy} for sizes that vary")
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [math.floor(scale * d + Fraction(1, 2)) for d in old if isinstance(d, int)]


def _scales(c: Call, index: int) -> list[float]:
    """Numbers above 0."""
    found = _floats(c, index)
    if not all(0 < s < math.inf for s in found):
        c.fail(f"the scales are {found}, expected numbers above 0")
    return found


def _floats(c: Call, index: int) -> list[float]:
    x = c.input(index)
    if x.known is None or x.is_symbolic:
        c.unknown(x, "its scales")
    return [float(v) for v in x.known.reshape(-1)]


def _resized(c: Call, x: Tensor, mode: str, plan: list[_Axis], place: str, rounding: str) -> Tensor:
    """x with new sizes of some axes."""
    if mode not in ("nearest", "linear", "cubic"):
        c.fail(f"mode is {mode!r}, expected nearest, linear or cubic")
    outside: Tensor | None = None
    for a in plan:
        if a.old == a.new and a.scale in (None, 1.0) and a.region is None:
            continue
        at = _coordinates(c, place, a)
        if a.region is not None:
            outside = _beyond(c, at, a, x.rank, outside)
        if mode == "nearest":
            x = c.emit("gather", x, _nearest(c, at, a.old, rounding), axis=a.axis)
        elif c.attr_int("antialias", 0) and 0 not in (a.old, a.new) and not (isinstance(a.old, int) and a.old == a.new):
            x = _covered(c, x, a, mode, at)
        else:
            x = _interpolated(c, x, a, mode, at)
    if outside is None:
        return x
    return c.emit("where", outside, c.scalar(c.attr_float("extrapolation_value", 0.0), x), x)


def _coordinates(c: Call, place: str, a: _Axis) -> Numbers:
    """Where each new element is among the old ones."""
    i, old, new = Numbers.iota(c.builder, a.new), Numbers.size(c.builder, a.old), Numbers.size(c.builder, a.new)
    scale = new / old if a.scale is None else Numbers.constant(c.builder, a.scale)
    exact = scale * old  # the new size, which a scale need not make whole
    start, end = a.region or (0.0, 1.0)
    rules: dict[str, Callable[[], Numbers]] = {
        "half_pixel": lambda: (i + 0.5) / scale - 0.5, "asymmetric": lambda: i / scale,
        "half_pixel_symmetric": lambda: old / 2 * (1 - new / exact) + (i + 0.5) / scale - 0.5,
        "pytorch_half_pixel": lambda: (new > 1).choose((i + 0.5) / scale - 0.5, i * 0),
        "align_corners": lambda: exact.is_equal(1).choose(i * 0, i * (old - 1) / (exact - 1)),
        "tf_crop_and_resize": lambda: (exact > 1).choose(
            (old - 1) * start + i * (end - start) * (old - 1) / (exact - 1), i * 0 + (old - 1) * (start + end) / 2)}
    if place not in rules:
        c.fail(f"coordinate_transformation_mode is {place!r}, expected one of {', '.join(rules)}")
    return rules[place]()


def _beyond(c: Call, at: Numbers, a: _Axis, rank: int, before: Tensor | None) -> Tensor:
    """Which elements are outside of the old ones along this axis or those before."""
    either = c.emit("or", (at < 0).tensor, (at > Numbers.size(c.builder, a.old) - 1).tensor)
    here = _along(c, either, a.axis, rank)
    return here if before is None else c.emit("or", before, here)


def _along(c: Call, vector: Tensor, axis: int, rank: int) -> Tensor:
    """A vector as one that broadcasts along an axis."""
    return c.builder.reshape(vector, [vector.shape[0] if i == axis else 1 for i in range(rank)])


def _nearest(c: Call, at: Numbers, old: Dim, rounding: str) -> Tensor:
    rules: dict[str, Callable[[], Numbers]] = {
        "floor": at.floor, "ceil": at.ceil, "round_prefer_ceil": lambda: (at + 0.5).floor(),
        "round_prefer_floor": lambda: (at - 0.5).ceil()}
    if rounding not in rules:
        c.fail(f"nearest_mode is {rounding!r}, expected one of {', '.join(rules)}")
    return rules[rounding]().clip(0, Numbers.size(c.builder, old) - 1).cast(DType.i64)


def _interpolated(c: Call, x: Tensor, a: _Axis, mode: str, at: Numbers) -> Tensor:
    """x along an axis at places between its elements; those beyond the ends are the ones at the ends."""
    wide = x if x.dtype.is_float else c.builder.cast(x, DType.f32)
    reach = 1 if mode == "linear" else 2
    last, first = Numbers.size(c.builder, a.old) - 1, at.floor() - (reach - 1)
    taps = [first + k for k in range(2 * reach)]
    weights = [kernel(mode, (tap - at).abs(), c.attr_float("cubic_coeff_a", -0.75)) for tap in taps]
    if c.attr_int("exclude_outside", 0):
        weights = [((tap > -1) & (tap <= last)).choose(w, 0) for tap, w in zip(taps, weights, strict=True)]
        total = reduce(Numbers.__add__, weights)
        weights = [w / total for w in weights]
    parts = [c.emit("mul", c.emit("gather", wide, tap.clip(0, last).cast(DType.i64), axis=a.axis),
                    _along(c, w.cast(wide.dtype), a.axis, x.rank)) for tap, w in zip(taps, weights, strict=True)]
    y = reduce(lambda p, q: c.emit("add", p, q), parts)
    return y if x.dtype.is_float else c.builder.cast(c.emit("round", y), x.dtype)


def kernel(mode: str, x: _Distances, a: float) -> _Distances:
    """What elements at distances x >= 0 count; cubic: Keys (IEEE Transactions on Acoustics 29, 1981)."""
    if mode == "linear":
        factors: _Distances = (1 - x).clip(0, 1)
        return factors
    near, far = x.clip(0, 1), x.clip(1, 2)  # either polynomial is 0 at the ends of the other's range
    factors = (near * (a + 2) - (a + 3)) * near * near + 1 + ((far * a - 5 * a) * far + 8 * a) * far - 4 * a
    return factors


def _covered(c: Call, x: Tensor, a: _Axis, mode: str, at: Numbers) -> Tensor:
    """x along an axis where a new element is of all old ones it covers, as `antialias` asks for: times a matrix."""
    old, new, known = a.old, a.new, at.tensor.known
    if not isinstance(old, int) or not isinstance(new, int) or known is None:
        c.unsupported(f"antialias for an axis of {old} elements as {new}")
    table = _covering(c, mode, known, old, min(1.0, new / old if a.scale is None else a.scale))
    wide = x if x.dtype.is_float else c.builder.cast(x, DType.f32)
    order = [i for i in range(x.rank) if i != a.axis]
    rows = c.builder.transpose(wide, (*order, a.axis))
    flat = c.builder.reshape(rows, (1, *rows.shape)) if x.rank == 1 else rows
    y = c.emit("matmul", flat, constant(table.astype(wide.dtype.numpy)))
    y = c.builder.reshape(y, (*rows.shape[:-1], table.shape[1]))
    y = c.builder.transpose(y, [order.index(i) if i != a.axis else x.rank - 1 for i in range(x.rank)])
    return y if x.dtype.is_float else c.builder.cast(c.emit("round", y), x.dtype)


def _covering(c: Call, mode: str, at: Array, old: int, shrink: float) -> Array:
    """[old, new]: what each old element counts in each new one; those beyond the ends are the ones at the ends."""
    reach = math.ceil((1 if mode == "linear" else 2) / shrink)
    if max(old, 2 * reach) * at.size > _LIMIT:
        c.unsupported(f"antialias for an axis of {old} elements as {at.size}")
    taps = np.floor(at).astype(np.int64)[:, None] - reach + 1 + np.arange(2 * reach)
    distances: Array = np.abs(taps - at[:, None]) * shrink
    factors = kernel(mode, distances, c.attr_float("cubic_coeff_a", -0.75))
    if c.attr_int("exclude_outside", 0):
        factors = np.where((taps >= 0) & (taps < old), factors, 0)
    table = np.zeros((old, at.size))
    np.add.at(table, (np.clip(taps, 0, old - 1), np.arange(at.size)[:, None]), factors / factors.sum(1, keepdims=True))
    return table
