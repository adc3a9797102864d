"""Convolutions as matrix products of their windows: Conv, ConvInteger, ConvTranspose."""
from __future__ import annotations

from collections.abc import Sequence

from q8c.frontend.ops.windows import MOST_IN_WINDOW, Windows, windows
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
    rows, weights = _rows(c, x, w, group), _weights(c, kernel, w)
    if group == 1:
        y = c.emit("matmul", c.builder.reshape(rows, (*rows.shape[:2], rows.shape[3])),
                   c.builder.transpose(weights, (1, 0)))
        return _image(c, y if bias is None else c.emit("add", y, bias), w)  # the product takes the bias along
    weights = c.builder.reshape(weights, (group, outputs // group, rows.shape[3]))
    y = c.emit("matmul", c.builder.transpose(rows, (0, 2, 1, 3)), c.builder.transpose(weights, (0, 2, 1)))
    y = c.builder.transpose(y, (0, 1, 3, 2))
    return _biased(c, c.builder.reshape(y, (x.shape[0], outputs, *w.counts)), bias)


def _by_group(c: Call, x: Tensor, kernel: Tensor, w: Windows, group: int, bias: Tensor | None) -> Tensor:
    """A product of its own for each group."""
    rows, weights, each = _rows(c, x, w, group), _weights(c, kernel, w), floordiv(kernel.shape[0], group)
    parts = []
    for n in range(group):
        own = c.builder.transpose(c.builder.slice_axis(weights, 0, n * each, each), (1, 0))
        part = c.builder.reshape(c.builder.slice_axis(rows, 2, n, 1), (*rows.shape[:2], rows.shape[3]))
        y = c.emit("matmul", part, own)
        parts.append(y if bias is None else c.emit("add", y, c.builder.slice_axis(bias, 0, n * each, each)))
    return _image(c, c.emit("concat", *parts, axis=2), w)


def _image(c: Call, y: Tensor, w: Windows) -> Tensor:
    """[batch, outputs, *counts] of rows [batch, places, outputs]."""
    return c.builder.reshape(c.builder.transpose(y, (0, 2, 1)), (y.shape[0], y.shape[2], *w.counts))


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


def _rows(c: Call, x: Tensor, w: Windows, group: int) -> Tensor:
    """The windows of padded x [batch, channels, ...] as rows [batch, places, group, elements], these in the order of
    `_weights`."""
    batch, places, channels = x.shape[0], product(w.counts), floordiv(x.shape[1], group)
    if _cut_up(w):
        rows = c.builder.transpose(_pieces(c, x, w), (0, 3, 1, 2))
    else:
        rows = c.builder.reshape(_stacked(c, x, w), (batch, places, w.size, group, channels))
        rows = c.builder.transpose(rows, (0, 1, 3, 2, 4)) if group > 1 else rows
    return c.builder.reshape(rows, (batch, places, group, channels * w.size))


def _weights(c: Call, kernel: Tensor, w: Windows) -> Tensor:
    """The kernel [outputs, channels, *size] as a matrix [outputs, elements of a window]."""
    if not _cut_up(w):
        kernel = c.builder.transpose(kernel, (0, *range(2, kernel.rank), 1))
    return c.builder.reshape(kernel, (kernel.shape[0], product(kernel.shape[1:])))


def _cut_up(w: Windows) -> bool:
    """Whether windows are the image cut up, with channels before places as they come: as patches are embedded."""
    return w.apart and len(w.kernel) > 1


def _stacked(c: Call, x: Tensor, w: Windows) -> Tensor:
    """[batch, *counts, size * channels]: along one axis after the other, what a window holds goes behind its channels.

    Channels come last, so that what is moved lies together. Windows that overlap by whole steps take as many pieces as
    steps, not elements: two of 128 for a window of 256 every 128.
    """
    rows = c.builder.transpose(x, (0, *range(2, x.rank), 1))
    last = len(w.kernel)
    for axis in range(last, 0, -1):
        k, stride, dilation = w.kernel[axis - 1], w.strides[axis - 1], w.dilations[axis - 1]
        count = w.counts[axis - 1]
        if axis == last and dilation == 1 and k % stride == 0:
            k, pieces = k // stride, count + k // stride - 1
            rows = c.builder.slice_axis(rows, axis, 0, pieces * stride)
            rows = c.builder.reshape(rows, (*rows.shape[:axis], pieces, rows.shape[-1] * stride))
            stride = 1
        if k > MOST_IN_WINDOW:
            c.unsupported(f"windows of {k} elements along an axis; expected up to {MOST_IN_WINDOW}")
        parts = [c.builder.slice_axis(rows, axis, i * dilation, count, stride) for i in range(k)]
        rows = parts[0] if k == 1 else c.emit("concat", *parts, axis=last + 1)
    return rows


def _pieces(c: Call, x: Tensor, w: Windows) -> Tensor:
    """x cut into windows that do not overlap: [batch, channels, size, places]."""
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
