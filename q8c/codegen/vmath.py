"""Functions of <16 x float>, through explicit fma, so the bits are the same on every tier.

Each names its error budget, against the exact value of the float operand, in units of the last place (ulp) of the
result unless told. NaN gives NaN; denormal operands and results are exact to the same budget.
"""
from __future__ import annotations

from collections.abc import Sequence

from q8c.codegen import gelu_table
from q8c.codegen.builder import V16F, V16I, Builder, Value, constant
from q8c.codegen.vmath_wide import cos, pow, sin

__all__ = ["cos", "erf", "exp", "gelu", "gelu_tanh", "log", "pow", "sigmoid", "silu", "sin", "softplus", "tanh"]

ULPS = {"exp": 1.0, "log": 1.0, "erf": 1.0, "tanh": 1.5, "sigmoid": 2.5, "silu": 2.5, "softplus": 2.0, "sin": 2.0,
        "cos": 2.0}
"""Error budgets in ulp. Where e**-x overflows (x < -88.7), sigmoid and silu are 0."""
POW_ULPS = 1.0
"""Error budget of pow in ulp."""
GELU_ERROR = 2e-7
"""Error budget of both GELUs: absolute up to |x| = 1, relative to |x| beyond."""
GELU_APPROXIMATE_ERROR = 2.1e-4
"""The same where a tier may approximate: a fiftieth of the step that int8 rows of GELUs have, or less."""

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
_ROUNDER = 1.5 * 2.0**23  # adding it rounds to an integer n and leaves n in the low bits
_ROUNDER_BITS = 0x4B400000

# Polynomials from Moshier's Cephes library (netlib.org/cephes, single precision), highest power first.
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
        2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
# erf: x + x * P(x**2) near zero and 1 - exp(-a + a * Q(a)) beyond (N. Juffa, stackoverflow.com/a/35148199).
_ERF_NEAR = (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1)
_ERF_FAR = (-1.72853470e-5, 3.83197126e-4, -3.88396438e-3, 2.42546219e-2, -1.06777877e-1, -6.34846687e-1,
            -1.28717512e-1)
# GELU is max(x, 0) - |x| q(|x|), q the normal distribution's upper tail, or what the tanh form has for it: a polynomial
# up to |x| = 4, fitted for the least error of the product with q(0) = 1/2 and q(4) = 0.
_GELU_FAR = 4.0
_GELU_TAIL = (-0.000642105413, 0.00992239174, -0.0576463155, 0.140451625, -0.0439825989, -0.389547557, 0.5)
_GELU_TANH_TAIL = (-0.000620336446, 0.00962061156, -0.056063652, 0.136634067, -0.0399622917, -0.390874177, 0.5)


def polynomial(b: Builder, x: Value, coefficients: Sequence[float]) -> Value:
    """Horner's rule, highest power first."""
    y = b.fma(x, coefficients[0], coefficients[1])
    for c in coefficients[2:]:
        y = b.fma(y, x, c)
    return y


def exp(b: Builder, x: Value) -> Value:
    """e**x: Inf above 88.73, denormal and then 0 below -87.34."""
    x = b.fmin(89.0, b.fmax(-104.0, x))
    rounded = b.fma(x, LOG2_E, _ROUNDER)
    n = b.sub(rounded, _ROUNDER)
    r = b.fma(n, -LN2_LOW, b.fma(n, -LN2_HIGH, x))
    y = b.add(b.fma(b.mul(r, r), polynomial(b, r, _EXP), r), 1.0)
    whole = b.sub(b.bits(rounded), _ROUNDER_BITS)
    half = b.ashr(whole, 1)  # 2**n in two factors: n reaches from -150 to 128
    return b.mul(b.mul(y, _power_of_two(b, half)), _power_of_two(b, b.sub(whole, half)))


def _power_of_two(b: Builder, n: Value) -> Value:
    return b.from_bits(b.shl(b.add(n, 127), 23))


def log(b: Builder, x: Value) -> Value:
    """The natural logarithm: -Inf at 0, NaN below."""
    tiny = b.fcmp("<", x, 2.0**-126)
    scaled = b.select(tiny, b.mul(x, 2.0**23), x)
    bits = b.sub(b.bits(scaled), 0x3F3504F3)  # of sqrt(1/2): the mantissa ends in [sqrt(1/2), sqrt(2))
    exponent = b.sub(b.ashr(bits, 23), b.select(tiny, constant(V16I, 23), constant(V16I, 0)))
    m = b.sub(b.from_bits(b.add(b.and_(bits, 0x7FFFFF), 0x3F3504F3)), 1.0)
    e = b.to_f32(exponent)
    square = b.mul(m, m)
    y = b.mul(b.mul(polynomial(b, m, _LOG), m), square)
    y = b.fma(square, -0.5, b.fma(e, LN2_LOW, y))
    y = b.fma(e, LN2_HIGH, b.add(m, y))
    y = b.select(b.fcmp("<", x, float("inf")), y, b.mul(x, x))  # Inf, NaN
    y = b.select(b.fcmp("<", x, 0.0), float("nan"), y)
    return b.select(b.fcmp("==", x, 0.0), float("-inf"), y)


def tanh(b: Builder, x: Value) -> Value:
    """The hyperbolic tangent."""
    a = b.abs(x)
    far = b.sub(1.0, b.div(2.0, b.add(exp(b, b.add(a, a)), 1.0)))
    square = b.mul(x, x)
    near = b.fma(b.mul(polynomial(b, square, _TANH), square), a, a)
    return copy_sign(b, b.select(b.fcmp("<", a, 0.625), near, far), x)


def copy_sign(b: Builder, size: Value, sign: Value) -> Value:
    """|size| with the sign of `sign`."""
    return b.intrinsic("llvm.copysign", [size, sign])


def sigmoid(b: Builder, x: Value) -> Value:
    """1 / (1 + e**-x)."""
    return b.div(1.0, b.add(exp(b, b.ir.fneg(x)), 1.0))


def silu(b: Builder, x: Value) -> Value:
    """x / (1 + e**-x); NaN at -Inf, as x * sigmoid(x) is."""
    return b.div(x, b.add(exp(b, b.ir.fneg(x)), 1.0))


def softplus(b: Builder, x: Value) -> Value:
    """log(1 + e**x), as max(x, 0) + log(1 + e**-|x|)."""
    e = exp(b, b.ir.fneg(b.abs(x)))
    sum_ = b.add(e, 1.0)
    rest = b.div(b.sub(e, b.sub(sum_, 1.0)), sum_)  # what rounding 1 + e lost
    return b.add(b.fmax(0.0, x), b.add(log(b, sum_), rest))


def erf(b: Builder, x: Value) -> Value:
    """The error function."""
    a = b.abs(x)
    square = b.mul(x, x)
    near = b.fma(polynomial(b, square, _ERF_NEAR), a, a)
    t = b.fmin(4.0, a)  # erf is 1 from 3.92 on
    far = b.fma(polynomial(b, t, _ERF_FAR), t, b.ir.fneg(t))
    far = b.sub(1.0, exp(b, far))
    return copy_sign(b, b.select(b.fcmp("<", a, 0.927734375), near, far), x)


def gelu(b: Builder, x: Value) -> Value:
    """x * (1 + erf(x / sqrt(2))) / 2; not finite at -Inf."""
    return _gelu(b, x, tanh=False)


def gelu_tanh(b: Builder, x: Value) -> Value:
    """x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3))) / 2; not finite at -Inf."""
    return _gelu(b, x, tanh=True)


def _gelu(b: Builder, x: Value, tanh: bool) -> Value:
    if b.tier.approximate:
        a = b.abs(x)
        tail = polynomial(b, b.fmin(_GELU_FAR, a), _GELU_TANH_TAIL if tanh else _GELU_TAIL)
        return b.fma(b.ir.fneg(a), tail, b.fmax(0.0, x))
    table = gelu_table.coefficients(tanh)
    a = b.abs(x)
    near = b.fmin((gelu_table.SEGMENTS - 1) * gelu_table.WIDTH, a)
    rounded = b.fma(near, 1 / gelu_table.WIDTH, _ROUNDER)
    d = b.fma(b.sub(rounded, _ROUNDER), -gelu_table.WIDTH, near)
    segment = b.bits(rounded)
    y = b.pick16(b.vector(V16F, table[-1]), segment)
    for row in reversed(table[:-1]):
        y = b.fma(y, d, b.pick16(b.vector(V16F, row), segment))
    return b.fma(a, y, b.mul(x, 0.5))
