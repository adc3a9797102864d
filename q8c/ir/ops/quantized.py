"""Ops of the quantized level: Q8 weights, R8 rows, exact integer products."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q8c.ir import q8
from q8c.ir.graph import Array
from q8c.ir.ops.registry import Level, OpDef, Operands, register
from q8c.ir.types import DType, TensorType


def _dequantize_weight(o: Operands) -> Sequence[TensorType]:
    w, scale = o.type(0), o.type(1)
    expect_weight(o, w, scale)
    return [TensorType(DType.f32, w.shape)]


def expect_weight(o: Operands, w: TensorType, scale: TensorType) -> None:
    """Fail unless w is u8[depth, cols] and scale f32[cols], with fixed sizes."""
    o.expect(w.dtype is DType.u8 and w.rank == 2 and all(isinstance(d, int) for d in w.shape),
             "expected a weight u8[depth, cols] of fixed size")
    o.expect(scale == TensorType(DType.f32, (w.shape[1],)), "expected one f32 scale per column")


def _dynamic_quantize(o: Operands) -> Sequence[TensorType]:
    x = o.type(0)
    o.expect(x.dtype is DType.f32 and x.rank >= 1, "expected f32 rows")
    row = (*x.shape[:-1], 1)
    return [TensorType(DType.i8, x.shape), TensorType(DType.f32, row), TensorType(DType.i32, row)]


def _q8_matmul(o: Operands) -> Sequence[TensorType]:
    q, w = o.type(0), o.type(1)
    o.expect(q.dtype is DType.i8 and w.dtype is DType.u8 and w.rank == 2, "expected (i8[..., depth], u8[depth, cols])")
    o.same(q.shape[-1], w.shape[0])
    return [TensorType(DType.i32, (*q.shape[:-1], w.shape[1]))]


def _dequantize(o: Operands) -> Sequence[TensorType]:
    acc, row_scale, col_scale = o.type(0), o.type(1), o.type(2)
    o.expect(acc.dtype is DType.i32, "expected i32 accumulators")
    o.expect(col_scale.rank == 1 and col_scale.dtype is DType.f32, "expected one f32 scale per column")
    o.same(col_scale.shape[0], acc.shape[-1])
    o.broadcast(acc.shape, row_scale.shape)
    return [TensorType(DType.f32, acc.shape)]


def dequantize(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """float(acc) * (row_scale * col_scale), the scales multiplied first as the kernels do."""
    acc, row_scale, col_scale = args
    return [acc.astype(np.float32) * (row_scale * col_scale)]


register(OpDef("dequantize_weight", "w scale", _dequantize_weight, lambda a, k: [q8.dequantize_weight(*a)],
               level=Level.quantized))
register(OpDef("dynamic_quantize", "x", _dynamic_quantize, lambda a, k: q8.quantize_rows(a[0]),
               level=Level.quantized, doc="R8 rows: (i8 rows, f32 scale per row, i32 sum per row)."))
register(OpDef("q8_matmul", "q w", _q8_matmul, lambda a, k: [q8.matmul_ref(*a)], level=Level.quantized))
register(OpDef("dequantize", "acc row_scale col_scale", _dequantize, dequantize, level=Level.quantized))
