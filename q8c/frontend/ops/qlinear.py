"""QLinear ops of ONNX and ONNX Runtime: operands dequantized, an ordinary op, the result quantized."""
from __future__ import annotations

from q8c.frontend.ops.conv import convolve, kernel_size
from q8c.frontend.ops.elementwise import leaky
from q8c.frontend.ops.pool import mean_of_windows
from q8c.frontend.ops.windows import windows
from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor
from q8c.ir.types import DType


def _float(c: Call, index: int) -> Tensor:
    """What operands `index` (integers), the next (their scale) and the one after (their zero point) stand for."""
    zero = c.optional(index + 2)
    scale, zero = (t if t is None else c.builder.reshape(t, ()) for t in (c.input(index + 1), zero))
    return c.emit("dequantize_linear", c.input(index), scale, zero)


def _quantized(c: Call, y: Tensor, index: int, to: DType, zero_first: bool = False) -> Tensor:
    """y as integers of the scale and zero point in operand `index` and the next; `zero_first` as ONNX Runtime rounds
    some: ties go to what is even with the zero point."""
    zero = c.optional(index + 1)
    scale, zero = (t if t is None else c.builder.reshape(t, ()) for t in (c.input(index), zero))
    return c.emit("quantize_linear", y, scale, zero, to=to, zero_first=zero_first)


@importer("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_binary(c: Call) -> Tensor:
    """a + b or a * b."""
    y = c.emit("add" if c.op == "QLinearAdd" else "mul", _float(c, 0), _float(c, 3))
    return _quantized(c, y, 6, c.input(0).dtype, zero_first=True)


@importer("QLinearSigmoid", domain=MICROSOFT)
def qlinear_sigmoid(c: Call) -> Tensor:
    """sigmoid(x)."""
    return _quantized(c, c.emit("sigmoid", _float(c, 0)), 3, c.input(0).dtype)


@importer("QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_leaky_relu(c: Call) -> Tensor:
    """x, times alpha where it is negative."""
    return _quantized(c, leaky(c, _float(c, 0), c.attr_float("alpha", 0.01)), 3, c.input(0).dtype)


@importer("QLinearWhere", domain=MICROSOFT)
def qlinear_where(c: Call) -> Tensor:
    """x where a condition holds, else y."""
    return _quantized(c, c.emit("where", c.input(0), _float(c, 1), _float(c, 4)), 7, c.input(1).dtype)


@importer("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_average(c: Call) -> Tensor:
    """The mean of each window, or over all spatial axes, channels being the second axis or the last."""
    x, last = _float(c, 0), bool(c.attr_int("channels_last", 0))
    there, back = (0, x.rank - 1, *range(1, x.rank - 1)), (0, *range(2, x.rank), 1)
    x = c.builder.transpose(x, there) if last else x
    over_all = c.op == "QLinearGlobalAveragePool"
    y = c.emit("reduce_mean", x, axes=tuple(range(2, x.rank)), keepdims=True) if over_all else mean_of_windows(c, x)
    return _quantized(c, c.builder.transpose(y, back) if last else y, 3, c.input(0).dtype, zero_first=not over_all)


@importer("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(c: Call) -> Tensor:
    """The softmax of x along an axis; before opset 13 over all axes from there on, which must be the last."""
    x = _float(c, 0)
    axis = c.axis(c.attr_int("axis", -1), x.rank)
    if c.attr_int("opset", 13) < 13 and axis != x.rank - 1:
        c.unsupported("a softmax over several axes")
    return _quantized(c, c.emit("softmax", x, axis=axis), 3, c.input(0).dtype)


@importer("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(c: Call) -> Tensor:
    """Operands one after the other; the first two are the result's scale and zero point."""
    parts = [_float(c, i) for i in range(2, len(c.inputs), 3)]
    y = c.emit("concat", *parts, axis=c.axis(c.attr_int("axis"), parts[0].rank))
    return _quantized(c, y, 0, c.input(2).dtype)


@importer("QLinearConv", since=10)
def qlinear_conv(c: Call) -> Tensor:
    """The convolution of x by a kernel with a scale and zero point for each output channel or for all, plus a bias in
    steps of both scales."""
    x, kernel, bias = _float(c, 0), c.input(3), c.optional(8)
    size = kernel_size(c, x, kernel)

    def per_output(t: Tensor) -> Tensor:
        return c.builder.reshape(t, () if t.type.size == 1 else (t.shape[0], *[1] * (kernel.rank - 1)))

    scale = c.input(4)
    weight = c.emit("dequantize_linear", kernel, per_output(scale), per_output(c.input(5)))
    if bias is not None:
        steps = c.emit("mul", c.builder.reshape(c.input(1), ()), c.builder.reshape(
            scale, () if scale.type.size == 1 else scale.shape))
        bias = c.emit("mul", c.builder.cast(bias, DType.f32), steps)
    y = convolve(c, x, weight, windows(c, x, size), c.attr_int("group", 1), bias)
    return _quantized(c, y, 6, c.input(7).dtype)
