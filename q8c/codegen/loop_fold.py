"""Reductions as accumulators of 16 lanes: how they start, take in a vector, and end as one number."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from q8c.codegen import loop_ops
from q8c.codegen.builder import Builder, Value, constant
from q8c.codegen.loop_memory import vector_type
from q8c.ir.types import DType


def neutral(op: str, dtype: DType) -> Value:
    """16 lanes of what changes no result: an accumulator's start, and the lanes past the end of a row."""
    typ = vector_type(dtype)
    if op in ("row_sum", "row_umax"):
        return loop_ops.number(0, dtype, typ)
    if op == "row_prod":
        return loop_ops.number(1, dtype, typ)
    low = op in ("row_max", "row_any_max")
    if dtype.is_float:
        return constant(typ, float("-inf") if low else float("inf"))
    bounds = np.iinfo(dtype.value)
    return constant(typ, int(bounds.min if low else bounds.max))


def combiner(b: Builder, op: str, dtype: DType) -> Callable[[Value, Value], Value]:
    """combine(total so far, next value)"""
    if op == "row_sum":
        return b.add
    if op == "row_prod":
        return b.mul
    if op == "row_umax":
        return b.umax
    if op == "row_any_max" and dtype.is_float:
        return b.fmax
    order = "<" if op == "row_min" else ">"
    return lambda x, y: loop_ops.extreme(b, order, dtype, x, y)


def total(b: Builder, op: str, dtype: DType, sums: Sequence[Value]) -> Value:
    """One number from 4 accumulators, by a fixed tree."""
    combine = combiner(b, op, dtype)
    return b.reduce(combine(combine(sums[0], sums[1]), combine(sums[2], sums[3])), combine)
