"""Fused attention: a tile of queries at a time, from scores to weighted values; scores never reach main memory."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.amx_attention import amx_attention
from q8c.codegen.attention_driver import Driver, emit_driver
from q8c.codegen.attention_few import gathered_bytes, in_bfloat16, shared_bytes
from q8c.codegen.attention_few_scores import FewScores, score_scratch
from q8c.codegen.attention_few_values import FewFinish, FewValues, finish_scratch, value_scratch
from q8c.codegen.attention_math import transpose
from q8c.codegen.attention_operands import key_mask_bytes, step_params
from q8c.codegen.attention_spec import SPAN, AttentionSpec, attention_sizes, attention_spec
from q8c.codegen.attention_tile import STATISTICS, TileEmitter, tiles
from q8c.codegen.builder import F32, I1, LANES, V16F, Builder, Value, constant
from q8c.codegen.kept_rows import key_lanes, value_lanes
from q8c.codegen.kernel import Kernel
from q8c.codegen.targets import Tier
from q8c.codegen.units import shared
from q8c.ir.dims import Dim, dim_max
from q8c.ir.graph import Node
from q8c.ir.memory import round_up


def attention_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of an `attention` or `packed_attention` node: the operands there are, the result; sizes; scratch.

    Pieces are runs of batch items, heads and tiles of queries. Products are in bfloat16 on a tier that has been given
    AMX for it, else in float32. Where there may be more keys than queries, or few sequences are shared by threads,
    keys and values are gathered in a step of their own; for as many keys as queries only as bfloat16, as copies of
    floats are no less to read. Where there may be more keys, few queries go another way: in float32, in three steps;
    but not where that makes a difference and nothing says how many of the queries are padding.
    """
    spec = attention_spec(node)
    sizes = attention_sizes(node)
    batch, queries, keys = sizes[:3]
    many, scratch = _tiles(module, tier, spec, keys)
    if not spec.two_steps:
        return Kernel(many[0], sizes, scratch)
    gathered = gathered_bytes(spec, batch, queries, keys)
    sizes, room = (*sizes, gathered), gathered + (shared_bytes(spec, batch, queries, keys) if spec.cached else 0)
    steps, scratches = many, [scratch] * len(many)
    if not spec.cached and in_bfloat16(tier, spec):
        steps, scratches = _by_batch(module, tier, spec, keys), [scratch] * 2
    elif spec.cached and (not in_bfloat16(tier, spec) or spec.counts or isinstance(queries, int)):
        steps = _two_ways(module, tier, spec, keys)
        scratches = [score_scratch(spec, keys), value_scratch(spec, keys), finish_scratch(spec, keys)]
        scratches[:2] = [dim_max(scratch, s) for s in scratches[:2]]
    kernel = None
    for step, need in zip(reversed(steps), reversed(scratches), strict=True):
        kernel = Kernel(step, sizes, need, room, then=kernel)
    assert kernel is not None
    return kernel


def _tiles(module: ir.Module, tier: Tier, spec: AttentionSpec, keys: Dim) -> tuple[list[ir.Function], Dim]:
    """The steps of many queries and their scratch."""
    make = amx_attention if in_bfloat16(tier, spec) else _f32_attention
    return make(module, tier, spec, keys)


def _by_batch(module: ir.Module, tier: Tier, spec: AttentionSpec, keys: Dim) -> list[ir.Function]:
    """The steps of a kernel that gathers keys and values in the first if there is room for them in what is shared; else
    the second does all."""
    names = [spec.symbol(tier, step, "bf16") for step in ("first", "second")]

    def emit(unit: ir.Module) -> None:
        (gather, tiles, alone), _ = _tiles(unit, tier, spec, keys)
        for name, apart, together in zip(names, (gather, tiles), (None, alone), strict=True):
            b = Builder(unit, tier, name, step_params(spec), internal=True)
            are_apart = b.icmp(">", b.arg("gathered"), 0)
            for way, taken in ((apart, are_apart), (together, b.xor(are_apart, constant(I1, 1)))):
                if way is not None:
                    with b.if_(taken):
                        b.ir.call(way, [*b.function.args])
            b.ret()

    return shared(module, names, emit)


def _two_ways(module: ir.Module, tier: Tier, spec: AttentionSpec, keys: Dim) -> list[ir.Function]:
    """The steps of a kernel that takes few queries one way, in all three, and many another, in the first two.

    Where these round otherwise, all queries go the second way if there are many with padding; then those of batch items
    that count few go the first way too, and their results replace the others.
    """
    def emit(unit: ir.Module) -> None:
        many, _ = _tiles(unit, tier, spec, keys)
        steps = [step(unit, tier, spec) for step in (FewScores, FewValues, FewFinish)]
        for name, few, other in zip(names, steps, [*many, None], strict=True):
            function = few.emit()
            b = Builder(unit, tier, name, step_params(spec), internal=True)
            args = {a.name: a for a in b.function.args}
            are_few = b.icmp("<=", b.arg("queries"), few.most)
            with b.if_(constant(I1, 1) if few.by_item else are_few):
                behind = b.at(b.arg("shared"), b.arg("gathered"))
                b.ir.call(function, [*{**args, "shared": behind}.values()])
            if other is not None:
                with b.if_(b.xor(are_few, constant(I1, 1))):
                    b.ir.call(other, [*args.values()])
            b.ret()

    names = [spec.symbol(tier, step) for step in ("first", "second", "third")]
    return shared(module, names, emit)


def _f32_attention(module: ir.Module, tier: Tier, spec: AttentionSpec, keys: Dim) -> tuple[list[ir.Function], Dim]:
    """The kernel's steps (`emit_driver`) in float32 and their scratch: one head's keys and values, if they are not
    shared, 8 bytes per element; the scores of one tile of queries, 128 bytes per key (64 without AVX-512)."""
    rows = round_up(keys, LANES) + (spec.head_size + STATISTICS)
    mask = key_mask_bytes(keys) if spec.key_mask is not None else 0
    own = 0 if spec.cached else round_up(keys, LANES) * (4 * (spec.row_pitch(1) + spec.row_pitch(2)))
    scratch = own + rows * (4 * tiles(tier)[0].queries) + mask
    steps = ("gather", "tiles") if spec.cached else ("alone",)
    return emit_driver(module, tier, spec, spec.symbol(tier), _F32Driver, steps, lambda unit: {
        tile.queries: TileEmitter(unit, tier, spec, tile).emit() for tile in tiles(tier)}), scratch


class _F32Driver(Driver):
    """Copies keys and values: rows of a merged QKV are pages apart, and where they are 4 KiB apart they all compete
    for the same cache sets."""

    def bytes_of(self, keys: Value) -> tuple[Value, Value]:
        b = self.b
        rows = b.mul(b.ceildiv(keys, LANES), LANES)
        return b.mul(rows, 4 * self.spec.row_pitch(1)), b.mul(rows, 4 * self.spec.row_pitch(2))

    def more(self, batch: Value, head: Value, query: Value, start: Value) -> list[Value]:
        return [self.b.rem(start, SPAN)] if self.spec.window else []

    def gather(self, batch: Value, group: Value, start: Value, end: Value) -> None:
        """Side by side, rows padded with 0 to whole vectors."""
        b, spec = self.b, self.spec
        end = b.imin(end, self.keys)
        if spec.int8:
            self._gather_bytes(b.add(b.mul(batch, spec.kv_heads), group), start, end)
            return
        with b.range(start, end) as key:
            for n in (1, 2):
                row = self.row(n, batch, key, group)
                for c in range(0, spec.size(n), LANES):
                    x = b.load_tail(V16F, b.at(row, c, F32), min(LANES, spec.size(n) - c))
                    b.store(x, self._place(n, key, c))

    def _place(self, operand: int, key: Value, channel: int | Value) -> Value:
        """Where a channel of a key (operand 1) or value (2) goes."""
        b, copy = self.b, (self.k, self.v)[operand - 1]
        return b.at(b.at(copy, b.mul(key, self.spec.row_pitch(operand)), F32), channel, F32)

    def _gather_bytes(self, head: Value, start: Value, end: Value) -> None:
        """As floats in steps of their scales, which stand behind them: 0 of what is hidden."""
        b, spec = self.b, self.spec
        keys, values = self.operands.kept(1), self.operands.kept(2)
        with b.range(start, end, LANES) as first:
            source = keys.row(head, first)
            with b.range(0, spec.pitch(1), b.tier.lanes) as channel:
                turned = [key_lanes(b, source, b.imin(b.add(channel, n), spec.head_size - 1))
                          for n in range(b.tier.lanes)]
                for n, row in enumerate(transpose(b, turned)):
                    b.store(row, self._place(1, b.add(first, n), channel))
        with b.range(start, end) as key:
            for channel in range(0, spec.value_size, LANES):
                x = value_lanes(b, values.row(head, key), channel, min(LANES, spec.value_size - channel))
                b.store(x, self._place(2, key, channel))
            for n, kept in ((1, keys), (2, values)):
                b.store(self.shown(b.load(F32, kept.scales(head, key)), key), self._place(n, key, spec.pitch(n)))
