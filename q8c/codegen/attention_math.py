"""Vector pieces of attention: a transposition in registers and the exponential of softmax."""
from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from q8c.codegen.builder import I32, LANES, V16F, Builder, Value
from q8c.codegen.vmath import tanh

LEAST_EXPONENT = -88.0
"""Weights below e**-87.68 come out as exactly 0."""
LOG2_E = 1.4426950408889634
_ROUNDER = 1.5 * 2**23 + 127  # adding it rounds to an integer n and leaves n + 127 in the low bits
# 2**f on [-0.5, 0.5] with the least relative error for a constant term of 1: 9.1e-8, evaluated in float32 1.7e-7.
_EXP2 = (0.0013264726, 0.009671513, 0.055507337, 0.24022242, 0.693147, 1.0)
# 2**f on [0, 1] likewise, to 8.6e-5.
_EXP2_BF16 = (0.0770670985, 0.22764493, 0.6951168, 1.0)
_DOWNWARDS, _THIS_ROUNDING = 9, 4  # of `vreduceps` (floor, silently) and of the unit


def exp_nonpositive(b: Builder, x: Value) -> Value:
    """exp(x) for x <= 0 to 2e-7 + 2e-8 |x|, relative, or 9e-5 + 6e-8 |x| where an AVX-512 tier may approximate; 0 below
    LEAST_EXPONENT (denormal first in the latter), -inf included; NaN stays NaN."""
    if b.tier.approximate and b.tier.has("avx512dq"):
        return exp2_for_bf16(b, b.mul(x, LOG2_E))
    # 2**n * 2**f with n the integer nearest to x * log2(e) (Cody and Waite, 1980)
    x = b.fmax(LEAST_EXPONENT, x)
    rounded = b.fma(x, LOG2_E, _ROUNDER)
    fraction = b.fma(x, LOG2_E, b.sub(_ROUNDER, rounded))
    y = _polynomial(b, fraction, _EXP2)
    # A product instead of a sum of exponent bits: the payload of a NaN could carry into its sign and make it finite.
    return b.mul(y, b.from_bits(b.shl(b.bits(rounded), 23)))


def capped(b: Builder, x: Value, cap: float) -> Value:
    """cap * tanh(x), x itself without a cap."""
    return b.mul(tanh(b, x), cap) if cap else x


def exp2_for_bf16(b: Builder, x: Value) -> Value:
    """2**x to 9e-5, relative, a twentieth of a step of bfloat16; 0 for -inf; NaN stays NaN. AVX-512 only."""
    every = ir.Constant(ir.IntType(LANES), -1)
    rounding = ir.Constant(I32, _THIS_ROUNDING)
    how = ir.Constant(I32, _DOWNWARDS)
    fraction = b.intrinsic("llvm.x86.avx512.mask.reduce.ps.512", [x, how, x, every, rounding], V16F)
    y = _polynomial(b, fraction, _EXP2_BF16)
    return b.intrinsic("llvm.x86.avx512.mask.scalef.ps.512", [y, x, x, every, rounding], V16F)


def _polynomial(b: Builder, x: Value, coefficients: Sequence[float]) -> Value:
    y = b.fma(x, coefficients[0], coefficients[1])
    for coefficient in coefficients[2:]:
        y = b.fma(y, x, coefficient)
    return y


def transpose(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """16 columns of as many 16-lane rows as a register has lanes (8 or 16): column n holds lane n of every row."""
    if len(rows) == LANES:
        return _square(b, rows)
    parts = [b.halves(row) for row in rows]
    return _square(b, [low for low, _ in parts]) + _square(b, [high for _, high in parts])


def _square(b: Builder, rows: Sequence[Value]) -> list[Value]:
    quads = [_quad(b, rows[i:i + 4]) for i in range(0, len(rows), 4)]
    columns = [_blocks(b, [quad[c] for quad in quads]) for c in range(4)]
    return [columns[n % 4][n // 4] for n in range(len(rows))]


def _quad(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """Every 4 x 4 block of four rows transposed in place (`vunpcklps` and its kin)."""
    def pick(x: Value, y: Value, lanes: Sequence[int]) -> Value:
        count = x.type.count
        return b.shuffle(x, y, [4 * block + (n if n < 4 else n - 4 + count)
                                for block in range(count // 4) for n in lanes])

    words = [[pick(rows[i], rows[i + 1], lanes) for lanes in ((0, 4, 1, 5), (2, 6, 3, 7))] for i in (0, 2)]
    return [pick(words[0][n], words[1][n], lanes) for n in (0, 1) for lanes in ((0, 1, 4, 5), (2, 3, 6, 7))]


def _blocks(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """The 4-lane blocks of 2 rows of 2, or 4 rows of 4, transposed (`vperm2f128`, `vshuff32x4`)."""
    def pick(x: Value, y: Value, blocks: Sequence[int]) -> Value:
        lanes = [4 * n + m for n in blocks for m in range(4)]
        return b.shuffle(x, y, [*lanes, *(x.type.count + n for n in lanes)])

    if len(rows) == 2:
        return [pick(rows[0], rows[1], [n]) for n in (0, 1)]
    even, odd = ([pick(rows[i], rows[i + 1], blocks) for i in (0, 2)] for blocks in ((0, 2), (1, 3)))
    return [pick(pair[0], pair[1], blocks) for blocks in ((0, 2), (1, 3)) for pair in (even, odd)]
