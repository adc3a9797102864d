"""How attention kernels walk their work: batch items, heads, tiles of queries."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import llvmlite.ir as ir

from q8c.codegen.attention_operands import Operands, step_params
from q8c.codegen.attention_spec import WIDEST, AttentionSpec
from q8c.codegen.attention_spread import BlindQueries
from q8c.codegen.builder import F32, I64, LANES, PTR, Builder, Value, constant
from q8c.codegen.targets import Tier
from q8c.codegen.units import shared

ROW_PARTS = 4
"""Parts of queries, each of which goes from head to head: 512 queries of 12 heads take a tenth less time so than tile
by tile, as a head's keys and values stay in the cache. Threads share a part where there are more of them. With a cache
keys mostly are shared by heads, and tile by tile is 5 percent better."""
PARAMS = [*((n, PTR) for n in ("q", "k", "v", "mask", "key_mask", "out")),
          *((n, I64) for n in ("queries", "keys", "visible", "mask_row")), ("scratch", PTR)]
"""Parameters of a tile's function: pointers to its first query, the head's keys and values, its first mask row, what
the key mask adds to scores (`Operands.place_key_mask`) and its first result; how many queries (1 or more) and keys
there are; the last key the first query sees if `causal`; elements from one mask row to the next; scratch."""


def tile_params(spec: AttentionSpec) -> list[tuple[str, ir.Type]]:
    """`PARAMS`, and the head's sink if there are such."""
    return [*PARAMS, *([("sink", F32)] if spec.sinks else [])]


class Driver(ABC):
    """The loop over tiles of queries, and what brings keys and values to the form in which these read them (`gather`).
    `functions` are those of a tile, by the most queries it takes, the most first; their parameters are
    `tile_params`. `count` and `keys` are how many queries and keys the sequence at hand has; the parameters `queries`
    and `keys` are as many in all, or of packed rows the longest there can be.

    An instance writes one function: either `emit_alone`'s, which gathers a head to scratch before the first tile that
    reads it, or those of two steps, `emit_gather` and `emit_tiles`. Two steps copy no head twice, and a thread has the
    rows there that it has in other kernels; but they leave all heads in memory at the same time.
    """

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec, symbol: str,
                 functions: Mapping[int, ir.Function], alone: bool) -> None:
        self.spec = spec
        self.functions = list(functions.items())
        self.queries = self.functions[0][0]
        self.b = b = Builder(module, tier, symbol, step_params(spec), internal=True)
        self.operands = Operands(b, spec)
        self.count, self.keys = b.arg("queries"), b.arg("keys")
        self.key_bytes, self.value_bytes = self.bytes_of(self.keys)
        self.key_mask = b.arg("scratch")
        if alone:
            self._at(b.arg("scratch"))
            self.key_mask = b.at(self.v, self.value_bytes)
        self.rest = self.key_mask
        if spec.key_mask is not None:
            self.rest = b.at(self.key_mask, b.mul(b.ceildiv(self.keys, LANES), 4 * LANES))

    @abstractmethod
    def bytes_of(self, keys: Value) -> tuple[Value, Value]:
        """Bytes of so many of a head's keys, and of its values, gathered."""

    def more(self, batch: Value, head: Value, query: Value, start: Value) -> list[Value]:
        """What a tile whose keys begin with `start` is given beside `tile_params`."""
        return []

    @abstractmethod
    def gather(self, batch: Value, group: Value, start: Value, end: Value) -> None:
        """Bring a head's keys and values, from `start` to `end`, multiples of `WIDEST`, to `k` and `v`."""

    def run(self, first: Value, last: Value, item: Callable[[Value, list[Value]], list[Value]]) -> None:
        """Emit the loop over items."""
        self.b.loop(first, last, 1, [ir.Constant(I64, -1)], item)

    def _at(self, head: Value) -> None:
        """Go on to a head whose keys and values are, or are to be, at `head`."""
        self.k = head
        self.v = self.b.at(head, self.key_bytes)

    def _piece(self, items: Value) -> tuple[Value, Value]:
        """The first of `items` that the piece is, and the one after its last."""
        b = self.b
        first, last = (b.div(b.mul(items, n), b.arg("pieces")) for n in (b.arg("piece"), b.add(b.arg("piece"), 1)))
        return first, last

    def emit_alone(self) -> ir.Function:
        """The function whose pieces are runs of heads, or of tiles of queries where there are few heads."""
        b = self.b
        per_head = b.ceildiv(b.arg("queries"), self.queries)
        heads = b.mul(b.arg("batch"), self.spec.heads)
        # Whole heads where there are enough: a piece that begins inside of one copies its keys again.
        unit = b.select(b.icmp(">=", b.mul(heads, 2), b.arg("pieces")), per_head, 1)
        units = b.select(b.icmp("==", unit, 1), b.mul(heads, per_head), heads)
        first, last = (b.mul(n, unit) for n in self._piece(units))

        def item(index: Value, gathered: list[Value]) -> list[Value]:
            head = b.div(index, per_head)
            group = b.div(head, self.spec.group)
            query = b.mul(b.rem(index, per_head), self.queries)
            if not self.spec.packed:
                self.keys = self.operands.there(b.div(head, self.spec.heads))
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

    def emit_gather(self) -> ir.Function:
        """The first step: pieces are runs of steps of keys, each of all heads. It leaves them in what is shared."""
        b, heads = self.b, self.spec.kv_heads
        per_batch = b.mul(b.ceildiv(b.arg("keys"), WIDEST), heads)
        first, last = self._piece(b.mul(b.arg("batch"), per_batch))

        def item(index: Value, masked: list[Value]) -> list[Value]:
            batch, head = b.div(index, per_batch), b.rem(index, heads)
            key = b.mul(b.div(b.rem(index, per_batch), heads), WIDEST)
            self._begin(batch, head, masked[0])
            seen = b.icmp(">=", key, self._keys(batch, constant(I64, 0))[2])
            with b.if_(b.and_(seen, b.icmp("<", key, self.keys))):
                self.gather(batch, head, key, b.add(key, WIDEST))
            return [batch]

        b.loop(first, last, 1, [ir.Constant(I64, -1)], item)
        b.ret()
        return b.function

    def emit_tiles(self) -> ir.Function:
        """The second step: pieces are runs of tiles of queries, so many of one head, then of the next."""
        b, spec = self.b, self.spec
        tiles = b.ceildiv(b.arg("queries"), self.queries)
        together = constant(I64, 1) if spec.cached else b.imax(b.div(tiles, ROW_PARTS), 1)
        per_batch, per_part = b.mul(tiles, spec.heads), b.mul(together, spec.heads)
        first, last = self._piece(b.mul(b.arg("batch"), per_batch))

        def item(index: Value, masked: list[Value]) -> list[Value]:
            batch, rest = b.div(index, per_batch), b.rem(index, per_batch)
            part = b.mul(b.div(rest, per_part), together)
            here, place = b.imin(together, b.sub(tiles, part)), b.rem(rest, per_part)
            head, tile = b.div(place, here), b.add(part, b.rem(place, here))
            self._begin(batch, b.div(head, spec.group), masked[0])
            self._item(batch, head, b.mul(tile, self.queries))
            return [batch]

        self.run(first, last, item)
        b.ret()
        return b.function

    def _begin(self, batch: Value, head: Value, masked: Value) -> None:
        """Go on to a head in what is shared; `masked` is the batch item whose key mask is in scratch."""
        b, spec = self.b, self.spec
        if spec.key_mask is not None:
            with b.if_(b.icmp("!=", batch, masked)):
                self.operands.place_key_mask(batch, self.key_mask)
        self.keys = self.operands.there(batch)
        number = b.add(b.mul(batch, spec.kv_heads), head)
        self._at(b.at(b.arg("shared"), b.mul(number, b.add(self.key_bytes, self.value_bytes))))

    def _open(self, batch: Value) -> None:
        """Go on to a sequence of packed rows."""
        b = self.b
        start, end = (b.load(I64, b.at(b.arg("starts"), n, I64)) for n in (batch, b.add(batch, 1)))
        self.operands.start = start
        self.count = self.keys = b.sub(end, start)

    def _gather_and_go(self, head: Value, group: Value, query: Value, gathered: Value) -> None:
        """One tile, behind the keys and values of its head if they are not those gathered last."""
        b, spec = self.b, self.spec
        with b.if_(b.icmp("!=", group, gathered)):
            if spec.key_mask is not None:
                self.operands.place_key_mask(b.div(group, spec.kv_heads), self.key_mask)
            batch = b.div(group, spec.kv_heads)
            start, end = self._keys(batch, constant(I64, 0))[2], b.mul(b.ceildiv(self.keys, WIDEST), WIDEST)
            self.gather(batch, b.rem(group, spec.kv_heads), start, end)
        self._item(b.div(head, spec.heads), b.rem(head, spec.heads), query)

    def shown(self, scale: Value, token: Value) -> Value:
        """The scale of a key or value in 8 bits; 0 for one that the key mask hides, which may be NaN."""
        b = self.b
        if self.spec.key_mask is None:
            return scale
        return b.select(b.fcmp("==", b.load(F32, b.at(self.key_mask, token, F32)), 0.0), scale, 0.0)

    def row(self, operand: int, batch: Value, token: Value, head: Value) -> Value:
        """Where a head's key (operand 1) or value (2) begins; zeros for one that the key mask hides: what no query sees
        may be anything."""
        address = self.operands.row(operand, batch, token, head)
        if self.spec.key_mask is None:
            return address
        b = self.b
        size = self.spec.size(operand)
        zeros = b.constant_table(f"zeros{size}", F32, [0.0] * size)
        return b.select(b.fcmp("==", b.load(F32, b.at(self.key_mask, token, F32)), 0.0), address, zeros)

    def _item(self, batch: Value, head: Value, query: Value) -> None:
        """One tile: queries of one head from `query` on."""
        b, spec = self.b, self.spec
        queries = b.imin(b.sub(self.count, query), self.queries)
        token = b.add(self.operands.start if spec.packed else b.mul(batch, self.count), query)
        out = self.operands.out(token, head)
        mask, mask_row = ir.Constant(PTR, None), ir.Constant(I64, 0)
        if spec.mask is not None:
            mask, mask_row = self.operands.mask(batch, head, query), b.arg("mask_query")
        end, visible, start = self._keys(batch, query)
        k, v = (b.at(x, offset) for x, offset in zip((self.k, self.v), self.bytes_of(start), strict=True))
        mask = b.at(mask, start, F32) if spec.mask_has_keys else mask
        q = self.operands.row(0, batch, query, head)
        self._call(0, queries, [q, k, v, mask, b.at(self.key_mask, start, F32), out, queries, b.sub(end, start),
                                b.sub(visible, start), mask_row, self.rest,
                                *([self.operands.sink(head)] if spec.sinks else []),
                                *self.more(batch, head, query, start)])
        if spec.spread:
            group = b.div(head, spec.group)
            blind = BlindQueries(self.operands, batch, query, queries, self.keys,
                                 self.key_mask if spec.key_mask is not None else None)
            for channel in range(0, spec.value_size, LANES):
                blind.fill(group, [head], constant(I64, channel), min(LANES, spec.value_size - channel))

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

    def _keys(self, batch: Value, query: Value) -> tuple[Value, Value, Value]:
        """Where the keys end that the tile reads, the place of its first query among keys, and where they begin."""
        b, spec, keys, none = self.b, self.spec, self.keys, constant(I64, 0)
        if not spec.by_place:
            return keys, none, none
        first = b.sub(keys, self.count) if spec.packed else self.operands.visible(batch)
        # The same keys for every tier's tiles, and at least one: a query that sees none is NaN by its -inf scores.
        block = b.add(b.mul(b.div(query, WIDEST), WIDEST), first)
        end = b.imin(keys, b.imax(b.add(block, WIDEST + spec.reach), 1))
        start = none
        if spec.window:
            start = b.and_(b.imax(b.imin(b.sub(block, spec.window - 1), b.sub(end, 1)), 0), -WIDEST)
        return end, b.add(query, first), start


STEPS: Mapping[str, Callable[[Driver], ir.Function]] = {
    "gather": Driver.emit_gather, "tiles": Driver.emit_tiles, "alone": Driver.emit_alone}


def emit_driver(module: ir.Module, tier: Tier, spec: AttentionSpec, symbol: str, driver: type[Driver],
                steps: Sequence[str], tiles: Callable[[ir.Module], Mapping[int, ir.Function]]) -> list[ir.Function]:
    """Functions of a driver, by their names in `STEPS`."""
    names = [symbol if step == "alone" else f"{symbol}.{step}" for step in steps]

    def emit(unit: ir.Module) -> None:
        functions = tiles(unit)
        for name, step in zip(names, steps, strict=True):
            STEPS[step](driver(unit, tier, spec, name, functions, step == "alone"))

    return shared(module, names, emit)
