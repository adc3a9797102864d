"""The second step of attention of few queries: softmax of the scores and the values they weigh."""
from __future__ import annotations

from collections.abc import Callable

import llvmlite.ir as ir

from q8c.codegen.attention_few import AHEAD, BLOCK, FEW, PREFETCH_LEVEL, FewStep
from q8c.codegen.attention_math import exp_nonpositive
from q8c.codegen.attention_operands import HIDDEN, key_mask_bytes
from q8c.codegen.attention_spec import AttentionSpec
from q8c.codegen.attention_spread import BlindQueries
from q8c.codegen.builder import F32, I64, LANES, PTR, V16F, Builder, Value, constant
from q8c.codegen.draw import draw
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim

_VECTOR = 4 * LANES
MANY_TASKS = 4
"""For each thread: enough to share them evenly whatever their number."""


def value_scratch(spec: AttentionSpec, keys: Dim) -> Dim:
    """Bytes of scratch: each row's greatest score, weights of a block, sums of each vector of channels beside those of
    weights; the key mask."""
    rows = FEW * spec.group
    mask = key_mask_bytes(keys) if spec.key_mask is not None else 0
    return rows * (_VECTOR + 4 * BLOCK + 2 * _VECTOR * -(-spec.head_size // LANES)) + mask


class FewValues(FewStep):
    """A task is a head or some vectors of its channels, which threads draw. What is summed of a tile of channels begins
    with the sum of weights."""

    def __init__(self, module: ir.Module, tier: Tier, spec: AttentionSpec) -> None:
        super().__init__(module, tier, spec, "few_values", 4 if tier.registers >= 32 else 3,
                         [("threads", I64), ("queue", PTR)])
        b, rows = self.b, FEW * spec.group
        self.columns = -(-spec.head_size // LANES)
        self.tail = spec.head_size % LANES
        self.widths = [n for n in ((4, 2, 1) if tier.registers >= 32 else (1,)) if n * LANES <= spec.head_size]
        self.greatest = b.arg("scratch")
        self.weights = b.at(self.greatest, rows * _VECTOR)
        self.sums = b.at(self.weights, rows * 4 * BLOCK)
        self.key_mask = b.at(self.sums, rows * 2 * _VECTOR * self.columns)
        self.tiles = {(rows, columns, width): _emit_weigh(module, tier, spec, rows, columns, width)
                      for rows in range(1, self.tile_rows + 1)
                      for columns, width in {*((n, LANES) for n in self.widths), (1, self.tail or LANES)}}

    def emit(self) -> ir.Function:
        """All tasks this thread draws."""
        b, queue = self.b, self.b.arg("queue")
        heads, threads = b.mul(b.arg("batch"), self.spec.kv_heads), b.arg("threads")
        # Weights are computed anew for each part of a head, and short stretches of values come slower.
        parts = constant(I64, self.columns)
        for fewer in sorted({min(2, self.columns), 1}, reverse=True):
            tasks = b.mul(heads, fewer)
            even = b.icmp("==", b.rem(tasks, threads), 0)
            many = b.icmp(">=", tasks, b.mul(threads, MANY_TASKS))
            parts = b.select(b.or_(even, many), fewer, parts)
        count = b.mul(heads, parts)

        def task(drawn: list[Value]) -> list[Value]:
            part = b.rem(drawn[0], parts)
            self.turn_to(b.div(drawn[0], parts))
            self._head(*(b.div(b.mul(b.add(part, n), self.columns), parts) for n in (0, 1)))
            return [draw(b, queue, count)]

        b.while_([draw(b, queue, count)], lambda drawn: b.icmp(">=", drawn[0], 0), task)
        b.ret()
        return b.function

    def _head(self, low: Value, high: Value) -> None:
        """Columns low ... high - 1 of the head at hand."""
        b = self.b
        if self.spec.key_mask is not None:
            self.operands.place_key_mask(self.batch, self.key_mask)
        self._find_greatest()
        self._across(low, high, self._clear)
        with b.range(0, self.there, BLOCK) as key:
            self._weigh_block(key, low, high)
        self._across(low, high, self._finish)

    def _find_greatest(self) -> None:
        b = self.b
        with b.range(0, self.rows) as row:
            def larger(key: Value, found: list[Value], row: Value = row) -> list[Value]:
                return [b.fmax(b.load(V16F, self.scores(row, b.add(key, n * LANES))), x) for n, x in enumerate(found)]

            found = b.loop(0, self.there, 2 * LANES, [b.splat(HIDDEN)] * 2, larger)
            b.store(b.splat(b.reduce(b.fmax(*found), b.fmax)), b.at(self.greatest, b.mul(row, _VECTOR)))

    # -- tiles of channels

    def _across(self, low: Value, high: Value, body: Callable[[Value, int, int], None]) -> None:
        """`body(column, columns, width)` for the tiles of columns low ... high - 1."""
        b = self.b
        whole, start = b.imin(high, self.spec.head_size // LANES), low
        for columns in self.widths:
            stop = b.add(start, b.mul(b.div(b.imax(b.sub(whole, start), 0), columns), columns))
            with b.range(start, stop, columns) as column:
                body(column, columns, LANES)
            start = stop
        if self.tail:
            with b.if_(b.icmp("==", high, self.columns)):
                body(constant(I64, self.columns - 1), 1, self.tail)

    def _sums(self, column: Value, columns: int, row: Value) -> Value:
        """Where the sums of a row of a tile are: of weights, then of its vectors."""
        b = self.b
        tile = b.mul(column, b.mul(self.rows, 2 * _VECTOR))
        return b.at(b.at(self.sums, tile), b.mul(row, (columns + 1) * _VECTOR))

    def _clear(self, column: Value, columns: int, width: int) -> None:
        b = self.b
        with b.range(0, self.rows) as row:
            for n in range(columns + 1):
                b.store(b.splat(0.0), b.at(self._sums(column, columns, row), n * _VECTOR))

    def _weigh_block(self, key: Value, low: Value, high: Value) -> None:
        """Add the values of 64 keys from `key` on."""
        b, spec = self.b, self.spec
        with b.range(0, self.rows) as row:
            greatest = b.load(V16F, b.at(self.greatest, b.mul(row, _VECTOR)))
            for n in range(0, BLOCK, LANES):
                score = b.load(V16F, self.scores(row, b.add(key, n)))
                weight = exp_nonpositive(b, b.sub(score, greatest))
                b.store(weight, b.at(b.at(self.weights, b.mul(row, 4 * BLOCK)), n, F32))
        count = b.imin(b.sub(self.there, key), BLOCK)
        values = self.operands.row(2, self.batch, key, self.kv_head)
        shown = b.at(self.key_mask, key, F32) if spec.key_mask is not None else values

        def weigh(column: Value, columns: int, width: int) -> None:
            def tile(row: Value, rows: int) -> None:
                b.ir.call(self.tiles[rows, columns, width], [
                    b.at(values, b.mul(column, LANES), F32), b.at(self.weights, b.mul(row, 4 * BLOCK)),
                    self._sums(column, columns, row), shown, count])
            self.in_tiles(tile)

        self._across(low, high, weigh)

    def _finish(self, column: Value, columns: int, width: int) -> None:
        b, spec = self.b, self.spec
        with b.range(0, self.rows) as row:
            sums = self._sums(column, columns, row)
            total = b.splat(b.load(F32, sums))
            factor = b.div(1.0, total)
            shown = b.fcmp(">", total, 0.0)
            factor = b.select(shown, factor, 0.0) if spec.nan_to_zero else b.select(
                b.fcmp("==", total, 0.0), 0.0, factor)
            place = b.add(b.mul(self.batch, self.queries), self.query(row))
            out = b.at(self.operands.out(place, self.head_of(row)), b.mul(column, LANES), F32)
            for n in range(columns):
                y = b.mul(b.load(V16F, b.at(sums, (n + 1) * _VECTOR)), factor)
                y = b.select(b.fcmp(">", factor, 0.0), y, 0.0) if spec.nan_to_zero else y
                address = b.at(out, n * LANES, F32)
                if width == LANES:
                    b.store(y, address)
                else:
                    b.store_tail(y, address, width)
        if spec.spread:
            self._spread(column, columns, width)

    def _spread(self, column: Value, columns: int, width: int) -> None:
        b, spec = self.b, self.spec
        blind = BlindQueries(self.operands, self.batch, constant(I64, 0), self.queries, self.there,
                             self.key_mask if spec.key_mask is not None else None)
        heads = [b.add(b.mul(self.kv_head, spec.group), n) for n in range(spec.group)]
        for n in range(columns):
            blind.fill(self.kv_head, heads, b.mul(b.add(column, n), LANES), width)


def _emit_weigh(module: ir.Module, tier: Tier, spec: AttentionSpec, rows: int, columns: int, width: int) -> ir.Function:
    """`weigh(values, weights, sums, shown, count)`: adds `count` values, the last vector of channels `width` wide, to
    the sums of some rows, and their weights to the first sums; without those that `shown` hides, if there is such."""
    step = spec.value_step
    hides = spec.key_mask is not None
    name = f"q8c_few_weigh_{rows}x{LANES * (columns - 1) + width}by{step}{'_shown' if hides else ''}"
    found = module.globals.get(name)
    if found is not None:
        return found
    b = Builder(module, tier, name, [*((n, PTR) for n in ("values", "weights", "sums", "shown")), ("count", I64)],
                internal=True)
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
            b.prefetch(b.at(b.at(value, n * LANES, F32), AHEAD * step, F32), PREFETCH_LEVEL)
        for row in range(rows):
            address = b.at(b.at(b.arg("weights"), row * 4 * BLOCK), key, F32)
            weight = b.splat(b.load(F32, address))
            at = row * (columns + 1)
            sums[at] = b.add(sums[at], b.splat(b.load(F32, address), total))
            for n, vector in enumerate(vectors, at + 1):
                sums[n] = b.fma(weight, vector, sums[n])
        return [*sums, b.at(value, step, F32)]

    places = [b.at(b.arg("sums"), n * _VECTOR) for n in range(rows * (columns + 1))]
    started = [b.load(V16F if n % (columns + 1) else total, at) for n, at in enumerate(places)]
    *sums, _ = b.loop(0, b.arg("count"), 1, [*started, b.arg("values")], add)
    for value, at in zip(sums, places, strict=True):
        b.store(value, at)
    b.ret()
    return b.function
