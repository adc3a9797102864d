"""int8 products on AMX with one scale for all of depth: 32 x 32 or 16 x 64 results at a time.

The sums of a group of columns stay in four tile registers over all of depth. They are stored to memory that stays in
the first-level cache and are scaled from there between the products of the next group, which leave the vector units
idle.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from q8c.codegen import amx
from q8c.codegen.amx_finish import FinishSums, Group
from q8c.codegen.amx_shape import Shape
from q8c.codegen.amx_strip import Strip, strip_rows
from q8c.codegen.builder import I64, Builder, Value, constant
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import prepare_rows

LEAD = 2
"""Steps before the first of other sums are read: so long it takes until they have come from the tile registers."""
TURNS = (1, 2, 4, 8, 16)
"""Into how many turns the steps of a group may be cut, each with its share of the work on other sums."""


class DeepStrip(Strip):
    """The sums of a group stay in the tile registers until those of the next begin, are stored then, and are worked on
    while those are made; in a `whole` strip that work is spread evenly over the products.

    Loops carry the group before, whose rows are 0 if there is none. Results are written a few rows at a time: what is
    stored behind them waits until they are in the cache.
    """

    def __init__(self, b: Builder, spec: Q8LinearSpec, shape: Shape, whole: bool) -> None:
        super().__init__(b, spec, shape, whole)
        self.values |= prepare_rows(b, spec, b.mul(self.tiles, self.rows), strip_rows(spec), self.values)
        self.buffer = b.scratch(shape.bytes)

    def emit(self) -> None:
        """The whole function."""
        b, none = self.b, constant(I64, 0)
        first, panel, rows = self.groups([none, self.first, none])
        for tile in self.shape.sums:
            self._clear(tile)
        work = FinishSums(b, self.operands, Group(first, panel, rows), self.buffer)
        work.loop(work.start(none), self.shape.rows)
        b.ret()

    def group(self, tile: Value, panel: Value, ahead: Value, carried: list[Value]) -> list[Value]:
        """The sums of a group, and the results of the one before."""
        b, before = self.b, Group(*carried)

        def begin(after_other: bool) -> list[Value]:
            return [self._sums(ahead, FinishSums(b, self.operands, before, self.buffer) if after_other else None)]

        if self.whole:
            [ahead] = b.if_else(b.icmp(">", before.rows, 0), lambda: begin(True), lambda: begin(False))
        else:
            [ahead] = begin(True)
        return [ahead, *Group(self.first_row, panel, self.rows)]

    def _sums(self, ahead: Value, work: FinishSums | None) -> Value:
        """Sums over all of depth. Those before are stored, and worked on meanwhile. Gives what to ask for next."""
        depth, rows = self.depth, self.shape.rows
        state = [self.a, constant(I64, 0), ahead, *(work.start(constant(I64, 0)) if work is not None else [])]
        whole = self.spec.steps // depth.groups
        rest = depth.steps(0) - whole
        turns = max(n for n in TURNS if n <= max(whole - LEAD, 1))
        each = (whole - LEAD) // turns

        def turn(_: Value, carried: list[Value]) -> list[Value]:
            return self._some(each, 0, rows // turns, carried, work)

        if turns == 1:
            return self._some(whole, rest, rows, state, work, first=True)[2]
        state = self._some(whole - each * turns, 0, 0, state, work, first=True)
        state = self.b.loop(0, turns, 1, state, turn)
        return self._some(0, rest, 0, state, work)[2]

    def _some(self, steps: int, rest: int, rows: int, carried: Sequence[Value], work: FinishSums | None,
              first: bool = False) -> list[Value]:
        """Some steps, perhaps one that is not whole, and some rows of the work spread over their products."""
        b, depth, number = self.b, self.depth, 0
        a, w, ahead, *state = carried
        products = (steps + rest) * len(self.shape.sums)
        wait = len(self.shape.sums) - 1 if first else 0  # products until all sums before are stored

        def between() -> None:
            nonlocal number, state
            done, number = max(number - wait, 0), number + 1
            share = rows * max(number - wait, 0) // (products - wait) - rows * done // (products - wait)
            if work is not None and share:
                state = work.some(state, share)

        for _ in range(steps):
            self._multiply(a, self.spec.lda, w, first, between)
            a, w, first = b.at(a, depth.left_bytes), b.add(w, depth.right_bytes), False
            ahead = self.ask_weights(ahead)
        if rest:
            last = constant(I64, self.spec.wide_panel_bytes - depth.right_bytes)
            self._multiply(self.a_rest, STEP_BYTES, last, first, between)
            ahead = self.ask_weights(ahead)
        return [a, w, ahead, *state]

    def _multiply(self, a: Value, stride: int, w: Value, first: bool, between: Callable[[], None]) -> None:
        """One step of depth, from byte `w` of every panel on, `between` after each product. The first step of sums
        stores each tile of those before as late as can be, since that waits for the tile: 1590 GMAC/s
        instead of 980 with 64 steps of depth."""
        b, shape = self.b, self.shape
        for i, register in enumerate(shape.left):
            amx.load(b, register, b.at(a, amx.TILE_ROWS * i * stride), stride)
        for j in range(shape.panels):
            right = shape.right[j % len(shape.right)]
            amx.load(b, right, b.at(self.weights[j], w), STEP_BYTES)
            for i, register in enumerate(shape.left):
                total = i * shape.panels + j
                if first:
                    self._clear(total)
                amx.dot_s8u8(b, total, register, right)
                between()

    def _clear(self, total: int) -> None:
        """Store a tile of sums to its place, and begin the next."""
        amx.store(self.b, total, self.b.at(self.buffer, self.shape.place(total)), self.shape.stride)
        amx.zero(self.b, total)
