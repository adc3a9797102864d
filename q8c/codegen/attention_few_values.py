"""The second and third step of attention of few queries: softmax, the values it weighs, and spans of them added up."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.attention_few import AHEAD, BLOCK, FEW, PREFETCH_LEVEL, FewStep, sum_vectors
from q8c.codegen.attention_math import exp_nonpositive
from q8c.codegen.attention_operands import HIDDEN, key_mask_bytes
from q8c.codegen.attention_spec import SPAN, AttentionSpec
from q8c.codegen.attention_spread import BlindQueries
from q8c.codegen.builder import F32, I8, I64, LANES, PTR, V16F, Builder, Value, constant, sizeof
from q8c.codegen.kept_rows import value_lanes
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim
from q8c.ir.memory import CACHE_LINE

_VECTOR = 4 * LANES


def value_scratch(spec: AttentionSpec, keys: Dim) -> Dim:
    """Bytes of scratch: each row's greatest score and its weights of a block; of values in 8 bits also these times
    scales; the key mask."""
    return FEW * spec.group * _VECTOR + (1 + spec.int8) * _weight_bytes(spec) + finish_scratch(spec, keys)


def _weight_bytes(spec: AttentionSpec) -> int:
    """Bytes of the weights of a block of keys in all rows."""
    return FEW * spec.group * 4 * BLOCK


def finish_scratch(spec: AttentionSpec, keys: Dim) -> Dim:
    """Bytes of scratch of the third step: the key mask."""
    return key_mask_bytes(keys) if spec.key_mask is not None else 0


def column_tiles(spec: AttentionSpec, tier: Tier) -> list[tuple[int, int, int]]:
    """The tiles that a head's channels are cut into, whose sums are in registers: the first vector of each, how many
    there are, and how wide the last one is. The sums of a tile begin with that of weights."""
    whole, tail = divmod(spec.value_size, LANES)
    most = 4 if tier.registers >= 32 else 1
    tiles = [(first, min(most, whole - first), LANES) for first in range(0, whole, most)]
    return [*tiles, *([(whole, 1, tail)] if tail else [])]


class FewValues(FewStep):
    """Parts are spans of keys."""

    part_keys = SPAN

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec) -> None:
        super().__init__(module, tier, spec, "few_values", 4 if tier.registers >= 32 else 3)
        b, rows = self.b, FEW * spec.group
        self.largest = b.arg("scratch")
        weights, size = b.at(self.largest, rows * _VECTOR), _weight_bytes(spec)
        self.weights = [b.at(weights, n * size) for n in range(1 + spec.int8)]
        self.key_mask = b.at(weights, (1 + spec.int8) * size)
        self.tiles = {(rows, columns, width): _emit_weigh(module, tier, spec, rows, columns, width)
                      for rows in range(1, self.tile_rows + 1)
                      for columns, width in {tile[1:] for tile in column_tiles(spec, tier)}}

    def head(self, low: Value, high: Value) -> None:
        b = self.b
        if self.spec.key_mask is not None:
            self.operands.place_key_mask(self.batch, self.key_mask)
        with b.range(0, self.rows) as row:
            b.store(b.splat(self.greatest_of(row)), b.at(self.largest, b.mul(row, _VECTOR)))
        with b.range(low, high) as self.span:
            with b.range(0, self.rows) as row:
                for first, columns, _ in column_tiles(self.spec, self.tier):
                    for n in range(columns + 1):
                        b.store(b.splat(0.0), b.at(self._tile_sums(row, first), n * _VECTOR))
            start = b.mul(self.span, SPAN)
            with b.range(b.imax(start, self.begin), b.imin(b.add(start, SPAN), self.there), BLOCK) as key:
                self._weigh_block(key)

    def _tile_sums(self, row: Value, first: int) -> Value:
        return self.b.at(self.sums(self.span, row), 2 * first * _VECTOR)

    def _weigh_block(self, key: Value) -> None:
        """Add the values of 64 keys from `key` on."""
        b, spec = self.b, self.spec
        with b.range(0, self.rows) as row:
            most = b.load(V16F, b.at(self.largest, b.mul(row, _VECTOR)))
            for n in range(0, BLOCK, LANES):
                weight = exp_nonpositive(b, b.sub(b.load(V16F, self.scores(row, b.add(key, n))), most))
                for at, x in zip(self.weights, self._scaled(weight, b.add(key, n)), strict=True):
                    b.store(x, b.at(b.at(at, b.mul(row, 4 * BLOCK)), n, F32))
        count = b.imin(b.sub(self.there, key), BLOCK)
        ops = self.operands
        values = ops.kept(2).row(self.item, key) if spec.int8 else ops.row(2, self.batch, key, self.kv_head)
        shown = b.at(self.key_mask, key, F32) if spec.key_mask is not None else values
        # from one row's sums to the next
        step = b.mul(b.ceildiv(self.keys, SPAN), LANES * sum_vectors(spec))
        for first, columns, width in column_tiles(spec, self.tier):
            def tile(row: Value, rows: int, columns: int = columns, width: int = width, first: int = first) -> None:
                weights, *scaled = (b.at(at, b.mul(row, 4 * BLOCK)) for at in self.weights)
                b.ir.call(self.tiles[rows, columns, width], [
                    b.at(values, first * LANES, I8 if spec.int8 else F32), weights, self._tile_sums(row, first), step,
                    shown, count, *scaled])
            self.in_tiles(tile)

    def _scaled(self, weights: Value, key: Value) -> list[Value]:
        """The weights of 16 values; of those in 8 bits also times scales, 0 where the key mask hides values."""
        b = self.b
        if not self.spec.int8:
            return [weights]
        scaled = b.mul(weights, b.load(V16F, self.operands.kept(2).scales(self.item, key)))
        if self.spec.key_mask is not None:
            shown = b.load_tail(V16F, b.at(self.key_mask, key, F32), b.imax(b.sub(self.there, key), 0), HIDDEN)
            scaled = b.select(b.fcmp("==", shown, 0.0), scaled, 0.0)
        return [weights, scaled]


class FewFinish(FewStep):
    """A head is one part."""

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec) -> None:
        super().__init__(module, tier, spec, "few_finish")

    def head(self, low: Value, high: Value) -> None:
        b, spec = self.b, self.spec
        tiles = column_tiles(spec, self.tier)
        with b.range(0, self.rows) as row:
            sink = b.splat(0.0)
            if spec.sinks:
                sink = exp_nonpositive(b, b.splat(b.sub(self.operands.sink(self.head_of(row)), self.greatest_of(row))))
            for first, columns, width in tiles:
                self._finish(row, first, columns, width, sink)
        if spec.spread:
            key_mask = b.arg("scratch") if spec.key_mask is not None else None
            if key_mask is not None:
                self.operands.place_key_mask(self.batch, key_mask)
            blind = BlindQueries(self.operands, self.batch, constant(I64, 0), self.queries, self.there, key_mask)
            heads = [b.add(b.mul(self.kv_head, spec.group), n) for n in range(spec.group)]
            for first, columns, width in tiles:
                for n in range(columns):
                    blind.fill(self.kv_head, heads, constant(I64, (first + n) * LANES), width)

    def _finish(self, row: Value, first: int, columns: int, width: int, sink: Value) -> None:
        """Add up the spans of a tile, divide by the weights and the sink's, store."""
        b, spec = self.b, self.spec

        def add(span: Value, totals: list[Value]) -> list[Value]:
            place = b.at(self.sums(span, row), 2 * first * _VECTOR)
            weight = b.splat(b.load(F32, place))  # on some tiers there is half a vector of it
            return [b.add(total, x) for total, x in zip(totals, [weight, *(
                b.load(V16F, b.at(place, n * _VECTOR)) for n in range(1, columns + 1))], strict=True)]

        spans = b.div(self.begin, SPAN), b.ceildiv(self.there, SPAN)
        total, *sums = b.loop(*spans, 1, [sink, *[b.splat(0.0)] * columns], add)
        factor = b.div(1.0, total)
        factor = b.select(b.fcmp(">", total, 0.0), factor, 0.0) if spec.nan_to_zero else b.select(
            b.fcmp("==", total, 0.0), 0.0, factor)
        place = b.add(b.mul(self.batch, b.arg("queries")), self.query(row))
        out = b.at(self.operands.out(place, self.head_of(row)), first * LANES, F32)
        for n, value in enumerate(sums):
            y = b.mul(value, factor)
            y = b.select(b.fcmp(">", factor, 0.0), y, 0.0) if spec.nan_to_zero else y
            if width == LANES:
                b.store(y, b.at(out, n * LANES, F32))
            else:
                b.store_tail(y, b.at(out, n * LANES, F32), width)


def _emit_weigh(module: ir.Module, tier: Tier, spec: AttentionSpec, rows: int, columns: int, width: int) -> ir.Function:
    """`weigh(values, weights, sums, step, shown, count)`: adds `count` values, the last vector of channels `width`
    wide, to the sums of some rows, `step` elements apart, and their weights to the first sums; without those that
    `shown` hides, if there is such. Values in 8 bits are multiplied by what one more parameter, `scaled`, points to."""
    hides = spec.key_mask is not None and not spec.int8  # values in 8 bits are finite
    typ, value_step = (I8, spec.value_size) if spec.int8 else (F32, spec.step(2))
    flags = "_int8" * spec.int8 + "_shown" * hides
    name = f"q8c_few_weigh_{rows}x{LANES * (columns - 1) + width}by{value_step}{flags}"
    found = module.globals.get(name)
    if found is not None:
        return found
    params = [("values", PTR), ("weights", PTR), ("sums", PTR), ("step", I64), ("shown", PTR), ("count", I64)]
    b = Builder(module, tier, name, [*params, *([("scaled", PTR)] if spec.int8 else [])], internal=True)
    total, weights = ir.VectorType(F32, tier.lanes), ["weights", "scaled"][:1 + spec.int8]
    zeros = b.constant_table(f"zeros{LANES * columns}", F32, [0.0] * (LANES * columns)) if hides else None

    def load(value: Value, n: int) -> Value:
        if spec.int8:
            return value_lanes(b, value, n * LANES, width)
        address = b.at(value, n * LANES, F32)
        return b.load(V16F, address) if width == LANES else b.load_tail(V16F, address, width)

    def add(key: Value, carried: list[Value]) -> list[Value]:
        *sums, value = carried
        source = value
        if zeros is not None:
            source = b.select(b.fcmp("==", b.load(F32, b.at(b.arg("shown"), key, F32)), 0.0), value, zeros)
        vectors = [load(source, n) for n in range(columns)]
        for line in range(0, LANES * columns * sizeof(typ), CACHE_LINE):
            b.prefetch(b.at(b.at(value, AHEAD * value_step, typ), line), PREFETCH_LEVEL)
        for row in range(rows):
            weight, *scaled = (b.load(F32, b.at(b.at(b.arg(name), row * 4 * BLOCK), key, F32)) for name in weights)
            at = row * (columns + 1)
            sums[at] = b.add(sums[at], b.splat(weight, total))
            weight = scaled[0] if scaled else weight
            for n, vector in enumerate(vectors, at + 1):
                sums[n] = b.fma(b.splat(weight), vector, sums[n])
        return [*sums, b.at(value, value_step, typ)]

    places = [b.at(b.at(b.arg("sums"), b.mul(b.arg("step"), row), F32), n * _VECTOR)
              for row in range(rows) for n in range(columns + 1)]
    started = [b.load(V16F if n % (columns + 1) else total, at) for n, at in enumerate(places)]
    *sums, _ = b.loop(0, b.arg("count"), 1, [*started, b.arg("values")], add)
    for value, at in zip(sums, places, strict=True):
        b.store(value, at)
    b.ret()
    return b.function
