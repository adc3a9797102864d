"""Pad in all modes."""
from __future__ import annotations

from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, from_size
from q8c.ir.dims import Dim, dim_max, dim_min
from q8c.ir.types import DType


@importer("Pad")
def pad(c: Call) -> Tensor:
    """Elements around the operand, constant or taken from it; negative amounts cut."""
    x = c.input(0)
    mode = c.attr_str("mode", "constant")
    if mode not in ("constant", "edge", "reflect", "wrap"):
        c.fail(f"mode is {mode!r}, expected constant, edge, reflect or wrap")
    before, after = _amounts(c, x)
    x = _crop(c, x, before, after)
    before, after = ([dim_max(p, 0) for p in ps] for ps in (before, after))
    if all(p == 0 for p in [*before, *after]):
        return x
    if mode == "constant":
        return _constant(c, x, before, after)
    for axis, (b, a) in enumerate(zip(before, after, strict=True)):
        if not b == a == 0:
            x = c.emit("gather", x, _source(c, mode, x.shape[axis], b, a), axis=axis)
    return x


def _constant(c: Call, x: Tensor, before: list[Dim], after: list[Dim]) -> Tensor:
    value = c.optional(2) if c.opset >= 11 else None
    if value is not None and (value.known is None or not _fits_float(value)):
        inside = c.builder.broadcast(c.scalar(True, DType.bool), x.shape)
        mask = c.emit("pad", inside, before=tuple(before), after=tuple(after))
        padded = c.emit("pad", x, before=tuple(before), after=tuple(after))
        return c.emit("where", mask, padded, c.builder.reshape(value, ()))
    return c.emit("pad", x, before=tuple(before), after=tuple(after), value=_value(c))


def _fits_float(value: Tensor) -> bool:
    """Whether a number is one that the attribute of `pad` holds, which is a float."""
    return value.known is None or value.is_symbolic or value.dtype.is_float or abs(int(value.known.flat[0])) <= 2**53


def _source(c: Call, mode: str, size: Dim, before: Dim, after: Dim) -> Tensor:
    """Which element each one of a padded axis is."""
    index = c.emit("sub", c.emit("iota", size=before + size + after, dtype=DType.i64), from_size(before))
    last, zero = from_size(size - 1), c.scalar(0, index)
    if mode == "edge":
        return c.emit("min", c.emit("max", index, zero), last)
    if mode == "wrap":
        return c.emit("mod", index, from_size(size))
    period = from_size(dim_max(2 * (size - 1), 1))  # there and back again; an axis of one element is all that one
    along = c.emit("mod", index, period)
    return c.emit("min", along, c.emit("sub", period, along)) if size != 1 else c.emit("mul", along, zero)


def _amounts(c: Call, x: Tensor) -> tuple[list[Dim], list[Dim]]:
    amounts: list[Dim] = c.sizes(1, "the pads") if c.opset >= 11 else list(c.attr_ints("pads") or [])
    axes = c.numbers(3, "axes") if c.has(3) else list(range(x.rank))
    axes = [c.axis(a, x.rank) for a in axes]
    if len(amounts) != 2 * len(axes) or len(set(axes)) < len(axes):
        c.fail(f"{len(amounts)} pads for {len(axes)} axes")
    before: list[Dim] = [0] * x.rank
    after: list[Dim] = [0] * x.rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = amounts[i], amounts[i + len(axes)]
    return before, after


def _crop(c: Call, x: Tensor, before: list[Dim], after: list[Dim]) -> Tensor:
    cut = [(dim_min(b, 0), dim_min(a, 0)) for b, a in zip(before, after, strict=True)]
    sizes = [d + b + a for d, (b, a) in zip(x.shape, cut, strict=True)]
    return c.builder.slice(x, [b * -1 for b, _ in cut], sizes, [1] * x.rank)


def _value(c: Call) -> float:
    if c.opset < 11:
        return c.attr_float("value", 0.0)
    value = c.optional(2)
    if value is None:
        return 0.0
    if value.known is None or value.is_symbolic or value.known.size != 1:
        c.fail(f"the padding value is {value.type}, expected one element")
    return float(value.known.reshape(-1)[0])
