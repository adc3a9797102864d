"""Fused attention with products in bfloat16 on AMX, sums and softmax in float32: for `fast` numerics.

Queries, keys, values and softmax's weights are rounded to 8 bits of mantissa. In the order of operations a query's
result depends on no other query and on no tile, and keys of weight 0 behind the last real one change no bit: sums over
channels and keys run in steps of 32, ascending, and softmax's sum in 16 lanes.
"""
from __future__ import annotations

from collections.abc import Callable

import llvmlite.ir as ir

from q8c.codegen import amx, bf16
from q8c.codegen.amx_attention_tile import (
    STEP,
    AmxTileEmitter,
    channel_steps,
    key_step_bytes,
    load_channels,
    tile_bytes,
    value_step_bytes,
)
from q8c.codegen.attention_driver import Driver, emit_driver
from q8c.codegen.attention_math import transpose
from q8c.codegen.attention_operands import key_mask_bytes
from q8c.codegen.attention_spec import AttentionSpec
from q8c.codegen.builder import F32, LANES, V16F, Value
from q8c.codegen.kept_rows import key_lanes, value_lanes
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, floordiv


def amx_attention(module: ir.Module, tier: Tier, spec: AttentionSpec, keys: Dim) -> tuple[list[ir.Function], Dim]:
    """The kernel's steps (`emit_driver`) and their scratch: one head's keys and values, if they are not shared, 2 bytes
    per element; a tile's queries, and their scores, 128 bytes per key."""
    steps = floordiv(keys + (STEP - 1), STEP)
    scratch = tile_bytes(spec, steps)
    if not spec.cached:
        scratch = scratch + steps * (key_step_bytes(spec) + value_step_bytes(spec))
    if spec.key_mask is not None:
        scratch = scratch + key_mask_bytes(keys)
    symbol = spec.symbol(tier, products="bf16")
    names = [*(["gather", "tiles"] if spec.two_steps else []), *([] if spec.cached else ["alone"])]
    return emit_driver(module, tier, spec, symbol, _AmxDriver, names,
                       lambda unit: {STEP: AmxTileEmitter(unit, tier, spec).emit()}), scratch


class _AmxDriver(Driver):
    """Brings keys and values in the form of a product's right tiles: pairs of what is summed over, by 16 keys or 16
    channels."""

    def bytes_of(self, keys: Value) -> tuple[Value, Value]:
        steps = self.b.ceildiv(keys, STEP)
        return self.b.mul(steps, key_step_bytes(self.spec)), self.b.mul(steps, value_step_bytes(self.spec))

    def run(self, first: Value, last: Value, item: Callable[[Value, list[Value]], list[Value]]) -> None:
        """All tiles are whole."""
        amx.TileShapes(self.b, [amx.TILE_BYTES] * amx.REGISTERS).configure([amx.TILE_ROWS] * amx.REGISTERS)
        super().run(first, last, item)
        amx.release(self.b)

    def more(self, batch: Value, head: Value, query: Value, start: Value) -> list[Value]:
        """Where the next head has the token of the first query; nothing is read behind the last one."""
        group = self.b.add(self.b.div(head, self.spec.group), 1)
        heads = (self.b.add(head, 1), group, group)
        return [self.operands.row(n, batch, query, index) for n, index in enumerate(heads)]

    def gather(self, batch: Value, group: Value, start: Value, end: Value) -> None:
        """Keys as [panels of 16][steps of channels][16 pairs][16 keys][2], values as [steps of keys][panels of 16
        channels][16 pairs][16 channels][2]. What fills up the last step: keys of 0, the last key's values."""
        b, last = self.b, self.b.sub(self.keys, 1)
        with b.range(b.div(start, LANES), b.div(end, LANES)) as panel:
            target = b.at(self.k, b.mul(panel, key_step_bytes(self.spec) // 2))
            make = self._kept_keys if self.spec.int8 else self._keys_of
            for n, column in enumerate(make(batch, b.mul(panel, LANES), group)):
                b.store(column, b.at(target, n * amx.TILE_BYTES))
        with b.range(b.div(start, 2), b.div(end, 2)) as pair:
            numbers = [b.imin(b.add(b.mul(pair, 2), n), last) for n in range(2)]
            step_at = b.at(self.v, b.mul(b.div(pair, LANES), value_step_bytes(self.spec)))
            target = b.at(step_at, b.mul(b.rem(pair, LANES), amx.TILE_BYTES))
            for n, packed in enumerate(self._values_of(batch, numbers, group)):
                b.store(packed, b.at(target, n * amx.TILE_ROWS * amx.TILE_BYTES))

    def _keys_of(self, batch: Value, first: Value, group: Value) -> list[Value]:
        """16 keys, as many of each pair of channels to a vector."""
        b, last, size = self.b, self.b.sub(self.keys, 1), self.spec.head_size
        zeros = b.constant_table(f"zeros{size}", F32, [0.0] * size)
        numbers = [b.add(first, n) for n in range(LANES)]
        rows = [b.select(b.icmp("<=", n, last), self.row(1, batch, b.imin(n, last), group), zeros) for n in numbers]
        columns = []
        for step in range(0, size, STEP):
            packed = [bf16.pack(b, *(load_channels(b, size, row, step + n) for n in (0, LANES))) for row in rows]
            columns += transpose(b, [b.from_bits(x) for x in packed])
        return columns

    def _kept_keys(self, batch: Value, first: Value, group: Value) -> list[Value]:
        """The same of keys in 8 bits."""
        b, spec = self.b, self.spec
        kept, head = self.operands.kept(1), b.add(b.mul(batch, spec.kv_heads), group)
        row = kept.row(head, first)
        there = b.tail_mask(b.imax(b.sub(self.keys, first), 0))
        if spec.key_mask is not None:
            there = b.and_(there, b.fcmp("==", b.load(V16F, b.at(self.key_mask, first, F32)), 0.0))
        scales = b.select(there, b.load(V16F, kept.scales(head, first)), 0.0)
        channels = [b.mul(key_lanes(b, row, n), scales) if n < spec.head_size else b.splat(0.0)
                    for n in range(STEP * channel_steps(spec))]
        return [bf16.pair(b, *channels[n:n + 2]) for n in range(0, len(channels), 2)]

    def _values_of(self, batch: Value, keys: list[Value], group: Value) -> list[Value]:
        """Two values, as pairs of 16 channels to a vector."""
        b, spec = self.b, self.spec
        size = spec.value_size
        channels = range(0, size, LANES)
        if not spec.int8:
            rows = [self.row(2, batch, key, group) for key in keys]
            return [bf16.pair(b, *(load_channels(b, size, row, channel) for row in rows)) for channel in channels]
        kept, head = self.operands.kept(2), b.add(b.mul(batch, spec.kv_heads), group)
        scales = [b.splat(self.shown(b.load(F32, kept.scales(head, key)), key)) for key in keys]
        return [bf16.pair(b, *(b.mul(value_lanes(b, kept.row(head, key), channel, min(LANES, size - channel)), scale)
                               for key, scale in zip(keys, scales, strict=True))) for channel in channels]
