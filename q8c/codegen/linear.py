"""How linear kernels walk their result.

Few rows run across the columns, one tile high. More rows are cut into tiles as even as can be, which run down
the rows so that a group of columns stays in the nearest cache; no row count leaves a small tile behind.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import llvmlite.ir as ir

from q8c.codegen.builder import F32, I64, Builder, Value
from q8c.codegen.layout import PANEL
from q8c.codegen.linear_spec import LinearSpec, tile_name
from q8c.codegen.linear_tile import Tile, TileEmitter
from q8c.codegen.targets import Tier
from q8c.codegen.tasks import Grid, Task, for_tasks, for_tiles

A_BLOCK_BYTES = 256 << 10
"""Rows of one task: a part of the second-level cache, which holds the weights of a column group too."""
STREAMED_BYTES = 1 << 20
"""Weights larger than this come from beyond the second-level cache and are prefetched."""


@dataclass(frozen=True)
class Schedule:
    """Tile sizes of a tier: up to `rows` x `panels` going down, `few_rows` x `few_panels` going across."""

    rows: int
    panels: int
    few_rows: int
    few_panels: int


# Accumulators, weights and one broadcast fill the registers; 10 accumulators hide an instruction's latency.
ZMM_SCHEDULE = Schedule(rows=12, panels=2, few_rows=5, few_panels=4)
YMM_SCHEDULE = Schedule(rows=6, panels=1, few_rows=3, few_panels=2)


class LinearKernel:
    """One kernel being emitted: `emit()` gives the function, strips of tiles become functions of their own."""

    def __init__(self, module: ir.Module, tier: Tier, spec: LinearSpec, schedule: Schedule,
                 emitter: type[TileEmitter]) -> None:
        self.module = module
        self.tier = tier
        self.spec = spec
        self.schedule = schedule
        self.emitter = emitter
        self.strips: dict[tuple[Tile, bool], ir.Function] = {}
        self.name = f"{spec.name}_{tile_name(schedule.rows, schedule.panels)}__{tier.name.replace('-', '')}"

    def emit(self) -> ir.Function:
        """The kernel, with the parameters of `spec.params`."""
        b = Builder(self.module, self.tier, self.name, self.spec.params)
        with b.if_(b.icmp(">", b.arg("rows"), 0)):
            self.walk(b, b.arg("rows"))
        b.ret()
        return b.function

    def walk(self, b: Builder, rows: Value) -> None:
        """All tasks of a thread."""
        with b.ir.if_else(b.icmp("<=", rows, self.schedule.few_rows)) as (few, many):
            with few:
                self._across(b, rows)
            with many:
                self._down(b, rows)

    def _across(self, b: Builder, rows: Value) -> None:
        """One tile of few rows across the columns."""
        self.tasks(b, rows, self.schedule.few_panels, lambda task: self.strips_across(
            b, {n: b.arg(n) for n, _ in self.spec.operands}, rows, task))

    def _down(self, b: Builder, rows: Value) -> None:
        """Group by group of columns, down the rows."""
        size = self.schedule
        sizes = range(min(size.few_rows + 1, (size.rows + 1) // 2), size.rows + 1)

        def strips(task: Task, group: Value, first: Value, tile_rows: Value, count: Value) -> None:
            operands = self._from_group(b, self.from_row(b, b.add(task.first_row, first)), group, size.panels)
            for last, tile in self._tiles(size.panels):
                with b.if_(self._is_kind(b, group, size.panels, last)):
                    self._call(b, sizes, tile_rows, tile, True, operands, count)

        def groups(task: Task) -> None:
            with b.range(task.first_group, task.last_group) as group:
                for_tiles(b, task.rows, size.rows, lambda *tile: strips(task, group, *tile))

        self.tasks(b, rows, size.panels, groups)

    def tasks(self, b: Builder, rows: Value, panels: int, body: Callable[[Task], None]) -> None:
        """The thread's tasks, in column groups of `panels`."""
        spec, tile_rows = self.spec, self.schedule.rows
        fitting = max(A_BLOCK_BYTES // spec.lda // tile_rows, 1) * tile_rows
        grid = Grid(-(-spec.panels // panels), spec.depth * spec.cols, tile_rows, fitting)
        for_tasks(b, grid, rows, b.arg("threads"), b.arg("counter"), body)

    # -- column groups: all alike but perhaps the last

    def _whole_groups(self, panels: int) -> int:
        return self.spec.cols // (PANEL * panels)

    def _tiles(self, panels: int) -> list[tuple[bool, Tile]]:
        """(is the last group, its tile without rows) of the kinds of column groups there are."""
        whole, rest = divmod(self.spec.cols, PANEL * panels)
        tiles = [(False, Tile(0, panels, prefetch=self.spec.weight_bytes > STREAMED_BYTES))] if whole else []
        if rest:
            tiles.append((True, Tile(0, -(-rest // PANEL), (rest - 1) % PANEL + 1)))
        return tiles

    def _is_kind(self, b: Builder, group: Value, panels: int, last: bool) -> Value:
        return b.icmp("==" if last else "<", group, self._whole_groups(panels))

    def strips_across(self, b: Builder, operands: dict[str, Value], rows: Value, task: Task) -> None:
        """A tile of `rows` rows, at most `few_rows`, across the task's column groups."""
        panels = self.schedule.few_panels
        sizes = range(1, self.schedule.few_rows + 1)
        whole = self._whole_groups(panels)
        for last, tile in self._tiles(panels):
            first = b.imax(task.first_group, whole) if last else task.first_group
            count = b.sub(task.last_group if last else b.imin(task.last_group, whole), first)
            with b.if_(b.icmp(">", count, 0)):
                self._call(b, sizes, rows, tile, False, self._from_group(b, operands, first, panels), count)

    # -- operands of a strip, and its call

    def from_row(self, b: Builder, row: Value) -> dict[str, Value]:
        """The operands from `row` on."""
        operands = {n: b.arg(n) for n, _ in self.spec.operands}
        operands["a"] = b.at(operands["a"], b.mul(row, self.spec.lda))
        for name in self.spec.ROW_VALUES:
            operands[name] = b.at(operands[name], row, F32)
        for name, stride in (("y", "ldy"), ("residual", "ldr")):
            if name in operands:
                operands[name] = b.at(operands[name], b.mul(row, operands[stride]), F32)
        return operands

    def _from_group(self, b: Builder, operands: dict[str, Value], group: Value, panels: int) -> dict[str, Value]:
        """The operands from column group `group` on."""
        moved = {**operands, "w": b.at(operands["w"], b.mul(group, self.spec.panel_bytes * panels))}
        for name in (*self.spec.col_values, "residual", "y"):
            if name in operands:
                moved[name] = b.at(operands[name], b.mul(group, PANEL * panels), F32)
        return moved

    def _call(self, b: Builder, sizes: Iterable[int], rows: Value, tile: Tile, down: bool,
              operands: dict[str, Value], count: Value) -> None:
        """Call the strip for `rows` rows, one of `sizes`."""
        def case(size: int) -> Callable[[], None]:
            return lambda: b.ir.call(self._strip(replace(tile, rows=size), down), [*operands.values(), count])
        b.switch(rows, {size: case(size) for size in sizes})

    def _strip(self, tile: Tile, down: bool) -> ir.Function:
        if (tile, down) not in self.strips:
            self.strips[tile, down] = self._emit_strip(tile, down)
        return self.strips[tile, down]

    def _emit_strip(self, tile: Tile, down: bool) -> ir.Function:
        """An internal function that runs a tile shape `count` times, down the rows or across the columns."""
        spec = self.spec
        name = f"{self.name}.{'down' if down else 'across'}_{tile.rows}x{tile.cols}"
        b = Builder(self.module, self.tier, name, [*spec.operands, ("count", I64)], internal=True)
        operands = {n: b.arg(n) for n, _ in spec.operands}
        moves = _down_moves(b, spec, tile, operands) if down else _across_moves(spec, tile)

        def body(_: Value, carried: list[Value]) -> list[Value]:
            self.emitter(b, spec, tile, {**operands, **dict(zip(moves, carried, strict=True))}).emit()
            return [b.at(v, step) for v, step in zip(carried, moves.values(), strict=True)]

        b.loop(0, b.arg("count"), 1, [operands[n] for n in moves], body)
        b.ret()
        return b.function


def _down_moves(b: Builder, spec: LinearSpec, tile: Tile, operands: dict[str, Value]) -> dict[str, Value | int]:
    """Bytes by which operands move from a tile to the one below."""
    moves: dict[str, Value | int] = {"a": tile.rows * spec.lda, **dict.fromkeys(spec.ROW_VALUES, 4 * tile.rows)}
    if spec.residual:
        moves["residual"] = b.mul(operands["ldr"], 4 * tile.rows)
    return {**moves, "y": b.mul(operands["ldy"], 4 * tile.rows)}


def _across_moves(spec: LinearSpec, tile: Tile) -> dict[str, Value | int]:
    """Bytes by which operands move from a tile to the one on its right."""
    outputs = ["residual", "y"] if spec.residual else ["y"]
    return {"w": spec.panel_bytes * tile.panels,
            **dict.fromkeys([*spec.col_values, *outputs], 4 * PANEL * tile.panels)}
