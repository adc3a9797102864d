"""dynamic_quantize as a program: R8 rows as `q8` defines them, per row or per block of columns."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from q8c.codegen.loop_program import Program
from q8c.ir import q8
from q8c.ir.types import DType

ABS_BITS = 0x7FFFFFFF
INF_BITS = 0x7F800000
NEGATIVE_INF_BITS = INF_BITS - (1 << 31)
NEGATIVE_ZERO_BITS = -(1 << 31)
F32, I32 = DType.f32, DType.i32


@dataclass(frozen=True)
class Step:
    """What a row's (or block's) bytes are made with, by number in the program: the scale to show, 1 / scale, the zero
    point as i32, and whether all elements are finite.
    """

    scale: int
    inverse: int
    zero: int
    finite: int


def quantize(p: Program, args: Sequence[int], attrs: dict[str, Any]) -> Sequence[int]:
    """The results of dynamic_quantize: bytes, scale, sum and, if asked for, the zero point."""
    x, zero_point, block = args[0], attrs["zero_point"], attrs["block"]
    if block and p.spans(x):
        kinds = {"block_q": DType.i8, "block_scale": F32, "block_sum": I32}
        kinds.update({"block_zero": I32} if zero_point else {})
        return [p.add(op, dtype, *args, **attrs) for op, dtype in kinds.items()]
    if zero_point:
        step = zero_point_step(p, *_extremes(p, x))
    else:
        step = symmetric_step(p, p.reduce("row_umax", magnitude(p, x)))
    steps = p.add("rint_i32", I32, p.add("mul", F32, x, step.inverse))
    q = p.add("r8_bytes", DType.i8, steps, step.zero, step.finite)
    total = p.reduce("row_r8_sum", q, I32) if p.spans(q) else p.add("cast", I32, q)
    return [q, step.scale, total, step.zero] if zero_point else [q, step.scale, total]


def magnitude(p: Program, x: int) -> int:
    """The bits of |x|: as unsigned integers they are ordered as the floats, and NaN is the largest."""
    return p.add("and_bits", I32, p.add("bits", I32, x), p.constant(ABS_BITS, I32))


def _extremes(p: Program, x: int) -> tuple[int, int]:
    """The bits of the least and the greatest of a row's elements and 0 (-0.0 and 0.0)."""
    bits = p.add("bits", I32, x)
    if p.spans(x):
        return p.reduce("row_low", bits), p.reduce("row_high", bits)
    negative = p.add("less", DType.bool, bits, p.constant(0, I32))
    return (p.add("where", I32, negative, bits, p.constant(NEGATIVE_ZERO_BITS, I32)),
            p.add("where", I32, negative, p.constant(0, I32), bits))


def symmetric_step(p: Program, absmax: int) -> Step:
    """As `q8.quantize_rows`, from the bits of the largest |x|."""
    finite = p.add("less", DType.bool, absmax, p.constant(INF_BITS, I32))
    largest = p.add("where", F32, finite, p.add("from_bits", F32, absmax), p.constant(0, F32))
    scale = _bounded(p, p.add("div", F32, largest, p.constant(q8.QMAX, F32)))
    return Step(_shown(p, finite, scale), p.add("reciprocal", F32, scale), p.constant(0, I32), finite)


def zero_point_step(p: Program, low: int, high: int) -> Step:
    """As `q8.quantize_rows_zero`, from the bits of the extremes of the elements and 0."""
    none = p.constant(0, F32)
    finite = p.add("and", DType.bool, p.add("less", DType.bool, low, p.constant(NEGATIVE_INF_BITS, I32)),
                   p.add("less", DType.bool, high, p.constant(INF_BITS, I32)))
    low, high = (p.add("where", F32, finite, p.add("from_bits", F32, bound), none) for bound in (low, high))
    low_part, high_part = (p.add("div", F32, bound, p.constant(2 * q8.QMAX, F32)) for bound in (low, high))
    scale = _bounded(p, p.add("sub", F32, high_part, low_part))
    inverse = p.add("reciprocal", F32, scale)
    zero = p.add("rint_i32", I32, p.add("sub", F32, p.constant(-q8.QMAX, F32), p.add("mul", F32, low, inverse)))
    zero = p.add("max", I32, p.add("min", I32, zero, p.constant(q8.QMAX, I32)), p.constant(-q8.QMAX, I32))
    zero = p.add("where", I32, finite, zero, p.constant(0, I32))
    return Step(_shown(p, finite, scale), inverse, zero, finite)


def _bounded(p: Program, scale: int) -> int:
    return p.add("max", F32, scale, p.constant(q8.SCALE_FLOOR, F32))


def _shown(p: Program, finite: int, scale: int) -> int:
    return p.add("where", F32, finite, scale, p.constant(np.nan, F32))
