"""Micro-kernels that do nothing but what one unit of the CPU is for: the ceilings kernels are measured against."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import llvmlite.ir as ir

from q8c.codegen import amx
from q8c.codegen.builder import F32, I32, I64, PTR, Builder, Value
from q8c.codegen.image import link
from q8c.codegen.module import compile_module, new_module
from q8c.codegen.targets import TIERS, Tier

SYMBOL = "probe"
BUFFER = 16 << 10
"""Bytes every probe but the reader may touch."""
_UNROLL = 8
Step = Callable[[Builder, Value, Value, Value], Value]


@dataclass(frozen=True)
class Unit:
    """A unit that multiplies and adds: what it is called, the operands it is for (int8, bf16 or f32), the CPU features
    of which one is enough to have it, and the multiply-adds of one pass through the loop of its probe."""

    name: str
    kind: str
    features: tuple[str, ...]
    macs: int
    tier: Tier
    emit: Callable[[Builder, Value, Value], None]

    def code(self) -> bytes:
        """Machine code of `void probe(buffer, count)`: `count` passes."""
        module = new_module(self.name)
        b = Builder(module, self.tier, SYMBOL, [("buffer", PTR), ("count", I64)])
        self.emit(b, b.arg("buffer"), b.arg("count"))
        b.ret()
        return _code(module, self.tier)


def reader(tier: Tier) -> bytes:
    """Machine code of `void probe(buffer, count, bytes)`: reads `bytes` (a multiple of 1024) from the buffer `count`
    times and writes 64 to its start."""
    module = new_module("read")
    b = Builder(module, tier, SYMBOL, [("buffer", PTR), ("count", I64), ("bytes", I64)])
    buffer, size = b.arg("buffer"), b.arg("bytes")
    vector = ir.VectorType(I32, tier.lanes)
    width = tier.vector_bits // 8
    sums = [b.load(vector, b.at(buffer, width * i)) for i in range(_UNROLL)]

    def once(_: Value, sums: Sequence[Value]) -> list[Value]:
        def lines(at: Value, sums: list[Value]) -> list[Value]:
            return [b.or_(s, b.load(vector, b.at(buffer, b.add(at, width * i)))) for i, s in enumerate(sums)]

        return b.loop(0, size, _UNROLL * width, sums, lines)

    _store_sum(b, b.loop(0, b.arg("count"), 1, sums, once), buffer)
    b.ret()
    return _code(module, tier)


def _code(module: ir.Module, tier: Tier) -> bytes:
    image = link(compile_module(module, tier).object)
    assert image.symbols[SYMBOL] == 0
    return image.code


def _vector(name: str, kind: str, features: tuple[str, ...], tier: Tier, macs: int, step: Step,
            element: ir.Type = I32) -> Unit:
    """A unit of vector registers: chains enough to hide its latency, their operands in registers."""
    chains = 20 if tier.registers == 32 else 13

    def emit(b: Builder, buffer: Value, count: Value) -> None:
        vector = ir.VectorType(element, tier.lanes)
        width = tier.vector_bits // 8
        factor, *sums = (b.load(vector, b.at(buffer, width * i)) for i in range(chains + 1))
        # Each sum is a factor of its next product: else units of two instructions would multiply once for all chains.
        sums = b.loop(0, count, 1, sums, lambda _, sums: [step(b, s, s, factor) for s in sums])
        _store_sum(b, sums, buffer)

    return Unit(name, kind, features, chains * tier.lanes * macs, tier, emit)


def _store_sum(b: Builder, values: Sequence[Value], buffer: Value) -> None:
    total = values[0]
    for value in values[1:]:
        total = b.add(total, value)
    b.store(total, buffer)


def _tiles(name: str, kind: str, feature: str, macs: int, dot: Callable[[Builder, int, int, int], None]) -> Unit:
    """An AMX unit: two by two tiles of sums, as products of matrices use it."""
    tier = replace(TIERS["avx512-vnni"], extras=("amx-tile", feature))

    def emit(b: Builder, buffer: Value, count: Value) -> None:
        amx.TileShapes(b, [amx.TILE_BYTES] * amx.REGISTERS).configure([amx.TILE_ROWS] * amx.REGISTERS)
        with b.range(0, count):
            for total, x, y in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)):
                dot(b, total, x, y)
        for tile in range(4):
            amx.store(b, tile, buffer, amx.TILE_BYTES)
        amx.release(b)

    return Unit(name, kind, (feature,), 4 * 16 * 16 * macs, tier, emit)


def _dot_s16(b: Builder, acc: Value, x: Value, y: Value) -> Value:
    pairs = ir.VectorType(ir.IntType(16), 2 * acc.type.count)
    return b.dot_s16(acc, b.bitcast(x, pairs), b.bitcast(y, pairs))


def _dot_bf16(b: Builder, acc: Value, x: Value, y: Value) -> Value:
    pairs = [b.bitcast(v, ir.VectorType(I32, acc.type.count)) for v in (x, y)]
    return b.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", [acc, *pairs], acc.type)


def _fma(b: Builder, acc: Value, x: Value, y: Value) -> Value:
    return b.fma(x, y, acc)


def _all() -> tuple[Unit, ...]:
    avx2, vnni, wide = (TIERS[n] for n in ("avx2", "avx-vnni", "avx512-vnni"))
    return (
        _tiles("amx int8", "int8", "amx-int8", 64, amx.dot_s8u8),
        _vector("vpdpbusd zmm", "int8", ("avx512vnni",), wide, 4, Builder.dot_u8s8),
        _vector("vpdpbusd ymm", "int8", ("avxvnni",), vnni, 4, Builder.dot_u8s8),
        _vector("vpmaddwd ymm", "int8", ("avx2",), avx2, 2, _dot_s16),
        _tiles("amx bf16", "bf16", "amx-bf16", 32, amx.dot_bf16),
        _vector("vdpbf16ps zmm", "bf16", ("avx512bf16",), wide.with_extras("avx512bf16"), 2, _dot_bf16, F32),
        _vector("fma zmm", "f32", ("avx512f",), wide, 1, _fma, F32),
        _vector("fma ymm", "f32", ("fma",), avx2, 1, _fma, F32),
    )


UNITS = _all()
"""Every unit kernels are written for; of each kind the fastest first."""
