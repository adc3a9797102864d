"""The vector half of the kernel builder: <16 x float>, <16 x i32> and <16 x i8> on every tier.

16 logical lanes are one register with AVX-512 and two without; LLVM splits them. No operation here lets LLVM
contract or reorder floats, so results are the same bits on every tier.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import llvmlite.ir as ir

from q8c.codegen.core import F32, I1, I8, I32, I64, Core, Operand, Value, constant, element, sizeof, suffix

LANES = 16
V16F = ir.VectorType(F32, LANES)
V16I = ir.VectorType(I32, LANES)
V16B = ir.VectorType(I8, LANES)
V16M = ir.VectorType(I1, LANES)


def _halves_of_groups(lanes: int, width: int) -> tuple[list[int], list[int]]:
    low = [n for n in range(lanes) if n % width < width // 2]
    return low, [n + width // 2 for n in low]


class Simd(Core):
    """`Core` with vectors."""

    def splat(self, value: Operand, typ: ir.Type = V16F) -> Value:
        """A vector of `typ` with a scalar in every lane."""
        if isinstance(value, (int, float)):
            return constant(typ, value)
        first = self.ir.insert_element(ir.Constant(typ, ir.Undefined), value, constant(I32, 0))
        return self.shuffle(first, first, [0] * typ.count)

    def vector(self, typ: ir.Type, values: Sequence[int | float]) -> Value:
        """A constant vector, lane by lane."""
        return constant(typ, *values)

    def iota(self, typ: ir.Type = V16I) -> Value:
        """0, 1, 2, ... by lane."""
        return self.vector(typ, range(typ.count))

    def shuffle(self, x: Value, y: Value, lanes: Sequence[int]) -> Value:
        """Lanes picked by number from x, then y (numbers from x's count on)."""
        return self.ir.shuffle_vector(x, y, constant(ir.VectorType(I32, len(lanes)), *lanes))

    def halves(self, x: Value) -> tuple[Value, Value]:
        """The low and the high half of a vector."""
        half = x.type.count // 2
        return self.shuffle(x, x, range(half)), self.shuffle(x, x, range(half, 2 * half))

    def concat(self, low: Value, high: Value) -> Value:
        """Two vectors as one of twice the lanes."""
        return self.shuffle(low, high, range(2 * low.type.count))

    def lane(self, x: Value, index: int) -> Value:
        """One lane as a scalar."""
        return self.ir.extract_element(x, constant(I32, index))

    # -- floats

    def fma(self, x: Operand, y: Operand, z: Operand) -> Value:
        """x * y + z, rounded once."""
        x, y, z = self.coerce(x, y, z)
        return self.intrinsic("llvm.fma", [x, y, z])

    def fmin(self, x: Operand, y: Operand) -> Value:
        """x if x < y else y, one `vminps`: a NaN on either side gives y. Put the bound first to keep a NaN."""
        x, y = self.coerce(x, y)
        return self.select(self.fcmp("<", x, y), x, y)

    def fmax(self, x: Operand, y: Operand) -> Value:
        """x if x > y else y, one `vmaxps`: a NaN on either side gives y. Put the bound first to keep a NaN."""
        x, y = self.coerce(x, y)
        return self.select(self.fcmp(">", x, y), x, y)

    def abs(self, x: Value) -> Value:
        """|x| of floats; clears the sign of NaN too."""
        return self.intrinsic("llvm.fabs", [x])

    def sqrt(self, x: Value) -> Value:
        """The correctly rounded square root; NaN below zero."""
        return self.intrinsic("llvm.sqrt", [x])

    def floor(self, x: Value) -> Value:
        """The largest integer not above x, still a float."""
        return self.intrinsic("llvm.floor", [x])

    def to_f32(self, x: Value) -> Value:
        """Signed integers to the nearest floats."""
        return self.ir.sitofp(x, self._like(x, F32))

    def to_i32(self, x: Value) -> Value:
        """Floats to the nearest int32, halves to even. NaN and what does not fit: -2**31 (one `vcvtps2dq`)."""
        result = self._like(x, I32)
        name = f"llvm.lrint.{suffix(result)}.{suffix(x.type)}"
        return self.intrinsic(name, [x], result)

    def bits(self, x: Value) -> Value:
        """The bit patterns of floats as i32."""
        return self.bitcast(x, self._like(x, I32))

    def from_bits(self, x: Value) -> Value:
        """i32 bit patterns as floats."""
        return self.bitcast(x, self._like(x, F32))

    def _like(self, x: Value, scalar: ir.Type) -> ir.Type:
        return ir.VectorType(scalar, x.type.count) if isinstance(x.type, ir.VectorType) else scalar

    def reduce(self, x: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """One scalar from a vector: combine(low half, high half) until one lane is left, so the order is fixed."""
        while x.type.count > 2:
            x = combine(*self.halves(x))
        return combine(self.lane(x, 0), self.lane(x, 1))

    def fold(self, vectors: Sequence[Value], combine: Callable[[Value, Value], Value], width: int) -> Value:
        """Each `width` lanes of the vectors (a power of two of them) combined to one, in order."""
        while len(vectors) > 1:
            low, high = _halves_of_groups(2 * LANES, width)
            vectors = [combine(self.shuffle(x, y, low), self.shuffle(x, y, high))
                       for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
            width //= 2
        value, = vectors
        while width > 1:
            low, high = _halves_of_groups(value.type.count, width)
            value = combine(self.shuffle(value, value, low), self.shuffle(value, value, high))
            width //= 2
        return value

    # -- memory at the end of a row

    def tail_mask(self, count: Operand) -> Value:
        """<16 x i1>: True in the first `count` lanes (i64; any count >= 16 gives all)."""
        if isinstance(count, int):
            return constant(V16M, *(n < count for n in range(LANES)))
        lanes = self.trunc(self.imin(count, LANES), I32)
        return self.icmp("<", self.iota(), self.splat(lanes, V16I))

    def load_tail(self, typ: ir.Type, address: Value, count: Operand, fill: int | float = 0) -> Value:
        """The first `count` (i64, 0 to 16) elements of a 16-lane vector; lanes past them read nothing and hold
        `fill`. Elements of 4 bytes, or of 1 byte."""
        if sizeof(element(typ)) == 1 and not self.tier.has("avx512bw"):
            return self._load_bytes(address, count, fill)
        mask, other = self.tail_mask(count), constant(typ, fill)
        align = constant(I32, sizeof(element(typ)))
        name = f"llvm.masked.load.{suffix(typ)}.p0"
        return self.intrinsic(name, [address, align, mask, other], typ)

    def store_tail(self, value: Value, address: Value, count: Operand) -> None:
        """Store the first `count` (i64, 0 to 16) lanes and touch nothing after them. Elements of 4 bytes or 1."""
        if sizeof(element(value.type)) == 1 and not self.tier.has("avx512bw"):
            self._store_bytes(value, address, count)
            return
        args = [value, address, constant(I32, sizeof(element(value.type))), self.tail_mask(count)]
        self.intrinsic(f"llvm.masked.store.{suffix(value.type)}.p0", args, ir.VoidType())

    # AVX2 has no byte-masked access, and LLVM would make 16 branches of it: move 16, or 8 + 4 + 2 + 1 bytes.

    def _store_bytes(self, value: Value, address: Value, count: Operand) -> None:
        count = constant(I64, count) if isinstance(count, (int, float)) else count

        def pieces() -> list[Value]:
            rest, at = value, address
            for size in (8, 4, 2, 1):
                rest, at = self._store_piece(rest, at, count, size)
            return []

        def whole() -> list[Value]:
            self.store(value, address)
            return []

        self.if_else(self.icmp(">=", count, LANES), whole, pieces)

    def _store_piece(self, rest: Value, at: Value, count: Value, size: int) -> tuple[Value, Value]:
        def some() -> list[Value]:
            chunk = ir.IntType(8 * size)
            words = self.bitcast(rest, ir.VectorType(chunk, LANES // size))
            self.store(self.lane(words, 0), at, align=1)
            down = self.shuffle(rest, rest, [(n + size) % LANES for n in range(LANES)])
            return [down, self.at(at, size)]

        new_rest, new_at = self.if_else(self.icmp("!=", self.and_(count, size), 0), some, lambda: [rest, at])
        return new_rest, new_at

    def _load_bytes(self, address: Value, count: Operand, fill: int | float) -> Value:
        count = constant(I64, count) if isinstance(count, (int, float)) else count

        def pieces() -> list[Value]:
            buffer = self.scratch(LANES, align=16)
            self.store(constant(V16B, fill), buffer)
            done = constant(I64, 0)
            for size in (8, 4, 2, 1):
                done = self._load_piece(buffer, address, count, done, size)
            return [self.load(V16B, buffer)]

        return self.if_else(self.icmp(">=", count, LANES), lambda: [self.load(V16B, address)], pieces)[0]

    def _load_piece(self, buffer: Value, address: Value, count: Value, done: Value, size: int) -> Value:
        with self.if_(self.icmp("!=", self.and_(count, size), 0)):
            chunk = self.load(ir.IntType(8 * size), self.at(address, done), align=1)
            self.store(chunk, self.at(buffer, done), align=1)
        return self.add(done, self.and_(count, size))
