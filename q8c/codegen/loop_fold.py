"""Reductions as accumulators of 16 lanes: how they start, take in a vector, and end as one number."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from q8c.codegen import loop_ops
from q8c.codegen.builder import Builder, Value, constant
from q8c.codegen.loop_memory import vector_type
from q8c.codegen.loop_pack import sum_lanes
from q8c.codegen.loop_quantize import NEGATIVE_ZERO_BITS
from q8c.codegen.targets import Tier
from q8c.ir.types import DType


def accumulators(tier: Tier, op: str, dtype: DType) -> int:
    """How many accumulators a reduction has: 4 where the order of additions shows, else what fits in registers."""
    return 4 if op in ("row_sum", "row_prod") and dtype.is_float or tier.registers > 16 else 2


def neutral(op: str, dtype: DType) -> Value:
    """16 lanes of what changes no result: an accumulator's start, and the lanes past the end of a row."""
    typ = vector_type(dtype)
    if op in ("row_sum", "row_umax", "row_high", "row_r8_sum"):
        return loop_ops.number(0, dtype, typ)
    if op == "row_low":
        return loop_ops.number(NEGATIVE_ZERO_BITS, dtype, typ)
    if op == "row_prod":
        return loop_ops.number(1, dtype, typ)
    low = op in ("row_max", "row_any_max")
    if dtype.is_float:
        return constant(typ, float("-inf") if low else float("inf"))
    bounds = np.iinfo(dtype.value)
    return constant(typ, int(bounds.min if low else bounds.max))


def taker(b: Builder, op: str, dtype: DType) -> Callable[[Value, Value], Value]:
    """take(accumulator, next vector of the row)"""
    if op == "row_r8_sum":
        return lambda x, y: sum_lanes(b, x, y)
    return combiner(b, op, dtype)


def combiner(b: Builder, op: str, dtype: DType) -> Callable[[Value, Value], Value]:
    """combine(accumulator, accumulator)"""
    if op in ("row_sum", "row_r8_sum"):
        return b.add
    if op == "row_prod":
        return b.mul
    if op in ("row_umax", "row_low"):  # of two negative floats, the one further from 0 has the larger bits
        return b.umax
    if op == "row_high":
        return b.imax
    if op == "row_any_max" and dtype.is_float:
        return b.fmax
    order = "<" if op == "row_min" else ">"
    return lambda x, y: loop_ops.extreme(b, order, dtype, x, y)


def total(b: Builder, op: str, dtype: DType, sums: Sequence[Value]) -> Value:
    """One number from 4 or 2 accumulators, by a fixed tree."""
    combine = combiner(b, op, dtype)
    while len(sums) > 1:
        sums = [combine(x, y) for x, y in zip(sums[::2], sums[1::2], strict=True)]
    return b.reduce(sums[0], combine)
