"""How attention kernels walk their work: batch items, heads, tiles of queries."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import llvmlite.ir as ir

from q8c.codegen.attention_spec import AttentionSpec
from q8c.codegen.builder import F32, I64, LANES, PTR, Builder, Value
from q8c.codegen.targets import Tier

WIDEST = 2 * LANES  # queries of the widest tile of any tier
MASK_SIZES = ("mask_batch", "mask_head", "mask_query")
PARAMS = [*((n, PTR) for n in ("q", "k", "v", "mask", "out")),
          *((n, I64) for n in ("queries", "keys", "visible", "mask_row")), ("scratch", PTR)]
"""Parameters of a tile's function: pointers to its first query, the head's keys and values, its first mask row and its
first result; how many queries (1 or more) and keys there are; the last key the first query sees if `causal`; elements
from one mask row to the next; scratch."""


class Driver(ABC):
    """The loop over tiles of queries. It brings keys and values of a head to scratch before the first tile that reads
    them (`gather`). `functions` are those of a tile, by the most queries it takes, the most first; their parameters are
    `PARAMS`.
    """

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec, symbol: str,
                 functions: Mapping[int, ir.Function]) -> None:
        self.spec = spec
        self.functions = list(functions.items())
        self.queries = self.functions[0][0]
        pointers = ["q", "k", "v", *(["mask"] if spec.mask is not None else []), "out"]
        sizes = ["batch", "queries", "keys", *(MASK_SIZES if spec.mask is not None else [])]
        params = [*((n, PTR) for n in pointers), *((n, I64) for n in sizes), ("scratch", PTR), ("piece", I64),
                  ("pieces", I64)]
        self.b = Builder(module, tier, symbol, params, internal=True)
        self.k = self.b.arg("scratch")

    @property
    @abstractmethod
    def key_bytes(self) -> tuple[Value, Value]:
        """Bytes of a head's keys and of its values in scratch."""

    @abstractmethod
    def gather(self, batch: Value, group: Value) -> None:
        """Bring the keys and values of a head to scratch."""

    def run(self, first: Value, last: Value, item: Callable[[Value, list[Value]], list[Value]]) -> None:
        """Emit the loop over items."""
        self.b.loop(first, last, 1, [ir.Constant(I64, -1)], item)

    def emit(self) -> ir.Function:
        """The whole function."""
        b = self.b
        per_head = b.ceildiv(b.arg("queries"), self.queries)
        heads = b.mul(b.arg("batch"), self.spec.heads)
        # Whole heads where there are enough: a piece that begins inside of one copies its keys again.
        unit = b.select(b.icmp(">=", b.mul(heads, 2), b.arg("pieces")), per_head, 1)
        units = b.select(b.icmp("==", unit, 1), b.mul(heads, per_head), heads)
        first, last = (b.mul(b.div(b.mul(units, n), b.arg("pieces")), unit)
                       for n in (b.arg("piece"), b.add(b.arg("piece"), 1)))
        key_bytes, value_bytes = self.key_bytes
        self.v = b.at(self.k, key_bytes)
        self.rest = b.at(self.v, value_bytes)

        def item(index: Value, gathered: list[Value]) -> list[Value]:
            head = b.div(index, per_head)
            group = b.div(head, self.spec.heads // self.spec.kv_heads)
            with b.if_(b.icmp("!=", group, gathered[0])):
                self.gather(b.div(group, self.spec.kv_heads), b.rem(group, self.spec.kv_heads))
            query = b.mul(b.rem(index, per_head), self.queries)
            self._item(b.div(head, self.spec.heads), b.rem(head, self.spec.heads), query)
            return [group]

        self.run(first, last, item)
        b.ret()
        return b.function

    def channels(self, operand: int, batch: Value, token: Value, head: Value) -> Value:
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
        queries = b.imin(b.sub(b.arg("queries"), query), self.queries)
        token = b.add(b.mul(batch, b.arg("queries")), query)
        out = b.at(b.arg("out"), b.add(b.mul(token, spec.channels), b.mul(head, spec.head_size)), F32)
        mask, mask_row = self._mask(batch, head, query)
        keys, visible = self._keys(query)
        q = self.channels(0, batch, query, head)
        self._call(0, queries, [q, self.k, self.v, mask, out, queries, keys, visible, mask_row, self.rest])

    def _call(self, index: int, queries: Value, args: list[Value]) -> None:
        """The narrowest tile that takes all the queries."""
        b = self.b
        function = self.functions[index][1]
        if index + 1 == len(self.functions):
            b.ir.call(function, args)
            return
        with b.ir.if_else(b.icmp(">", queries, self.functions[index + 1][0])) as (wide, narrow):
            with wide:
                b.ir.call(function, args)
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
