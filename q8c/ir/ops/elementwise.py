"""Elementwise ops with numpy broadcasting."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from q8c.ir.graph import Array
from q8c.ir.ops.registry import AttrSpec, OpDef, Operands, register
from q8c.ir.types import DType, TensorType

_erf = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    """The error function, computed in double precision, in x's type."""
    return np.asarray(_erf(x.astype(np.float64)), dtype=np.float64).astype(x.dtype)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + e), e / (1 + e)), dtype=x.dtype)


def gelu(x: Array, approximate: str) -> Array:
    """x * Phi(x), or its tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415)."""
    wide = x.astype(np.float64)
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        return np.asarray(0.5 * wide * (1 + np.tanh(inner))).astype(x.dtype)
    return np.asarray(0.5 * wide * (1 + erf(wide / math.sqrt(2)))).astype(x.dtype)


def divide(a: Array, b: Array) -> Array:
    """a / b; integers truncate towards zero, and a zero divisor or the smallest integer by -1 gives 0."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if a.dtype.kind == "u":
        return np.asarray(np.where(b == 0, 0, a // np.where(b == 0, 1, b)), dtype=a.dtype)
    invalid = (b == 0) | ((b == -1) & (a == np.iinfo(a.dtype).min))
    safe = np.where(invalid, 1, b)
    quotient = a // safe
    quotient = quotient + ((quotient * safe != a) & ((a < 0) != (safe < 0)))
    return np.asarray(np.where(invalid, 0, quotient), dtype=a.dtype)


def remainder(a: Array, b: Array, truncate: bool) -> Array:
    """a mod b with the sign of b, or of a when `truncate` (C's fmod); integers by zero give 0."""
    if a.dtype.kind == "f":
        return np.asarray(np.fmod(a, b) if truncate else np.mod(a, b))
    safe = np.where(b == 0, 1, b)
    found = np.fmod(a, safe) if truncate else np.mod(a, safe)
    return np.asarray(np.where(b == 0, 0, found), dtype=a.dtype)


def _float_unary(o: Operands) -> Sequence[TensorType]:
    o.expect(o.type(0).dtype.is_float, "expected a float operand")
    return [o.type(0)]


def _unary(o: Operands) -> Sequence[TensorType]:
    o.expect(o.type(0).dtype is not DType.bool, "expected a number, not bool")
    return [o.type(0)]


def _logical(o: Operands) -> Sequence[TensorType]:
    o.expect(all(t is None or t.dtype is DType.bool for t in o.types), "expected bool operands")
    return [TensorType(DType.bool, o.broadcast(*(t.shape for t in o.types if t)))]


def _binary(o: Operands) -> Sequence[TensorType]:
    a, b = o.type(0), o.type(1)
    o.expect(a.dtype is b.dtype and a.dtype is not DType.bool, "expected two operands of one number type")
    return [TensorType(a.dtype, o.broadcast(a.shape, b.shape))]


def _compare(o: Operands) -> Sequence[TensorType]:
    a, b = o.type(0), o.type(1)
    o.expect(a.dtype is b.dtype, "expected two operands of one type")
    return [TensorType(DType.bool, o.broadcast(a.shape, b.shape))]


def _where(o: Operands) -> Sequence[TensorType]:
    c, a, b = o.type(0), o.type(1), o.type(2)
    o.expect(c.dtype is DType.bool and a.dtype is b.dtype, "expected (bool, T, T)")
    return [TensorType(a.dtype, o.broadcast(c.shape, a.shape, b.shape))]


def _is_nan(o: Operands) -> Sequence[TensorType]:
    o.expect(o.type(0).dtype.is_float, "expected a float operand")
    return [TensorType(DType.bool, o.type(0).shape)]


def _cast(o: Operands) -> Sequence[TensorType]:
    return [TensorType(o.attrs["to"], o.type(0).shape)]


def cast(x: Array, to: DType) -> Array:
    """x converted; a float outside an integer type's range gives the nearest bound, NaN gives 0."""
    if x.dtype.kind == "f" and to.is_int:
        bounds = np.iinfo(to.value)
        wide = np.nan_to_num(np.trunc(x.astype(np.float64)), nan=0.0, posinf=math.inf, neginf=-math.inf)
        low, high = wide <= float(bounds.min), wide >= float(bounds.max)
        inside = np.where(low | high, 0, wide).astype(to.numpy)
        return np.asarray(np.where(low, bounds.min, np.where(high, bounds.max, inside)), dtype=to.numpy)
    return x.astype(to.numpy)


def _bitcast(o: Operands) -> Sequence[TensorType]:
    o.expect(o.type(0).dtype.itemsize == o.attrs["to"].itemsize, "expected types of the same size")
    return [TensorType(o.attrs["to"], o.type(0).shape)]


def _bits(o: Operands) -> Sequence[TensorType]:
    o.expect(all(t is None or t.dtype.is_int for t in o.types), "expected integer operands")
    return _binary(o) if len(o.types) == 2 else [o.type(0)]


def shift(x: Array, amount: Array, left: bool) -> Array:
    """x shifted by so many bits, all of them where the amount is negative or too large; signs are kept to the right."""
    bits = 8 * x.dtype.itemsize
    beyond = (amount < 0) | (amount >= bits)
    safe = np.where(beyond, 0, amount).astype(x.dtype)
    if left:
        return np.asarray(np.where(beyond, 0, np.left_shift(x, safe)), dtype=x.dtype)
    return np.asarray(np.where(beyond, np.where(x < 0, -1, 0), np.right_shift(x, safe))).astype(x.dtype)


Plain = Callable[..., Any]


def _define(name: str, operands: str, infer: Callable[[Operands], Sequence[TensorType]], function: Plain,
            **attrs: AttrSpec) -> None:
    def reference(args: Sequence[Any], values: Mapping[str, Any]) -> Sequence[Array]:
        with np.errstate(all="ignore"):
            return [np.asarray(function(*args, **values))]

    register(OpDef(name, operands, infer, reference, attrs, elementwise=True))


def _same_type(function: Plain) -> Plain:
    return lambda x: np.asarray(function(x), dtype=x.dtype)


_FLOAT_UNARY: dict[str, Plain] = {
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "erf": erf, "tanh": np.tanh, "sigmoid": sigmoid, "sin": np.sin,
    "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh,
    "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "floor": np.floor, "ceil": np.ceil, "round": np.rint, "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / np.sqrt(x), "silu": lambda x: x * sigmoid(x),
    "softplus": lambda x: np.logaddexp(x, np.zeros_like(x))}
_UNARY: dict[str, Plain] = {"neg": np.negative, "abs": np.abs, "sign": np.sign,
                            "relu": lambda x: np.maximum(x, np.zeros_like(x))}
_BINARY: dict[str, Plain] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": divide, "pow": np.power,
                             "min": np.minimum, "max": np.maximum}
_COMPARE: dict[str, Plain] = {"equal": np.equal, "less": np.less, "less_equal": np.less_equal,
                              "greater": np.greater, "greater_equal": np.greater_equal}
_LOGICAL: dict[str, Plain] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}

for _name, _function in _FLOAT_UNARY.items():
    _define(_name, "x", _float_unary, _same_type(_function))
for _name, _function in _UNARY.items():
    _define(_name, "x", _unary, _same_type(_function))
for _name, _function in _BINARY.items():
    _define(_name, "a b", _binary, _function)
for _name, _function in _COMPARE.items():
    _define(_name, "a b", _compare, _function)
for _name, _function in _LOGICAL.items():
    _define(_name, "a b", _logical, _function)
_define("is_nan", "x", _is_nan, np.isnan)
_define("not", "x", _logical, np.logical_not)
_define("mod", "a b", _binary, remainder, truncate=AttrSpec("bool", False))
_define("gelu", "x", _float_unary, gelu, approximate=AttrSpec("str", "none"))
_define("where", "condition a b", _where, np.where)
_define("cast", "x", _cast, cast, to=AttrSpec("dtype"))
_define("bitcast", "x", _bitcast, lambda x, to: np.ascontiguousarray(x).view(to.numpy).reshape(x.shape),
        to=AttrSpec("dtype"))
_define("bit_not", "x", _bits, np.invert)
_BITS: dict[str, Plain] = {"bit_and": np.bitwise_and, "bit_or": np.bitwise_or, "bit_xor": np.bitwise_xor,
                           "shift_left": lambda a, b: shift(a, b, left=True),
                           "shift_right": lambda a, b: shift(a, b, left=False)}
for _name, _function in _BITS.items():
    _define(_name, "a b", _bits, _function)
