"""int8 products on AMX by blocks of depth: 16 x 32 results at a time.

The sums of some blocks are stored to memory that stays in the first-level cache, and are then scaled and added to float
sums that stay in registers from block to block. Doing both at the same time gains nothing: while tiles are loaded,
multiplied or stored only one of the two units for float arithmetic works, and loads wait for stores of tiles to the
same place in another page.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from q8c.codegen import amx
from q8c.codegen.amx_finish import V32S, FinishTotals, Group
from q8c.codegen.amx_shape import Shape
from q8c.codegen.amx_strip import PREFETCH_LEVEL, Strip, strip_rows
from q8c.codegen.attention_math import transpose
from q8c.codegen.builder import F32, I16, I32, I64, LANES, V16F, V16I, Builder, Value, constant
from q8c.codegen.layout import GROUP, PANEL
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import FLOAT_BITS, FLOAT_OFFSET, load_scales, load_sums, sum_starts

PHASE = 6
"""Blocks whose sums are in memory at a time, at most: with rows and weights they fit the first-level cache."""


class BlockStrip(Strip):
    """Groups by themselves. What rows have for each block stands as [tiles][blocks][16 rows]."""

    def __init__(self, b: Builder, spec: Q8LinearSpec, shape: Shape, whole: bool) -> None:
        super().__init__(b, spec, shape, whole)
        alike = self.depth.alike
        self.phase = -(-alike // -(-alike // PHASE))
        self.sums = b.scratch(self.phase * shape.bytes)
        self.totals = b.scratch(shape.bytes)
        self.start = b.scratch(STEP_BYTES)

    def emit(self) -> None:
        """The whole function."""
        b = self.b
        b.store(b.splat(FLOAT_BITS, V16I), self.start, align=STEP_BYTES)
        self.row_scale = self._by_block(lambda x: x, "row_scale")
        if self.spec.zero_point:
            self.corrections = self._by_block(self._pair, "row_sum", "row_zero")
        else:
            self.corrections = self._by_block(lambda x: sum_starts(b, self.spec, x), "row_sum")
        with b.range(0, self.shape.bytes, STEP_BYTES) as at:
            b.store(b.splat(0.0), b.at(self.totals, at))
        self.groups([])
        b.ret()

    def group(self, tile: Value, panel: Value, ahead: Value, carried: list[Value]) -> list[Value]:
        """Some blocks at a time, then the results."""
        b, blocks, alike = self.b, self.spec.blocks, self.depth.alike
        self.columns = [b.mul(c, blocks * PANEL) for c in self.panels]
        self._ask_columns()
        many, rest = divmod(alike, self.phase)
        last = [*[0] * rest, *range(alike, blocks)]

        def blocks_from(number: Value, likes: list[int], ahead: Value) -> Value:
            ahead = self._products(number, likes, ahead)
            self._add(tile, number, len(likes))
            return ahead

        [ahead] = b.loop(0, many * self.phase, self.phase, [ahead], lambda number, carried: [
            blocks_from(number, [0] * self.phase, carried[0])])
        if last:
            ahead = blocks_from(constant(I64, many * self.phase), last, ahead)
        work = FinishTotals(b, self.operands, Group(self.first_row, panel, self.rows), self.totals)
        work.loop(work.start(constant(I64, 0)), self.shape.rows)
        return [ahead]

    # -- products

    def _products(self, number: Value, likes: list[int], ahead: Value) -> Value:
        """Sums of blocks from `number` on, as long as those `likes` says, to memory. Gives what to ask for next.

        Two blocks take turns in the tile registers: a tile is stored when the same one of the next block begins, since
        that waits for it.
        """
        b, shape, rows = self.b, self.shape, -(-self.shape.rows // self.spec.blocks)
        at = b.mul(number, self.spec.block_steps[0])
        a, w = b.at(self.a, b.mul(at, GROUP)), b.mul(at, STEP_BYTES)
        for n, like in enumerate(likes):
            for step in range(self.depth.steps(like)):
                self._multiply(n, step, like, a, w)
                ahead = self.ask_weights(ahead)
            for row in range(rows):
                self._ask_results(b.imin(b.add(b.mul(b.add(number, n), rows), row), b.sub(self.rows, 1)))
            a = b.at(a, self.depth.block_bytes)
            w = b.add(w, PANEL * self.depth.block_bytes)
        for j in range(shape.panels):
            self._store(len(likes) - 1, j)
        return ahead

    def _multiply(self, n: int, step: int, like: int, a: Value, w: Value) -> None:
        """One step of the phase's block `n`, which begins at `a` in rows and at byte `w` of every panel."""
        b, shape, depth, stride = self.b, self.shape, self.depth, self.spec.lda
        left = shape.left[n % shape.blocks]
        if step < self.spec.block_steps[like] // depth.groups:
            a, w = b.at(a, step * depth.left_bytes), b.add(w, step * depth.right_bytes)
        else:
            a, w, stride = self.a_rest, constant(I64, self.spec.wide_panel_bytes - depth.right_bytes), STEP_BYTES
        amx.load(b, left, a, stride)
        for j, right in enumerate(shape.right):
            amx.load(b, right, b.at(self.weights[j], w), STEP_BYTES)
            if step == 0:
                if n > 0:
                    self._store(n - 1, j)
                self._begin(self._register(n, j))
            amx.dot_s8u8(b, self._register(n, j), left, right)

    def _begin(self, register: int) -> None:
        """Begin a tile of sums at what `_added` expects: loading FLOAT_BITS here costs less than adding it there."""
        if self.spec.zero_point:
            amx.load(self.b, register, self.start, 0)
        else:
            amx.zero(self.b, register)

    def _ask_columns(self) -> None:
        """Ask for the scales and sums of the columns right of the group's, which are in no cache before: 3 percent of
        a product of 64 rows."""
        b, count = self.b, self.shape.panels * self.spec.blocks * PANEL
        sizes = {"w_scale": 2 if self.spec.half else 4, **({"w_sum": 2} if self.spec.zero_point else {})}
        for name, size in sizes.items():
            following = b.at(self.values[name], b.mul(b.add(self.columns[0], count), size))
            for line in range(0, count * size, STEP_BYTES):
                b.prefetch(b.at(following, line), PREFETCH_LEVEL)

    def _ask_results(self, row: Value) -> None:
        """Ask for a row of the results right of the group's, and of what is added to them. Stores that wait for memory
        let those of tiles behind them wait: a fifth of the time where results are not in the caches before."""
        b = self.b
        for name, stride in (("y", "ldy"), ("residual", "ldr")):
            if name in self.values:
                at = b.mul(b.add(self.first_row, row), self.values[stride])
                for panel in self.panels:
                    place = b.add(at, b.mul(b.add(panel, self.shape.panels), PANEL))
                    b.prefetch(b.at(self.values[name], place, F32), PREFETCH_LEVEL)

    def _register(self, n: int, panel: int) -> int:
        """Where the sums of the phase's block `n` are made."""
        return n % self.shape.blocks * self.shape.panels + panel

    def _store(self, n: int, panel: int) -> None:
        """Bring a tile of the phase's block `n` to memory."""
        place = self.b.at(self.sums, n * self.shape.bytes + self.shape.place(panel))
        amx.store(self.b, self._register(n, panel), place, self.shape.stride)

    # -- scales

    def _by_block(self, made: Callable[..., Value], *names: str) -> Value:
        """What is made of values that rows have for each block, as [tiles][blocks][16]; of 0 for rows that are not
        there, and for 15 blocks behind."""
        b, spec = self.b, self.spec
        table = b.scratch(4 * strip_rows(spec) * spec.blocks + STEP_BYTES * (LANES - 1))
        with b.range(0, self.tiles) as tile, b.range(0, spec.blocks, LANES) as block:
            target = b.at(table, b.mul(b.add(b.mul(tile, spec.blocks), block), STEP_BYTES))
            for n, lines in enumerate(zip(*(self._lines(name, tile, block) for name in names), strict=True)):
                b.store(made(*lines), b.at(target, n * STEP_BYTES), align=STEP_BYTES)
        return table

    def _pair(self, row_sums: Value, zeros: Value) -> Value:
        """Sums and zero points of rows, both negative, as pairs of 16 bits to be multiplied by `_column_pair`."""
        b = self.b
        return b.or_(b.shl(b.sub(0, row_sums), 16), b.and_(b.sub(0, zeros), 0xFFFF))

    def _column_pair(self, column: Value) -> Value:
        """What stands for the weight 0, and the sums of a block's weights, as pairs of 16 bits."""
        b = self.b
        sums = load_sums(b, I16, b.at(self.values["w_sum"], column, I16))
        return b.bitcast(b.or_(sums, self.spec.weight_zero << 16), V32S)

    def _lines(self, name: str, tile: Value, block: Value) -> list[Value]:
        """A value of a tile's rows, 16 in a vector, for 16 blocks from `block` on."""
        b, spec = self.b, self.spec
        rows, left, lines = b.mul(tile, self.rows), b.sub(spec.blocks, block), []
        for n in range(LANES):
            count = left if self.whole else b.select(b.icmp(">", self.rows, n), left, 0)
            place = b.add(b.mul(b.add(rows, n), spec.blocks), block)
            lines.append(b.load_tail(V16I, b.at(self.values[name], place, I32), count))
        return transpose(b, lines)

    def _add(self, tile: Value, number: Value, count: int) -> None:
        """Scale the sums of `count` blocks from `number` on and add them to the totals."""
        b, shape = self.b, self.shape
        first = b.mul(b.add(b.mul(tile, self.spec.blocks), number), STEP_BYTES)
        tables = [b.at(table, first) for table in (self.row_scale, self.corrections)]
        for j, columns in enumerate(self.columns):
            sums, totals = (b.at(at, j * STEP_BYTES) for at in (self.sums, self.totals))
            places = [b.at(totals, row * shape.stride) for row in range(shape.rows)]

            def add(n: Value, totals: list[Value], sums: Value = sums, columns: Value = columns) -> list[Value]:
                rows = [b.at(at, b.mul(n, STEP_BYTES)) for at in tables]
                column = b.add(columns, b.mul(b.add(number, n), PANEL))
                return self._added(b.at(sums, b.mul(n, shape.bytes)), rows, column, totals)

            added = b.loop(0, count, 1, [b.load(V16F, p, align=STEP_BYTES) for p in places], add)
            for place, total in zip(places, added, strict=True):
                b.store(total, place, align=STEP_BYTES)

    def _added(self, sums: Value, rows: Sequence[Value], column: Value, totals: Sequence[Value]) -> list[Value]:
        """The totals of a tile with a block's sums scaled and added. `column`: where the panel's scales and sums for
        the block are, counted in values. What a row's zero point and its own sum take from a sum of products is one dot
        product of two numbers of the row with two of the column."""
        b, (row_scale, corrections) = self.b, rows
        typ = I16 if self.spec.half else F32
        w_scale = load_scales(b, typ, b.at(self.values["w_scale"], column, typ))
        offset, added = b.mul(w_scale, -FLOAT_OFFSET), []
        pair = self._column_pair(column) if self.spec.zero_point else None
        for r, total in enumerate(totals):
            found = b.load(V16I, b.at(sums, r * self.shape.stride), align=STEP_BYTES)
            of_row = b.splat(b.load(I32, b.at(corrections, r, I32)), V16I)
            found = b.add(found, of_row) if pair is None else b.dot_s16(found, pair, b.bitcast(of_row, V32S))
            scaled = b.fma(b.from_bits(found), w_scale, offset)
            added.append(b.fma(scaled, b.splat(b.load(F32, b.at(row_scale, r, F32)), V16F), total))
        return added
