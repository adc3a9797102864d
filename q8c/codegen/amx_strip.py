"""int8 products on AMX: tiles of rows times a run of columns, 32 x 32 or 16 x 64 results at a time.

The sums of a group of columns stay in four tile registers over all of depth, or a block of it. They are stored to
memory that stays in the first-level cache and are scaled from there between the products of the next group, which
leave the vector units idle.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import llvmlite.ir as ir

from q8c.codegen import amx
from q8c.codegen.amx_finish import Add, Finish, FinishTotals, Group, Operands, Work
from q8c.codegen.amx_shape import WIDE, Depth, Shape
from q8c.codegen.builder import I64, LANES, PTR, V16I, Builder, Value, constant
from q8c.codegen.layout import GROUP, PANEL
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import RUN_BYTES, Q8LinearSpec
from q8c.codegen.q8_tile import load_offsets, nibbles, prepare_rows

NEAR_BYTES = 12 << 10
"""Rows that stay in the first-level cache while weights pass by (with several tiles, each weight comes from the second
level once for all of them)."""
NEAR_TILES = 8
CACHED_ROWS_BYTES = 512 << 10
"""Rows of one task, read once for every run of columns."""
PREFETCH_LEVEL = 2
LEAD = 2
"""Steps before the first of other sums are read: so long it takes until they have come from the tile registers."""
TURNS = (1, 2, 4, 8, 16)
"""Into how many turns the steps of a block may be cut, each with its share of the work on other sums."""


def strip_rows(spec: Q8LinearSpec) -> int:
    """Rows of a task, at most."""
    return max(CACHED_ROWS_BYTES // spec.lda // WIDE.rows, 1) * WIDE.rows


def widen_panels(b: Builder, spec: Q8LinearSpec, values: Mapping[str, Value], first: Value, last: Value,
                 target: Value) -> None:
    """Write the weights of panels `first` to `last` - 1 with 8 bits each to `target`, as tiles read them."""
    each = spec.block_steps[0]
    with b.range(first, last) as panel, b.range(0, spec.blocks) as block:
        begin, end = b.mul(block, each), b.imin(b.mul(b.add(block, 1), each), spec.steps)
        source = b.at(values["w"], b.mul(panel, spec.panel_bytes))
        into = b.at(target, b.mul(b.sub(panel, first), spec.wide_panel_bytes))
        place = b.mul(b.add(b.mul(panel, spec.blocks), block), PANEL)
        offsets = load_offsets(b, b.at(values["w_offset"], place)) if spec.offsets else None
        with b.range(begin, end, 2) as step:
            both = b.load(V16I, b.at(source, b.mul(step, spec.step_bytes)), align=STEP_BYTES)
            for odd in range(2):
                at = b.mul(b.add(step, odd), STEP_BYTES)
                b.store(nibbles(b, both, odd, offsets), b.at(into, at), align=STEP_BYTES)


class Strip:
    """Emits a strip of one shape: equal tiles of rows times a run of panels.

    The function's parameters are `params`: the spec's operands from the first row on, whole along the columns; how
    many rows a tile has and how many tiles there are; the first panel, the one after the last, and the one that begins
    what comes next; and how many lines of weights to ask for in each step. The caller has configured the tile
    registers for the rows of a tile. A `whole` strip has all rows of its shape in every tile and all columns in every
    group, at least one of each: nothing is counted then, and the work on sums is spread evenly over the products.
    """

    def __init__(self, b: Builder, spec: Q8LinearSpec, shape: Shape, whole: bool) -> None:
        self.b, self.spec, self.shape, self.whole, self.depth = b, spec, shape, whole, Depth(spec)
        self.rows, self.tiles, self.first, self.last = (b.arg(n) for n in ("rows", "tiles", "first", "last"))
        if whole:
            self.rows = constant(I64, shape.rows)
        self.values = {n: b.arg(n) for n, _ in spec.operands}
        self.values |= prepare_rows(b, spec, b.mul(self.tiles, self.rows), strip_rows(spec), self.values)
        self.near = max(1, min(NEAR_TILES, NEAR_BYTES // (shape.rows * spec.lda)))
        self.run = max(1, RUN_BYTES // (shape.panels * spec.wide_panel_bytes)) * shape.panels
        self.several = spec.blocks > 1
        self.buffers = [b.scratch(shape.bytes) for _ in range(2 if self.several else 1)]
        self.totals = [b.scratch(shape.bytes) for _ in range(2 if self.several else 0)]
        self.rest = b.scratch(self.near * shape.rows * STEP_BYTES) if self.depth.rest else None
        self.operands = Operands(spec, shape, self.values, self.rows, self.last, whole)

    @staticmethod
    def params(spec: Q8LinearSpec) -> list[tuple[str, ir.Type]]:
        """Name and type of the function's parameters."""
        wide = [("wide", PTR)] if spec.bits == 4 else []
        return [*spec.operands, *wide, *((n, I64) for n in ("rows", "tiles", "first", "last", "next", "lines"))]

    def emit(self) -> None:
        """The whole function."""
        b, spec = self.b, self.spec
        for totals in self.totals:
            with b.range(0, self.shape.bytes, STEP_BYTES) as at:
                b.store(b.splat(0.0), b.at(totals, at))
        none = constant(I64, 0)
        start = [*self.buffers[:1], *self.totals[:1], none, self.first, none]
        buffer, *totals, first, panel, rows = b.loop(self.first, self.last, self.run, start, self._run)
        group, into = Group(first, panel, rows), self._other(buffer, self.buffers)
        for tile in self.shape.sums:
            self._clear(tile, into)
        works: list[Work] = [Finish(b, self.operands, group, into)]
        if self.several:
            places = ((buffer, spec.blocks - 2), (into, spec.blocks - 1))
            works = [Add(b, self.operands, group, at, constant(I64, n), totals[0]) for at, n in places]
            works.append(FinishTotals(b, self.operands, group, totals[0]))
        for work in works:
            work.loop(work.start(none), self.shape.rows)
        b.ret()

    # What loops carry: where sums were stored last, the totals of the group before if there are blocks, and that group,
    # whose rows are 0 if there is none. The sums of a block stay in the tile registers until those of the next begin,
    # are stored then, and are worked on while those after the next are made (or right then if there are no blocks).
    # Results are written a few rows at a time: what is stored behind them waits until they are in the cache.

    def _run(self, first: Value, before: list[Value]) -> list[Value]:
        """All rows times a run of columns."""
        b = self.b
        last = b.imin(b.add(first, self.run), self.last)
        following = b.select(b.icmp("<", last, self.last), last, b.arg("next"))
        self.wide = b.at(self.values["w"], b.mul(first, self.spec.panel_bytes))
        if self.spec.bits == 4:
            self.wide = b.arg("wide")
            widen_panels(b, self.spec, self.values, first, last, self.wide)
        self.run_first = first

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
        b, spec, alike = self.b, self.spec, self.depth.alike
        ahead, buffer, *totals, first, before_panel, rows = carried
        none, before, group = constant(I64, 0), Group(first, before_panel, rows), Group(
            b.mul(tile, self.rows), panel, self.rows)
        self.a = b.at(self.values["a"], b.mul(group.first, spec.lda))
        if self.rest is not None:
            self.a_rest = b.at(self.rest, b.mul(b.sub(tile, start), self.shape.rows * STEP_BYTES))
        columns = [b.add(panel, n) for n in range(self.shape.panels)]
        if not self.whole:
            columns = [b.imin(c, b.sub(self.last, 1)) for c in columns]
        self.weights = [b.at(self.wide, b.mul(b.sub(c, self.run_first), spec.wide_panel_bytes)) for c in columns]

        own = [self._other(t, self.totals) for t in totals]

        def begin(after_other: bool) -> list[Value]:
            def work(block: int) -> Callable[[Value], Work | None]:
                def make(buffer: Value) -> Work | None:
                    if not after_other:
                        return None
                    return (Add(b, self.operands, before, buffer, constant(I64, block), totals[0]) if self.several
                            else Finish(b, self.operands, before, buffer))
                return make

            state = self._block(none, 0, [buffer, ahead], work(spec.blocks - 2))
            return self._block(constant(I64, 1), 1, state, work(spec.blocks - 1)) if self.several else state

        def write(row: Value, rows: int) -> None:
            out = FinishTotals(b, self.operands, before, totals[0])
            out.loop(out.start(row), rows)

        def later(number: Value, like: int, state: list[Value]) -> list[Value]:
            done = b.sub(number, 2)
            state = self._block(number, like, state, lambda buffer: Add(b, self.operands, group, buffer, done, own[0]))
            share = -(-self.shape.rows // (spec.blocks - 2))
            write(b.mul(done, share), share)
            return state

        if self.whole:
            state = b.if_else(b.icmp(">", before.rows, 0), lambda: begin(True), lambda: begin(False))
        else:
            state = begin(True)
        if spec.blocks == 2:
            write(none, self.shape.rows)
        if alike > 2:
            state = b.loop(2, alike, 1, state, lambda number, state: later(number, 0, state))
        if max(alike, 2) < spec.blocks:
            state = later(constant(I64, alike), alike, state)
        return [state[1], state[0], *own, *group]

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

    def _block(self, number: Value, like: int, carried: Sequence[Value],
               work: Callable[[Value], Work | None]) -> list[Value]:
        """Sums of the block `number`, as long as the block `like`. Those before it are stored, and work is done on the
        ones before those, at the address it is given.

        Carries where sums were stored last, and what to ask for next.
        """
        b, spec, depth = self.b, self.spec, self.depth
        buffer, ahead = carried
        into = self._other(buffer, self.buffers)
        doing = work(buffer if self.several else into)
        at = b.mul(number, spec.block_steps[0])
        state = [b.at(self.a, b.mul(at, GROUP)), b.mul(at, STEP_BYTES), ahead]
        if doing is not None:
            state += doing.start(constant(I64, 0))
        whole = spec.block_steps[like] // depth.groups
        state = self._steps(whole, depth.steps(like) - whole, state, into, doing)
        return [into, state[2]]

    def _steps(self, whole: int, rest: int, carried: Sequence[Value], left: Value, work: Work | None) -> list[Value]:
        """All steps of a block, `whole` ones and perhaps a last one that is not, and all of the work meanwhile.
        The first step brings the sums before to `left`."""
        rows = self.shape.rows
        turns = max(n for n in TURNS if n <= max(whole - LEAD, 1))
        each = (whole - LEAD) // turns

        def turn(_: Value, carried: list[Value]) -> list[Value]:
            return self._some(each, 0, rows // turns, carried, work)

        if turns == 1:
            return self._some(whole, rest, rows, carried, work, left)
        carried = self._some(whole - each * turns, 0, 0, carried, work, left)
        carried = self.b.loop(0, turns, 1, carried, turn)
        return self._some(0, rest, 0, carried, work)

    def _some(self, steps: int, rest: int, rows: int, carried: Sequence[Value], work: Work | None,
              left: Value | None = None) -> list[Value]:
        """Some steps, perhaps one that is not whole, and some rows of the work spread over their products."""
        b, depth, number = self.b, self.depth, 0
        a, w, ahead, *state = carried
        products = (steps + rest) * len(self.shape.sums)
        wait = 0 if left is None or self.several else len(self.shape.sums) - 1  # products until all of `left` is there

        def between() -> None:
            nonlocal number, state
            done, number = max(number - wait, 0), number + 1
            share = rows * max(number - wait, 0) // (products - wait) - rows * done // (products - wait)
            if work is not None and share:
                state = work.some(state, share)

        for _ in range(steps):
            self._multiply(a, self.spec.lda, w, left, between)
            a, w, left = b.at(a, depth.left_bytes), b.add(w, depth.right_bytes), None
            ahead = self._ask_weights(ahead)
        if rest:
            self._multiply(self.a_rest, STEP_BYTES, constant(I64, self.spec.wide_panel_bytes - depth.right_bytes), left,
                           between)
            ahead = self._ask_weights(ahead)
        return [a, w, ahead, *state]

    def _other(self, place: Value, places: Sequence[Value]) -> Value:
        """The other of two places in memory, or the same if there is one."""
        if len(places) == 1:
            return place
        return self.b.select(self.b.ir.icmp_unsigned("==", place, places[0]), places[1], places[0])

    def _multiply(self, a: Value, stride: int, w: Value, left: Value | None, between: Callable[[], None]) -> None:
        """One step of depth, from byte `w` of every panel on, `between` after each product. The first step of sums
        brings each tile of those before to `left` as late as can be, since that waits for the tile: 1590 GMAC/s
        instead of 980 with 64 steps of depth."""
        b, shape = self.b, self.shape
        for i, register in enumerate(shape.left):
            amx.load(b, register, b.at(a, amx.TILE_ROWS * i * stride), stride)
        for j in range(shape.panels):
            right = shape.right[j % len(shape.right)]
            amx.load(b, right, b.at(self.weights[j], w), STEP_BYTES)
            for i, register in enumerate(shape.left):
                total = i * shape.panels + j
                if left is not None:
                    self._clear(total, left)
                amx.dot_s8u8(b, total, register, right)
                between()

    def _clear(self, total: int, left: Value) -> None:
        """Store a tile of sums to its place in `left`, and begin the next."""
        amx.store(self.b, total, self.b.at(left, self.shape.place(total)), self.shape.stride)
        amx.zero(self.b, total)

    def _ask_weights(self, ahead: Value) -> Value:
        """Ask for a step's share of the next weights; gives where to go on."""
        b = self.b

        def line(_: Value, at: list[Value]) -> list[Value]:
            b.prefetch(at[0], PREFETCH_LEVEL)
            return [b.at(at[0], STEP_BYTES)]
        return b.loop(0, b.arg("lines"), 1, [ahead], line)[0]
