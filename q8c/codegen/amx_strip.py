"""int8 products on AMX: tiles of rows times a run of columns, 32 x 32 or 16 x 64 results at a time.

The sums of a group of columns stay in four tile registers over all of depth, or a block of it. They are stored to
memory that stays in the first-level cache and are scaled from there between the products of the next group, which
leave the vector units idle.
"""
from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from q8c.codegen import amx
from q8c.codegen.amx_finish import Add, Finish, Operands, Work
from q8c.codegen.amx_shape import Depth, Shape
from q8c.codegen.builder import I64, LANES, V16I, Builder, Value, constant
from q8c.codegen.layout import GROUP
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec

NEAR_BYTES = 24 << 10
"""Rows that stay in the first-level cache while weights pass by (with several tiles, each weight comes from the second
level once for all of them)."""
NEAR_TILES = 8
RUN_BYTES = 32 << 10
"""Weights that stay in the second-level cache while all rows pass by; meanwhile the next ones are asked for, which are
never in the cache before in a model."""
PREFETCH_LEVEL = 2


class Strip:
    """Emits a strip of one shape: equal tiles of rows times a run of panels.

    The function's parameters are `params`: the spec's operands from the first row on, whole along the columns; how
    many rows a tile has and how many tiles there are; the first panel, the one after the last, and the one that begins
    what comes next; and how many lines of weights to ask for in each step. The caller has configured the tile
    registers for the rows of a tile.
    """

    def __init__(self, b: Builder, spec: Q8LinearSpec, shape: Shape) -> None:
        self.b, self.spec, self.shape, self.depth = b, spec, shape, Depth(spec)
        self.values = {n: b.arg(n) for n, _ in spec.operands}
        self.rows, self.tiles, self.first, self.last = (b.arg(n) for n in ("rows", "tiles", "first", "last"))
        self.near = max(1, min(NEAR_TILES, NEAR_BYTES // (shape.rows * spec.lda)))
        self.run = max(1, RUN_BYTES // (shape.panels * spec.panel_bytes)) * shape.panels
        self.chunk_bytes = len(self.depth.chunks[0]) * shape.bytes
        self.buffers = b.scratch(2 * self.chunk_bytes if spec.block else self.chunk_bytes)
        self.rest = b.scratch(self.near * shape.rows * STEP_BYTES) if self.depth.rest else None
        totals = b.scratch(shape.bytes) if len(self.depth.chunks) > 1 else None
        self.operands = Operands(spec, shape, self.values, self.rows, self.last, totals)

    @staticmethod
    def params(spec: Q8LinearSpec) -> list[tuple[str, ir.Type]]:
        """Name and type of the function's parameters."""
        return [*spec.operands, *((n, I64) for n in ("rows", "tiles", "first", "last", "next", "lines"))]

    def emit(self) -> None:
        """The whole function."""
        b, totals = self.b, self.operands.totals
        if totals is not None:
            with b.range(0, self.shape.bytes, STEP_BYTES) as at:
                b.store(b.splat(0.0), b.at(totals, at))
        none = constant(I64, 0)
        row, panel, buffer, rows = b.loop(self.first, self.last, self.run, [none, self.first, self.buffers, none],
                                          self._run)
        last = Finish(b, self.operands, row, panel, buffer, rows)
        last.some(last.start(), self.shape.rows)
        b.ret()

    # What loops carry, `before`: the group that is to be finished, by its first row, first panel, where its sums are,
    # and how many rows they have, which is 0 before the first group.

    def _run(self, first: Value, before: list[Value]) -> list[Value]:
        """All rows times a run of columns."""
        b = self.b
        last = b.imin(b.add(first, self.run), self.last)
        following = b.select(b.icmp("<", last, self.last), last, b.arg("next"))

        def near(start: Value, carried: list[Value]) -> list[Value]:
            end = b.imin(b.add(start, self.near), self.tiles)
            if self.rest is not None:
                self._copy_rest(start, end)
            return b.loop(first, last, self.shape.panels, carried, lambda panel, carried: b.loop(
                start, end, 1, carried, lambda tile, carried: self._group(start, tile, panel, carried)))

        ahead = b.at(self.values["w"], b.mul(following, self.spec.panel_bytes))
        return b.loop(0, self.tiles, self.near, [ahead, *before], near)[1:]

    def _group(self, start: Value, tile: Value, panel: Value, carried: list[Value]) -> list[Value]:
        """The sums of a tile of rows and a group of panels."""
        b, spec, chunks, alike = self.b, self.spec, self.depth.chunks, self.depth.alike
        ahead, *before = carried
        row = b.mul(tile, self.rows)
        self.a = b.at(self.values["a"], b.mul(row, spec.lda))
        if self.rest is not None:
            self.a_rest = b.at(self.rest, b.mul(b.sub(tile, start), self.shape.rows * STEP_BYTES))
        columns = [b.imin(b.add(panel, n), b.sub(self.last, 1)) for n in range(self.shape.panels)]
        self.weights = [b.at(self.values["w"], b.mul(c, spec.panel_bytes)) for c in columns]

        def add(number: Value, like: range, carried: list[Value]) -> list[Value]:
            done = [b.sub(number, n) for n in range(len(chunks[0]), 0, -1)]
            work = Add(b, self.operands, row, panel, carried[1], self.rows, done)
            return self._chunk(number, like, carried, work)

        finish = Finish(b, self.operands, *before)
        carried = self._chunk(constant(I64, 0), chunks[0], [ahead, finish.buffer], finish)
        if alike > 1:
            carried = b.loop(len(chunks[0]), alike * len(chunks[0]), len(chunks[0]), carried,
                             lambda number, carried: add(number, chunks[0], carried))
        if alike < len(chunks):
            carried = add(constant(I64, chunks[-1].start), chunks[-1], carried)
        ahead, buffer = carried
        return [ahead, row, panel, buffer, self.rows]

    def _copy_rest(self, start: Value, end: Value) -> None:
        """The last step of some tiles' rows with the groups before `depth.rest` cleared, in rows of 64 bytes."""
        b, spec, depth = self.b, self.spec, self.depth
        cleared = depth.groups - depth.rest
        mask = b.vector(V16I, [-1 if cleared <= n < depth.groups else 0 for n in range(LANES)])
        with b.range(start, end) as tile, b.range(0, self.rows) as row:
            source = b.at(self.values["a"], b.mul(b.add(b.mul(tile, self.rows), row), spec.lda))
            dwords = b.load_tail(V16I, b.at(source, spec.lda - depth.left_bytes), depth.groups)
            place = b.add(b.mul(b.sub(tile, start), self.shape.rows), row)
            b.store(b.and_(dwords, mask), b.at(self.rest, b.mul(place, STEP_BYTES)))

    # -- products

    def _chunk(self, number: Value, like: range, carried: Sequence[Value], work: Work) -> list[Value]:
        """Sums of the blocks from `number` on, as many and as long as those of `like`; `work` is done meanwhile.

        Carries what to ask for next, and where the sums before these are; gives the next and where these are.
        """
        b, spec, depth = self.b, self.spec, self.depth
        share = -(-self.shape.rows // sum(map(depth.steps, like)))
        buffer = self._other(carried[1])
        state = [carried[0], *work.start()]

        def meanwhile(state: Sequence[Value]) -> list[Value]:
            return [self._prefetch(state[0]), *work.some(state[1:], share)]

        def step(_: Value, carried: list[Value]) -> list[Value]:
            a, w, *state = carried
            self._multiply(a, spec.lda, w)
            return [b.at(a, depth.left_bytes), b.add(w, depth.right_bytes), *meanwhile(state)]

        at = b.mul(number, spec.block_steps[0])
        a, w = b.at(self.a, b.mul(at, GROUP)), b.mul(at, STEP_BYTES)
        for index, block in enumerate(like):
            for tile in self.shape.sums:
                amx.zero(b, tile)
            whole = spec.block_steps[block] // depth.groups
            if whole:
                a, w, *state = b.loop(0, whole, 1, [a, w, *state], step)
            if whole < depth.steps(block):
                self._multiply(self.a_rest, STEP_BYTES, constant(I64, spec.panel_bytes - depth.right_bytes))
                state = meanwhile(state)
            for tile in self.shape.sums:
                place = b.at(buffer, self.shape.bytes * index + self.shape.place(tile))
                amx.store(b, tile, place, self.shape.stride)
        return [state[0], buffer]

    def _other(self, buffer: Value) -> Value:
        """Memory for the next sums: the same again, as the last rows are done when they come, but sums of several
        blocks come before that."""
        b = self.b
        if not self.spec.block:
            return buffer
        second = b.at(self.buffers, self.chunk_bytes)
        return b.select(b.ir.icmp_unsigned("==", buffer, second), self.buffers, second)

    def _multiply(self, a: Value, stride: int, w: Value) -> None:
        """One step of depth, from byte `w` of every panel on."""
        b, shape = self.b, self.shape
        for i, left in enumerate(shape.left):
            amx.load(b, left, b.at(a, amx.TILE_ROWS * i * stride), stride)
        for j in range(shape.panels):
            right = shape.right[j % len(shape.right)]
            amx.load(b, right, b.at(self.weights[j], w), STEP_BYTES)
            for i, left in enumerate(shape.left):
                amx.dot_s8u8(b, i * shape.panels + j, left, right)

    def _prefetch(self, ahead: Value) -> Value:
        """Ask for a step's share of the next weights; gives where to go on."""
        b = self.b

        def line(_: Value, at: list[Value]) -> list[Value]:
            b.prefetch(at[0], PREFETCH_LEVEL)
            return [b.at(at[0], STEP_BYTES)]
        return b.loop(0, b.arg("lines"), 1, [ahead], line)[0]
