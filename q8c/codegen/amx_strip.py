"""int8 products on AMX: tiles of rows times a run of columns."""
from __future__ import annotations

from abc import ABC, abstractmethod

import llvmlite.ir as ir

from q8c.codegen.amx_finish import Group, Operands
from q8c.codegen.amx_shape import FLAT, WIDE, Depth, Shape
from q8c.codegen.builder import I64, LANES, V16I, Builder, Value, constant
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec

NEAR_BYTES = 12 << 10
"""Rows that stay in the first-level cache while weights pass by (with several tiles, each weight comes from the second
level once for all of them)."""
NEAR_TILES = 8
PREFETCH_LEVEL = 2


class Strip(ABC):
    """Emits a strip of one shape: equal tiles of rows times a run of panels.

    The function's parameters are `params`: the spec's operands from the first row on, whole along the columns; how
    many rows a tile has and how many tiles there are; the first panel, the one after the last, and the one that begins
    what comes next; and how many lines of weights to ask for in each step. The caller has configured the tile
    registers for the rows of a tile. A `whole` strip has all rows of its shape in every tile and all columns in every
    group, at least one of each: nothing is counted then.

    Attributes:
        CACHED_ROWS_BYTES: rows of one task, read once for every run of columns.
        RUN_BYTES: weights that stay in the cache while many rows pass by; meanwhile the next ones are asked for, which
            are never in the cache before in a model.
    """

    CACHED_ROWS_BYTES: int
    RUN_BYTES: int
    wide: Value

    def __init__(self, b: Builder, spec: Q8LinearSpec, shape: Shape, whole: bool) -> None:
        self.b, self.spec, self.shape, self.whole, self.depth = b, spec, shape, whole, self.depth_of(spec)
        self.rows, self.tiles, self.first, self.last = (b.arg(n) for n in ("rows", "tiles", "first", "last"))
        if whole:
            self.rows = constant(I64, shape.rows)
        self.values = {n: b.arg(n) for n, _ in spec.operands}
        self.near = max(1, min(NEAR_TILES, NEAR_BYTES // (shape.rows * self.depth.row_bytes)))
        self.run = max(1, self.RUN_BYTES // (shape.panels * self.depth.panel_bytes)) * shape.panels
        self.rest = b.scratch(self.near * shape.rows * STEP_BYTES) if self.depth.rest else None

    @staticmethod
    def params(spec: Q8LinearSpec) -> list[tuple[str, ir.Type]]:
        """Name and type of the function's parameters."""
        return [*spec.operands, *spec.memory, *((n, I64) for n in ("rows", "tiles", "first", "last", "next", "lines"))]

    @staticmethod
    @abstractmethod
    def depth_of(spec: Q8LinearSpec) -> Depth:
        """How depth is cut into tiles."""

    @classmethod
    def most_rows(cls, spec: Q8LinearSpec) -> int:
        """Rows of a task, at most."""
        return max(cls.CACHED_ROWS_BYTES // cls.depth_of(spec).row_bytes // WIDE.rows, 1) * WIDE.rows

    @classmethod
    def widened_bytes(cls, spec: Q8LinearSpec) -> int:
        """Bytes of the longest run of panels in the form tiles read."""
        return max(FLAT.panels * cls.depth_of(spec).panel_bytes, cls.RUN_BYTES)

    @abstractmethod
    def emit(self) -> None:
        """The whole function."""

    @abstractmethod
    def begin_run(self, first: Value, last: Value) -> list[Value]:
        """Before all rows times the panels `first` to `last` - 1, whose weights are at `self.wide` then. Gives what is
        carried from step to step beside the products."""

    @abstractmethod
    def beside(self, carried: list[Value]) -> list[Value]:
        """What is done in each step beside its products, for the columns that come next."""

    @abstractmethod
    def group(self, panel: Value, beside: list[Value], before: Group) -> tuple[list[Value], Group]:
        """A tile of rows from `self.first_row` on, `self.a` (and `self.a_rest`), times the panels numbered
        `self.panels`, `self.weights`, after another group. Gives what is carried, and this group."""

    @property
    def operands(self) -> Operands:
        """What all groups have in common."""
        return Operands(self.spec, self.shape, self.values, self.rows, self.last, self.whole)

    @property
    def rows_here(self) -> Value:
        """Rows of the tile from `self.first_row` on."""
        return self.rows

    def groups(self) -> Group:
        """All groups, run by run; gives the last one."""
        none = constant(I64, 0)
        return Group(*self.b.loop(self.first, self.last, self.run, [none, self.first, none], self._run))

    def _run(self, first: Value, before: list[Value]) -> list[Value]:
        """All rows times a run of columns."""
        b = self.b
        last = b.imin(b.add(first, self.run), self.last)
        self.run_first = first
        beside = self.begin_run(first, last)

        def near(start: Value, carried: list[Value]) -> list[Value]:
            end = b.imin(b.add(start, self.near), self.tiles)
            if self.rest is not None:
                self._copy_rest(start, end)
            return b.loop(first, last, self.shape.panels, carried, lambda panel, carried: b.loop(
                start, end, 1, carried, lambda tile, carried: self._group(start, tile, panel, carried)))

        return b.loop(0, self.tiles, self.near, [*before, *beside], near)[:len(before)]

    def _group(self, start: Value, tile: Value, panel: Value, carried: list[Value]) -> list[Value]:
        b = self.b
        self.first_row = b.mul(tile, self.rows)
        self.a = b.at(self.values["a"], b.mul(self.first_row, self.depth.pitch))
        if self.rest is not None:
            self.a_rest = b.at(self.rest, b.mul(b.sub(tile, start), self.shape.rows * STEP_BYTES))
        self.panels = [b.add(panel, n) for n in range(self.shape.panels)]
        if not self.whole:
            self.panels = [b.imin(p, b.sub(self.last, 1)) for p in self.panels]
        self.weights = [b.at(self.wide, b.mul(b.sub(p, self.run_first), self.depth.panel_bytes)) for p in self.panels]
        beside, group = self.group(panel, carried[3:], Group(*carried[:3]))
        return [*group, *beside]

    def _copy_rest(self, start: Value, end: Value) -> None:
        """The last step of some tiles' rows with the groups before `depth.rest` cleared, in rows of 64 bytes."""
        b, depth = self.b, self.depth
        cleared = depth.groups - depth.rest
        mask = b.vector(V16I, [-1 if cleared <= n < depth.groups else 0 for n in range(LANES)])
        with b.range(start, end) as tile, b.range(0, self.rows) as row:
            source = b.at(self.values["a"], b.mul(b.add(b.mul(tile, self.rows), row), depth.pitch))
            dwords = b.load_tail(V16I, b.at(source, depth.row_bytes - depth.left_bytes), depth.groups)
            place = b.add(b.mul(b.sub(tile, start), self.shape.rows), row)
            b.store(b.and_(dwords, mask), b.at(self.rest, b.mul(place, STEP_BYTES)))

    def first_line(self, last: Value) -> Value:
        """What is asked for first beside a run that ends before panel `last`."""
        b = self.b
        following = b.select(b.icmp("<", last, self.last), last, b.arg("next"))
        return b.at(self.values["w"], b.mul(following, self.spec.panel_bytes))

    def ask_weights(self, ahead: Value) -> Value:
        """Ask for a step's share of the next weights; gives where to go on."""
        b = self.b

        def line(_: Value, at: list[Value]) -> list[Value]:
            b.prefetch(at[0], PREFETCH_LEVEL)
            return [b.at(at[0], STEP_BYTES)]
        return b.loop(0, b.arg("lines"), 1, [ahead], line)[0]
