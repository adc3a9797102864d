"""How linear kernels walk their result.

Rows are cut into tiles as even as can be, so that no row count leaves a small tile behind. A tile goes across a run
of columns whose weights stay in the cache; then comes the tile below, and then the next run, whose weights were asked
for meanwhile (in a model they are never in the cache before: 0.75 of the peak became 0.93). A handful of rows takes
wider tiles.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import llvmlite.ir as ir

from q8c.codegen.builder import F32, I64, PTR, Builder, Value, constant
from q8c.codegen.layout import PANEL
from q8c.codegen.linear_spec import LinearSpec, tile_name
from q8c.codegen.linear_tile import Tile, TileEmitter
from q8c.codegen.targets import Tier
from q8c.codegen.tasks import Grid, Task, for_tasks, for_tiles

STREAM_BYTES = 4096
"""How far ahead of their turn weights are asked for where they stream past: 8 rows by blocks of 32 read 11.7 GB of
weights a second from memory where AMX tiles, or 8 x 2 without asking, read 7.8 and 8.7."""
CACHED_ROWS_BYTES = 512 << 10
"""Rows of one task, read once for every run of columns."""


@dataclass(frozen=True)
class Schedule:
    """Largest tiles of a tier: `rows` x `panels`, and `few_rows` x `few_panels` for results of that few rows. Up to
    `stream_rows` (if more) rows go over one panel after the other and ask for weights ahead."""

    rows: int
    panels: int
    few_rows: int
    few_panels: int
    stream_rows: int = 0


# Accumulators, weights and one broadcast fill the registers; 10 accumulators hide an instruction's latency.
ZMM_SCHEDULE = Schedule(rows=12, panels=2, few_rows=5, few_panels=4)
YMM_SCHEDULE = Schedule(rows=6, panels=1, few_rows=3, few_panels=2)
ZMM_BLOCK_SCHEDULE = Schedule(rows=8, panels=2, few_rows=3, few_panels=4, stream_rows=8)
"""Float sums take a part of the registers too; 12 x 2 that spills them is slower, and so is 6 x 2. Weights of 28 MB go
past 4 to 8 rows 1.1 to 1.7 times as fast as under tiles, and smaller ones no slower."""


class LinearKernel:
    """One kernel being emitted: `emit()` gives the function, strips of tiles become functions of their own."""

    def __init__(self, module: ir.Module, tier: Tier, spec: LinearSpec, schedule: Schedule,
                 emitter: type[TileEmitter]) -> None:
        self.module = module
        self.tier = tier
        self.spec = spec
        self.schedule = schedule
        self.emitter = emitter
        self.strips: dict[Tile, ir.Function] = {}
        self.name = f"{spec.name}_{tile_name(schedule.rows, schedule.panels)}__{tier.name.replace('-', '')}"

    def emit(self) -> ir.Function:
        """The kernel, with the parameters of `spec.params`."""
        b = Builder(self.module, self.tier, self.name, self.spec.params)
        rows, few = b.arg("rows"), self.schedule.few_rows
        some = max(few, self.schedule.stream_rows)
        many = self.has_many(b, some)
        with b.if_(many):
            self.many(b, some)
        if some > few:
            with b.if_(b.and_(b.icmp(">", rows, few), b.icmp("==", many, 0))):
                self.stream(b)
        if few:
            with b.if_(b.and_(b.icmp(">", rows, 0), b.icmp("<=", rows, few))):
                self._walk(b, self.schedule.few_panels, range(1, few + 1), False)
        if self.spec.streamed:
            b.stream_end()
        b.ret()
        return b.function

    def has_many(self, b: Builder, some: int) -> Value:
        """Whether rows go the way of more than `some`."""
        return b.icmp(">", b.arg("rows"), some)

    def many(self, b: Builder, some: int) -> None:
        """All tasks of a thread where there are more than `some` rows: tiles as even as can be."""
        most, panels = self.prepare(b), self.schedule.panels
        smallest = min(some + 1, (most + 1) // 2) if some else 1
        self._walk(b, panels, range(smallest, most + 1), self.spec.panels > panels)

    def prepare(self, b: Builder) -> int:
        """What must be at hand before any task; gives the largest number of rows in a tile."""
        return self.schedule.rows

    def rows_of_tile(self, b: Builder, a: Value, rows: Value) -> Value:
        """The form of `rows` rows at `a` that tiles read."""
        return a

    def stream(self, b: Builder) -> None:
        """All tasks of a thread where there are up to `stream_rows` rows: one tile, one panel after the other."""
        size = self.schedule
        self._walk(b, 1, range(size.few_rows + 1, size.stream_rows + 1), False, stream=True)

    def _walk(self, b: Builder, panels: int, sizes: range, ahead: bool, stream: bool = False) -> None:
        """All tasks of a thread, in column groups of `panels` and row tiles of `sizes`."""
        spec, most = self.spec, sizes[-1]
        grid = Grid(groups=-(-spec.panels // panels), work=spec.depth * spec.cols, tile_rows=most,
                    block_rows=max(CACHED_ROWS_BYTES // spec.lda // most, 1) * most,
                    group_bytes=spec.panel_bytes * panels)

        def tiles(task: Task, first: Value, size: Value, count: Value) -> None:
            with b.range(0, count) as tile:
                operands = self._from_row(b, b.add(b.add(task.first_row, first), b.mul(tile, size)))
                operands["a"] = self.rows_of_tile(b, operands["a"], size)
                if ahead:
                    operands |= self._ahead(b, task, panels, b.add(b.div(first, size), tile))
                if stream:
                    weights = b.at(b.arg("w"), b.mul(task.first_group, spec.panel_bytes * panels))
                    operands |= {"ahead": b.at(weights, STREAM_BYTES), "ahead_step": constant(I64, spec.step_bytes)}
                self._across(b, operands, sizes, size, task, panels)

        for_tasks(b, grid, b.arg("rows"), b.arg("threads"), b.arg("queue"), lambda task: for_tiles(
            b, task.rows, most, lambda *tile: tiles(task, *tile)))

    def _across(self, b: Builder, operands: dict[str, Value], sizes: Iterable[int], rows: Value, task: Task,
                panels: int) -> None:
        """A tile of `rows` rows, one of `sizes`, across the task's column groups: all alike but perhaps the last."""
        whole, rest = divmod(self.spec.cols, PANEL * panels)
        if whole:
            count = b.sub(b.imin(task.last_group, whole), task.first_group)
            self._call(b, sizes, rows, Tile(0, panels), self._from_group(b, operands, task.first_group, panels), count)
        if rest:
            with b.if_(b.icmp("==", task.last_group, whole + 1)):
                tile = Tile(0, -(-rest // PANEL), (rest - 1) % PANEL + 1)
                last = self._from_group(b, operands, constant(I64, whole), panels)
                self._call(b, sizes, rows, tile, last, constant(I64, 1))

    def one_row(self, b: Builder, row: Value, first: Value, last: Value) -> None:
        """One row times the panels `first` to `last` - 1."""
        one = constant(I64, 1)
        self._across(b, self._from_row(b, row), [1], one, Task(row, one, first, last, last), 1)

    # -- operands of a strip, and its call

    def _from_row(self, b: Builder, row: Value) -> dict[str, Value]:
        """The operands from `row` on."""
        operands = {n: b.arg(n) for n, _ in self.spec.operands}
        operands["a"] = b.at(operands["a"], b.mul(row, self.spec.lda))
        for name, count in self.spec.row_values.items():
            operands[name] = b.at(operands[name], b.mul(row, count), F32)
        for name, stride in (("y", "ldy"), ("residual", "ldr")):
            if name in operands:
                operands[name] = b.at(operands[name], b.mul(row, operands[stride]), F32)
        return operands

    def _from_group(self, b: Builder, operands: dict[str, Value], group: Value, panels: int) -> dict[str, Value]:
        """The operands from column group `group` on."""
        moved = {**operands, "w": b.at(operands["w"], b.mul(group, self.spec.panel_bytes * panels))}
        for name, size in {**self.spec.col_values, "residual": 4, "y": self.spec.result_bytes}.items():
            if name in operands:
                moved[name] = b.at(operands[name], b.mul(group, PANEL * panels * size))
        return moved

    def _ahead(self, b: Builder, task: Task, panels: int, tile: Value) -> dict[str, Value]:
        """Operands that make the tiles of a task ask for the thread's next weights, each for an equal part.

        A single tile is as fast as weights arrive and would only be slowed: it asks for one line again and again.
        """
        per_step = self.spec.step_bytes * panels
        tiles = b.ceildiv(task.rows, self.schedule.rows)
        step = b.select(b.icmp(">", tiles, 1), b.ceildiv(constant(I64, per_step), tiles), 0)
        done = b.mul(b.mul(tile, b.sub(task.last_group, task.first_group)), b.mul(step, self.spec.steps))
        start = b.mul(task.next_group, per_step * self.spec.steps)
        return {"ahead": b.at(b.at(b.arg("w"), start), done), "ahead_step": step}

    def _call(self, b: Builder, sizes: Iterable[int], rows: Value, tile: Tile, operands: dict[str, Value],
              count: Value) -> None:
        """Call the strip of `count` tiles for `rows` rows, one of `sizes`."""
        def case(size: int) -> Callable[[], None]:
            sized = replace(tile, rows=size, ahead="ahead" in operands)
            return lambda: b.ir.call(self._strip(sized), [*operands.values(), count])
        b.switch(rows, {size: case(size) for size in sizes})

    def _strip(self, tile: Tile) -> ir.Function:
        if tile not in self.strips:
            self.strips[tile] = self._emit_strip(tile)
        return self.strips[tile]

    def _emit_strip(self, tile: Tile) -> ir.Function:
        """An internal function that runs a tile `count` times across the columns."""
        spec = self.spec
        params = spec.operands + ([("ahead", PTR), ("ahead_step", I64)] if tile.ahead else [])
        name = f"{self.name}.{tile.rows}x{tile.cols}{'.ahead' if tile.ahead else ''}"
        b = Builder(self.module, self.tier, name, [*params, ("count", I64)], internal=True)
        operands = {n: b.arg(n) for n, _ in params}
        per_col = {**spec.col_values, "y": spec.result_bytes, **({"residual": 4} if spec.residual else {})}
        right: dict[str, Value | int] = {name: PANEL * tile.panels * size for name, size in per_col.items()}
        right["w"] = spec.panel_bytes * tile.panels
        if tile.ahead:
            right["ahead"] = b.mul(operands["ahead_step"], spec.steps)
        fixed = {**operands, **self.emitter.prepare(b, spec, tile.rows, operands)}

        def body(_: Value, carried: list[Value]) -> list[Value]:
            self.emitter(b, spec, tile, {**fixed, **dict(zip(right, carried, strict=True))}).emit()
            return [b.at(v, step) for v, step in zip(carried, right.values(), strict=True)]

        b.loop(0, b.arg("count"), 1, [operands[n] for n in right], body)
        b.ret()
        return b.function
