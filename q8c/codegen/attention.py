"""Fused attention: a tile of queries at a time, from scores to weighted values; scores never reach main memory."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.attention_spec import AttentionSpec, attention_sizes, attention_spec
from q8c.codegen.attention_tile import STATISTICS, TileEmitter, tiles
from q8c.codegen.builder import F32, I64, LANES, PTR, V16F, Builder, Value
from q8c.codegen.kernel import Kernel
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, floordiv
from q8c.ir.graph import Node

WIDEST = 2 * LANES  # queries of the widest tile of any tier
MASK_SIZES = ("mask_batch", "mask_head", "mask_query")


def attention_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of an `attention` node: q, k, v, mask if there is one, the result; sizes; scratch.

    Scratch holds one head's keys and values, 8 bytes per element, and the scores of one tile of queries, 128 bytes per
    key (64 without AVX-512). Pieces are runs of batch items, heads and tiles of queries.
    """
    spec = attention_spec(node)
    keys = node.input(1).shape[-2]
    rows = floordiv(keys + (LANES - 1), LANES) * LANES + (spec.head_size + STATISTICS)
    scratch: Dim = keys * (8 * spec.pitch) + rows * (4 * tiles(tier)[0].queries)
    function = module.globals.get(spec.symbol(tier)) or _Driver(module, tier, spec).emit()
    return Kernel(function, attention_sizes(node), scratch)


class _Driver:
    """The loop over tiles. It copies keys and values of a head to scratch before the first tile that reads them: rows
    of a merged QKV are pages apart, and where they are 4 KiB apart they all compete for the same cache sets.
    """

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec) -> None:
        self.spec = spec
        self.tiles = tiles(tier)
        self.functions = [TileEmitter(module, tier, spec, tile).emit() for tile in self.tiles]
        pointers = ["q", "k", "v", *(["mask"] if spec.mask is not None else []), "out"]
        sizes = ["batch", "queries", "keys", *(MASK_SIZES if spec.mask is not None else [])]
        params = [*((n, PTR) for n in pointers), *((n, I64) for n in sizes), ("scratch", PTR), ("piece", I64),
                  ("pieces", I64)]
        self.b = Builder(module, tier, spec.symbol(tier), params, internal=True)

    def emit(self) -> ir.Function:
        """The whole function."""
        b, tile = self.b, self.tiles[0]
        per_head = b.ceildiv(b.arg("queries"), tile.queries)
        heads = b.mul(b.arg("batch"), self.spec.heads)
        # Whole heads where there are enough: a piece that begins inside of one copies its keys again.
        unit = b.select(b.icmp(">=", b.mul(heads, 2), b.arg("pieces")), per_head, 1)
        units = b.select(b.icmp("==", unit, 1), b.mul(heads, per_head), heads)
        first, last = (b.mul(b.div(b.mul(units, n), b.arg("pieces")), unit)
                       for n in (b.arg("piece"), b.add(b.arg("piece"), 1)))
        self.k = b.arg("scratch")
        self.v, self.rest = (b.at(self.k, b.mul(b.arg("keys"), n * self.spec.pitch), F32) for n in (1, 2))

        def item(index: Value, copied: list[Value]) -> list[Value]:
            head = b.div(index, per_head)
            group = b.div(head, self.spec.heads // self.spec.kv_heads)
            with b.if_(b.icmp("!=", group, copied[0])):
                self._copy_keys(b.div(group, self.spec.kv_heads), b.rem(group, self.spec.kv_heads))
            query = b.mul(b.rem(index, per_head), tile.queries)
            self._item(b.div(head, self.spec.heads), b.rem(head, self.spec.heads), query)
            return [group]

        b.loop(first, last, 1, [ir.Constant(I64, -1)], item)
        b.ret()
        return b.function

    def _copy_keys(self, batch: Value, group: Value) -> None:
        """The keys and values of one head side by side in scratch, rows padded with 0 to whole vectors."""
        b, spec = self.b, self.spec
        with b.range(0, b.arg("keys")) as key:
            for n, copy in ((1, self.k), (2, self.v)):
                row = self._channels(n, batch, key, group)
                for c in range(0, spec.head_size, LANES):
                    x = b.load_tail(V16F, b.at(row, c, F32), min(LANES, spec.head_size - c))
                    b.store(x, b.at(b.at(copy, b.mul(key, spec.pitch), F32), c, F32))

    def _channels(self, operand: int, batch: Value, token: Value, head: Value) -> Value:
        """Where a head of a token of q, k or v starts."""
        b, spec = self.b, self.spec
        tokens = b.arg("keys" if operand else "queries")
        if spec.split[operand]:
            heads = b.add(b.mul(batch, spec.kv_heads if operand else spec.heads), head)
            place = b.mul(b.add(b.mul(heads, tokens), token), spec.head_size)
        else:
            channel = b.add(b.mul(head, spec.head_size), spec.offsets[operand])
            place = b.add(b.mul(b.add(b.mul(batch, tokens), token), spec.strides[operand]), channel)
        return b.at(b.arg("qkv"[operand]), place, F32)

    def _item(self, batch: Value, head: Value, query: Value) -> None:
        """One tile: queries of one head from `query` on."""
        b, spec = self.b, self.spec
        queries = b.imin(b.sub(b.arg("queries"), query), self.tiles[0].queries)
        token = b.add(b.mul(batch, b.arg("queries")), query)
        out = b.at(b.arg("out"), b.add(b.mul(token, spec.channels), b.mul(head, spec.head_size)), F32)
        mask, mask_row = self._mask(batch, head, query)
        keys, visible = self._keys(query)
        q = self._channels(0, batch, query, head)
        self._call(0, queries, [q, self.k, self.v, mask, out, queries, keys, visible, mask_row, self.rest])

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

