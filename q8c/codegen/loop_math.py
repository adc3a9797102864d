"""Functions of loops beyond arithmetic: `vmath` for every operand kind, remainders and powers."""
from __future__ import annotations

from collections.abc import Callable

import llvmlite.ir as ir

from q8c.codegen import vmath, vmath_trig
from q8c.codegen.attention_math import exp_nonpositive
from q8c.codegen.builder import F32, F64, Builder, Value, constant, element
from q8c.codegen.loop_memory import like
from q8c.codegen.simd import V16F

_FUNCTIONS: dict[str, Callable[..., Value]] = {
    "exp": vmath.exp, "exp_nonpositive": exp_nonpositive, "log": vmath.log, "erf": vmath.erf, "tanh": vmath.tanh,
    "sigmoid": vmath.sigmoid, "sin": vmath.sin, "cos": vmath.cos, "silu": vmath.silu, "softplus": vmath.softplus,
    **{name: getattr(vmath_trig, name) for name in vmath_trig.ULPS}}
UNARY = tuple(_FUNCTIONS)
"""Float functions of one operand."""


def call(b: Builder, name: str, x: Value) -> Value:
    """A function of UNARY."""
    return apply(b, _FUNCTIONS[name], x)


def gelu(b: Builder, x: Value, tanh: bool) -> Value:
    """GELU, or its tanh approximation."""
    return apply(b, vmath.gelu_tanh if tanh else vmath.gelu, x)


def power(b: Builder, x: Value, y: Value) -> Value:
    """x**y of floats."""
    return apply(b, vmath.pow, x, y)


def apply(b: Builder, function: Callable[..., Value], *xs: Value) -> Value:
    """A function of 16 f32 lanes applied to scalars or 16 lanes, f32 or (with single precision) f64."""
    typ = xs[0].type
    if element(typ) == F64:
        return b.ir.fpext(apply(b, function, *(b.ir.fptrunc(x, like(x, F32)) for x in xs)), typ)
    if not isinstance(typ, ir.VectorType):
        return b.lane(function(b, *(b.splat(x, V16F) for x in xs)), 0)
    return function(b, *xs)


def fmod(b: Builder, x: Value, y: Value) -> Value:
    """x - trunc(x / y) * y, exact, with the sign of x (C's fmod) of floats up to f32's range; NaN for y = 0.

    In double precision, as many multiples of y as 26 bits of the quotient hold are taken off at a time: their
    product with y's 24 bits is exact, and so is the difference.
    """
    wide = like(x, F64)
    rest = _remainder(b, *(v if v.type == wide else b.ir.fpext(v, wide) for v in (b.abs(x), b.abs(y))))
    # the sign comes last: LLVM calls a function to round the sign's own half of a double's
    return b.intrinsic("llvm.copysign", [rest if x.type == wide else b.ir.fptrunc(rest, x.type), x])


def _remainder(b: Builder, x: Value, y: Value) -> Value:
    """fmod of floats >= 0 in double precision."""
    bits = like(x, ir.IntType(64))
    mask = constant(bits, -(1 << 26))

    def step(state: list[Value]) -> list[Value]:
        rest = state[0]
        quotient = b.intrinsic("llvm.floor", [b.bitcast(b.and_(b.bitcast(b.ir.fdiv(rest, y), bits), mask), x.type)])
        after = b.ir.fsub(rest, b.ir.fmul(quotient, y))
        # a quotient rounded up to the next integer leaves a negative rest
        after = b.select(b.fcmp("<", after, 0.0), b.ir.fadd(after, y), after)
        return [b.select(b.fcmp(">=", rest, y), after, rest)]

    defined = b.and_(b.fcmp("<", x, float("inf")), b.fcmp(">", y, 0.0))
    rest, = b.while_([b.select(defined, x, constant(x.type, 0.0))],
                     lambda s: any_lane(b, b.fcmp(">=", s[0], y)), step)
    return b.select(defined, rest, constant(x.type, float("nan")))


def any_lane(b: Builder, mask: Value) -> Value:
    """Whether any lane of a mask (or the scalar) is True."""
    if not isinstance(mask.type, ir.VectorType):
        return mask
    return b.icmp("!=", b.bitcast(mask, ir.IntType(mask.type.count)), 0)


def integer_power(b: Builder, x: Value, y: Value) -> Value:
    """x**y by squaring, wrapping; y is taken as unsigned."""
    def step(state: list[Value]) -> list[Value]:
        result, base, rest = state
        odd = b.icmp("!=", b.and_(rest, 1), 0)
        return [b.select(odd, b.ir.mul(result, base), result), b.ir.mul(base, base), b.lshr(rest, 1)]

    result, _, _ = b.while_([constant(x.type, 1), x, y], lambda s: any_lane(b, b.ucmp("!=", s[2], 0)), step)
    return result
