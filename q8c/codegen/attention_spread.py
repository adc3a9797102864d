"""Queries that see no key and get the mean of all values: what `spread` attention leaves to be done by its kernels."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from q8c.codegen.attention_operands import Operands
from q8c.codegen.builder import F32, LANES, Value


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
        blind = self._blind()
        with b.if_(b.icmp(">", blind, 0)):
            def add(key: Value, total: list[Value]) -> list[Value]:
                return [b.add(total[0], ops.value(self.batch, key, kv_head, channel, count))]

            total, = b.loop(0, self.keys, 1, [b.splat(0.0)], add)
            mean = b.mul(total, b.splat(b.div(1.0, b.ir.sitofp(self.keys, F32))))
            with b.range(0, blind) as n:
                row = b.add(b.mul(self.batch, b.arg("queries")), b.add(self.query, n))
                for head in heads:
                    out = b.at(ops.out(row, head), channel, F32)
                    if count == LANES:
                        b.store(mean, out)
                    else:
                        b.store_tail(mean, out, count)

    def _blind(self) -> Value:
        """How many of the queries, which are the first ones, see no key; 0 where there are no keys at all."""
        ops, b = self.operands, self.operands.b
        seen = self._first_seen()
        if ops.spec.causal:
            last = b.add(ops.visible(self.batch), self.query)
            blind = b.imin(b.imax(b.sub(seen, last), 0), self.queries)
        else:
            blind = b.select(b.icmp("<", seen, self.keys), 0, self.queries)
        return b.select(b.icmp(">", self.keys, 0), blind, 0)

    def _first_seen(self) -> Value:
        """The first key the mask lets through; as many as there are if it lets none."""
        b, mask = self.operands.b, self.key_mask
        if mask is None:
            return b.coerce(0)[0]

        def hidden(state: list[Value]) -> Value:
            here = b.load(F32, b.at(mask, b.imax(b.imin(state[0], b.sub(self.keys, 1)), 0), F32))
            return b.and_(b.icmp("<", state[0], self.keys), b.fcmp("<", here, 0.0))

        first, = b.while_([b.coerce(0)[0]], hidden, lambda state: [b.add(state[0], 1)])
        return first
