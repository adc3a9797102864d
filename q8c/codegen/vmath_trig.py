"""The other trigonometric and the hyperbolic functions of <16 x float>, where the quotients of sums lose digits in
double precision."""
from __future__ import annotations

import math

import llvmlite.ir as ir

from q8c.codegen.builder import F64, I64, LANES, V16F, Builder, Value, constant
from q8c.codegen.vmath_wide import exp2_wide, horner, reduce_angle, turn

V16D = ir.VectorType(F64, LANES)
V16L = ir.VectorType(I64, LANES)

ULPS = {"tan": 3.5, "asin": 2.5, "acos": 2.5, "atan": 2.5, "sinh": 1.0, "cosh": 1.0, "asinh": 1.0, "acosh": 1.0,
        "atanh": 1.0}
"""Error budgets in ulp."""

# Polynomials from Moshier's Cephes library (asinf.c, atanf.c), highest power first.
_ASIN = (4.2163199048e-2, 2.4181311049e-2, 4.5470025998e-2, 7.4953002686e-2, 1.6666752422e-1)
_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
_LOG_TERMS = 9
_LN2 = 0.6931471805599453
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD


def tan(b: Builder, x: Value) -> Value:
    """The tangent of any float; NaN at the infinities."""
    quadrant, angle = reduce_angle(b, x)
    return _odd(b, b.div(turn(b, quadrant, angle), turn(b, b.add(quadrant, 1), angle)), x)


def asin(b: Builder, x: Value) -> Value:
    """The arc sine; NaN beyond 1."""
    a = b.abs(x)
    far = b.fcmp(">", a, 0.5)
    half = b.mul(b.sub(1.0, a), 0.5)
    small = _asin_below_half(b, b.select(far, b.sqrt(half), a), b.select(far, half, b.mul(a, a)))
    return _odd(b, b.select(far, b.fma(small, -2.0, math.pi / 2), small), x)


def acos(b: Builder, x: Value) -> Value:
    """The arc cosine; NaN beyond 1."""
    a = b.abs(x)
    far = b.fcmp(">", a, 0.5)
    half = b.mul(b.sub(1.0, a), 0.5)
    small = _asin_below_half(b, b.select(far, b.sqrt(half), x), b.select(far, half, b.mul(x, x)))
    double = b.add(small, small)
    outside = b.select(b.fcmp("<", x, 0.0), b.sub(math.pi, double), double)
    return b.select(far, outside, b.sub(math.pi / 2, small))


def _asin_below_half(b: Builder, x: Value, square: Value) -> Value:
    return b.fma(b.mul(horner(b, square, _ASIN), square), x, x)


def atan(b: Builder, x: Value) -> Value:
    """The arc tangent."""
    a = b.abs(x)
    big, middle = b.fcmp(">", a, 2.414213562373095), b.fcmp(">", a, 0.4142135623730950)
    turned = b.div(b.sub(a, 1.0), b.add(a, 1.0))
    rest = b.select(big, b.div(-1.0, a), b.select(middle, turned, a))
    start = b.select(big, constant(V16F, math.pi / 2), b.select(middle, constant(V16F, math.pi / 4),
                                                              constant(V16F, 0.0)))
    square = b.mul(rest, rest)
    return _odd(b, b.add(start, b.fma(b.mul(horner(b, square, _ATAN), square), rest, rest)), x)


def sinh(b: Builder, x: Value) -> Value:
    """(e**x - e**-x) / 2."""
    e = _exp(b, x)
    return _or_nearly(b, b.mul(b.sub(e, b.div(1.0, e)), 0.5), x, 1 / 6)


def cosh(b: Builder, x: Value) -> Value:
    """(e**x + e**-x) / 2."""
    e = _exp(b, x)
    return _or_nan(b, b.ir.fptrunc(b.mul(b.add(e, b.div(1.0, e)), 0.5), V16F), x)


def asinh(b: Builder, x: Value) -> Value:
    """log(x + sqrt(x**2 + 1))."""
    a = b.ir.fpext(b.abs(x), V16D)
    return _odd(b, _or_nearly(b, _log(b, b.add(a, b.sqrt(b.fma(a, a, 1.0)))), b.abs(x), -1 / 6), x)


def acosh(b: Builder, x: Value) -> Value:
    """log(x + sqrt(x**2 - 1)); NaN below 1."""
    wide = b.ir.fpext(x, V16D)
    y = _log(b, b.add(wide, b.sqrt(b.fma(wide, wide, -1.0))))
    return b.select(b.fcmp(">=", x, 1.0), b.ir.fptrunc(y, V16F), constant(V16F, math.nan))


def atanh(b: Builder, x: Value) -> Value:
    """log((1 + x) / (1 - x)) / 2; NaN beyond 1."""
    a = b.ir.fpext(b.abs(x), V16D)
    y = b.mul(_log(b, b.div(b.add(1.0, a), b.sub(1.0, a))), 0.5)
    y = _odd(b, _or_nearly(b, y, b.abs(x), 1 / 3), x)
    return b.select(b.fcmp("<=", b.abs(x), 1.0), y, constant(V16F, math.nan))


def _odd(b: Builder, y: Value, x: Value) -> Value:
    """y with its sign turned where x's is set: an odd function of |x| as one of x."""
    return b.from_bits(b.xor(b.bits(y), b.and_(b.bits(x), -(1 << 31))))


def _or_nan(b: Builder, y: Value, x: Value) -> Value:
    return b.select(b.is_nan(x), x, y)


def _or_nearly(b: Builder, y: Value, x: Value, cube: float) -> Value:
    """y as a float, and x + cube * x**3 where |x| < 2**-11, which is all of the series that a float shows."""
    wide = b.ir.fpext(x, V16D)
    near = b.fma(b.mul(b.mul(wide, wide), cube), wide, wide)
    found = b.ir.fptrunc(b.select(b.fcmp("<", b.intrinsic("llvm.fabs", [wide]), 2.0**-11), near, y), V16F)
    return _or_nan(b, found, x)


def _exp(b: Builder, x: Value) -> Value:
    """e**x in double, to about 2**-40."""
    return exp2_wide(b, b.mul(b.ir.fpext(x, V16D), 1.4426950408889634))


def _log(b: Builder, x: Value) -> Value:
    """The natural logarithm of doubles >= 1: 2 artanh((m - 1) / (m + 1)) + exponent ln 2."""
    bits = b.bitcast(x, V16L)
    exponent = b.ashr(b.sub(bits, _SQRT_HALF_BITS), 52)
    m = b.bitcast(b.sub(bits, b.shl(exponent, 52)), V16D)
    s = b.div(b.sub(m, 1.0), b.add(m, 1.0))
    terms = tuple(2 / (2 * n + 1) for n in reversed(range(_LOG_TERMS)))
    y = b.fma(horner(b, b.mul(s, s), terms), s, b.mul(b.ir.sitofp(exponent, V16D), _LN2))
    return b.select(b.fcmp("==", x, math.inf), x, y)
