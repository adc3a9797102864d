"""The innermost attention code: a tile of queries of one head against all its keys, in float32.

A lane is a query. Scores stand transposed, [keys][queries], in scratch that stays in the caches: keys need no
transposition, softmax no sums across lanes, and every sum (over a head's channels, over the keys of a span, over spans)
runs in ascending order in one accumulator. So a query's result depends on no other query, on no tile shape, on no tier,
and keys of weight 0 behind the last real one change no bit of it.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen.attention_driver import tile_params
from q8c.codegen.attention_math import capped, exp_nonpositive, transpose
from q8c.codegen.attention_spec import SPAN, AttentionSpec
from q8c.codegen.builder import F32, I32, I64, LANES, V16F, V16I, Builder, Value
from q8c.codegen.targets import Tier

NEGATIVE_INFINITY = float("-inf")
TAIL_KEYS = 4
STATISTICS = 2  # rows of scratch: each query's greatest score, and what its sums are divided by


@dataclass(frozen=True)
class Tile:
    """The static shape of the loops over one tile.

    Attributes:
        vectors: queries, in 16 lanes.
        keys: keys whose scores are in registers at a time; with `vectors` it makes the accumulators.
        rows, columns: queries, and 16-lane vectors of channels, whose weighted values are in registers at a time.
        unroll: channels per iteration of the score loop.
    """

    vectors: int
    keys: int
    rows: int
    columns: int
    unroll: int = 4

    @property
    def queries(self) -> int:
        """Queries of a tile."""
        return LANES * self.vectors


def tiles(tier: Tier) -> tuple[Tile, ...]:
    """The tiles of a tier, the widest first; a narrower one takes the queries left over."""
    if tier.registers >= 32:
        return Tile(2, 12, 11, 2), Tile(1, 16, 8, 2)
    return (Tile(1, 6, 6, 1),)


class TileEmitter:
    """Writes the function of one tile shape; its parameters are `tile_params` and, with a window, `phase`: how far into
    a span its first key is.

    Rows of keys and of values are `row_pitch` apart, 0 past the size of a head.
    """

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec, tile: Tile) -> None:
        self.spec, self.tile = spec, tile
        params = [*tile_params(spec), *([("phase", I64)] if spec.window else [])]
        self.b = b = Builder(module, tier, spec.symbol(tier, f"{tile.queries}x{tile.keys}"), params, internal=True)
        self.queries, self.keys = b.arg("queries"), b.arg("keys")
        self.last_query, self.last_key = b.sub(self.queries, 1), b.sub(self.keys, 1)
        self.greatest = b.arg("scratch")
        self.factor = self._row(self.greatest, 1)
        self.q = self._row(self.greatest, STATISTICS)
        self.scores = self._row(self.q, spec.head_size)
        self.totals = b.scratch(4 * LANES * tile.rows * tile.columns)

    def _row(self, base: Value, row: int | Value, lane: int | Value = 0) -> Value:
        """The address of a lane of a row of a scratch array."""
        b = self.b
        return b.at(b.at(base, b.mul(row, self.tile.queries), F32), lane, F32)

    def emit(self) -> ir.Function:
        """The whole function."""
        self._pack_queries()
        if self.spec.mask_has_queries:
            self._place_mask()
        self._score_all()
        for vector in range(self.tile.vectors):
            self._softmax(vector * LANES)
        self._weigh_values()
        self.b.ret()
        return self.b.function

    # -- queries and mask, lane by lane

    def _pack_queries(self) -> None:
        """Scaled queries as [channels][queries]; lanes past the last query repeat it."""
        b, spec = self.b, self.spec
        whole = spec.head_size // LANES * LANES

        def pack(channel: int | Value, count: int) -> None:
            def load(row: Value) -> Value:
                address = b.at(b.at(b.arg("q"), b.mul(row, spec.strides[0]), F32), channel, F32)
                x = b.load(V16F, address) if count == LANES else b.load_tail(V16F, address, count)
                return b.mul(x, spec.query_scale)
            self._transpose_queries(load, lambda n, lane: self._row(self.q, b.add(channel, n), lane), count)

        if whole:
            with b.range(0, whole, LANES) as channel:
                pack(channel, LANES)
        if whole < spec.head_size:
            pack(whole, spec.head_size - whole)

    def _place_mask(self) -> None:
        """The mask where the scores will stand; keys past the last one get -inf."""
        b, spec = self.b, self.spec
        with b.range(0, self.keys, LANES) as key:
            def load(row: Value) -> Value:
                address = b.at(b.arg("mask"), b.mul(row, b.arg("mask_row")), F32)
                if not spec.mask_has_keys:
                    return b.splat(b.load(F32, address))
                return b.load_tail(V16F, b.at(address, key, F32), b.sub(self.keys, key), NEGATIVE_INFINITY)
            self._transpose_queries(load, lambda n, lane: self._row(self.scores, b.add(key, n), lane), LANES)

    def _transpose_queries(self, load: Callable[[Value], Value], address: Callable[[int, Value], Value],
                           count: int) -> None:
        b = self.b
        with b.range(0, self.tile.queries, b.tier.lanes) as first:
            rows = [load(b.imin(b.add(first, n), self.last_query)) for n in range(b.tier.lanes)]
            for n, column in enumerate(transpose(b, rows)[:count]):
                b.store(column, address(n, first))

    # -- scores

    def _score_all(self) -> None:
        b, tile = self.b, self.tile
        least = b.splat(b.arg("sink") if self.spec.sinks else NEGATIVE_INFINITY)
        for vector in range(tile.vectors):
            b.store(least, self._row(self.greatest, 0, vector * LANES))
        whole = b.sub(self.keys, b.rem(self.keys, tile.keys))
        with b.range(0, whole, tile.keys) as key:
            first = self._key(key)
            self._score([b.add(key, n) for n in range(tile.keys)],
                        [b.at(first, n * self.spec.row_pitch(1), F32) for n in range(tile.keys)])
        with b.range(whole, self.keys, TAIL_KEYS) as key:
            # The last key fills up the group: scored twice, it changes nothing.
            keys = [b.imin(b.add(key, n), self.last_key) for n in range(TAIL_KEYS)]
            self._score(keys, [self._key(n) for n in keys])

    def _key(self, key: Value) -> Value:
        return self.b.at(self.b.arg("k"), self.b.mul(key, self.spec.row_pitch(1)), F32)

    def _score(self, keys: Sequence[Value], pointers: Sequence[Value]) -> None:
        """Scores of some keys, which lie at `pointers`."""
        b = self.b
        lanes = range(0, self.tile.queries, LANES)
        sums = [[self._masked(x, key, lane) for x, lane in zip(row, lanes, strict=True)]
                for key, row in zip(keys, self._dot(pointers), strict=True)]
        for key, row in zip(keys, sums, strict=True):
            for x, lane in zip(row, lanes, strict=True):
                b.store(x, self._row(self.scores, key, lane))
        for column, lane in zip(map(list, zip(*sums, strict=True)), lanes, strict=True):
            while len(column) > 1:
                column = [b.fmax(*column[i:i + 2]) for i in range(0, len(column) - 1, 2)] + column[len(column) & ~1:]
            address = self._row(self.greatest, 0, lane)
            b.store(b.fmax(column[0], b.load(V16F, address)), address)

    def _dot(self, pointers: Sequence[Value]) -> list[list[Value]]:
        """Sums over channels, ascending: by key and by vector of queries."""
        b, tile = self.b, self.tile
        size, vectors = self.spec.head_size, tile.vectors
        sums = [b.splat(0.0)] * (len(pointers) * vectors)

        def steps(sums: list[Value], channel: int | Value, count: int) -> list[Value]:
            sums = list(sums)
            for u in range(count):
                q = [b.load(V16F, self._row(self.q, b.add(channel, u), v * LANES)) for v in range(vectors)]
                for n, pointer in enumerate(pointers):
                    k = b.splat(b.load(F32, b.at(pointer, b.add(channel, u), F32)))
                    for v in range(vectors):
                        sums[n * vectors + v] = b.fma(q[v], k, sums[n * vectors + v])
            return sums

        whole = size - size % tile.unroll
        if whole:
            sums = b.loop(0, whole, tile.unroll, sums, lambda i, sums: steps(sums, i, tile.unroll))
        sums = steps(sums, whole, size % tile.unroll)
        if self.spec.int8:
            scales = [b.splat(b.load(F32, b.at(pointer, self.spec.pitch(1), F32))) for pointer in pointers]
            sums = [b.mul(x, scales[n // vectors]) for n, x in enumerate(sums)]
        sums = [capped(b, x, self.spec.softcap) for x in sums]
        return [sums[i:i + vectors] for i in range(0, len(sums), vectors)]

    def _masked(self, score: Value, key: Value, lane: int) -> Value:
        b, spec = self.b, self.spec
        if spec.mask_has_queries:
            score = b.add(score, b.load(V16F, self._row(self.scores, key, lane)))
        elif spec.mask is not None:
            element = b.at(b.arg("mask"), key if spec.mask_has_keys else 0, F32)
            score = b.add(score, b.splat(b.load(F32, element)))
        if spec.key_mask is not None:
            score = b.add(score, b.splat(b.load(F32, b.at(b.arg("key_mask"), key, F32))))
        if spec.by_place:
            own = b.sub(b.sub(key, b.arg("visible")), lane)  # the lane of the query that stands at the key
            first = b.imax(b.sub(own, spec.reach), 0)
            seen = b.icmp(">=", b.iota(), b.splat(b.trunc(first, I32), V16I))
            if spec.window:
                end = b.imin(b.add(own, spec.window), LANES)
                seen = b.and_(seen, b.icmp("<", b.iota(), b.splat(b.trunc(end, I32), V16I)))
            score = b.select(seen, score, NEGATIVE_INFINITY)
        return score

    # -- softmax

    def _softmax(self, lane: int) -> None:
        """Scores become exp(score - greatest); the factor is 1 / their sum and the sink's, 0 if there are no keys."""
        b = self.b
        greatest = b.load(V16F, self._row(self.greatest, 0, lane))

        def step(key: Value, total: list[Value]) -> list[Value]:
            address = self._row(self.scores, key, lane)
            weight = exp_nonpositive(b, b.sub(b.load(V16F, address), greatest))
            b.store(b.mul(weight, self._value_scale(key)) if self.spec.int8 else weight, address)
            return [b.add(total[0], weight)]

        def span(start: Value, end: Value, total: list[Value]) -> list[Value]:
            part, = b.loop(start, end, 1, [b.splat(0.0)], step)
            return [b.add(total[0], part)]

        sink = exp_nonpositive(b, b.sub(b.splat(b.arg("sink")), greatest)) if self.spec.sinks else b.splat(0.0)
        total, = self._spans([sink], span)
        factor = b.div(1.0, total)
        if self.spec.nan_to_zero:
            factor = b.select(b.fcmp(">", total, 0.0), factor, 0.0)
        else:
            factor = b.select(b.fcmp("==", total, 0.0), 0.0, factor)
        b.store(factor, self._row(self.factor, 0, lane))

    def _spans(self, carried: Sequence[Value],
               body: Callable[[Value, Value, list[Value]], list[Value]]) -> list[Value]:
        """`body(start, end, carried)` for the keys of each span."""
        b = self.b
        phase: Value = b.arg("phase") if self.spec.window else 0

        def span(place: Value, carried: list[Value]) -> list[Value]:
            start = b.sub(place, phase)
            return body(b.imax(start, 0), b.imin(b.add(start, SPAN), self.keys), carried)

        return b.loop(0, b.add(self.keys, phase), SPAN, carried, span)

    def _value_scale(self, key: Value) -> Value:
        b, spec = self.b, self.spec
        row = b.at(b.arg("v"), b.mul(key, spec.row_pitch(2)), F32)
        return b.splat(b.load(F32, b.at(row, spec.pitch(2), F32)))

    # -- weighted values

    def _weigh_values(self) -> None:
        b, tile = self.b, self.tile
        size = self.spec.value_size
        block = tile.columns * LANES
        whole = size - size % block
        parts = _split(tile.queries, tile.rows)
        for start, rows in zip((sum(parts[:n]) for n in range(len(parts))), parts, strict=True):
            with b.if_(b.icmp("<", start, self.queries)):
                if whole:
                    with b.range(0, whole, block) as channel:
                        self._weigh(start, rows, channel, block)
                if whole < size:
                    self._weigh(start, rows, whole, size - whole)

    def _weigh(self, start: int, rows: int, channel: int | Value, count: int) -> None:
        """Results of a block of queries and channels."""
        b, spec = self.b, self.spec
        widths = [min(LANES, count - c) for c in range(0, count, LANES)]
        values = b.at(b.arg("v"), channel, F32)

        def step(_: Value, carried: list[Value]) -> list[Value]:
            *sums, value, weight = carried
            vectors = [b.load(V16F, b.at(value, c * LANES, F32)) for c in range(len(widths))]
            for r in range(rows):
                w = b.splat(b.load(F32, b.at(weight, r, F32)))
                for c, v in enumerate(vectors):
                    at = r * len(widths) + c
                    sums[at] = b.fma(w, v, sums[at])
            return [*sums, b.at(value, spec.row_pitch(2), F32), b.at(weight, self.tile.queries, F32)]

        zeros = [b.splat(0.0)] * (rows * len(widths))
        totals = [b.at(self.totals, 4 * LANES * n) for n in range(len(zeros))]
        for zero, total in zip(zeros, totals, strict=True):
            b.store(zero, total)

        def span(first: Value, end: Value, carried: list[Value]) -> list[Value]:
            *sums, value, weight = b.loop(first, end, 1, [*zeros, *carried], step)
            for part, total in zip(sums, totals, strict=True):
                b.store(b.add(b.load(V16F, total), part), total)
            return [value, weight]

        self._spans([values, self._row(self.scores, 0, start)], span)
        for r in range(rows):
            with b.if_(b.icmp("<", start + r, self.queries)):
                factor = b.splat(b.load(F32, self._row(self.factor, 0, start + r)))
                row = b.at(b.at(b.arg("out"), (start + r) * spec.channels, F32), channel, F32)
                for c, width in enumerate(widths):
                    total = b.load(V16F, totals[r * len(widths) + c])
                    self._store(self._scaled(total, factor), b.at(row, c * LANES, F32), width)

    def _scaled(self, x: Value, factor: Value) -> Value:
        b = self.b
        y = b.mul(x, factor)
        return b.select(b.fcmp(">", factor, 0.0), y, 0.0) if self.spec.nan_to_zero else y

    def _store(self, x: Value, address: Value, width: int) -> None:
        if width == LANES:
            self.b.store(x, address)
        else:
            self.b.store_tail(x, address, width)


def _split(total: int, most: int) -> list[int]:
    """`total` in the fewest parts of at most `most`, as equal as they can be."""
    parts = -(-total // most)
    return [total // parts + (n < total % parts) for n in range(parts)]
