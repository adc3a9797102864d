"""Queries that see no key and get the mean of all values: what `spread` attention leaves to be done by its kernels."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from q8c.codegen.attention_operands import Operands
from q8c.codegen.builder import F32, I64, LANES, Value, constant


@dataclass(frozen=True)
class BlindQueries:
    """Puts the mean where some queries of a batch item have seen nothing.

    `queries` of them begin with `query`; `keys` is how many keys there are to any query, and `key_mask` what was added
    to scores (`Operands.place_key_mask`), if anything. Results are those of a kernel that weighs every value with 1.
    """

    operands: Operands
    batch: Value
    query: Value
    queries: Value
    keys: Value
    key_mask: Value | None

    def fill(self, kv_head: Value, heads: Sequence[Value], channel: Value, count: int) -> None:
        """Store `count` (16 or fewer) channels from `channel` on of these heads, which share keys and values."""
        ops, b = self.operands, self.operands.b

        def add(key: Value, total: list[Value]) -> list[Value]:
            return [b.add(total[0], ops.value(self.batch, key, kv_head, channel, count))]

        def store(n: Value, blind: Value, mean: list[Value]) -> list[Value]:
            with b.if_(blind):
                row = b.add(b.mul(self.batch, b.arg("queries")), b.add(self.query, n))
                for head in heads:
                    out = b.at(ops.out(row, head), channel, F32)
                    if count == LANES:
                        b.store(mean[0], out)
                    else:
                        b.store_tail(mean[0], out, count)
            return mean

        with b.if_(b.icmp(">", self.keys, 0)):
            blind, = self._walk([constant(I64, 0)], lambda n, blind, found: [b.add(found[0], b.zext(blind, I64))])
            with b.if_(b.icmp(">", blind, 0)):
                total, = b.loop(0, self.keys, 1, [b.splat(0.0)], add)
                self._walk([b.mul(total, b.splat(b.div(1.0, b.ir.sitofp(self.keys, F32))))], store)

    def _walk(self, carried: Sequence[Value], body: Callable[[Value, Value, list[Value]], list[Value]]) -> list[Value]:
        """`body(n, blind, carried)` for each query, `blind` if it sees no key."""
        b = self.operands.b
        start, end = self._bounds(constant(I64, 0))
        last, = b.while_([b.sub(end, 1)], lambda key: b.and_(b.icmp(">=", key[0], start), self._hidden(key[0])),
                         lambda key: [b.sub(key[0], 1)])

        def query(n: Value, state: list[Value]) -> list[Value]:
            start, end = self._bounds(n)
            newest = b.sub(end, 1)
            last = b.select(self._hidden(newest), state[0], newest)
            return [last, *body(n, b.icmp("<", last, start), state[1:])]

        return b.loop(0, self.queries, 1, [last, *carried], query)[1:]

    def _bounds(self, n: Value) -> tuple[Value, Value]:
        """Where the keys begin and end that query n sees if the key mask lets it."""
        ops, b = self.operands, self.operands.b
        spec, start = ops.spec, constant(I64, 0)
        if not spec.by_place:
            return start, self.keys
        place = b.add(b.add(ops.visible(self.batch), self.query), n)
        if spec.window:
            start = b.imax(b.sub(place, spec.window - 1), 0)
        return start, b.imax(b.imin(b.add(place, 1 + spec.reach), self.keys), 0)

    def _hidden(self, key: Value) -> Value:
        """Whether the key mask hides a key, or there is none before the first."""
        b = self.operands.b
        none = b.icmp("<", key, 0)
        if self.key_mask is None:
            return none
        return b.or_(none, b.fcmp("<", b.load(F32, b.at(self.key_mask, b.imax(key, 0), F32)), 0.0))
