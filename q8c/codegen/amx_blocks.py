"""int8 products on AMX by blocks of depth: 16 x 32 results at a time.

The sums of some blocks are stored to memory that stays in the first-level cache, and are then scaled and added to float
sums that stay in registers from block to block. Doing both at the same time gains nothing: while tiles are loaded,
multiplied or stored only one of the two units for float arithmetic works, and loads wait for stores of tiles to the
same place in another page.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from q8c.codegen import amx
from q8c.codegen.amx_finish import V32S, FinishTotals, Group
from q8c.codegen.amx_shape import Shape
from q8c.codegen.amx_strip import PREFETCH_LEVEL, Strip, strip_rows
from q8c.codegen.attention_math import transpose
from q8c.codegen.builder import F32, I16, I32, I64, LANES, V16F, V16I, Builder, Value, constant
from q8c.codegen.layout import GROUP, PANEL
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import FLOAT_OFFSET, load_scales, load_sums, sum_starts, zero_pairs

PHASE = 6
"""Blocks whose sums are in memory at a time, at most: with rows and weights they fit the first-level cache."""
CHUNK = 8
"""Rows whose float sums are in registers, two panels of each."""


class BlockStrip(Strip):
    """Groups by themselves. What rows have for each block stands as [tiles][blocks][16 rows]."""

    def __init__(self, b: Builder, spec: Q8LinearSpec, shape: Shape, whole: bool) -> None:
        super().__init__(b, spec, shape, whole)
        alike = self.depth.alike
        self.phase = -(-alike // -(-alike // PHASE))
        self.sums = b.scratch(self.phase * shape.bytes)
        self.totals = b.scratch(shape.bytes)

    def emit(self) -> None:
        """The whole function."""
        b = self.b
        self.tables = {"row_scale": self._by_block("row_scale", lambda x: x),
                       "starts": self._by_block("row_sum", lambda x: sum_starts(b, self.spec, x))}
        if self.spec.zero_point:
            self.tables["zeros"] = self._by_block("row_zero", lambda x: zero_pairs(b, x))
        with b.range(0, self.shape.bytes, STEP_BYTES) as at:
            b.store(b.splat(0.0), b.at(self.totals, at))
        self.groups([])
        b.ret()

    def group(self, tile: Value, panel: Value, ahead: Value, carried: list[Value]) -> list[Value]:
        """Some blocks at a time, then the results."""
        b, blocks, alike = self.b, self.spec.blocks, self.depth.alike
        self.columns = [b.mul(c, blocks * PANEL) for c in self.panels]
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
                amx.zero(b, self._register(n, j))
            amx.dot_s8u8(b, self._register(n, j), left, right)

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

    def _by_block(self, name: str, made: Callable[[Value], Value]) -> Value:
        """What is made of a value that rows have for each block, as [tiles][blocks][16]; of 0 for rows that are not
        there, and for 15 blocks behind."""
        b, spec = self.b, self.spec
        table = b.scratch(4 * strip_rows(spec) * spec.blocks + STEP_BYTES * (LANES - 1))
        with b.range(0, self.tiles) as tile, b.range(0, spec.blocks, LANES) as block:
            rows, left = b.mul(tile, self.rows), b.sub(spec.blocks, block)
            lines = []
            for n in range(LANES):
                count = left if self.whole else b.select(b.icmp(">", self.rows, n), left, 0)
                place = b.add(b.mul(b.add(rows, n), spec.blocks), block)
                lines.append(b.load_tail(V16I, b.at(self.values[name], place, I32), count))
            target = b.at(table, b.mul(b.add(b.mul(tile, spec.blocks), block), STEP_BYTES))
            for n, line in enumerate(transpose(b, lines)):
                b.store(made(line), b.at(target, n * STEP_BYTES), align=STEP_BYTES)
        return table

    def _add(self, tile: Value, number: Value, count: int) -> None:
        """Scale the sums of `count` blocks from `number` on and add them to the totals."""
        b, shape = self.b, self.shape
        first = b.mul(b.add(b.mul(tile, self.spec.blocks), number), STEP_BYTES)
        with b.range(0, self.rows, CHUNK) as row:
            tables = {name: b.at(b.at(table, first), row, I32) for name, table in self.tables.items()}
            sums, totals = (b.at(at, b.mul(row, shape.stride)) for at in (self.sums, self.totals))
            places = [b.at(totals, STEP_BYTES * n) for n in range(CHUNK * shape.panels)]

            def add(n: Value, totals: list[Value]) -> list[Value]:
                rows = {name: b.at(at, b.mul(n, STEP_BYTES)) for name, at in tables.items()}
                block = b.mul(b.add(number, n), PANEL)
                return self._added(b.at(sums, b.mul(n, shape.bytes)), rows, [b.add(c, block) for c in self.columns],
                                   totals)

            added = b.loop(0, count, 1, [b.load(V16F, p, align=STEP_BYTES) for p in places], add)
            for place, total in zip(places, added, strict=True):
                b.store(total, place, align=STEP_BYTES)

    def _added(self, sums: Value, rows: Mapping[str, Value], columns: Sequence[Value],
               totals: Sequence[Value]) -> list[Value]:
        """The totals of some rows with a block's sums scaled and added, row by row. `columns`: where the panels' scales
        and sums for the block are, counted in values."""
        b, panels = self.b, self.shape.panels
        typ = I16 if self.spec.half else F32
        w_scale = [load_scales(b, typ, b.at(self.values["w_scale"], at, typ)) for at in columns]
        w_sum = [b.bitcast(load_sums(b, I16, b.at(self.values["w_sum"], at, I16)), V32S)
                 for at in columns] if self.spec.zero_point else []
        offsets = [b.mul(scale, -FLOAT_OFFSET) for scale in w_scale]
        added = []
        for r in range(CHUNK):
            of_row = {name: b.splat(b.load(I32, b.at(at, r, I32)), V16I) for name, at in rows.items()}
            for j in range(panels):
                start = of_row["starts"]
                if w_sum:
                    start = b.dot_s16(start, w_sum[j], b.bitcast(of_row["zeros"], V32S))
                place = b.at(sums, r * self.shape.stride + j * STEP_BYTES)
                total = b.add(b.load(V16I, place, align=STEP_BYTES), start)
                scaled = b.fma(b.from_bits(total), w_scale[j], offsets[j])
                added.append(b.fma(scaled, b.from_bits(of_row["row_scale"]), totals[r * panels + j]))
        return added
