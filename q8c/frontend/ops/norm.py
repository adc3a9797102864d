"""Normalization by channel: BatchNormalization, InstanceNormalization, LRN."""
from __future__ import annotations

from q8c.frontend.ops.windows import MOST_IN_WINDOW
from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor
from q8c.ir.dims import product


@importer("BatchNormalization")
def batch_normalization(c: Call) -> list[Tensor]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias by channel; in training mode by the batch's own mean and
    variance, and the running ones moved towards them."""
    x, scale, bias, mean, variance = (c.input(i) for i in range(5))
    if x.rank < 1:
        c.fail(f"expected channels, got {x.type}")
    training = c.opset >= 14 and bool(c.attr_int("training_mode", 0))
    running: list[Tensor] = []
    if training:
        axes = tuple(i for i in range(x.rank) if i != 1)
        own = c.emit("reduce_mean", x, axes=axes, keepdims=True)
        centered = c.emit("sub", x, own)
        spread = c.emit("reduce_mean", c.emit("mul", centered, centered), axes=axes, keepdims=True)
        fresh = [c.builder.reshape(t, (x.shape[1],)) for t in (own, spread)]
        momentum = c.attr_float("momentum", 0.9)
        running = [c.emit("add", c.emit("mul", old, c.scalar(momentum, old)), c.emit("mul", new, c.scalar(
            1 - momentum, new))) for old, new in zip((mean, variance), fresh, strict=True)]
        mean, variance = fresh
    epsilon = c.scalar(c.attr_float("epsilon", 1e-5), variance)
    factor = c.emit("div", scale, c.emit("sqrt", c.emit("add", variance, epsilon)))
    factor, bias, mean = (c.builder.reshape(t, (t.shape[0], *[1] * max(0, x.rank - 2))) for t in (factor, bias, mean))
    # the mean is not made part of the bias: what is left of large numbers would be rounded as they are
    return [c.emit("add", c.emit("mul", c.emit("sub", x, mean), factor), bias), *running]


@importer("InstanceNormalization")
def instance_normalization(c: Call) -> Tensor:
    """Every channel of every image normalized by its own mean and variance, times scale, plus bias."""
    x, scale, bias = (c.input(i) for i in range(3))
    if x.rank < 3:
        c.fail(f"expected batch, channels and space, got {x.type}")
    rows = c.builder.reshape(x, (*x.shape[:2], product(x.shape[2:])))
    centered = c.emit("sub", rows, c.emit("reduce_mean", rows, axes=(2,), keepdims=True))
    variance = c.emit("reduce_mean", c.emit("mul", centered, centered), axes=(2,), keepdims=True)
    deviation = c.emit("sqrt", c.emit("add", variance, c.scalar(c.attr_float("epsilon", 1e-5), x)))
    factor, offset = (c.builder.reshape(t, (t.shape[0], 1)) for t in (scale, bias))
    y = c.emit("add", c.emit("mul", c.emit("div", centered, deviation), factor), offset)
    return c.builder.reshape(y, x.shape)


@importer("MeanVarianceNormalization", since=9)
def mean_variance(c: Call) -> Tensor:
    """x less its mean over some axes, by its deviation there.

    ONNX's own definition takes the square of the mean from the mean of squares, which leaves little where the mean is
    far from 0.
    """
    x = c.input(0)
    axes = tuple(c.axes([0, 2, 3] if (given := c.attr_ints("axes")) is None else given, x.rank))
    centered = c.emit("sub", x, c.emit("reduce_mean", x, axes=axes, keepdims=True))
    variance = c.emit("reduce_mean", c.emit("mul", centered, centered), axes=axes, keepdims=True)
    return c.emit("div", centered, c.emit("add", c.emit("sqrt", variance), c.scalar(1e-9, x)))


@importer("LRN")
def local_response(c: Call) -> Tensor:
    """x / (bias + alpha / size * the sum of squares over `size` neighbouring channels) ** beta."""
    x, size = c.input(0), c.attr_int("size")
    if not 1 <= size <= MOST_IN_WINDOW:
        c.unsupported(f"size is {size}; expected 1 to {MOST_IN_WINDOW}")
    before = (size - 1) // 2
    edge = [0] * (x.rank - 2)
    squares = c.emit("pad", c.emit("mul", x, x), before=(0, before, *edge), after=(0, size - 1 - before, *edge))
    total = c.builder.slice_axis(squares, 1, 0, x.shape[1])
    for i in range(1, size):
        total = c.emit("add", total, c.builder.slice_axis(squares, 1, i, x.shape[1]))
    alpha = c.scalar(c.attr_float("alpha", 1e-4) / size, x)
    base = c.emit("add", c.emit("mul", total, alpha), c.scalar(c.attr_float("bias", 1.0), x))
    return c.emit("div", x, c.emit("pow", base, c.scalar(c.attr_float("beta", 0.75), x)))
