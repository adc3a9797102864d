"""The kernel builder: a readable layer over llvmlite that knows the tier.

    b = Builder(module, tier, "double", [("x", PTR), ("y", PTR), ("count", I64)])
    with b.range(0, b.arg("count"), 16) as i:
        rest = b.sub(b.arg("count"), i)
        x = b.load_tail(V16F, b.at(b.arg("x"), i, F32), b.imin(rest, 16))
        b.store_tail(b.add(x, x), b.at(b.arg("y"), i, F32), b.imin(rest, 16))
    b.ret()
"""
from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from q8c.codegen.core import F32, F64, I1, I8, I16, I32, I64, PTR, VOID, Core, Operand, Value, constant, element, sizeof
from q8c.codegen.simd import LANES, V16B, V16F, V16I, V16M, Simd
from q8c.codegen.targets import require

__all__ = [
    "F32", "F64", "I1", "I8", "I16", "I32", "I64", "LANES", "PTR", "V16B", "V16F", "V16I", "V16M", "VOID",
    "Builder", "Core", "Operand", "Simd", "Value", "constant", "element", "sizeof",
]


class Builder(Simd):
    """`Simd` with the integer dot products a tier has."""

    def dot_u8s8(self, acc: Value, u8: Value, s8: Value) -> Value:
        """acc + the dot product of the 4 bytes of every 32-bit lane, u8 unsigned and s8 signed; never saturates.

        All three are <8 x i32> or <16 x i32> (bytes packed four to a lane). One `vpdpbusd` per register where the
        tier has VNNI; else even and odd bytes apart through `vpmaddwd`, exact for all operands.
        """
        if acc.type.count * 32 > self.tier.vector_bits:
            parts = zip(*(self.halves(v) for v in (acc, u8, s8)), strict=True)
            return self.concat(*(self.dot_u8s8(*part) for part in parts))
        if self.tier.has_vnni:
            lanes = acc.type.count
            as_bytes = ir.VectorType(I8, 4 * lanes)
            name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
            return self.intrinsic(name, [acc, self.bitcast(u8, as_bytes), self.bitcast(s8, as_bytes)], acc.type)
        for u16, s16 in zip(self.split_u8(u8), self.split_s8(s8), strict=True):
            acc = self.dot_s16(acc, u16, s16)
        return acc

    def gather(self, base: Value, index: Value, count: Operand) -> Value:
        """The floats at `base` plus 16 indices (i32); lanes from `count` on read nothing and hold 0."""
        mask = self.tail_mask(count)
        if self.tier.has("avx512f"):
            return self.intrinsic("llvm.x86.avx512.mask.gather.dps.512",
                                  [self.splat(0.0), base, index, mask, constant(I32, sizeof(F32))], V16F)
        half = ir.VectorType(F32, LANES // 2)
        signs = self.halves(self.from_bits(self.sext(mask, V16I)))
        return self.concat(*(self.intrinsic("llvm.x86.avx2.gather.d.ps.256", [
            constant(half, 0.0), base, part, sign, constant(I8, sizeof(F32))], half)
            for part, sign in zip(self.halves(index), signs, strict=True)))

    def pick16(self, table: Value, index: Value) -> Value:
        """table[index & 15] for every lane, both of 16 lanes: a table of floats held in registers."""
        if self.tier.has("avx512f"):
            return self.intrinsic("llvm.x86.avx512.permvar.sf.512", [table, index], table.type)
        low, high = self.halves(table)
        parts = []
        for part in self.halves(index):
            picks = [self.intrinsic("llvm.x86.avx2.permps", [half, part], half.type) for half in (low, high)]
            parts.append(self.select(self.icmp("<", self.shl(part, 28), 0), picks[1], picks[0]))
        return self.concat(*parts)

    def spread_bytes(self, x: Value, picked: Sequence[int], around: int) -> Value:
        """16 bytes of x, 16 lanes of 32 bits, by number, each as the second lowest byte of a lane; the others are those
        of `around`.

        One `vpermb` that merges, written out: LLVM would make it a `vpermt2b`, which takes three times as long.
        """
        require(self.tier, "llvm.x86.avx512.permvar.qi.512")
        as_bytes = ir.VectorType(I8, 4 * LANES)
        lanes = self.vector(as_bytes, [n for byte in picked for n in (0, byte, 0, 0)])
        kind = ir.FunctionType(V16I, [V16I, as_bytes, V16I, I64])
        asm = ir.InlineAsm(kind, "vpermb $3, $2, $0 {$4}", "=v,0,v,v,^Yk")
        return self.ir.call(asm, [constant(V16I, around), lanes, x, constant(I64, 0x2222222222222222)])

    def split_u8(self, x: Value) -> tuple[Value, Value]:
        """The even and the odd unsigned bytes of 32-bit lanes, each widened to 16 bits in place."""
        pairs = self.bitcast(x, ir.VectorType(I16, 2 * x.type.count))
        return self.and_(pairs, 0xFF), self.lshr(pairs, 8)

    def split_s8(self, x: Value) -> tuple[Value, Value]:
        """The even and the odd signed bytes of 32-bit lanes, each widened to 16 bits in place."""
        pairs = self.bitcast(x, ir.VectorType(I16, 2 * x.type.count))
        return self.ashr(self.shl(pairs, 8), 8), self.ashr(pairs, 8)

    def dot_s16(self, acc: Value, x: Value, y: Value) -> Value:
        """acc + the dot product of the two i16 of every 32-bit lane; x and y have twice the lanes of acc.

        One `vpdpwssd` per register where the tier has VNNI, else `vpmaddwd` and an addition.
        """
        lanes = acc.type.count
        if 32 * lanes > self.tier.vector_bits:
            parts = zip(*(self.halves(v) for v in (acc, x, y)), strict=True)
            return self.concat(*(self.dot_s16(*part) for part in parts))
        if self.tier.has_vnni:
            return self.intrinsic(f"llvm.x86.avx512.vpdpwssd.{32 * lanes}", [acc, x, y], acc.type)
        return self.add(acc, self.intrinsic("llvm.x86.avx2.pmadd.wd", [x, y], acc.type))
