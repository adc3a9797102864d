"""Attention of few queries over many keys, in three steps: all scores; softmax and the values it weighs, a span of keys
at a time; the spans added up.

Query heads that share keys and values are rows of one product, and keys and values stream from where they lie, once. A
lane is a key in the first step and a channel then, and every sum runs as in a tile of many queries (`attention_tile`):
over channels, over the keys of a span and over spans, ascending, in one accumulator each. So a query has the same bits
alone, among few and among many, where those are computed in float32 too, and however spans are shared by threads.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import llvmlite.ir as ir

from q8c.codegen.attention_operands import HIDDEN, Operands, step_params
from q8c.codegen.attention_spec import SPAN, WIDEST, AttentionSpec
from q8c.codegen.bf16 import FEW_TOKENS
from q8c.codegen.builder import F32, I64, LANES, V16F, Builder, Value, constant
from q8c.codegen.loop_space import share
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, dim_min, floordiv
from q8c.ir.memory import round_up

FEW = 16
"""Queries up to which lanes that are queries would be idle: at 16 this takes 1.4 ms of 2.5 over 4096 keys. Products in
bfloat16 on AMX take 0.7 and take over sooner."""
MANY_SEQUENCES = 4
"""From so many on threads have sequences of their own, and find in their caches what they wrote of them; of fewer, each
reads keys and values that another wrote: half as long, and each line once, if that one has gathered them."""
BLOCK = 64
"""Keys whose scores, or weights, are computed at a time; divides `SPAN`."""
AHEAD = 64
"""Keys, or values, that memory is asked for before their turn. Between blocks nothing is read, and what the CPU fetches
by itself then stops: 8.1 and 9.8 GB/s of 16 became 14.2 and 14.6."""
PREFETCH_LEVEL = 2


def shared_bytes(spec: AttentionSpec, batch: Dim, queries: Dim, keys: Dim) -> Dim:
    """Bytes of what steps leave to each other, of each row of each head: its scores of all keys, in whole blocks; the
    greatest score of each block; sums of each span (`sum_vectors`)."""
    scores = round_up(keys, BLOCK)
    sums = floordiv(keys + (SPAN - 1), SPAN) * (LANES * sum_vectors(spec))
    return batch * (4 * spec.heads) * dim_min(queries, FEW) * (scores + floordiv(scores, BLOCK) + sums)


def gathered_bytes(spec: AttentionSpec, batch: Dim, queries: Dim, keys: Dim) -> Dim:
    """Bytes for keys and values of all heads in the form in which tiles of queries read them, on any tier; 0 where it
    is certain that there are no tiles, or that each tile's thread gathers what it reads."""
    many: Dim = 1
    if not spec.cached:
        many = 1 - dim_min(floordiv(batch, MANY_SEQUENCES), 1)
    elif spec.counts:
        many = dim_min(floordiv(queries, FEW_TOKENS + 1), 1)
    return many * batch * (4 * spec.kv_heads * (spec.row_pitch(1) + spec.row_pitch(2))) * round_up(keys, WIDEST)


def sum_vectors(spec: AttentionSpec) -> int:
    """Vectors that a row's sums of one span take: for each vector of channels, one beside it for a sum of weights."""
    return 2 * -(-spec.value_size // LANES)


def row_bytes(spec: AttentionSpec) -> int:
    """Bytes of all queries that share a head of keys."""
    return 4 * FEW * spec.group * spec.pitch(0)


def in_bfloat16(tier: Tier, spec: AttentionSpec) -> bool:
    """Whether products of many queries are in bfloat16 on a tier."""
    return tier.has("amx-bf16") and not spec.softcap


def most_few(tier: Tier, spec: AttentionSpec) -> int:
    """How many queries are few."""
    return FEW_TOKENS if in_bfloat16(tier, spec) else FEW


class FewStep(ABC):
    """One of the steps; its function has `step_params`. Tiles of up to `tile_rows` rows have their sums in registers.

    Where many queries round otherwise than few, padding must not decide: what goes this way are batch items that count
    few queries, of each its first ones.
    """

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec, name: str, tile_rows: int = 1) -> None:
        self.module, self.tier, self.spec = module, tier, spec
        self.b = b = Builder(module, tier, spec.symbol(tier, name), step_params(spec), internal=True)
        self.operands = Operands(b, spec)
        self.by_item = spec.counts and in_bfloat16(tier, spec)
        self.most = most_few(tier, spec)
        self.queries, self.keys = b.arg("queries"), b.arg("keys")
        if self.by_item:
            self.queries = b.imin(self.queries, self.most)
        self.tile_rows = tile_rows
        self.heads = b.mul(b.arg("batch"), spec.kv_heads)
        self.rows = b.mul(self.queries, spec.group)
        self.pitch = b.mul(b.ceildiv(self.keys, BLOCK), BLOCK)

    part_keys = 0
    """Keys of a part of a head's work; 0: it is one part."""

    @abstractmethod
    def head(self, low: Value, high: Value) -> None:
        """Parts low ... high - 1 (one at least) of the head at hand: `item` of all, `kv_head` of `batch`, with the keys
        from `begin` on that are `there`."""

    def emit(self) -> ir.Function:
        """The whole function: those parts of all heads that are this piece."""
        b = self.b
        parts = b.imax(self._most_parts(), 1)
        first, last = share(b, b.mul(self.heads, parts), b.arg("piece"), b.arg("pieces"))
        with b.range(b.div(first, parts), b.ceildiv(last, parts)) as self.item:
            self.batch, self.kv_head = b.div(self.item, self.spec.kv_heads), b.rem(self.item, self.spec.kv_heads)
            self.there = self.operands.there(self.batch)
            self.begin = self._begin()
            skipped = b.div(self.begin, self.part_keys) if self.part_keys else 0
            low, high = (b.imin(b.add(b.imin(b.imax(b.sub(n, b.mul(self.item, parts)), 0), parts), skipped),
                                self._parts(self.there)) for n in (first, last))
            here = b.icmp("<", low, high)
            if self.by_item:
                here = b.and_(here, b.icmp("<=", self.operands.counted(self.batch), self.most))
            with b.if_(here):
                self.head(low, high)
        b.ret()
        return b.function

    def _parts(self, keys: Value) -> Value:
        """How many parts so many keys are."""
        return self.b.ceildiv(keys, self.part_keys) if self.part_keys else constant(I64, 1)

    def _most_parts(self) -> Value:
        """How many parts a head has at most: with a window, of the keys in it, which may begin anywhere in one."""
        b, spec = self.b, self.spec
        parts = self._parts(self.keys)
        if not spec.window or not self.part_keys:
            return parts
        seen = b.add(self.queries, spec.window - 1 + spec.reach)
        return b.imin(parts, b.add(b.ceildiv(seen, self.part_keys), 1))

    def _begin(self) -> Value:
        """The first key that any query sees, or one before it that a block begins with."""
        b = self.b
        if not self.spec.window:
            return constant(I64, 0)
        first = b.sub(self.operands.visible(self.batch), self.spec.window - 1)
        return b.and_(b.imax(b.imin(first, b.sub(self.there, 1)), 0), -BLOCK)

    def scores(self, row: Value, key: Value) -> Value:
        """The address of a row's score of a key."""
        b = self.b
        return b.at(b.at(b.arg("shared"), b.mul(self._row(row), self.pitch), F32), key, F32)

    def greatest(self, row: Value, block: Value) -> Value:
        """The address of a row's greatest score of a block."""
        b = self.b
        first = b.at(b.arg("shared"), b.mul(b.mul(self.heads, self.rows), self.pitch), F32)
        return b.at(b.at(first, b.mul(self._row(row), b.div(self.pitch, BLOCK)), F32), block, F32)

    def greatest_of(self, row: Value) -> Value:
        """The greatest score of a row."""
        b = self.b
        blocks = b.ceildiv(self.there, BLOCK)

        def larger(block: Value, found: list[Value]) -> list[Value]:
            parts = b.load_tail(V16F, self.greatest(row, block), b.sub(blocks, block), HIDDEN)
            return [b.fmax(parts, found[0])]

        least = self.operands.sink(self.head_of(row)) if self.spec.sinks else HIDDEN
        found, = b.loop(b.div(self.begin, BLOCK), blocks, LANES, [b.splat(least)], larger)
        return b.reduce(found, b.fmax)

    def sums(self, span: Value, row: Value) -> Value:
        """The address of a row's sums of a span."""
        b = self.b
        rows = b.mul(self.heads, self.rows)
        first = b.mul(rows, b.add(self.pitch, b.div(self.pitch, BLOCK)))
        index = b.add(b.mul(b.ceildiv(self.keys, SPAN), self._row(row)), span)
        return b.at(b.at(b.arg("shared"), first, F32), b.mul(index, LANES * sum_vectors(self.spec)), F32)

    def _row(self, row: Value) -> Value:
        return self.b.add(self.b.mul(self.item, self.rows), row)

    def query(self, row: Value) -> Value:
        """The query of a row."""
        return self.b.div(row, self.spec.group)

    def head_of(self, row: Value) -> Value:
        """The query head of a row."""
        b = self.b
        return b.add(b.mul(self.kv_head, self.spec.group), b.rem(row, self.spec.group))

    def in_tiles(self, body: Callable[[Value, int], None]) -> None:
        """Call `body(first, rows)` for tiles of rows: as many as fit, then what is left."""
        b, most = self.b, self.tile_rows
        whole = b.mul(b.div(self.rows, most), most)
        with b.range(0, whole, most) as row:
            body(row, most)
        rest = b.sub(self.rows, whole)
        for rows in range(1, most):
            with b.if_(b.icmp("==", rest, rows)):
                body(whole, rows)
