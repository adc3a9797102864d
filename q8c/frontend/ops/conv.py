"""Convolutions as matrix products of their windows: Conv, ConvInteger, ConvTranspose."""
from __future__ import annotations

from collections.abc import Sequence

from q8c.frontend.ops.windows import Windows, windows
from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor
from q8c.ir.dims import Dim, floordiv, product
from q8c.ir.types import DType

_FEW = 16
"""Outputs of a group, and elements of a window, from which on a group is worth a product of its own."""
_MANY = 64
"""Outputs of a group from which on windows that overlap are worth writing out, as int8 products have them (a nanosecond
an element) and a float convolution has not (0.011 for each output)."""


@importer("Conv")
def conv(c: Call) -> Tensor:
    """The windows of x as rows, times the kernel as a matrix, plus bias."""
    x, kernel, bias = c.input(0), c.input(1), c.optional(2)
    size = kernel_size(c, x, kernel)
    return convolve(c, x, kernel, windows(c, x, size), c.attr_int("group", 1), bias)


def kernel_size(c: Call, x: Tensor, kernel: Tensor) -> list[int]:
    """The kernel's spatial size, which must be the same for all sizes and as stated."""
    if x.rank < 3 or kernel.rank != x.rank:
        c.fail(f"expected an image and a kernel of one rank, got {x.type} and {kernel.type}")
    size = [d for d in kernel.shape[2:] if isinstance(d, int)]
    if len(size) < x.rank - 2:
        c.unsupported(f"a kernel of varying size {kernel.type}")
    if c.attr_ints("kernel_shape") not in (None, size):
        c.fail(f"kernel_shape {c.attr_ints('kernel_shape')} is not that of {kernel.type}")
    return size


def _biased(c: Call, y: Tensor, bias: Tensor | None) -> Tensor:
    """y plus a number for each channel."""
    return y if bias is None else c.emit("add", y, c.builder.reshape(bias, (bias.shape[0], *[1] * (y.rank - 2))))


def convolve(c: Call, x: Tensor, kernel: Tensor, w: Windows, group: int, bias: Tensor | None = None) -> Tensor:
    """[batch, outputs, *counts] of x [batch, channels, ...], kernel [outputs, channels / group, ...] and bias."""
    outputs, channels = kernel.shape[:2]
    if not isinstance(outputs, int) or group < 1 or outputs % group:
        c.fail(f"{outputs} output channels do not split into {group} groups")
    c.builder.same(x.shape[1], channels * group)
    x = w.padded(c, x)
    if group > 1 and x.dtype is DType.f32 and isinstance(channels, int) and isinstance(outputs, int):
        each, overlap = outputs // group, w.size > 1 and not w.apart
        if (each < _MANY if overlap else min(each, channels * w.size) < _FEW) and w.strides[-1] == 1:
            y = c.emit("conv", x, kernel, groups=group, strides=w.strides, dilations=w.dilations, counts=w.counts)
            return _biased(c, y, bias)
        if each >= _FEW:
            return _by_group(c, x, kernel, w, group, bias)
    if group > 1 and channels == 1 and outputs == group:
        return _biased(c, _each_channel(c, x, kernel, w), bias)
    batch, depth = x.shape[0], channels * w.size
    rows = _pieces(c, x, w) if w.apart else _stacked(c, x, w)  # [batch, channels, size, places]
    places = product(w.counts)
    if group == 1:
        rows = c.builder.reshape(c.builder.transpose(rows, (0, 3, 1, 2)), (batch, places, depth))
        y = c.emit("matmul", rows, c.builder.transpose(c.builder.reshape(kernel, (outputs, depth)), (1, 0)))
        y = y if bias is None else c.emit("add", y, bias)  # before the transpose, where the product takes it along
        return c.builder.reshape(c.builder.transpose(y, (0, 2, 1)), (batch, outputs, *w.counts))
    rows = c.builder.reshape(rows, (batch, group, channels, w.size, places))
    rows = c.builder.reshape(c.builder.transpose(rows, (0, 1, 4, 2, 3)), (batch, group, places, depth))
    weights = c.builder.reshape(kernel, (group, outputs // group, depth))
    y = c.emit("matmul", rows, c.builder.transpose(weights, (0, 2, 1)))
    return _biased(c, c.builder.reshape(c.builder.transpose(y, (0, 1, 3, 2)), (batch, outputs, *w.counts)), bias)


def _by_group(c: Call, x: Tensor, kernel: Tensor, w: Windows, group: int, bias: Tensor | None) -> Tensor:
    """A product of its own for each group."""
    batch, places, (outputs, channels) = x.shape[0], product(w.counts), kernel.shape[:2]
    each, depth = floordiv(outputs, group), channels * w.size
    rows = _pieces(c, x, w) if w.apart else _stacked(c, x, w)
    rows = c.builder.reshape(c.builder.transpose(rows, (0, 3, 1, 2)), (batch, places, depth * group))
    weights = c.builder.reshape(kernel, (outputs, depth))
    parts = []
    for n in range(group):
        own = c.builder.transpose(c.builder.slice_axis(weights, 0, n * each, each), (1, 0))
        y = c.emit("matmul", c.builder.slice_axis(rows, 2, n * depth, depth), own)
        parts.append(y if bias is None else c.emit("add", y, c.builder.slice_axis(bias, 0, n * each, each)))
    y = c.emit("concat", *parts, axis=2)
    return c.builder.reshape(c.builder.transpose(y, (0, 2, 1)), (batch, outputs, *w.counts))


def _each_channel(c: Call, x: Tensor, kernel: Tensor, w: Windows) -> Tensor:
    """Every channel by a kernel of its own: a sum of shifted operands."""
    outputs = kernel.shape[0]
    flat = c.builder.reshape(kernel, (outputs, w.size))
    total: Tensor | None = None
    for i, part in enumerate(w.shifted(c, x)):
        weight = c.builder.reshape(c.builder.slice_axis(flat, 1, i, 1), (outputs, *[1] * len(w.kernel)))
        term = c.emit("mul", part, weight)
        total = term if total is None else c.emit("add", total, term)
    assert total is not None
    return total


def _stacked(c: Call, x: Tensor, w: Windows) -> Tensor:
    batch, channels, places = *x.shape[:2], product(w.counts)
    parts = [c.builder.reshape(t, (batch, channels, 1, places)) for t in w.shifted(c, x)]
    return parts[0] if len(parts) == 1 else c.emit("concat", *parts, axis=2)


def _pieces(c: Call, x: Tensor, w: Windows) -> Tensor:
    """x cut into windows that do not overlap."""
    n, lead = len(w.kernel), x.shape[:2]
    cut = c.builder.slice(x, [0] * x.rank, [*lead, *(g * k for g, k in zip(w.counts, w.kernel, strict=True))],
                          [1] * x.rank)
    apart = [d for g, k in zip(w.counts, w.kernel, strict=True) for d in (g, k)]
    pieces = c.builder.reshape(cut, (*lead, *apart))
    pieces = c.builder.transpose(pieces, (0, 1, *range(3, 2 * n + 2, 2), *range(2, 2 * n + 2, 2)))
    return c.builder.reshape(pieces, (*lead, w.size, product(w.counts)))


@importer("ConvInteger", since=10)
def conv_integer(c: Call) -> Tensor:
    """The convolution of integers less their zero points, in int32."""
    x, kernel = c.input(0), c.input(1)
    wide = [c.builder.cast(t, DType.i32) for t in (x, kernel)]
    for i in (0, 1):
        zero = c.optional(2 + i)
        if zero is not None:
            spread = (zero.shape[0], *[1] * (x.rank - 1)) if zero.rank and i else ()
            zero = c.builder.reshape(c.builder.cast(zero, DType.i32), spread)
            wide[i] = c.emit("sub", wide[i], zero)
    w = windows(c, x, kernel_size(c, x, kernel))
    return convolve(c, wide[0], wide[1], w, c.attr_int("group", 1))


@importer("ConvTranspose")
def conv_transpose(c: Call) -> Tensor:
    """A convolution of x, its elements `strides` apart with zeros between, with the kernel turned around."""
    x, kernel, bias = c.input(0), c.input(1), c.optional(2)
    size, group, n = kernel_size(c, x, kernel), c.attr_int("group", 1), x.rank - 2
    strides, dilations = (c.attr_ints(name) or [1] * n for name in ("strides", "dilations"))
    more = c.attr_ints("output_padding") or [0] * n
    reach = [(k - 1) * d + 1 for k, d in zip(size, dilations, strict=True)]
    before, after = _cut(c, x, reach, strides, more)
    x = _spread(c, x, strides)
    for i, (r, b, a) in enumerate(zip(reach, before, after, strict=True), 2):
        x = _grown(c, x, i, r - 1 - b, r - 1 - a + more[i - 2])
    channels, outputs = kernel.shape[:2]
    own = floordiv(channels, group)
    turned = c.builder.slice(kernel, [0, 0, *(k - 1 for k in size)], kernel.shape, [1, 1, *[-1] * n])
    turned = c.builder.reshape(turned, (group, own, outputs, *size))
    turned = c.builder.transpose(turned, (0, 2, 1, *range(3, n + 3)))
    turned = c.builder.reshape(turned, (group * outputs, own, *size))
    none, one = (0,) * n, (1,) * n
    counts = tuple(d - r + 1 for d, r in zip(x.shape[2:], reach, strict=True))
    w = Windows(tuple(size), one, tuple(dilations), none, none, none, counts)
    return convolve(c, x, turned, w, group, bias)


def _cut(c: Call, x: Tensor, reach: Sequence[int], strides: Sequence[int],
         more: Sequence[int]) -> tuple[list[Dim], list[Dim]]:
    """What is cut off the full result before and after: the padding of the convolution this one undoes."""
    n, auto = x.rank - 2, c.attr_str("auto_pad", "NOTSET")
    shape: Sequence[Dim] | None = c.attr_ints("output_shape")
    if shape is None and auto.startswith("SAME"):
        shape = [d * s for d, s in zip(x.shape[2:], strides, strict=True)]
    if shape is None:
        pads = [0] * 2 * n if auto == "VALID" else c.attr_ints("pads") or [0] * 2 * n
        return list(pads[:n]), list(pads[n:])
    before: list[Dim] = []
    after: list[Dim] = []
    for d, s, m, r, wanted in zip(x.shape[2:], strides, more, reach, shape[-n:], strict=True):
        total = s * (d - 1) + m + r - wanted
        half = floordiv(total, 2)
        before.append(half if auto == "SAME_UPPER" else total - half)
        after.append(total - before[-1])
    return before, after


def _spread(c: Call, x: Tensor, strides: Sequence[int]) -> Tensor:
    """x with stride - 1 zeros between neighbours."""
    if all(s == 1 for s in strides):
        return x
    lead = x.shape[:2]
    wide = c.builder.reshape(x, (*lead, *(d for size in x.shape[2:] for d in (size, 1))))
    after = (0, 0, *(p for s in strides for p in (0, s - 1)))
    wide = c.emit("pad", wide, before=(0,) * wide.rank, after=after)
    wide = c.builder.reshape(wide, (*lead, *(d * s for d, s in zip(x.shape[2:], strides, strict=True))))
    sizes = [*lead, *((d - 1) * s + 1 for d, s in zip(x.shape[2:], strides, strict=True))]
    return c.builder.slice(wide, [0] * x.rank, sizes, [1] * x.rank)


def _grown(c: Call, x: Tensor, axis: int, before: Dim, after: Dim) -> Tensor:
    """x with zeros along an axis, or without what a negative number cuts off."""
    if not isinstance(before, int) or not isinstance(after, int):
        c.unsupported(f"output_shape or auto_pad over the size {x.shape[axis]}; it must be the same for all sizes")
    cut = max(0, -before)
    x = c.builder.slice_axis(x, axis, cut, x.shape[axis] - cut - max(0, -after))
    pads = [[max(0, p) if i == axis else 0 for i in range(x.rank)] for p in (before, after)]
    return c.emit("pad", x, before=tuple(pads[0]), after=tuple(pads[1])) if any(map(any, pads)) else x
