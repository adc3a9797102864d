"""int8 products on AMX: tiles of rows times a run of columns."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import llvmlite.ir as ir

from q8c.codegen.amx_finish import Operands
from q8c.codegen.amx_shape import WIDE, Depth, Shape
from q8c.codegen.builder import I64, LANES, PTR, V16I, Builder, Value, constant
from q8c.codegen.layout import PANEL
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import load_offsets, nibbles

NEAR_BYTES = 12 << 10
"""Rows that stay in the first-level cache while weights pass by (with several tiles, each weight comes from the second
level once for all of them)."""
NEAR_TILES = 8
CACHED_ROWS_BYTES = 512 << 10
"""Rows of one task, read once for every run of columns."""
PREFETCH_LEVEL = 2


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


class Strip(ABC):
    """Emits a strip of one shape: equal tiles of rows times a run of panels.

    The function's parameters are `params`: the spec's operands from the first row on, whole along the columns; how
    many rows a tile has and how many tiles there are; the first panel, the one after the last, and the one that begins
    what comes next; and how many lines of weights to ask for in each step. The caller has configured the tile
    registers for the rows of a tile. A `whole` strip has all rows of its shape in every tile and all columns in every
    group, at least one of each: nothing is counted then.
    """

    def __init__(self, b: Builder, spec: Q8LinearSpec, shape: Shape, whole: bool) -> None:
        self.b, self.spec, self.shape, self.whole, self.depth = b, spec, shape, whole, Depth(spec)
        self.rows, self.tiles, self.first, self.last = (b.arg(n) for n in ("rows", "tiles", "first", "last"))
        if whole:
            self.rows = constant(I64, shape.rows)
        self.values = {n: b.arg(n) for n, _ in spec.operands}
        self.near = max(1, min(NEAR_TILES, NEAR_BYTES // (shape.rows * spec.lda)))
        self.run = max(1, spec.run_bytes // (shape.panels * spec.wide_panel_bytes)) * shape.panels
        self.rest = b.scratch(self.near * shape.rows * STEP_BYTES) if self.depth.rest else None

    @staticmethod
    def params(spec: Q8LinearSpec) -> list[tuple[str, ir.Type]]:
        """Name and type of the function's parameters."""
        wide = [("wide", PTR)] if spec.bits == 4 else []
        return [*spec.operands, *wide, *((n, I64) for n in ("rows", "tiles", "first", "last", "next", "lines"))]

    @abstractmethod
    def emit(self) -> None:
        """The whole function."""

    @abstractmethod
    def group(self, tile: Value, panel: Value, ahead: Value, carried: list[Value]) -> list[Value]:
        """A tile of rows from `self.first_row` on, `self.a` (and `self.a_rest`), times the panels numbered
        `self.panels`, `self.weights`. Gives what to ask for next, and what else is carried from group to group."""

    @property
    def operands(self) -> Operands:
        """What all groups have in common."""
        return Operands(self.spec, self.shape, self.values, self.rows, self.last, self.whole)

    def groups(self, carried: list[Value]) -> list[Value]:
        """All groups, run by run; gives what the last one carries."""
        return self.b.loop(self.first, self.last, self.run, carried, self._run)

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
        b, spec = self.b, self.spec
        self.first_row = b.mul(tile, self.rows)
        self.a = b.at(self.values["a"], b.mul(self.first_row, spec.lda))
        if self.rest is not None:
            self.a_rest = b.at(self.rest, b.mul(b.sub(tile, start), self.shape.rows * STEP_BYTES))
        self.panels = [b.add(panel, n) for n in range(self.shape.panels)]
        if not self.whole:
            self.panels = [b.imin(p, b.sub(self.last, 1)) for p in self.panels]
        self.weights = [b.at(self.wide, b.mul(b.sub(p, self.run_first), spec.wide_panel_bytes)) for p in self.panels]
        return self.group(tile, panel, carried[0], carried[1:])

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

    def ask_weights(self, ahead: Value) -> Value:
        """Ask for a step's share of the next weights; gives where to go on."""
        b = self.b

        def line(_: Value, at: list[Value]) -> list[Value]:
            b.prefetch(at[0], PREFETCH_LEVEL)
            return [b.at(at[0], STEP_BYTES)]
        return b.loop(0, b.arg("lines"), 1, [ahead], line)[0]
