"""Matrix products, normalization, softmax."""
from __future__ import annotations

from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor
from q8c.ir.dims import product
from q8c.ir.types import DType


@importer("MatMul")
def matmul(c: Call) -> Tensor:
    """numpy's matmul; a vector is a row on the left and a column on the right."""
    return multiply(c, c.input(0), c.input(1))


def multiply(c: Call, a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, ranks of 1 included."""
    if not a.rank or not b.rank:
        c.fail(f"expected ranks >= 1, got {a.type} and {b.type}")
    left = c.builder.reshape(a, (1, a.shape[0])) if a.rank == 1 else a
    right = c.builder.reshape(b, (b.shape[0], 1)) if b.rank == 1 else b
    y = c.emit("matmul", left, right)
    kept = y.shape[:-2] + (() if a.rank == 1 else y.shape[-2:-1]) + (() if b.rank == 1 else y.shape[-1:])
    return c.builder.reshape(y, kept)


@importer("Gemm")
def gemm(c: Call) -> Tensor:
    """alpha * A' B' + beta * C."""
    a, b, bias = c.input(0), c.input(1), c.optional(2)
    if a.rank != 2 or b.rank != 2:
        c.fail(f"expected matrices, got {a.type} and {b.type}")
    a = c.builder.transpose(a, (1, 0)) if c.attr_int("transA", 0) else a
    if c.attr_int("transB", 0) and b.known is None and b.dtype is DType.f32:  # which has a kernel for it
        y = c.emit("matmul", a, b, transpose_b=True)
    else:
        y = c.emit("matmul", a, c.builder.transpose(b, (1, 0)) if c.attr_int("transB", 0) else b)
    y = scaled(c, y, c.attr_float("alpha", 1.0))
    return y if bias is None else c.emit("add", y, scaled(c, bias, c.attr_float("beta", 1.0)))


def scaled(c: Call, x: Tensor, factor: float) -> Tensor:
    """x times a number."""
    return x if factor == 1 else c.emit("mul", x, c.scalar(factor, x))


@importer("LayerNormalization", since=1)
def layer_normalization(c: Call) -> list[Tensor]:
    """Normalized over all axes from `axis` on, times scale, plus bias; then the mean and 1 / deviation if asked for."""
    x = c.input(0)
    y = normalize(c, "layer_norm", x, c.input(1), c.optional(2))
    if c.outputs == 1:
        return [y]
    axes = tuple(range(c.axis(c.attr_int("axis", -1), x.rank), x.rank))
    mean = c.emit("reduce_mean", x, axes=axes, keepdims=True)
    centered = c.emit("sub", x, mean)
    variance = c.emit("reduce_mean", c.emit("mul", centered, centered), axes=axes, keepdims=True)
    epsilon = c.scalar(c.attr_float("epsilon", 1e-5), x)
    return [y, mean, c.emit("reciprocal", c.emit("sqrt", c.emit("add", variance, epsilon)))]


@importer("RMSNormalization", since=23)
def rms_normalization(c: Call) -> Tensor:
    """Divided by the root mean square over all axes from `axis` on, times scale."""
    return normalize(c, "rms_norm", c.input(0), c.input(1), None)


@importer("SimplifiedLayerNormalization")
@importer("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_normalization(c: Call) -> Tensor:
    """ONNX Runtime's name for RMSNormalization."""
    return normalize(c, "rms_norm", c.input(0), c.input(1), None)


def normalize(c: Call, op: str, x: Tensor, scale: Tensor, bias: Tensor | None, epsilon: float = 1e-5) -> Tensor:
    """layer_norm or rms_norm over the axes from attribute `axis` on, by way of one last axis; a default `epsilon`."""
    axis = c.axis(c.attr_int("axis", -1), x.rank)
    inner, last = x.shape[axis:], product(x.shape[axis:])
    rows = x if axis == x.rank - 1 else c.builder.reshape(x, (*x.shape[:axis], last))
    vectors = [c.builder.reshape(c.builder.broadcast(t, inner), (last,)) for t in (scale, bias) if t is not None]
    y = c.emit(op, rows, *vectors, epsilon=c.attr_float("epsilon", epsilon))
    return c.builder.reshape(y, x.shape)


@importer("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(c: Call) -> list[Tensor | None]:
    """The norm of input + skip (+ bias), and as fourth output that sum."""
    simple = c.op == "SkipSimplifiedLayerNormalization"
    x, skip, scale = c.input(0), c.input(1), c.input(2)
    beta, bias = (None, c.optional(3)) if simple else (c.optional(3), c.optional(4))
    total = c.emit("add", x, skip)
    total = total if bias is None else c.emit("add", total, bias)
    y = normalize(c, "rms_norm" if simple else "layer_norm", total, scale, beta, epsilon=1e-12)
    return [y, None, None, total]


@importer("Softmax", "LogSoftmax")
def old_softmax(c: Call) -> Tensor:
    """Softmax of opset 11 and before: over all axes from `axis` on, taken as one."""
    x = c.input(0)
    axis = c.axis(c.attr_int("axis", 1), x.rank)
    rows = x if axis == x.rank - 1 else c.builder.reshape(x, (*x.shape[:axis], product(x.shape[axis:])))
    return c.builder.reshape(_softmax(c, rows, rows.rank - 1), x.shape)


@importer("Softmax", "LogSoftmax", since=13)
def new_softmax(c: Call) -> Tensor:
    """Softmax over one axis."""
    x = c.input(0)
    return _softmax(c, x, c.axis(c.attr_int("axis", -1), x.rank))


def _softmax(c: Call, x: Tensor, axis: int) -> Tensor:
    if c.op == "Softmax":
        return c.emit("softmax", x, axis=axis if axis < x.rank - 1 else -1)
    shifted = c.emit("sub", x, c.emit("reduce_max", x, axes=(axis,), keepdims=True))
    return c.emit("sub", shifted, c.emit("log", c.emit("reduce_sum", c.emit("exp", shifted), axes=(axis,),
                                                     keepdims=True)))
