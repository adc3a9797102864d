"""Elementwise math, comparison and logic, and activations."""
from __future__ import annotations

import math

from q8c.frontend.registry import MICROSOFT, Call, Importer, importer
from q8c.frontend.tensor import Tensor
from q8c.frontend.weights import WIDENED, compute_type, type_name
from q8c.ir.types import DType

_UNARY = {"Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Erf": "erf", "Tanh": "tanh", "Sigmoid": "sigmoid", "Sin": "sin",
          "Cos": "cos", "Reciprocal": "reciprocal", "Neg": "neg", "Abs": "abs", "Sign": "sign", "Relu": "relu",
          "Not": "not", "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh",
          "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh", "BitwiseNot": "bit_not"}
_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Equal": "equal", "Less": "less",
           "Greater": "greater", "LessOrEqual": "less_equal", "GreaterOrEqual": "greater_equal", "And": "and",
           "Or": "or", "Xor": "xor", "BitwiseAnd": "bit_and", "BitwiseOr": "bit_or", "BitwiseXor": "bit_xor"}
_ROUNDING = {"Floor": "floor", "Ceil": "ceil", "Round": "round"}


def _plain(op: str, operands: int) -> Importer:
    def run(c: Call) -> Tensor:
        return c.emit(op, *(c.input(i) for i in range(operands)))
    return run


for _name, _op in {**_UNARY, **_ROUNDING}.items():
    importer(_name)(_plain(_op, 1))
for _name, _op in _BINARY.items():
    importer(_name)(_plain(_op, 2))
importer("Where")(_plain("where", 3))


@importer("Softplus")
def softplus(c: Call) -> Tensor:
    """log(1 + exp(x))."""
    return c.emit("softplus", c.input(0))


@importer("Min", "Max")
def extreme(c: Call) -> Tensor:
    """The smallest or largest of any number of operands."""
    return _chain(c, c.op.lower())


@importer("Sum")
def total(c: Call) -> Tensor:
    """The sum of any number of operands."""
    return _chain(c, "add")


@importer("Mean")
def mean(c: Call) -> Tensor:
    """The mean of any number of operands."""
    found = _chain(c, "add")
    return c.emit("div", found, c.scalar(len(c.inputs), found))


def _chain(c: Call, op: str) -> Tensor:
    found, *rest = c.every()
    for x in rest:
        found = c.emit(op, found, x)
    return found


@importer("Mod")
def modulo(c: Call) -> Tensor:
    """The remainder: the divisor's sign, or with fmod the dividend's."""
    return c.emit("mod", c.input(0), c.input(1), truncate=bool(c.attr_int("fmod", 0)))


@importer("Pow")
def power(c: Call) -> Tensor:
    """x to the y, in x's type; the operands may be of two types."""
    x, y = c.input(0), c.input(1)
    if x.dtype is y.dtype:
        return c.emit("pow", x, y)
    wide = x.dtype if x.dtype.is_float else y.dtype if y.dtype.is_float else DType.i64
    return c.builder.cast(c.emit("pow", c.builder.cast(x, wide), c.builder.cast(y, wide)), x.dtype)


@importer("IsNaN")
def is_nan(c: Call) -> Tensor:
    """Where x is NaN."""
    return c.emit("is_nan", c.input(0))


@importer("IsInf")
def is_inf(c: Call) -> Tensor:
    """Where x is infinite, of the signs asked for."""
    x = c.input(0)
    if not x.dtype.is_float:
        c.fail(f"expected floats, got {x.type}")
    positive, negative = c.attr_int("detect_positive", 1), c.attr_int("detect_negative", 1)
    if positive and negative:
        return c.emit("equal", c.emit("abs", x), c.scalar(math.inf, x))
    if positive or negative:
        return c.emit("equal", x, c.scalar(math.inf if positive else -math.inf, x))
    return c.emit("less", x, x)


@importer("Cast")
def cast(c: Call) -> Tensor:
    """x in another element type."""
    return _converted(c, c.input(0), compute_type(c.attr_int("to"), "to"))


def _converted(c: Call, x: Tensor, to: DType) -> Tensor:
    """x in another element type; a float that an unsigned or narrow one has no place for wraps like an integer.

    The standard leaves that open; its reference and ONNX Runtime do so.
    """
    wide = _WRAPS_AS.get(to)
    if not x.dtype.is_float or wide is None:
        return c.builder.cast(x, to)
    wrapped = c.builder.cast(c.builder.cast(x, wide), to)
    if to is DType.u64:  # half of its numbers are beyond i64
        return c.emit("where", c.emit("less", x, c.scalar(0, x)), wrapped, c.builder.cast(x, to))
    return wrapped


_WRAPS_AS = {**dict.fromkeys((DType.i8, DType.u8, DType.i16, DType.u16), DType.i32),
             **dict.fromkeys((DType.u32, DType.u64), DType.i64)}


@importer("BitCast", since=26)
def bitcast(c: Call) -> Tensor:
    """The bits of x as another element type of the same size."""
    to = c.attr_int("to")
    if type_name(to) in WIDENED:
        c.unsupported(f"to {type_name(to)}, which is computed in f32")
    return c.emit("bitcast", c.input(0), to=compute_type(to, "to"))


@importer("BitShift", since=11)
def bit_shift(c: Call) -> Tensor:
    """x shifted by y bits in a direction."""
    direction = c.attr_str("direction")
    if direction not in ("LEFT", "RIGHT"):
        c.fail(f"direction is {direction!r}, expected LEFT or RIGHT")
    return c.emit(f"shift_{direction.lower()}", c.input(0), c.input(1))


@importer("CastLike")
def cast_like(c: Call) -> Tensor:
    """x in the element type of the second operand."""
    return _converted(c, c.input(0), c.input(1).dtype)


@importer("Clip")
def old_clip(c: Call) -> Tensor:
    """Clip of opset 6, with attributes."""
    x = c.input(0)
    low, high = c.attr("min", "FLOAT"), c.attr("max", "FLOAT")
    return clip(c, x, None if low is None else c.scalar(c.attr_float("min"), x),
                None if high is None else c.scalar(c.attr_float("max"), x))


@importer("Clip", since=11)
def new_clip(c: Call) -> Tensor:
    """x no smaller than min, then no larger than max."""
    return clip(c, c.input(0), c.optional(1), c.optional(2))


def clip(c: Call, x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """min(max(x, low), high)."""
    if low is not None:
        x = c.emit("max", x, c.builder.reshape(low, ()))
    return x if high is None else c.emit("min", x, c.builder.reshape(high, ()))


@importer("Gelu", since=20)
def gelu(c: Call) -> Tensor:
    """x * Phi(x), exact or by tanh."""
    approximate = c.attr_str("approximate", "none")
    if approximate not in ("none", "tanh"):
        c.fail(f"approximate is {approximate!r}, expected none or tanh")
    return c.emit("gelu", c.input(0), approximate=approximate)


@importer("LeakyRelu")
def leaky_relu(c: Call) -> Tensor:
    """x, times alpha where it is negative."""
    return leaky(c, c.input(0), c.attr_float("alpha", 0.01))


def leaky(c: Call, x: Tensor, alpha: float) -> Tensor:
    """x, times alpha where it is negative."""
    return c.emit("where", _negative(c, x), c.emit("mul", x, c.scalar(alpha, x)), x)


@importer("Celu", since=12)
def celu(c: Call) -> Tensor:
    """max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0); the standard's own function makes a vector of a scalar."""
    x = c.input(0)
    alpha, zero = c.scalar(c.attr_float("alpha", 1.0), x), c.scalar(0, x)
    below = c.emit("sub", c.emit("exp", c.emit("div", x, alpha)), c.scalar(1, x))
    return c.emit("add", c.emit("max", x, zero), c.emit("min", c.emit("mul", alpha, below), zero))


@importer("PRelu")
def prelu(c: Call) -> Tensor:
    """x, times a slope where it is negative."""
    x = c.input(0)
    return c.emit("where", _negative(c, x), c.emit("mul", x, c.input(1)), x)


def _negative(c: Call, x: Tensor) -> Tensor:
    return c.emit("less", x, c.scalar(0, x))


@importer("HardSigmoid")
def hard_sigmoid(c: Call) -> Tensor:
    """alpha * x + beta cut to [0, 1]."""
    return hard_sigmoid_of(c, c.input(0), c.attr_float("alpha", 0.2), c.attr_float("beta", 0.5))


@importer("HardSwish", since=14)
def hard_swish(c: Call) -> Tensor:
    """x * hard_sigmoid(x / 6 + 0.5)."""
    return hard_swish_of(c, c.input(0))


def hard_swish_of(c: Call, x: Tensor) -> Tensor:
    """x * hard_sigmoid(x / 6 + 0.5)."""
    return c.emit("mul", x, hard_sigmoid_of(c, x, 1 / 6, 0.5))


def hard_sigmoid_of(c: Call, x: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * x + beta cut to [0, 1]."""
    line = c.emit("add", c.emit("mul", x, c.scalar(alpha, x)), c.scalar(beta, x))
    return clip(c, line, c.scalar(0, x), c.scalar(1, x))


@importer("Swish", since=24)
def swish(c: Call) -> Tensor:
    """x * sigmoid(alpha * x)."""
    return swish_of(c, c.input(0), c.attr_float("alpha", 1.0))


def swish_of(c: Call, x: Tensor, alpha: float) -> Tensor:
    """x * sigmoid(alpha * x); `silu` where alpha is 1."""
    if alpha == 1:
        return c.emit("silu", x)
    return c.emit("mul", x, c.emit("sigmoid", c.emit("mul", x, c.scalar(alpha, x))))


@importer("Mish", since=18)
def mish(c: Call) -> Tensor:
    """x * tanh(softplus(x))."""
    x = c.input(0)
    return c.emit("mul", x, c.emit("tanh", c.emit("softplus", x)))


@importer("Gelu", domain=MICROSOFT)
def contrib_gelu(c: Call) -> Tensor:
    """x * Phi(x)."""
    return c.emit("gelu", c.input(0))


@importer("QuickGelu", domain=MICROSOFT)
def quick_gelu(c: Call) -> Tensor:
    """x * sigmoid(alpha * x)."""
    return swish_of(c, c.input(0), c.attr_float("alpha", 1.702))


@importer("FastGelu", "BiasGelu", domain=MICROSOFT)
def bias_gelu(c: Call) -> Tensor:
    """Gelu of x plus a bias: by tanh for FastGelu, exact for BiasGelu."""
    x, bias = c.input(0), c.optional(1)
    if bias is not None:
        x = c.emit("add", x, bias)
    return c.emit("gelu", x, approximate="tanh" if c.op == "FastGelu" else "none")
