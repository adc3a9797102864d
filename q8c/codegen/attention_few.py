"""Attention of few queries over many keys, in two steps: all scores, then softmax and weighted values.

Query heads that share keys and values are rows of one product, and keys and values stream from where they lie, once. A
lane is a key in the first step and a channel in the second, and every sum runs as in a tile of many queries
(`attention_tile`): over channels and over keys ascending, in one accumulator. So a query has the same bits alone, among
few and among many, where those are computed in float32 too. Steps are cut into pieces by heads and keys, then by heads
and channels, which takes no sum apart.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import llvmlite.ir as ir

from q8c.codegen.attention_operands import Operands, attention_params
from q8c.codegen.attention_spec import AttentionSpec
from q8c.codegen.builder import F32, PTR, Builder, Value
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, dim_min
from q8c.ir.memory import round_up

FEW = 16
"""Queries up to which lanes that are queries would be idle: at 16 this takes 1.4 ms of 2.5 over 4096 keys. Products in
bfloat16 on AMX take 0.7 and take over sooner."""
FEW_BEFORE_AMX = 8
BLOCK = 64
"""Keys whose scores, or weights, are computed at a time."""
AHEAD = 64
"""Keys, or values, that memory is asked for before their turn. Between blocks nothing is read, and what the CPU fetches
by itself then stops: 8.1 and 9.8 GB/s of 16 became 14.2 and 14.6."""
PREFETCH_LEVEL = 2


def shared_bytes(spec: AttentionSpec, batch: Dim, queries: Dim, keys: Dim) -> Dim:
    """Bytes of the scores [batch, kv_heads, queries * group, keys in whole blocks]."""
    return batch * (4 * spec.heads) * dim_min(queries, FEW) * round_up(keys, BLOCK)


def row_bytes(spec: AttentionSpec) -> int:
    """Bytes of a float32 for every channel of all rows of a key and value head."""
    return 4 * FEW * spec.group * spec.pitch


class FewStep(ABC):
    """One of the two steps; its function has the parameters of a kernel with scratch and what is shared. Tiles of up to
    `tile_rows` rows have their sums in registers."""

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec, name: str, tile_rows: int,
                 share: list[tuple[str, ir.Type]]) -> None:
        params = [*attention_params(spec), *((n, PTR) for n in ("scratch", "shared")), *share]
        self.module, self.tier, self.spec = module, tier, spec
        self.b = b = Builder(module, tier, spec.symbol(tier, name), params, internal=True)
        self.operands = Operands(b, spec)
        self.queries, self.keys = b.arg("queries"), b.arg("keys")
        self.tile_rows = tile_rows
        self.rows = b.mul(self.queries, spec.group)
        self.pitch = b.mul(b.ceildiv(self.keys, BLOCK), BLOCK)

    @abstractmethod
    def emit(self) -> ir.Function:
        """The whole function."""

    def turn_to(self, item: Value) -> None:
        """Go on to a key and value head of a batch item: its number among all, `kv_head` of `batch`, with `there`
        keys."""
        b = self.b
        self.item = item
        self.batch, self.kv_head = b.div(item, self.spec.kv_heads), b.rem(item, self.spec.kv_heads)
        self.there = self.operands.there(self.batch)

    def scores(self, row: Value, key: Value) -> Value:
        """The address of a row's score of a key."""
        b = self.b
        index = b.add(b.mul(self.item, self.rows), row)
        return b.at(b.at(b.arg("shared"), b.mul(index, self.pitch), F32), key, F32)

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
