"""Resize and Upsample: an axis at a time, by a gather or by a matrix of weights made at compile time."""
from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, constant
from q8c.ir.graph import Array
from q8c.ir.types import DType

_LIMIT = 1 << 24  # elements of a matrix of weights


@importer("Upsample")
def upsample(c: Call) -> Tensor:
    """Resize of opset 9 and before."""
    x = c.input(0)
    scales = [float(s) for s in (c.attr("scales", "FLOATS") or [])] if not c.has(1) else _floats(c, 1)
    sizes = [math.floor(d * s) for d, s in zip(_fixed(c, x), scales, strict=True)]
    mode = c.attr_str("mode", "nearest")
    return _resized(c, x, mode, {i: (n, s) for i, (n, s) in enumerate(zip(sizes, scales, strict=True))},
                    "asymmetric", [], "floor")


@importer("Resize", since=10)
def old_resize(c: Call) -> Tensor:
    """Resize of opset 10: scales alone, elements where they are divided by them."""
    x, scales = c.input(0), _floats(c, 1)
    sizes = [math.floor(d * s) for d, s in zip(_fixed(c, x), scales, strict=True)]
    return _resized(c, x, c.attr_str("mode", "nearest"),
                    {i: (n, s) for i, (n, s) in enumerate(zip(sizes, scales, strict=True))}, "asymmetric", [], "floor")


@importer("Resize", since=11)
def resize(c: Call) -> Tensor:
    """x in other sizes: the nearest, linear or cubic interpolation of its elements."""
    x = c.input(0)
    shape = _fixed(c, x)
    axes = [c.axis(a, x.rank) for a in c.attr_ints("axes") or range(x.rank)]
    scales = _floats(c, 2) if c.has(2) and c.input(2).type.size != 0 else []
    targets = c.numbers(3, "the sizes") if c.has(3) and c.input(3).type.size != 0 else []
    if bool(scales) == bool(targets) or len(scales or targets) != len(axes):
        c.fail(f"{len(scales)} scales and {len(targets)} sizes for {len(axes)} axes; expected one of them for each")
    if targets:
        targets = _keeping_ratio(c, targets, [shape[a] for a in axes])
        plan = {a: (n, n / shape[a]) for a, n in zip(axes, targets, strict=True)}
    else:
        plan = {a: (math.floor(Fraction(s) * shape[a]), s) for a, s in zip(axes, scales, strict=True)}
    place = c.attr_str("coordinate_transformation_mode", "half_pixel")
    region = _floats(c, 1) if place == "tf_crop_and_resize" else []
    return _resized(c, x, c.attr_str("mode", "nearest"), plan, place, region,
                    c.attr_str("nearest_mode", "round_prefer_floor"))


def _keeping_ratio(c: Call, sizes: list[int], shape: list[int]) -> list[int]:
    """The sizes, or those of the image's own ratio that are no larger or no smaller."""
    policy = c.attr_str("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return sizes
    ratios = [Fraction(n, d) for n, d in zip(sizes, shape, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [math.floor(scale * d + Fraction(1, 2)) for d in shape]


def _fixed(c: Call, x: Tensor) -> list[int]:
    shape = [d for d in x.shape if isinstance(d, int)]
    if len(shape) < x.rank:
        c.unsupported(f"an image of varying size {x.type}")
    return shape


def _floats(c: Call, index: int) -> list[float]:
    x = c.input(index)
    if x.known is None or x.is_symbolic:
        c.unknown(x, "its scales")
    return [float(v) for v in x.known.reshape(-1)]


def _resized(c: Call, x: Tensor, mode: str, plan: dict[int, tuple[int, float]], place: str, region: list[float],
             rounding: str) -> Tensor:
    """x with new sizes and scales for some axes; `region` has starts and ends of the axes, in parts of them."""
    if mode not in ("nearest", "linear", "cubic"):
        c.fail(f"mode is {mode!r}, expected nearest, linear or cubic")
    outside: Tensor | None = None
    for number, (axis, (size, scale)) in enumerate(plan.items()):
        old = x.shape[axis]
        assert isinstance(old, int)
        ends = (region[number], region[number + len(plan)]) if region else (0.0, 1.0)
        if size == old and scale == 1 and not region:
            continue
        at = _coordinates(c, place, old, size, scale, ends)
        if region:
            outside = _beyond(c, at, old, axis, x.rank, outside)
        if mode == "nearest":
            x = c.emit("gather", x, constant(_nearest(c, at, old, rounding)), axis=axis)
        else:
            x = _weighted(c, x, axis, _weights(c, mode, at, old, scale))
    if outside is None:
        return x
    return c.emit("where", outside, c.scalar(c.attr_float("extrapolation_value", 0.0), x), x)


def _coordinates(c: Call, place: str, old: int, size: int, scale: float, ends: tuple[float, float]) -> Array:
    """Where each new element is among the old ones."""
    i = np.arange(size, dtype=np.float64)
    exact = scale * old  # the new size, which a scale need not make whole
    start, end = ends
    rules: dict[str, Callable[[], Array]] = {
        "half_pixel": lambda: (i + 0.5) / scale - 0.5, "asymmetric": lambda: i / scale,
        "half_pixel_symmetric": lambda: old / 2 * (1 - size / exact) + (i + 0.5) / scale - 0.5,
        "pytorch_half_pixel": lambda: (i + 0.5) / scale - 0.5 if size > 1 else i * 0,
        "align_corners": lambda: i * (old - 1) / (exact - 1) if exact != 1 else i * 0,
        "tf_crop_and_resize": lambda: start * (old - 1) + i * (end - start) * (old - 1) / (exact - 1) if exact > 1
        else i * 0 + (start + end) * (old - 1) / 2}
    if place not in rules:
        c.fail(f"coordinate_transformation_mode is {place!r}, expected one of {', '.join(rules)}")
    return rules[place]()


def _beyond(c: Call, at: Array, old: int, axis: int, rank: int, before: Tensor | None) -> Tensor:
    """Which elements are outside of the old ones along this axis or those before."""
    here = constant(((at < 0) | (at > old - 1)).reshape([-1 if i == axis else 1 for i in range(rank)]))
    return here if before is None else c.emit("or", before, here)


def _nearest(c: Call, at: Array, old: int, rounding: str) -> Array:
    rules: dict[str, Callable[[], Array]] = {
        "floor": lambda: np.floor(at), "ceil": lambda: np.ceil(at), "round_prefer_ceil": lambda: np.floor(at + 0.5),
        "round_prefer_floor": lambda: np.ceil(at - 0.5)}
    if rounding not in rules:
        c.fail(f"nearest_mode is {rounding!r}, expected one of {', '.join(rules)}")
    return np.asarray(np.clip(rules[rounding](), 0, old - 1)).astype(np.int64)


def _weights(c: Call, mode: str, at: Array, old: int, scale: float) -> Array:
    """[old, new]: what each old element counts in each new one; those beyond the ends are the ones at the ends."""
    if old * at.size > _LIMIT:
        c.unsupported(f"an axis of {old} elements as {at.size}")
    smooth = bool(c.attr_int("antialias", 0)) and scale < 1
    shrink = scale if smooth else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / shrink)
    first = np.floor(at).astype(np.int64) - reach + 1
    taps = first[:, None] + np.arange(2 * reach)
    away = np.abs(taps - at[:, None]) * shrink
    factors = np.maximum(0, 1 - away) if mode == "linear" else _cubic(away, c.attr_float("cubic_coeff_a", -0.75))
    if c.attr_int("exclude_outside", 0):
        factors = np.where((taps >= 0) & (taps < old), factors, 0)
    if c.attr_int("exclude_outside", 0) or smooth:
        factors = factors / factors.sum(1, keepdims=True)
    table = np.zeros((old, at.size))
    np.add.at(table, (np.clip(taps, 0, old - 1), np.arange(at.size)[:, None]), factors)
    return table


def _cubic(x: Array, a: float) -> Array:
    """Keys' kernel (IEEE Transactions on Acoustics 29, 1981) for distances x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.asarray(np.where(x <= 1, near, np.where(x < 2, far, 0)))


def _weighted(c: Call, x: Tensor, axis: int, table: Array) -> Tensor:
    """x times a matrix along an axis."""
    wide = x if x.dtype.is_float else c.builder.cast(x, DType.f32)
    order = [i for i in range(x.rank) if i != axis]
    rows = c.builder.transpose(wide, (*order, axis))
    flat = c.builder.reshape(rows, (1, *rows.shape)) if x.rank == 1 else rows
    y = c.emit("matmul", flat, constant(table.astype(wide.dtype.numpy)))
    y = c.builder.reshape(y, (*rows.shape[:-1], table.shape[1]))
    back = [order.index(i) if i != axis else x.rank - 1 for i in range(x.rank)]
    y = c.builder.transpose(y, back)
    return y if x.dtype.is_float else c.builder.cast(c.emit("round", y), x.dtype)
