"""Coefficients for GELU from a table in registers, computed in decimal so that every machine gets the same bits.

gelu(x) = x * (0.5 + g(x)) with g odd (half an erf, or half a tanh), so gelu(x) = 0.5 x + |x| g(|x|). Sixteen
polynomials give g(|x|) around the multiples of WIDTH; the last is the constant 0.5, so that far from zero the
result is exactly x or 0.
"""
from __future__ import annotations

import functools
from decimal import Decimal, localcontext

SEGMENTS = 16
DEGREE = 4
WIDTH = 0.375
"""Distance of segment centres. The constant begins at 14.5 * WIDTH = 5.44, where |x| (0.5 - g) is 1.5e-7."""

_DIGITS = 60
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def _half_erf(x: Decimal) -> Decimal:
    """erf(x / sqrt(2)) / 2 by its power series."""
    z = x / Decimal(2).sqrt()
    term, total, n = z, z, 0
    while abs(term) > Decimal(10) ** (5 - _DIGITS):
        n += 1
        term *= -z * z / n
        total += term / (2 * n + 1)
    return total / _PI.sqrt()


def _half_tanh(x: Decimal) -> Decimal:
    """tanh(sqrt(2 / pi) * (x + 0.044715 x**3)) / 2."""
    u = (2 / _PI).sqrt() * (x + Decimal("0.044715") * x**3)
    return Decimal("0.5") - 1 / ((2 * u).exp() + 1)


def _cosines() -> list[Decimal]:
    """Chebyshev's points for degree 4: cos((2 k + 1) pi / 10)."""
    five = Decimal(5).sqrt()
    outer, inner = ((5 + five) / 8).sqrt(), ((5 - five) / 8).sqrt()
    return [-outer, -inner, Decimal(0), inner, outer]


def _through(points: list[Decimal], values: list[Decimal]) -> list[Decimal]:
    """Coefficients, constant first, of the polynomial through the points (Newton's divided differences)."""
    table = list(values)
    for level in range(1, len(points)):
        for i in range(len(points) - 1, level - 1, -1):
            table[i] = (table[i] - table[i - 1]) / (points[i] - points[i - level])
    coefficients = [Decimal(0)] * len(points)
    for point, newton in zip(reversed(points), reversed(table), strict=True):
        shifted = [Decimal(0), *coefficients[:-1]]
        coefficients = [s - point * c for s, c in zip(shifted, coefficients, strict=True)]
        coefficients[0] += newton
    return coefficients


@functools.cache
def coefficients(tanh: bool) -> tuple[tuple[float, ...], ...]:
    """[power][segment]: g(k * WIDTH + d) = sum over powers p of coefficients[p][k] * d**p for |d| <= WIDTH / 2."""
    with localcontext() as context:
        context.prec = _DIGITS
        function = _half_tanh if tanh else _half_erf
        points = [c * Decimal(WIDTH) / 2 for c in _cosines()]
        rows = [_through(points, [function(k * Decimal(WIDTH) + d) for d in points]) for k in range(SEGMENTS - 1)]
        rows.append([Decimal("0.5"), *[Decimal(0)] * DEGREE])
        return tuple(tuple(float(row[p]) for row in rows) for p in range(DEGREE + 1))
