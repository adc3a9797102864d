"""Products on AMX that are summed over all of depth: 32 x 32 or 16 x 64 results at a time.

The sums of a group of columns stay in four tile registers. They are stored to memory that stays in the first-level
cache and are made results from there between the products of the next group, which leave the vector units idle.
"""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from q8c.codegen import amx
from q8c.codegen.amx_finish import Finish, Group
from q8c.codegen.amx_shape import Shape
from q8c.codegen.amx_strip import Strip
from q8c.codegen.builder import I64, Builder, Value, constant
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec

LEAD = 2
"""Steps before the first of other sums are read: so long it takes until they have come from the tile registers."""
TURNS = (1, 2, 4, 8, 16)
"""Into how many turns the steps of a group may be cut, each with its share of the work on other sums."""


class Progress(NamedTuple):
    """What goes on from step to step: where rows and weights are, what is done beside, and the work on other sums."""

    place: list[Value]
    beside: list[Value]
    results: list[Value]

    @property
    def flat(self) -> list[Value]:
        """All values."""
        return [*self.place, *self.beside, *self.results]

    def like(self, flat: list[Value]) -> Progress:
        """Such values, as `flat` has them."""
        parts = iter(flat)
        return Progress(*([next(parts) for _ in part] for part in self))


class DeepStrip(Strip):
    """The sums of a group stay in the tile registers until those of the next begin, are stored then, and are worked on
    while those are made; in a `whole` strip that work is spread evenly over the products.

    Loops carry the group before, whose rows are 0 if there is none. Results are written a few rows at a time: what is
    stored behind them waits until they are in the cache.
    """

    def __init__(self, b: Builder, spec: Q8LinearSpec, shape: Shape, whole: bool) -> None:
        super().__init__(b, spec, shape, whole)
        self.buffer = b.scratch(shape.bytes)

    @abstractmethod
    def finish(self, group: Group) -> Finish:
        """What makes the sums of a group, in `buffer`, results."""

    @staticmethod
    @abstractmethod
    def load_rows(b: Builder, tile: int, address: Value, stride: int) -> None:
        """Emit the load of a tile of rows."""

    @staticmethod
    @abstractmethod
    def dot(b: Builder, total: int, left: int, right: int) -> None:
        """Emit the product of two tiles, added to a tile of sums."""

    def emit(self) -> None:
        """The whole function."""
        last = self.groups()
        for tile in self.shape.sums:
            self._clear(tile)
        work = self.finish(last)
        work.loop(work.start(constant(I64, 0)), self.shape.rows)
        self.b.ret()

    def group(self, panel: Value, beside: list[Value], before: Group) -> tuple[list[Value], Group]:
        """The sums of a group, and the results of the one before."""
        b, work = self.b, self.finish(before)

        def after_fewer() -> list[Value]:
            found = self._sums(beside, None)
            work.loop(work.start(constant(I64, 0)), self.shape.rows)
            return found

        if self.whole:
            all_rows = b.icmp("==", before.rows, self.shape.rows)
            beside = b.if_else(all_rows, lambda: self._sums(beside, work), after_fewer)
        else:
            beside = self._sums(beside, work)
        return beside, Group(self.first_row, panel, self.rows_here)

    def _sums(self, beside: list[Value], work: Finish | None) -> list[Value]:
        """Sums over all of depth. Those before are stored, and worked on meanwhile."""
        depth, rows, none = self.depth, self.shape.rows, constant(I64, 0)
        state = Progress([self.a, none], beside, work.start(none) if work is not None else [])
        whole, rest = depth.whole, bool(depth.rest)
        turns = max(n for n in TURNS if n <= max(whole - LEAD, 1))
        each = (whole - LEAD) // turns

        def turn(_: Value, carried: list[Value]) -> list[Value]:
            return self._some(each, False, rows // turns, state.like(carried), work).flat

        if turns == 1:
            return self._some(whole, rest, rows, state, work, first=True).beside
        state = self._some(whole - each * turns, False, 0, state, work, first=True)
        state = state.like(self.b.loop(0, turns, 1, state.flat, turn))
        return self._some(0, rest, 0, state, work).beside

    def _some(self, steps: int, rest: bool, rows: int, state: Progress, work: Finish | None,
              first: bool = False) -> Progress:
        """Some steps, perhaps one that is not whole, and some rows of the work spread over their products."""
        b, depth, number = self.b, self.depth, 0
        (a, w), beside, results = state
        products = (steps + rest) * len(self.shape.sums)
        wait = len(self.shape.sums) - 1 if first else 0  # products until all sums before are stored

        def between() -> None:
            nonlocal number, results
            done, number = max(number - wait, 0), number + 1
            share = rows * max(number - wait, 0) // (products - wait) - rows * done // (products - wait)
            if work is not None and share:
                results = work.some(results, share)

        for _ in range(steps):
            self._multiply(a, depth.pitch, w, first, between)
            a, w, first = b.at(a, depth.left_bytes), b.add(w, depth.right_bytes), False
            beside = self.beside(beside)
        if rest:
            last = constant(I64, depth.panel_bytes - depth.right_bytes)
            self._multiply(self.a_rest, STEP_BYTES, last, first, between)
            beside = self.beside(beside)
        return Progress([a, w], beside, results)

    def _multiply(self, a: Value, stride: int, w: Value, first: bool, between: Callable[[], None]) -> None:
        """One step of depth, from byte `w` of every panel on, `between` after each product. Rows at `a` are `stride`
        bytes apart. The first step of sums stores each tile of those before as late as can be, since that waits for
        the tile: 1590 GMAC/s instead of 980 with 64 steps of depth."""
        b, shape = self.b, self.shape
        for i, register in enumerate(shape.left):
            self.load_rows(b, register, b.at(a, amx.TILE_ROWS * i * stride), stride)
        for j in range(shape.panels):
            right = shape.right[j % len(shape.right)]
            amx.load(b, right, b.at(self.weights[j], w), STEP_BYTES)
            for i, register in enumerate(shape.left):
                total = i * shape.panels + j
                if first:
                    self._clear(total)
                self.dot(b, total, register, right)
                between()

    def _clear(self, total: int) -> None:
        """Store a tile of sums to its place, and begin the next."""
        amx.store(self.b, total, self.b.at(self.buffer, self.shape.place(total)), self.shape.stride)
        amx.zero(self.b, total)
