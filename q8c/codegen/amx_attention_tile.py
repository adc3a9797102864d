"""The innermost attention code on AMX: 32 queries of one head against all its keys.

Scores stand as [queries][keys] float32 in scratch, 32 x 32 at a time as the tile registers hold them. A row of them is
read for its greatest, then becomes weights in bfloat16 in place, which are the left tiles of the product with values.
"""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen import amx, bf16
from q8c.codegen.attention_driver import tile_params
from q8c.codegen.attention_math import LOG2_E, exp2_for_bf16
from q8c.codegen.attention_spec import AttentionSpec
from q8c.codegen.builder import F32, LANES, PTR, V16F, V16M, Builder, Operand, Value, constant
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim
from q8c.ir.memory import CACHE_LINE

STEP = 32
"""Queries of a tile; keys or channels a product sums over at a time; keys of a block of scores."""
SOFTMAX_ROWS = 4
"""Rows whose greatest scores are sought at the same time, and whose exponentials follow each other."""
NEGATIVE_INFINITY = float("-inf")
LOWEST = -3.4028234663852886e38
_TILE = amx.TILE_ROWS * amx.TILE_BYTES
_SUMS, _LEFT, _RIGHT = range(4), (4, 5), (6, 7)  # tile registers
_ROW_PADDING = 4 * LANES  # bytes behind a row of scores


def channel_steps(spec: AttentionSpec) -> int:
    """Steps along a head's channels."""
    return -(-spec.head_size // STEP)


def key_step_bytes(spec: AttentionSpec) -> int:
    """Bytes of 32 keys in scratch: tiles of 16 keys by 16 pairs of channels."""
    return 2 * channel_steps(spec) * _TILE


def value_step_bytes(spec: AttentionSpec) -> int:
    """Bytes of 32 keys' values in scratch: tiles of 16 channels by 16 pairs of keys."""
    return -(-spec.value_size // LANES) * _TILE


def tile_bytes(spec: AttentionSpec, key_steps: Dim) -> Dim:
    """Bytes of scratch for one tile: queries, scores, what all rows of scores start at."""
    return key_steps * (4 * STEP * (STEP + 1)) + (STEP * _ROW_PADDING + STEP * 2 * STEP * channel_steps(spec))


def load_channels(b: Builder, size: int, row: Value, channel: int) -> Value:
    """16 channels of a head's row, 0 past its size."""
    left = size - channel
    if left <= 0:
        return b.splat(0.0)
    address = b.at(row, channel, F32)
    return b.load(V16F, address) if left >= LANES else b.load_tail(V16F, address, left)


class AmxTileEmitter:
    """Writes the function of a tile; its parameters are `tile_params`, and where the next head has the token of the
    first query in q, k and v. Tile registers are configured whole."""

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec) -> None:
        self.spec = spec
        symbol = spec.symbol(tier, f"{STEP}x{STEP}", products="bf16")
        params = [*tile_params(spec), *((f"{n}_ahead", PTR) for n in "qkv")]
        self.b = b = Builder(module, tier, symbol, params, internal=True)
        self.queries, self.keys = b.arg("queries"), b.arg("keys")
        self.steps = b.ceildiv(self.keys, STEP)
        self.q = b.arg("scratch")
        self.q_pitch = 2 * STEP * channel_steps(spec)
        self.scores = b.at(self.q, STEP * self.q_pitch)
        self.pitch = b.add(b.mul(self.steps, 4 * STEP), _ROW_PADDING)
        self.starts = b.at(self.scores, b.mul(self.pitch, STEP))
        self.greatest, self.factors = b.scratch(4 * STEP), b.scratch(4 * STEP)
        self.totals = b.scratch(4 * STEP * LANES)
        self.sums = b.scratch(4 * STEP * STEP)

    def emit(self) -> ir.Function:
        """The whole function."""
        b = self.b
        self._pack_queries()
        self._place_mask()
        self._score()
        self.seen = self._seen_steps() if self.spec.by_place else self.steps
        with b.range(0, self.queries, SOFTMAX_ROWS) as row:
            self._greatest([b.add(row, n) for n in range(SOFTMAX_ROWS)])
        for channel in range(0, self.spec.value_size, 2 * LANES):
            self._weigh(channel, min(2 * LANES, self.spec.value_size - channel))
        b.ret()
        return b.function

    # -- scores

    def _pack_queries(self) -> None:
        """Scaled queries in bfloat16, for powers of 2; rows past the last one repeat it."""
        b, spec = self.b, self.spec
        with b.range(0, STEP) as row:
            query = b.imin(row, b.sub(self.queries, 1))
            source = b.at(b.arg("q"), b.mul(query, spec.strides[0]), F32)
            for step in range(channel_steps(spec)):
                low, high = (b.mul(load_channels(b, spec.head_size, source, STEP * step + n), spec.scale * LOG2_E)
                             for n in (0, LANES))
                target = b.at(self.q, b.add(b.mul(row, self.q_pitch), amx.TILE_BYTES * step))
                b.store(bf16.pack(b, low, high), target)

    def _place_mask(self) -> None:
        """What scores start at: where they will stand if the mask differs from query to query, else in one row for all.
        Keys past the last one get -inf."""
        b = self.b
        if self.spec.mask_has_queries:
            with b.range(0, self.queries) as row:
                mask = b.at(b.arg("mask"), b.mul(row, b.arg("mask_row")), F32)
                self._place_row(b.at(self.scores, b.mul(row, self.pitch)), mask)
        else:
            self._place_row(self.starts, b.arg("mask") if self.spec.mask is not None else None)

    def _place_row(self, target: Value, mask: Value | None) -> None:
        b = self.b
        value = b.splat(0.0)
        if mask is not None and not self.spec.mask_has_keys:
            value = b.splat(b.load(F32, mask))
        with b.range(0, b.mul(self.steps, STEP), LANES) as key:
            left = b.imax(b.sub(self.keys, key), 0)
            if self.spec.mask_has_keys:
                start = b.load_tail(V16F, b.at(mask, key, F32), left, NEGATIVE_INFINITY)
            else:
                start = b.select(b.tail_mask(left), value, NEGATIVE_INFINITY)
            if self.spec.key_mask is not None:
                hidden = b.load_tail(V16F, b.at(b.arg("key_mask"), key, F32), left, NEGATIVE_INFINITY)
                start = b.add(start, hidden)
            b.store(self._exponent(start), b.at(target, key, F32))

    def _exponent(self, mask: Value) -> Value:
        """A mask for powers of 2. What overflows by that is not -inf: if a row has nothing else, its keys are equal."""
        b = self.b
        return b.select(b.fcmp("==", mask, NEGATIVE_INFINITY), mask, b.fmax(LOWEST, b.mul(mask, LOG2_E)))

    def _score(self) -> None:
        """Scores, the mask included: sums begin with it."""
        b, spec = self.b, self.spec
        alone = channel_steps(spec) == 1
        if alone:
            self._load_left(self.q, self.q_pitch)
        with b.range(0, self.steps) as step:
            keys = b.at(b.arg("k"), b.mul(step, key_step_bytes(spec)))
            at = b.mul(step, 4 * STEP)
            places = [b.at(b.at(self.scores, at), b.add(b.mul(self.pitch, amx.TILE_ROWS * (tile // 2)),
                                                        amx.TILE_BYTES * (tile % 2))) for tile in _SUMS]
            for tile, place in zip(_SUMS, places, strict=True):
                if spec.mask_has_queries:
                    amx.load(b, tile, place, self.pitch)
                else:
                    amx.load(b, tile, b.at(b.at(self.starts, at), amx.TILE_BYTES * (tile % 2)), 0)
            for n in range(channel_steps(spec)):
                right = [b.at(keys, (j * channel_steps(spec) + n) * _TILE) for j in range(2)]
                if not alone:
                    self._load_left(b.at(self.q, n * amx.TILE_BYTES), self.q_pitch)
                self._multiply(right)
            for tile, place in zip(_SUMS, places, strict=True):
                amx.store(b, tile, place, self.pitch)

    def _load_left(self, left: Value, stride: Operand) -> None:
        """The 32 rows from `left` on to multiply next."""
        for i, register in enumerate(_LEFT):
            amx.load(self.b, register, self.b.at(left, self.b.mul(stride, amx.TILE_ROWS * i)), stride)

    def _multiply(self, right: list[Value]) -> None:
        """One step: the rows loaded times one or two right tiles."""
        b = self.b
        for j, tile in enumerate(right):
            amx.load(b, _RIGHT[j], tile, amx.TILE_BYTES)
            for i, register in enumerate(_LEFT):
                amx.dot_bf16(b, 2 * i + j, register, _RIGHT[j])

    # -- softmax

    def _greatest(self, rows: list[Value]) -> None:
        """Note the greatest score of each row."""
        b = self.b
        for row in rows:
            self._ask_ahead(row)
            b.store(b.splat(0.0), b.at(self.totals, b.mul(row, 4 * LANES)))
        scores = [b.at(self.scores, b.mul(row, self.pitch)) for row in rows]
        if self.spec.by_place:
            self._hide(rows, scores)

        def larger(step: Value, greatest: list[Value]) -> list[Value]:
            at = b.mul(step, 4 * STEP)
            return [b.fmax(b.load(V16F, b.at(b.at(row, at), (n % 2) * LANES, F32)), greatest[n])
                    for n, row in enumerate(r for row in scores for r in (row, row))]

        least = self._sink() if self.spec.sinks else b.splat(NEGATIVE_INFINITY)
        found = b.loop(0, self.seen, 1, [least] * (2 * len(rows)), larger)
        most = b.fold([b.fmax(*found[n:n + 2]) for n in range(0, len(found), 2)], b.fmax, LANES)
        b.store(most, b.at(self.greatest, rows[0], F32))

    def _sink(self) -> Value:
        """The head's sink, for powers of 2."""
        return self.b.splat(self.b.mul(self.b.arg("sink"), LOG2_E))

    def _exponentials(self, step: Value, row: Value) -> None:
        """One step of a row's scores become weights."""
        b = self.b
        scores = b.at(self.scores, b.mul(row, self.pitch))
        at = b.at(scores, b.mul(step, 4 * STEP))
        greatest = b.splat(b.load(F32, b.at(self.greatest, row, F32)))
        weights = [exp2_for_bf16(b, b.sub(b.load(V16F, b.at(at, half, F32)), greatest)) for half in (0, LANES)]
        b.store(bf16.pack(b, *weights), b.at(scores, b.mul(step, amx.TILE_BYTES)))
        total = b.at(self.totals, b.mul(row, 4 * LANES))
        b.store(b.add(b.load(V16F, total), b.add(*weights)), total)

    def _ask_ahead(self, row: Value) -> None:
        """Hints: the lines that query `row` has its result in, and those that have its token for the next head; its key
        and value too where no step before gathers those.

        Where two threads share a run, half of them are in the other's cache, some 4 ns each: waiting for them was half
        of what attention lost of the second thread."""
        b, spec = self.b, self.spec
        for n in range(1 if spec.two_steps else 3):
            token = b.at(b.arg(f"{'qkv'[n]}_ahead"), b.mul(row, spec.strides[n]), F32)
            for line in range(0, 4 * spec.size(n), CACHE_LINE):
                b.prefetch(b.at(token, line), 2)
        result = b.at(b.arg("out"), b.mul(row, spec.channels), F32)
        for line in range(0, 4 * spec.value_size, CACHE_LINE):
            b.prefetch_to_write(b.at(result, line))

    def _finish_rows(self) -> None:
        """Factors of rows are 1 / the sums of their weights and the sink's, or 0 if there are no keys."""
        b = self.b
        with b.range(0, STEP, LANES) as row:
            sums = [b.load(V16F, b.at(self.totals, b.mul(b.add(row, n), 4 * LANES))) for n in range(LANES)]
            total = b.fold(sums, b.add, LANES)
            if self.spec.sinks:
                greatest = b.load(V16F, b.at(self.greatest, row, F32))
                total = b.add(total, exp2_for_bf16(b, b.sub(self._sink(), greatest)))
            factor = b.div(1.0, total)
            if self.spec.nan_to_zero:
                factor = b.select(b.fcmp(">", total, 0.0), factor, 0.0)
            else:
                factor = b.select(b.fcmp("==", total, 0.0), 0.0, factor)
            b.store(factor, b.at(self.factors, row, F32))

    def _end(self, row: Operand) -> Value:
        """Where the keys end that a row sees."""
        b = self.b
        return b.imax(b.imin(b.add(b.add(b.arg("visible"), row), 1 + self.spec.reach), self.keys), 0)

    def _seen_steps(self) -> Value:
        """Steps of keys with one that some row sees, or 1 if there are keys at all: a row that sees none is NaN by its
        -inf scores."""
        b = self.b
        return b.imin(b.imax(b.ceildiv(self._end(STEP - 1), STEP), 1), self.steps)

    def _hide(self, rows: list[Value], scores: list[Value]) -> None:
        """Scores that a row does not see become -inf."""
        b = self.b
        # Rows see one key more each: where their keys end is in the last two steps, where they begin in the first two.
        self._hide_in(b.imax(b.sub(self.seen, 2), 0), self.seen, rows, scores)
        if self.spec.window:
            self._hide_in(b.coerce(0)[0], b.imin(self.seen, 2), rows, scores)

    def _hide_in(self, first: Value, last: Value, rows: list[Value], scores: list[Value]) -> None:
        b, window = self.b, self.spec.window
        ends = [self._end(row) for row in rows]
        with b.range(first, last) as step:
            for row, end, place in zip(rows, ends, scores, strict=True):
                for half in (0, LANES):
                    key = b.add(b.mul(step, STEP), half)
                    at = b.at(place, key, F32)
                    mask = b.tail_mask(b.imax(b.sub(end, key), 0))
                    if window:
                        hidden = b.sub(b.add(b.add(b.arg("visible"), row), 1), b.add(key, window))
                        mask = b.and_(mask, b.xor(b.tail_mask(b.imax(hidden, 0)), constant(V16M, 1)))
                    b.store(b.select(mask, b.load(V16F, at), NEGATIVE_INFINITY), at)

    # -- weighted values

    def _weigh(self, channel: int, count: int) -> None:
        """Results of up to 32 channels. With the first ones, a step of scores becomes weights just before its products,
        which AMX makes while the vector unit is at the next step's exponentials."""
        b, spec = self.b, self.spec
        panels = -(-count // LANES)
        values = b.at(b.arg("v"), channel // LANES * _TILE)
        for tile in _SUMS:
            amx.zero(b, tile)
        with b.range(0, self.seen) as step:
            if channel == 0:
                with b.range(0, self.queries, SOFTMAX_ROWS) as row:
                    for n in range(SOFTMAX_ROWS):
                        self._exponentials(step, b.add(row, n))
            tiles = [b.at(values, b.add(b.mul(step, value_step_bytes(spec)), j * _TILE)) for j in range(panels)]
            self._load_left(b.at(self.scores, b.mul(step, amx.TILE_BYTES)), self.pitch)
            self._multiply(tiles)
        for tile in _SUMS:
            if tile % 2 < panels:
                place = amx.TILE_ROWS * 4 * STEP * (tile // 2) + amx.TILE_BYTES * (tile % 2)
                amx.store(b, tile, b.at(self.sums, place), 4 * STEP)
        if channel == 0:
            self._finish_rows()
        with b.range(0, self.queries) as row:
            factor = b.splat(b.load(F32, b.at(self.factors, row, F32)))
            for j in range(panels):
                y = b.mul(b.load(V16F, b.at(self.sums, b.add(b.mul(row, 4 * STEP), amx.TILE_BYTES * j))), factor)
                if spec.nan_to_zero:
                    y = b.select(b.fcmp(">", factor, 0.0), y, 0.0)
                place = b.at(b.arg("out"), b.add(b.mul(row, spec.channels), channel + LANES * j), F32)
                self._store(y, place, min(LANES, count - LANES * j))

    def _store(self, y: Value, address: Value, count: int) -> None:
        if count == LANES:
            self.b.store(y, address)
        else:
            self.b.store_tail(y, address, count)
