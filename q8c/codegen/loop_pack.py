"""R8 bytes: 64 rounded quotients clipped and packed at a time, and their sums.

q = clip(steps + zero, -127, 127) through saturating packs: to 16 bits, plus the zero point, to 8 bits, and no less than
-127. Rows that are not finite are made 0 in between by a mask.
"""
from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from q8c.codegen.builder import I8, I16, LANES, V16I, Builder, Value, constant
from q8c.ir.q8 import QMAX

V32S = ir.VectorType(I16, 32)
V64B = ir.VectorType(I8, 64)


def clip_step(b: Builder, steps: Value, zero: Value, finite: Value) -> Value:
    """One i32 (scalar or lanes) as an R8 byte in i8."""
    q = b.imax(b.imin(b.add(steps, zero), QMAX), -QMAX)
    q = b.select(finite, q, constant(q.type, 0))
    return b.trunc(q, ir.VectorType(I8, q.type.count) if isinstance(q.type, ir.VectorType) else I8)


def pack_steps(b: Builder, steps: Sequence[Value], zeros: Sequence[Value], keeps: Sequence[Value]) -> Value:
    """Four <16 x i32> as <64 x i8>. `zeros` and `keeps` are <32 x i16> for the first and the last two of them: the zero
    point, and -1, or 0 where the bytes must be 0.
    """
    if not b.tier.has("avx512bw"):
        halves = [_pack_32(b, pair, zero, keep)
                  for pair, zero, keep in zip((steps[:2], steps[2:]), zeros, keeps, strict=True)]
        return b.concat(*halves)
    words = [b.and_(b.add(b.intrinsic("llvm.x86.avx512.packssdw.512", list(pair), V32S), zero), keep)
             for pair, zero, keep in zip((steps[:2], steps[2:]), zeros, keeps, strict=True)]
    packed = b.intrinsic("llvm.x86.avx512.packsswb.512", words, V64B)
    packed = b.imax(packed, -QMAX)
    # each 128-bit lane holds 4 bytes of every vector: bring those of a vector together
    dwords = b.bitcast(packed, V16I)
    return b.bitcast(b.shuffle(dwords, dwords, [4 * (n % 4) + n // 4 for n in range(LANES)]), V64B)


def _pack_32(b: Builder, steps: Sequence[Value], zero: Value, keep: Value) -> Value:
    pieces = [half for vector in steps for half in b.halves(vector)]
    zero, keep = b.halves(zero)[0], b.halves(keep)[0]
    words = [b.and_(b.add(b.intrinsic("llvm.x86.avx2.packssdw", pair, zero.type), zero), keep)
             for pair in (pieces[:2], pieces[2:])]
    packed = b.imax(b.intrinsic("llvm.x86.avx2.packsswb", words, ir.VectorType(I8, 32)), -QMAX)
    dwords = b.bitcast(packed, ir.VectorType(ir.IntType(32), 8))
    return b.bitcast(b.shuffle(dwords, dwords, [4 * (n % 2) + n // 2 for n in range(8)]), packed.type)


def sum_bytes(b: Builder, total: Value, packed: Value) -> Value:
    """<16 x i32> plus the sums of four signed bytes each of <64 x i8>."""
    if b.tier.has_vnni:
        return b.dot_u8s8(total, constant(V16I, 0x01010101), b.bitcast(packed, V16I))
    sums = []
    for half in b.halves(packed):
        pairs = b.intrinsic("llvm.x86.avx2.pmadd.ub.sw", [constant(half.type, 1), half], ir.VectorType(I16, 16))
        ones = constant(pairs.type, 1)
        sums.append(b.intrinsic("llvm.x86.avx2.pmadd.wd", [pairs, ones], ir.VectorType(ir.IntType(32), 8)))
    return b.add(total, b.concat(*sums))


def sum_lanes(b: Builder, total: Value, q: Value) -> Value:
    """<16 x i32> plus <16 x i8>."""
    return b.add(total, b.sext(q, V16I))
