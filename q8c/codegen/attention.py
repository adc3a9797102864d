"""Fused attention: a tile of queries at a time, from scores to weighted values; scores never reach main memory."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.amx_attention import amx_attention
from q8c.codegen.attention_driver import Driver
from q8c.codegen.attention_spec import AttentionSpec, attention_sizes, attention_spec
from q8c.codegen.attention_tile import STATISTICS, TileEmitter, tiles
from q8c.codegen.builder import F32, LANES, V16F, Value
from q8c.codegen.kernel import Kernel
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, floordiv
from q8c.ir.graph import Node


def attention_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of an `attention` or `packed_attention` node: q, k, v, starts, mask if there are such, the result;
    sizes; scratch.

    Pieces are runs of batch items, heads and tiles of queries. Products are in bfloat16 on a tier that has been given
    AMX for it, else in float32.
    """
    spec = attention_spec(node)
    keys = attention_sizes(node)[2]
    make = amx_attention if tier.has("amx-bf16") else _f32_attention
    function, scratch = make(module, tier, spec, keys)
    return Kernel(function, attention_sizes(node), scratch)


def _f32_attention(module: ir.Module, tier: Tier, spec: AttentionSpec, keys: Dim) -> tuple[ir.Function, Dim]:
    """The kernel in float32 and its scratch: one head's keys and values, 8 bytes per element, and the scores of one
    tile of queries, 128 bytes per key (64 without AVX-512)."""
    rows = floordiv(keys + (LANES - 1), LANES) * LANES + (spec.head_size + STATISTICS)
    scratch = keys * (8 * spec.pitch) + rows * (4 * tiles(tier)[0].queries)
    symbol = spec.symbol(tier)
    found = module.globals.get(symbol)
    if found is None:
        functions = {tile.queries: TileEmitter(module, tier, spec, tile).emit() for tile in tiles(tier)}
        found = _F32Driver(module, tier, spec, symbol, functions).emit()
    return found, scratch


class _F32Driver(Driver):
    """Copies keys and values: rows of a merged QKV are pages apart, and where they are 4 KiB apart they all compete
    for the same cache sets."""

    @property
    def key_bytes(self) -> tuple[Value, Value]:
        size = self.b.mul(self.b.arg("keys"), 4 * self.spec.pitch)
        return size, size

    def gather(self, batch: Value, group: Value) -> None:
        """Side by side, rows padded with 0 to whole vectors."""
        b, spec = self.b, self.spec
        with b.range(0, self.keys) as key:
            for n, copy in ((1, self.k), (2, self.v)):
                row = self.channels(n, batch, key, group)
                for c in range(0, spec.head_size, LANES):
                    x = b.load_tail(V16F, b.at(row, c, F32), min(LANES, spec.head_size - c))
                    b.store(x, b.at(b.at(copy, b.mul(key, spec.pitch), F32), c, F32))
