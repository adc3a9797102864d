"""sin, cos and pow of <16 x float>, in double precision inside because their operands lose digits."""
from __future__ import annotations

import functools
from decimal import Decimal, localcontext

import llvmlite.ir as ir

from q8c.codegen.builder import F64, I32, I64, LANES, V16F, V16I, Builder, Value, constant

V16D = ir.VectorType(F64, LANES)

_QUARTER = Decimal("0.6366197723675813430755350534900574481378385829618257949906693762355871905369"
                   "0614036045521106521136448163")  # 2 / pi
# Polynomials from Moshier's Cephes library (sinf.c): sin and cos on [-pi/4, pi/4] in the square of the angle.
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def sin(b: Builder, x: Value) -> Value:
    """The sine of any float; NaN at the infinities."""
    quadrant, angle = reduce_angle(b, x)
    y = turn(b, quadrant, angle)
    return b.from_bits(b.xor(b.bits(y), b.and_(b.bits(x), -(1 << 31))))


def cos(b: Builder, x: Value) -> Value:
    """The cosine of any float; NaN at the infinities."""
    quadrant, angle = reduce_angle(b, x)
    return turn(b, b.add(quadrant, 1), angle)


def turn(b: Builder, quadrant: Value, angle: Value) -> Value:
    """The sine of `angle` after `quadrant` quarter turns."""
    square = b.mul(angle, angle)
    sine = b.fma(b.mul(horner(b, square, _SIN), square), angle, angle)
    cosine = b.fma(b.mul(horner(b, square, _COS), square), square, b.fma(square, -0.5, 1.0))
    y = b.select(b.icmp("!=", b.and_(quadrant, 1), 0), cosine, sine)
    return b.from_bits(b.xor(b.bits(y), b.shl(b.and_(quadrant, 2), 30)))


def reduce_angle(b: Builder, x: Value) -> tuple[Value, Value]:
    """(quarter turns, rest in radians) of |x|, after Payne and Hanek (1983) with one table row per exponent."""
    bits = b.bits(x)
    exponent = b.and_(b.lshr(bits, 23), 0xFF)
    fraction = b.and_(bits, 0x7FFFFF)
    mantissa = b.select(b.icmp("==", exponent, 0), fraction, b.or_(fraction, 1 << 23))
    m = b.ir.sitofp(mantissa, V16D)
    high, low = (_look_up(b, f"q8c_two_over_pi_{n}", [row[n] for row in _two_over_pi()], exponent) for n in (0, 1))
    turns = b.mul(m, high)
    whole = b.intrinsic("llvm.rint", [b.fma(m, low, turns)])
    rest = b.fma(m, low, b.sub(turns, whole))
    return b.ir.fptosi(whole, V16I), b.ir.fptrunc(b.mul(rest, float(1 / _QUARTER)), V16F)


def _look_up(b: Builder, name: str, values: list[float], index: Value) -> Value:
    table = b.constant_table(name, F64, values)
    found = constant(V16D, 0.0)
    for lane in range(LANES):
        at = b.zext(b.lane(index, lane), I64)
        found = b.ir.insert_element(found, b.load(F64, b.at(table, at, F64)), constant(I32, lane))
    return found


@functools.cache
def _two_over_pi() -> tuple[tuple[float, float], ...]:
    """For every exponent field of a float: 2**(exponent - 150) * 2 / pi mod 4 as a double of 29 bits, whose product
    with a 24-bit mantissa is exact, and the rest. Infinity's row is NaN."""
    rows = []
    with localcontext() as context:
        context.prec = 120
        for exponent in range(255):
            value = _QUARTER * Decimal(2) ** (max(exponent, 1) - 150)
            value -= int(value / 4) * 4
            scale = Decimal(2) ** (28 - _exponent(value))
            high = Decimal(int(value * scale)) / scale
            rows.append((float(high), float(value - high)))
    return (*rows, (float("nan"), float("nan")))


def _exponent(value: Decimal) -> int:
    """floor(log2(value)) for a value a double can hold."""
    return int.bit_length(int(value * Decimal(2) ** 300)) - 301


# -- pow

_LOG2_TERMS = 9
_LOG2_E = 1.4426950408889634
_EXP2 = tuple(float(Decimal("0.6931471805599453094172321214581765680755") ** n) for n in range(12))


def pow(b: Builder, x: Value, y: Value) -> Value:
    """x**y as C's powf: pow(x, 0) = pow(1, y) = 1 even for NaN; NaN for x < 0 with y no integer."""
    wide_y = b.ir.fpext(y, V16D)
    size = b.abs(x)
    one = b.fcmp("==", size, 1.0)
    product = b.select(one, constant(V16D, 0.0), b.mul(_log2(b, size), wide_y))
    result = b.ir.fptrunc(exp2_wide(b, product), V16F)
    result = b.select(b.or_(b.is_nan(y), b.is_nan(x)), float("nan"), result)
    integer = b.fcmp("==", b.floor(y), y)
    half = b.mul(y, 0.5)
    odd = b.and_(integer, b.fcmp("!=", b.floor(half), half))
    sign = b.select(odd, b.and_(b.bits(x), -(1 << 31)), constant(V16I, 0))
    result = b.from_bits(b.xor(b.bits(result), sign))
    negative = b.and_(b.fcmp("<", x, 0.0), b.fcmp(">", x, float("-inf")))
    result = b.select(b.and_(negative, b.xor(integer, 1)), float("nan"), result)
    return b.select(b.or_(b.fcmp("==", x, 1.0), b.fcmp("==", y, 0.0)), 1.0, result)


def _log2(b: Builder, x: Value) -> Value:
    """log2 of floats x >= 0 in double, to about 2**-45: (2 / ln 2) artanh((m - 1) / (m + 1)) + exponent."""
    tiny = b.fcmp("<", x, 2.0**-126)
    scaled = b.select(tiny, b.mul(x, 2.0**23), x)
    bits = b.sub(b.bits(scaled), 0x3F3504F3)
    exponent = b.sub(b.ashr(bits, 23), b.select(tiny, constant(V16I, 23), constant(V16I, 0)))
    m = b.ir.fpext(b.from_bits(b.add(b.and_(bits, 0x7FFFFF), 0x3F3504F3)), V16D)
    s = b.div(b.sub(m, 1.0), b.add(m, 1.0))
    terms = [2 * _LOG2_E / (2 * n + 1) for n in reversed(range(_LOG2_TERMS))]
    y = b.fma(horner(b, b.mul(s, s), tuple(terms)), s, b.ir.sitofp(exponent, V16D))
    y = b.select(b.fcmp("==", x, float("inf")), constant(V16D, float("inf")), y)
    return b.select(b.fcmp("==", x, 0.0), constant(V16D, float("-inf")), y)


def exp2_wide(b: Builder, x: Value) -> Value:
    """2**x in double, to about 2**-40; 0 and Inf beyond the floats."""
    x = b.fmin(200.0, b.fmax(-200.0, x))
    whole = b.intrinsic("llvm.rint", [x])
    factorial, terms = 1.0, []
    for n, power in enumerate(_EXP2):
        factorial *= max(n, 1)
        terms.append(power / factorial)
    y = horner(b, b.sub(x, whole), tuple(reversed(terms)))
    exponent = b.sext(b.ir.fptosi(whole, V16I), ir.VectorType(I64, LANES))
    return b.mul(y, b.bitcast(b.shl(b.add(exponent, 1023), 52), V16D))


def horner(b: Builder, x: Value, coefficients: tuple[float, ...]) -> Value:
    """Horner's rule, highest power first."""
    y = b.fma(x, coefficients[0], coefficients[1])
    for c in coefficients[2:]:
        y = b.fma(y, x, c)
    return y
