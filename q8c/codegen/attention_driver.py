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
    `PARAMS`. `count` and `keys` are how many queries and keys the sequence at hand has; the parameters `queries` and
    `keys` are as many in all, or of packed rows the longest there can be.
    """

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec, symbol: str,
                 functions: Mapping[int, ir.Function]) -> None:
        self.spec = spec
        self.functions = list(functions.items())
        self.queries = self.functions[0][0]
        pointers = ["q", "k", "v", *(["starts"] if spec.packed else []), *(["mask"] if spec.mask is not None else []),
                    "out"]
        sizes = ["batch", "queries", "keys", *(MASK_SIZES if spec.mask is not None else [])]
        params = [*((n, PTR) for n in pointers), *((n, I64) for n in sizes), ("scratch", PTR), ("piece", I64),
                  ("pieces", I64)]
        self.b = Builder(module, tier, symbol, params, internal=True)
        self.k = self.b.arg("scratch")
        self.count, self.keys = self.b.arg("queries"), self.b.arg("keys")

    @property
    @abstractmethod
    def key_bytes(self) -> tuple[Value, Value]:
        """Bytes of a head's keys and of its values in scratch."""

    def more(self, batch: Value, head: Value, query: Value) -> list[Value]:
        """What a tile is given beside `PARAMS`."""
        return []

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
            query = b.mul(b.rem(index, per_head), self.queries)
            if not self.spec.packed:
                self._gather_and_go(head, group, query, gathered[0])
                return [group]
            self._open(b.div(head, self.spec.heads))
            there = b.icmp("<", query, self.count)
            with b.if_(there):
                self._gather_and_go(head, group, query, gathered[0])
            return [b.select(there, group, gathered[0])]

        self.run(first, last, item)
        b.ret()
        return b.function

    def _open(self, batch: Value) -> None:
        """Go on to a sequence of packed rows."""
        b = self.b
        self.start, end = (b.load(I64, b.at(b.arg("starts"), n, I64)) for n in (batch, b.add(batch, 1)))
        self.count = self.keys = b.sub(end, self.start)

    def _gather_and_go(self, head: Value, group: Value, query: Value, gathered: Value) -> None:
        """One tile, behind the keys and values of its head if they are not those gathered last."""
        b, spec = self.b, self.spec
        with b.if_(b.icmp("!=", group, gathered)):
            self.gather(b.div(group, spec.kv_heads), b.rem(group, spec.kv_heads))
        self._item(b.div(head, spec.heads), b.rem(head, spec.heads), query)

    def channels(self, operand: int, batch: Value, token: Value, head: Value) -> Value:
        """Where a head of a token of q, k or v starts."""
        b, spec = self.b, self.spec
        heads = spec.kv_heads if operand else spec.heads
        tokens = b.arg("keys" if operand else "queries")
        if spec.split[operand] and spec.packed:
            tokens = b.load(I64, b.at(b.arg("starts"), b.arg("batch"), I64))
            place = b.mul(b.add(b.mul(head, tokens), b.add(self.start, token)), spec.head_size)
        elif spec.split[operand]:
            place = b.mul(b.add(b.mul(b.add(b.mul(batch, heads), head), tokens), token), spec.head_size)
        else:
            row = b.add(self.start if spec.packed else b.mul(batch, tokens), token)
            channel = b.add(b.mul(head, spec.head_size), spec.offsets[operand])
            place = b.add(b.mul(row, spec.strides[operand]), channel)
        return b.at(b.arg("qkv"[operand]), place, F32)

    def _item(self, batch: Value, head: Value, query: Value) -> None:
        """One tile: queries of one head from `query` on."""
        b, spec = self.b, self.spec
        queries = b.imin(b.sub(self.count, query), self.queries)
        token = b.add(self.start if spec.packed else b.mul(batch, self.count), query)
        out = b.at(b.arg("out"), b.add(b.mul(token, spec.channels), b.mul(head, spec.head_size)), F32)
        mask, mask_row = self._mask(batch, head, query)
        keys, visible = self._keys(query)
        q = self.channels(0, batch, query, head)
        self._call(0, queries, [q, self.k, self.v, mask, out, queries, keys, visible, mask_row, self.rest,
                              *self.more(batch, head, query)])

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
        b, keys = self.b, self.keys
        if not self.spec.causal:
            return keys, ir.Constant(I64, 0)
        last = b.add(query, b.sub(keys, self.count))
        # The same keys for every tier's tiles, and at least one: a query that sees none is NaN by its -inf scores.
        block = b.mul(b.add(b.div(query, WIDEST), 1), WIDEST)
        seen = b.add(block, b.sub(keys, self.count))
        return b.imin(keys, b.imax(seen, 1)), last
