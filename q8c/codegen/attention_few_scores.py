"""The first step of attention of few queries: scores, masked, of all keys."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.attention_few import AHEAD, BLOCK, PREFETCH_LEVEL, FewStep, row_bytes
from q8c.codegen.attention_math import capped, transpose
from q8c.codegen.attention_operands import HIDDEN, key_mask_bytes
from q8c.codegen.attention_spec import AttentionSpec
from q8c.codegen.builder import F32, I64, LANES, PTR, V16F, V16M, Builder, Value, constant
from q8c.codegen.kept_rows import key_lanes
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim
from q8c.ir.memory import CACHE_LINE

STEP = 32
"""Keys whose scores are in registers at a time."""


def score_scratch(spec: AttentionSpec, keys: Dim) -> Dim:
    """Bytes of scratch: scaled rows, some keys transposed and, where they are the last ones, a copy of them; the key
    mask."""
    mask = key_mask_bytes(keys) if spec.key_mask is not None else 0
    return row_bytes(spec) + 2 * 4 * STEP * spec.pitch(1) + mask


class FewScores(FewStep):
    """A piece is a run of blocks of keys."""

    part_keys = BLOCK

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec) -> None:
        super().__init__(module, tier, spec, "few_scores", 4 if tier.registers >= 32 else 2)
        b = self.b
        self.q = b.arg("scratch")
        self.turned = b.at(self.q, row_bytes(spec))
        self.copy = b.at(self.turned, 4 * STEP * spec.pitch(1))
        self.key_mask = b.at(self.copy, 4 * STEP * spec.pitch(1))
        self.dots = {rows: _emit_dot(module, tier, spec, rows) for rows in range(1, self.tile_rows + 1)}

    def head(self, low: Value, high: Value) -> None:
        b = self.b
        self._scale_rows()
        if self.spec.key_mask is not None:
            self.operands.place_key_mask(self.batch, self.key_mask)
        with b.range(low, high) as block:
            for n in range(0, BLOCK, STEP):
                self._score(b.add(b.mul(block, BLOCK), n))
            self._note_greatest(block)

    def _note_greatest(self, block: Value) -> None:
        b = self.b
        with b.range(0, self.rows) as row:
            parts = [b.load(V16F, self.scores(row, b.add(b.mul(block, BLOCK), n))) for n in range(0, BLOCK, LANES)]
            while len(parts) > 1:
                parts = [b.fmax(*parts[n:n + 2]) for n in range(0, len(parts), 2)]
            b.store(b.reduce(parts[0], b.fmax), self.greatest(row, block))

    def _scale_rows(self) -> None:
        """Queries times scale, rows side by side."""
        b, spec = self.b, self.spec
        with b.range(0, self.rows) as row:
            source = self.operands.row(0, self.batch, self.query(row), self.head_of(row))
            target = b.at(self.q, b.mul(row, spec.pitch(1)), F32)
            for channel, count in _vectors(spec.head_size):
                b.store(b.mul(_load(b, source, channel, count), spec.query_scale), b.at(target, channel, F32))

    def _score(self, key: Value) -> None:
        """Scores of 32 keys from `key` on."""
        b, spec = self.b, self.spec
        if spec.int8:
            kept = self.operands.kept(1)
            keys, ahead = kept.row(self.item, key), kept.row(self.item, b.add(key, AHEAD))
            more = [kept.scales(self.item, key)]
        else:
            self._turn(key)
            keys, more = self.turned, []
            ahead = b.at(self.operands.row(1, self.batch, key, self.kv_head), AHEAD * spec.step(1), F32)

        def dot(row: Value, rows: int) -> None:
            q = b.at(self.q, b.mul(row, spec.pitch(1)), F32)
            b.ir.call(self.dots[rows], [q, keys, self.scores(row, key), self.pitch, ahead, *more])

        self.in_tiles(dot)
        if spec.mask is not None or spec.key_mask is not None:
            self._mask(key)
        else:
            hides = b.icmp(">", b.add(key, STEP), b.imin(self._end(constant(I64, 0)), self.there))
            if spec.window:
                hides = b.or_(hides, b.icmp("<", key, self._start(b.sub(self.queries, 1))))
            with b.if_(hides):
                self._mask(key)

    def _end(self, query: Value) -> Value:
        """Where the keys end that a query sees, if so many are there."""
        b, spec = self.b, self.spec
        if not spec.by_place:
            return self.there
        return b.add(b.add(self.operands.visible(self.batch), query), 1 + spec.reach)

    def _start(self, query: Value) -> Value:
        """Where the keys begin that a query sees in its window."""
        b = self.b
        return b.sub(b.add(b.add(self.operands.visible(self.batch), query), 1), self.spec.window)

    def _turn(self, key: Value) -> None:
        """32 keys as [channels][keys]; the last one stands for those that are not there."""
        b, spec = self.b, self.spec
        step = constant(I64, spec.step(1))
        partial = b.icmp(">", b.add(key, STEP), self.there)
        last = b.sub(self.there, 1)
        with b.if_(partial):
            with b.range(0, STEP) as n:
                token = b.imin(b.add(key, n), last)
                source = self.operands.row(1, self.batch, token, self.kv_head)
                target = b.at(self.copy, b.mul(n, spec.pitch(1)), F32)
                for channel, count in _vectors(spec.head_size):
                    b.store(_load(b, source, channel, count), b.at(target, channel, F32))
        source = b.select(partial, self.copy, self.operands.row(1, self.batch, key, self.kv_head))
        step = b.select(partial, spec.pitch(1), step)
        with b.range(0, STEP, b.tier.lanes) as first:
            for channel, count in _vectors(spec.head_size):
                rows = [_load(b, b.at(source, b.mul(b.add(first, n), step), F32), channel, count)
                        for n in range(b.tier.lanes)]
                for n, column in enumerate(transpose(b, rows)[:count]):
                    b.store(column, b.at(b.at(self.turned, 4 * STEP * (channel + n)), first, F32))

    def _mask(self, key: Value) -> None:
        """Masks on the scores of 32 keys; keys that are not there get -inf."""
        b, spec = self.b, self.spec
        with b.range(0, self.rows) as row:
            query = self.query(row)
            seen = b.imin(self._end(query), self.there)
            if spec.mask is not None:
                mask = self.operands.mask(self.batch, self.head_of(row), query)
            for n in range(0, STEP, LANES):
                at = b.add(key, n)
                left = b.imax(b.sub(self.there, at), 0)
                score = b.load(V16F, self.scores(row, at))
                if spec.mask is not None and spec.mask_has_keys:
                    score = b.add(score, b.load_tail(V16F, b.at(mask, at, F32), left))
                elif spec.mask is not None:
                    score = b.add(score, b.splat(b.load(F32, mask)))
                if spec.key_mask is not None:
                    shown = b.load_tail(V16F, b.at(self.key_mask, at, F32), left, HIDDEN)
                    score = b.select(b.fcmp("==", shown, 0.0), score, HIDDEN)
                here = b.tail_mask(b.imax(b.sub(seen, at), 0))
                if spec.window:
                    before = b.tail_mask(b.imax(b.sub(self._start(query), at), 0))
                    here = b.and_(here, b.xor(before, constant(V16M, 1)))
                b.store(b.select(here, score, HIDDEN), self.scores(row, at))


def _vectors(size: int) -> list[tuple[int, int]]:
    """First channel and count of the vectors of a head."""
    return [(channel, min(LANES, size - channel)) for channel in range(0, size, LANES)]


def _load(b: Builder, row: Value, channel: int, count: int) -> Value:
    address = b.at(row, channel, F32)
    return b.load(V16F, address) if count == LANES else b.load_tail(V16F, address, count)


def _emit_dot(module: ir.Module, tier: Tier, spec: AttentionSpec, rows: int) -> ir.Function:
    """`dot(q, keys, scores, pitch, ahead)`: products of some rows with 32 keys [channels][keys]; rows of scores are
    `pitch` elements apart. Meanwhile it asks for the 32 keys at `ahead`, as many lines in each step: while keys are
    turned, memory is waited for anyway. Keys in 8 bits lie where they are kept; the address of their scales is one more
    parameter."""
    name = (f"q8c_few_dot_{rows}x{spec.head_size}by{'int8' if spec.int8 else spec.step(1)}"
            f"{f'cap{spec.softcap}' if spec.softcap else ''}")
    found = module.globals.get(name)
    if found is not None:
        return found
    params = [("q", PTR), ("k", PTR), ("out", PTR), ("pitch", I64), ("ahead", PTR)]
    b = Builder(module, tier, name, [*params, *([("scales", PTR)] if spec.int8 else [])], internal=True)
    vectors, unroll, size = STEP // LANES, 4, spec.head_size
    key_bytes = STEP * (1 if spec.int8 else 4)  # of a channel
    in_one = spec.int8 or spec.step(1) == size  # the 32 keys ahead are one stretch of memory

    def keys(channel: Value, n: int) -> Value:
        if spec.int8:
            return key_lanes(b, b.at(b.arg("k"), n * LANES * size), channel)
        return b.load(V16F, b.at(b.at(b.arg("k"), b.mul(channel, key_bytes)), n * LANES, F32))

    def steps(sums: list[Value], channel: Value, count: int) -> list[Value]:
        sums = list(sums)
        for u in range(count):
            at = b.add(channel, u)
            for line in range(-u * key_bytes % CACHE_LINE, key_bytes if in_one else 0, CACHE_LINE):
                b.prefetch(b.at(b.arg("ahead"), b.add(b.mul(at, key_bytes), line)), PREFETCH_LEVEL)
            turned = [keys(at, n) for n in range(vectors)]
            for row in range(rows):
                q = b.splat(b.load(F32, b.at(b.at(b.arg("q"), row * spec.pitch(1), F32), at, F32)))
                for n in range(vectors):
                    sums[row * vectors + n] = b.fma(q, turned[n], sums[row * vectors + n])
        return sums

    sums = [b.splat(0.0)] * (rows * vectors)
    whole = size - size % unroll
    if whole:
        sums = b.loop(0, whole, unroll, sums, lambda channel, sums: steps(sums, channel, unroll))
    sums = steps(sums, constant(I64, whole), size % unroll)
    if spec.int8:
        scales = [b.load(V16F, b.at(b.arg("scales"), n * LANES, F32)) for n in range(vectors)]
        sums = [b.mul(x, scale) for x, scale in zip(sums, scales * rows, strict=True)]
    for row in range(rows):
        out = b.at(b.arg("out"), b.mul(b.arg("pitch"), row), F32)
        for n in range(vectors):
            b.store(capped(b, sums[row * vectors + n], spec.softcap), b.at(out, n * LANES, F32))
    b.ret()
    return b.function
