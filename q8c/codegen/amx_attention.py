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
    key_step_bytes,
    load_channels,
    tile_bytes,
    value_step_bytes,
)
from q8c.codegen.attention_driver import Driver
from q8c.codegen.attention_math import transpose
from q8c.codegen.attention_operands import key_mask_bytes
from q8c.codegen.attention_spec import AttentionSpec
from q8c.codegen.builder import F32, LANES, Value
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, floordiv


def amx_attention(module: ir.Module, tier: Tier, spec: AttentionSpec, keys: Dim) -> tuple[ir.Function, Dim]:
    """The kernel and its scratch: one head's keys and values, 2 bytes per element, a tile's queries, and their scores,
    128 bytes per key."""
    steps = floordiv(keys + (STEP - 1), STEP)
    scratch = steps * (key_step_bytes(spec) + value_step_bytes(spec)) + tile_bytes(spec, steps)
    if spec.key_mask is not None:
        scratch = scratch + key_mask_bytes(keys)
    symbol = spec.symbol(tier, products="bf16")
    found = module.globals.get(symbol)
    if found is None:
        functions = {STEP: AmxTileEmitter(module, tier, spec).emit()}
        found = _AmxDriver(module, tier, spec, symbol, functions).emit()
    return found, scratch


class _AmxDriver(Driver):
    """Brings keys and values in the form of a product's right tiles: pairs of what is summed over, by 16 keys or 16
    channels."""

    @property
    def key_bytes(self) -> tuple[Value, Value]:
        steps = self.b.ceildiv(self.b.arg("keys"), STEP)
        return self.b.mul(steps, key_step_bytes(self.spec)), self.b.mul(steps, value_step_bytes(self.spec))

    def run(self, first: Value, last: Value, item: Callable[[Value, list[Value]], list[Value]]) -> None:
        """All tiles are whole."""
        amx.TileShapes(self.b, [amx.TILE_BYTES] * amx.REGISTERS).configure([amx.TILE_ROWS] * amx.REGISTERS)
        super().run(first, last, item)
        amx.release(self.b)

    def more(self, batch: Value, head: Value, query: Value) -> list[Value]:
        """Where the next head has the token of the first query; nothing is read behind the last one."""
        group = self.b.add(self.b.div(head, self.spec.group), 1)
        heads = (self.b.add(head, 1), group, group)
        return [self.operands.row(n, batch, query, index) for n, index in enumerate(heads)]

    def gather(self, batch: Value, group: Value) -> None:
        """Keys as [panels of 16][steps of channels][16 pairs][16 keys][2], values as [steps of keys][panels of 16
        channels][16 pairs][16 channels][2]. What fills up the last step: keys of 0, the last key's values."""
        b, last = self.b, self.b.sub(self.keys, 1)
        steps = b.ceildiv(self.keys, STEP)
        zeros = b.constant_table(f"zeros{self.spec.head_size}", F32, [0.0] * self.spec.head_size)
        with b.range(0, b.mul(steps, 2)) as panel:
            numbers = [b.add(b.mul(panel, LANES), n) for n in range(LANES)]
            rows = [b.select(b.icmp("<=", n, last), self.row(1, batch, b.imin(n, last), group), zeros)
                    for n in numbers]
            target = b.at(self.k, b.mul(panel, key_step_bytes(self.spec) // 2))
            for step in range(0, self.spec.head_size, STEP):
                packed = [bf16.pack(b, self._load(row, step), self._load(row, step + LANES)) for row in rows]
                columns = transpose(b, [b.from_bits(x) for x in packed])
                for n, column in enumerate(columns):
                    b.store(column, b.at(target, step // STEP * amx.TILE_ROWS * amx.TILE_BYTES + n * amx.TILE_BYTES))
        with b.range(0, b.mul(steps, LANES)) as pair:
            even, odd = (self.row(2, batch, b.imin(b.add(b.mul(pair, 2), n), last), group) for n in range(2))
            step_at = b.at(self.v, b.mul(b.div(pair, LANES), value_step_bytes(self.spec)))
            target = b.at(step_at, b.mul(b.rem(pair, LANES), amx.TILE_BYTES))
            for n, channel in enumerate(range(0, self.spec.head_size, LANES)):
                packed_pair = bf16.pair(b, self._load(even, channel), self._load(odd, channel))
                b.store(packed_pair, b.at(target, n * amx.TILE_ROWS * amx.TILE_BYTES))

    def _load(self, row: Value, channel: int) -> Value:
        return load_channels(self.b, self.spec, row, channel)

