"""Fused attention: a tile of queries at a time, from scores to weighted values; scores never reach main memory."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.attention_spec import AttentionSpec, attention_sizes, attention_spec
from q8c.codegen.attention_tile import STATISTICS, TileEmitter, tiles
from q8c.codegen.builder import F32, I64, LANES, PTR, Builder, Value
from q8c.codegen.kernel import Kernel
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, floordiv
from q8c.ir.graph import Node

WIDEST = 2 * LANES  # queries of the widest tile of any tier
MASK_SIZES = ("mask_batch", "mask_head", "mask_query")


def attention_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of an `attention` node: q, k, v, mask if there is one, the result; sizes; scratch.

    Scratch grows with the number of keys, 128 bytes each (64 without AVX-512), and stays in the L2 cache up to about
    8,000 of them. Work is split by batch item, head and tile of queries.
    """
    spec = attention_spec(node)
    queries = tiles(tier)[0].queries
    keys = floordiv(node.input(1).shape[1] + (LANES - 1), LANES) * LANES
    scratch: Dim = (keys + spec.head_size + STATISTICS) * (4 * queries)
    return Kernel(_function(module, tier, spec), attention_sizes(node), scratch)


def _function(module: ir.Module, tier: Tier, spec: AttentionSpec) -> ir.Function:
    name = f"{spec.name}__{tier.name.replace('-', '')}"
    found = module.globals.get(name)
    return found if found is not None else _Driver(module, tier, spec, name).emit()


class _Driver:
    """The loop over tiles that calls the tile functions."""

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec, name: str) -> None:
        self.spec = spec
        self.tiles = tiles(tier)
        self.functions = [TileEmitter(module, tier, spec, tile, f"{name}_{tile.queries}").emit() for tile in self.tiles]
        pointers = ["q", "k", "v", *(["mask"] if spec.mask is not None else []), "out"]
        sizes = ["batch", "queries", "keys", *(MASK_SIZES if spec.mask is not None else [])]
        params = [*((n, PTR) for n in pointers), *((n, I64) for n in sizes), ("scratch", PTR), ("tid", I64),
                  ("threads", I64)]
        self.b = Builder(module, tier, name, params, internal=True)

    def emit(self) -> ir.Function:
        """The whole function."""
        b, tile = self.b, self.tiles[0]
        per_head = b.ceildiv(b.arg("queries"), tile.queries)
        items = b.mul(b.mul(b.arg("batch"), self.spec.heads), per_head)
        tid, threads = b.arg("tid"), b.arg("threads")
        with b.range(b.div(b.mul(items, tid), threads), b.div(b.mul(items, b.add(tid, 1)), threads)) as item:
            head = b.div(item, per_head)
            self._item(b.div(head, self.spec.heads), b.rem(head, self.spec.heads),
                       b.mul(b.rem(item, per_head), tile.queries))
        b.ret()
        return b.function

    def _item(self, batch: Value, head: Value, query: Value) -> None:
        """One tile: queries of one head from `query` on."""
        b, spec = self.b, self.spec
        queries = b.imin(b.sub(b.arg("queries"), query), self.tiles[0].queries)
        group = b.div(head, spec.heads // spec.kv_heads)
        pointers = []
        for n, of_head in enumerate((head, group, group)):
            token = b.add(b.mul(batch, b.arg("queries")), query) if n == 0 else b.mul(batch, b.arg("keys"))
            channel = b.add(b.mul(of_head, spec.head_size), spec.offsets[n])
            pointers.append(b.at(b.arg("qkv"[n]), b.add(b.mul(token, spec.strides[n]), channel), F32))
        token = b.add(b.mul(batch, b.arg("queries")), query)
        out = b.at(b.arg("out"), b.add(b.mul(token, spec.channels), b.mul(head, spec.head_size)), F32)
        mask, mask_row = self._mask(batch, head, query)
        keys, visible = self._keys(query)
        args = [*pointers, mask, out, queries, keys, visible, mask_row, b.arg("scratch")]
        self._call(0, queries, args)

    def _call(self, index: int, queries: Value, args: list[Value]) -> None:
        """The narrowest tile that takes all the queries."""
        b = self.b
        if index + 1 == len(self.tiles):
            b.ir.call(self.functions[index], args)
            return
        with b.ir.if_else(b.icmp(">", queries, self.tiles[index + 1].queries)) as (wide, narrow):
            with wide:
                b.ir.call(self.functions[index], args)
            with narrow:
                self._call(index + 1, queries, args)

    def _mask(self, batch: Value, head: Value, query: Value) -> tuple[Value, Value]:
        b = self.b
        if self.spec.mask is None:
            return ir.Constant(PTR, None), ir.Constant(I64, 0)
        steps = [b.mul(index, b.arg(n)) for index, n in zip((batch, head, query), MASK_SIZES, strict=True)]
        return b.at(b.arg("mask"), b.add(b.add(steps[0], steps[1]), steps[2]), F32), b.arg("mask_query")

    def _keys(self, query: Value) -> tuple[Value, Value]:
        """How many keys the tile reads, and the last one its first query sees."""
        b, keys = self.b, self.b.arg("keys")
        if not self.spec.causal:
            return keys, ir.Constant(I64, 0)
        last = b.add(query, b.sub(keys, b.arg("queries")))
        # The same keys for every tier's tiles, and at least one: a query that sees none is NaN by its -inf scores.
        block = b.mul(b.add(b.div(query, WIDEST), 1), WIDEST)
        seen = b.add(block, b.sub(keys, b.arg("queries")))
        return b.imin(keys, b.imax(seen, 1)), last

