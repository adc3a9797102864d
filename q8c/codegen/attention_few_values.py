"""The second and third step of attention of few queries: softmax, the values it weighs, and spans of them added up."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.attention_few import AHEAD, BLOCK, FEW, PREFETCH_LEVEL, FewStep, sum_vectors
from q8c.codegen.attention_math import exp_nonpositive
from q8c.codegen.attention_operands import HIDDEN, key_mask_bytes
from q8c.codegen.attention_spec import SPAN, AttentionSpec
from q8c.codegen.attention_spread import BlindQueries
from q8c.codegen.builder import F32, I64, LANES, PTR, V16F, Builder, Value, constant
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim

_VECTOR = 4 * LANES


def value_scratch(spec: AttentionSpec, keys: Dim) -> Dim:
    """Bytes of scratch: each row's greatest score and its weights of a block; the key mask."""
    return FEW * spec.group * (_VECTOR + 4 * BLOCK) + finish_scratch(spec, keys)


def finish_scratch(spec: AttentionSpec, keys: Dim) -> Dim:
    """Bytes of scratch of the third step: the key mask."""
    return key_mask_bytes(keys) if spec.key_mask is not None else 0


def column_tiles(spec: AttentionSpec, tier: Tier) -> list[tuple[int, int, int]]:
    """The tiles that a head's channels are cut into, whose sums are in registers: the first vector of each, how many
    there are, and how wide the last one is. The sums of a tile begin with that of weights."""
    whole, tail = divmod(spec.head_size, LANES)
    most = 4 if tier.registers >= 32 else 1
    tiles = [(first, min(most, whole - first), LANES) for first in range(0, whole, most)]
    return [*tiles, *([(whole, 1, tail)] if tail else [])]


class FewValues(FewStep):
    """Parts are spans of keys."""

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec) -> None:
        super().__init__(module, tier, spec, "few_values", 4 if tier.registers >= 32 else 3)
        b, rows = self.b, FEW * spec.group
        self.most = b.arg("scratch")
        self.weights = b.at(self.most, rows * _VECTOR)
        self.key_mask = b.at(self.weights, rows * 4 * BLOCK)
        self.tiles = {(rows, columns, width): _emit_weigh(module, tier, spec, rows, columns, width)
                      for rows in range(1, self.tile_rows + 1)
                      for columns, width in {tile[1:] for tile in column_tiles(spec, tier)}}

    def parts(self, keys: Value) -> Value:
        return self.b.ceildiv(keys, SPAN)

    def head(self, low: Value, high: Value) -> None:
        b = self.b
        if self.spec.key_mask is not None:
            self.operands.place_key_mask(self.batch, self.key_mask)
        self._find_greatest()
        with b.range(low, high) as self.span:
            with b.range(0, self.rows) as row:
                for first, columns, _ in column_tiles(self.spec, self.tier):
                    for n in range(columns + 1):
                        b.store(b.splat(0.0), b.at(self._tile_sums(row, first), n * _VECTOR))
            start = b.mul(self.span, SPAN)
            with b.range(start, b.imin(b.add(start, SPAN), self.there), BLOCK) as key:
                self._weigh_block(key)

    def _find_greatest(self) -> None:
        b = self.b
        blocks = b.ceildiv(self.there, BLOCK)
        with b.range(0, self.rows) as row:
            def larger(block: Value, found: list[Value], row: Value = row) -> list[Value]:
                parts = b.load_tail(V16F, self.greatest(row, block), b.sub(blocks, block), HIDDEN)
                return [b.fmax(parts, found[0])]

            found, = b.loop(0, blocks, LANES, [b.splat(HIDDEN)], larger)
            b.store(b.splat(b.reduce(found, b.fmax)), b.at(self.most, b.mul(row, _VECTOR)))

    def _tile_sums(self, row: Value, first: int) -> Value:
        return self.b.at(self.sums(self.span, row), 2 * first * _VECTOR)

    def _weigh_block(self, key: Value) -> None:
        """Add the values of 64 keys from `key` on."""
        b, spec = self.b, self.spec
        with b.range(0, self.rows) as row:
            most = b.load(V16F, b.at(self.most, b.mul(row, _VECTOR)))
            for n in range(0, BLOCK, LANES):
                weight = exp_nonpositive(b, b.sub(b.load(V16F, self.scores(row, b.add(key, n))), most))
                b.store(weight, b.at(b.at(self.weights, b.mul(row, 4 * BLOCK)), n, F32))
        count = b.imin(b.sub(self.there, key), BLOCK)
        values = self.operands.row(2, self.batch, key, self.kv_head)
        shown = b.at(self.key_mask, key, F32) if spec.key_mask is not None else values
        # from one row's sums to the next
        step = b.mul(b.ceildiv(self.keys, SPAN), LANES * sum_vectors(spec))
        for first, columns, width in column_tiles(spec, self.tier):
            def tile(row: Value, rows: int, columns: int = columns, width: int = width, first: int = first) -> None:
                b.ir.call(self.tiles[rows, columns, width], [
                    b.at(values, first * LANES, F32), b.at(self.weights, b.mul(row, 4 * BLOCK)),
                    self._tile_sums(row, first), step, shown, count])
            self.in_tiles(tile)


class FewFinish(FewStep):
    """A head is one part."""

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec) -> None:
        super().__init__(module, tier, spec, "few_finish")

    def parts(self, keys: Value) -> Value:
        return constant(I64, 1)

    def head(self, low: Value, high: Value) -> None:
        b, spec = self.b, self.spec
        tiles = column_tiles(spec, self.tier)
        with b.range(0, self.rows) as row:
            for first, columns, width in tiles:
                self._finish(row, first, columns, width)
        if spec.spread:
            key_mask = b.arg("scratch") if spec.key_mask is not None else None
            if key_mask is not None:
                self.operands.place_key_mask(self.batch, key_mask)
            blind = BlindQueries(self.operands, self.batch, constant(I64, 0), self.queries, self.there, key_mask)
            heads = [b.add(b.mul(self.kv_head, spec.group), n) for n in range(spec.group)]
            for first, columns, width in tiles:
                for n in range(columns):
                    blind.fill(self.kv_head, heads, constant(I64, (first + n) * LANES), width)

    def _finish(self, row: Value, first: int, columns: int, width: int) -> None:
        """Add up the spans of a tile, divide by the weights, store."""
        b, spec = self.b, self.spec

        def add(span: Value, totals: list[Value]) -> list[Value]:
            place = b.at(self.sums(span, row), 2 * first * _VECTOR)
            weight = b.splat(b.load(F32, place))  # on some tiers there is half a vector of it
            return [b.add(total, x) for total, x in zip(totals, [weight, *(
                b.load(V16F, b.at(place, n * _VECTOR)) for n in range(1, columns + 1))], strict=True)]

        total, *sums = b.loop(0, b.ceildiv(self.there, SPAN), 1, [b.splat(0.0)] * (columns + 1), add)
        factor = b.div(1.0, total)
        factor = b.select(b.fcmp(">", total, 0.0), factor, 0.0) if spec.nan_to_zero else b.select(
            b.fcmp("==", total, 0.0), 0.0, factor)
        place = b.add(b.mul(self.batch, self.queries), self.query(row))
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
    `shown` hides, if there is such."""
    value_step, hides = spec.value_step, spec.key_mask is not None
    name = f"q8c_few_weigh_{rows}x{LANES * (columns - 1) + width}by{value_step}{'_shown' if hides else ''}"
    found = module.globals.get(name)
    if found is not None:
        return found
    b = Builder(module, tier, name, [("values", PTR), ("weights", PTR), ("sums", PTR), ("step", I64), ("shown", PTR),
                                     ("count", I64)], internal=True)
    total = ir.VectorType(F32, tier.lanes)
    zeros = b.constant_table(f"zeros{LANES * columns}", F32, [0.0] * (LANES * columns)) if hides else None

    def load(value: Value, n: int) -> Value:
        address = b.at(value, n * LANES, F32)
        return b.load(V16F, address) if width == LANES else b.load_tail(V16F, address, width)

    def add(key: Value, carried: list[Value]) -> list[Value]:
        *sums, value = carried
        source = value
        if zeros is not None:
            source = b.select(b.fcmp("==", b.load(F32, b.at(b.arg("shown"), key, F32)), 0.0), value, zeros)
        vectors = [load(source, n) for n in range(columns)]
        for n in range(columns):
            b.prefetch(b.at(b.at(value, n * LANES, F32), AHEAD * value_step, F32), PREFETCH_LEVEL)
        for row in range(rows):
            weight = b.load(F32, b.at(b.at(b.arg("weights"), row * 4 * BLOCK), key, F32))
            at = row * (columns + 1)
            sums[at] = b.add(sums[at], b.splat(weight, total))
            for n, vector in enumerate(vectors, at + 1):
                sums[n] = b.fma(b.splat(weight), vector, sums[n])
        return [*sums, b.at(value, value_step, F32)]

    places = [b.at(b.at(b.arg("sums"), b.mul(b.arg("step"), row), F32), n * _VECTOR)
              for row in range(rows) for n in range(columns + 1)]
    started = [b.load(V16F if n % (columns + 1) else total, at) for n, at in enumerate(places)]
    *sums, _ = b.loop(0, b.arg("count"), 1, [*started, b.arg("values")], add)
    for value, at in zip(sums, places, strict=True):
        b.store(value, at)
    b.ret()
    return b.function
