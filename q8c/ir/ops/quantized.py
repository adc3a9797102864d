"""Ops of the quantized level: Q8 weights, R8 rows, exact integer products."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q8c.ir import q8
from q8c.ir.dims import Dim, floordiv
from q8c.ir.graph import Array
from q8c.ir.ops.movement import gather
from q8c.ir.ops.registry import AttrSpec, Level, OpDef, Operands, register
from q8c.ir.types import DType, TensorType

BLOCK = {"block": AttrSpec("int", 0)}


def expect_weight(o: Operands, w: TensorType, scale: TensorType) -> None:
    """Fail unless w is u8[depth, cols] and scale f32[cols], or f32 or f16 [blocks, cols] if there are blocks, sizes
    fixed."""
    block = o.attrs["block"]
    o.expect(w.dtype is DType.u8 and w.rank == 2 and all(isinstance(d, int) for d in w.shape),
             "expected a weight u8[depth, cols] of fixed size")
    o.expect(block == 0 or block in q8.FORMATS.values(), f"expected a block of {list(q8.FORMATS.values())} steps")
    depth, cols = w.shape
    assert isinstance(depth, int)
    expected = (q8.block_count(depth, block), cols) if block else (cols,)
    kept = DType.f16 if block and scale.dtype is DType.f16 else DType.f32
    o.expect(scale == TensorType(kept, expected), f"expected scales f32{list(expected)}{' or f16' * (block > 0)}")


def block_dim(depth: Dim, block: int) -> Dim:
    """How many blocks a row of `depth` has."""
    return floordiv(depth + (block - 1), block) if block else 1


def _dequantize_weight(o: Operands) -> Sequence[TensorType]:
    w, scale = o.type(0), o.type(1)
    expect_weight(o, w, scale)
    return [TensorType(DType.f32, w.shape)]


def _lookup(o: Operands) -> Sequence[TensorType]:
    w, indices = o.type(0), o.type(2)
    expect_weight(o, w, o.type(1))
    o.expect(indices.dtype in (DType.i32, DType.i64), "expected i32 or i64 indices")
    return [TensorType(DType.f32, (*indices.shape, w.shape[0]))]


def lookup(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """Columns of a Q8 weight, dequantized: [..., depth]. Negative indices count from the end; raises InputError for one
    out of range."""
    w, scale, indices = args
    found = [gather([x, indices], {"axis": x.ndim - 1})[0].reshape(*x.shape[:-1], -1) for x in (w, scale)]
    columns = q8.dequantize_weight(found[0], found[1], attrs["block"])
    return [np.ascontiguousarray(columns.T).reshape(*indices.shape, w.shape[0])]


def _dynamic_quantize(o: Operands) -> Sequence[TensorType]:
    x = o.type(0)
    o.expect(x.dtype is DType.f32 and x.rank >= 1, "expected f32 rows")
    row = (*x.shape[:-1], block_dim(x.shape[-1], o.attrs["block"]))
    depth = x.shape[-1]
    o.expect(not o.attrs["wide"] or (o.attrs["block"] > 0 and isinstance(depth, int) and depth > 1),
             "expected wide rows by blocks, of fixed depth above 1")
    if o.types[1] is not None:
        o.expect(o.attrs["wide"] and x.rank == 3 and o.types[1] == TensorType(DType.i64, (x.shape[0], 1, 1)),
                 "expected i64 counts [batch, 1, 1] of wide rows [batch, tokens, depth]")
    types = [TensorType(DType.i8, x.shape), TensorType(DType.f32, row), TensorType(DType.i32, row)]
    return [*types, TensorType(DType.i32, row)] if o.attrs["zero_point"] else types


def quantize(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """R8 rows, with zero points if asked for. `wide` says how far apart they lie (`memory.is_wide`); `counts`, how many
    new tokens of each sequence are no padding, change nothing here."""
    return (q8.quantize_rows_zero if attrs["zero_point"] else q8.quantize_rows)(args[0], attrs["block"])


def _q8_matmul(o: Operands) -> Sequence[TensorType]:
    q, w, zero = o.type(0), o.type(1), o.types[2]
    o.expect(q.dtype is DType.i8 and w.dtype is DType.u8 and w.rank == 2, "expected (i8[..., depth], u8[depth, cols])")
    o.same(q.shape[-1], w.shape[0])
    blocks = (block_dim(w.shape[0], o.attrs["block"]),) if o.attrs["block"] else ()
    if zero is not None:
        expected = TensorType(DType.i32, (*q.shape[:-1], *(blocks or (1,))))
        o.expect(zero == expected, f"expected zero points {expected}")
    return [TensorType(DType.i32, (*q.shape[:-1], *blocks, w.shape[1]))]


def q8_matmul(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """The exact integer product, per block if there are blocks."""
    q, w, zero = (*args, None)[:3]
    return [q8.matmul_ref(q, w, zero, attrs["block"])]


def _dequantize(o: Operands) -> Sequence[TensorType]:
    acc, row_scale, col_scale = o.type(0), o.type(1), o.type(2)
    block = o.attrs["block"]
    o.expect(acc.dtype is DType.i32, "expected i32 accumulators")
    o.expect(col_scale.rank == (2 if block else 1) and col_scale.dtype in (DType.f32, *[DType.f16] * (block > 0)),
             "expected f32 scales per column")
    o.same(col_scale.shape[-1], acc.shape[-1])
    rows = acc.shape[:-2] if block else acc.shape[:-1]
    o.expect(row_scale.rank == len(rows) + 1, "expected the scales of the rows")
    o.same(row_scale.shape[-1], acc.shape[-2] if block else 1)
    return [TensorType(DType.f32, (*rows, acc.shape[-1]))]


register(OpDef("dequantize_weight", "w scale", _dequantize_weight,
               lambda a, k: [q8.dequantize_weight(a[0], a[1], k["block"])], BLOCK, Level.quantized))
register(OpDef("lookup", "w scale indices", _lookup, lookup, BLOCK, Level.quantized,
               doc="Columns of a Q8 weight picked by index: the embeddings of a model whose head they are as well."))
register(OpDef("dynamic_quantize", "x counts?", _dynamic_quantize, quantize,
               {**BLOCK, "zero_point": AttrSpec("bool", False), "wide": AttrSpec("bool", False)}, Level.quantized,
               doc="R8 rows: i8 rows, and per row or block an f32 scale, an i32 sum and, if asked for, a zero point. "
                   "Code may leave wide rows in bfloat16 where they lie, and nothing else then; with counts, for each "
                   "sequence by its own."))
register(OpDef("q8_matmul", "q w zero?", _q8_matmul, q8_matmul, BLOCK, Level.quantized))
register(OpDef("dequantize", "acc row_scale col_scale", _dequantize,
               lambda a, k: [q8.dequantize(a[0], a[1], a[2], k["block"])], BLOCK, Level.quantized))
