"""The int8 linear kernel on AMX: tiles of rows in tile registers, and a handful of rows as without."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen import amx
from q8c.codegen.amx_shape import FLAT, WIDE, Depth, Shape, row_bytes, tile_rows
from q8c.codegen.amx_strip import Strip
from q8c.codegen.builder import I64, Builder, Value, constant
from q8c.codegen.layout import PANEL
from q8c.codegen.linear import CACHED_ROWS_BYTES, LinearKernel, Schedule
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import Q8TileEmitter
from q8c.codegen.targets import Tier
from q8c.codegen.tasks import Grid, Task, for_tasks, for_tiles

GRAIN = 1 << 21
"""Multiply-adds below which another task is not worth its dispatch and its first and last group (some 2 us)."""
FEW = Schedule(rows=4, panels=4, few_rows=4, few_panels=4)
"""Up to 4 rows are as fast as weights arrive, and `vpdpbusd` takes those 7 % faster."""


class AmxLinear(LinearKernel):
    """One kernel being emitted."""

    spec: Q8LinearSpec

    def __init__(self, module: ir.Module, tier: Tier, spec: Q8LinearSpec) -> None:
        super().__init__(module, tier, spec, FEW, Q8TileEmitter)
        self.name = f"{spec.name}_{WIDE.rows}x{PANEL * WIDE.panels}__{tier.name.replace('-', '')}"

    def emit(self) -> ir.Function:
        """The kernel, with the parameters of `spec.params`."""
        b = Builder(self.module, self.tier, self.name, self.spec.params)
        rows, few = b.arg("rows"), self.schedule.few_rows
        with b.if_(b.icmp(">", rows, few)):
            self._tiles(b)
        with b.if_(b.and_(b.icmp(">", rows, 0), b.icmp("<=", rows, few))):
            self._walk(b, self.schedule.few_panels, range(1, few + 1), False)
        b.ret()
        return b.function

    def _tiles(self, b: Builder) -> None:
        """All tasks of a thread."""
        spec = self.spec
        strips = {shape: self._emit_amx(shape) for shape in (WIDE, FLAT)}
        shapes = {shape: amx.TileShapes(b, row_bytes(spec, shape)) for shape in strips}
        grid = Grid(groups=-(-spec.panels // WIDE.panels), work=spec.depth * spec.cols, tile_rows=WIDE.rows,
                    block_rows=max(CACHED_ROWS_BYTES // spec.lda // WIDE.rows, 1) * WIDE.rows, grain=GRAIN)

        def tiles(task: Task, first: Value, size: Value, count: Value) -> None:
            def run(shape: Shape) -> list[Value]:
                shapes[shape].configure(tile_rows(b, spec, shape, size))
                self._run(b, strips[shape], task, [b.add(task.first_row, first), size, count])
                return []
            b.if_else(b.icmp(">", size, FLAT.rows), lambda: run(WIDE), lambda: run(FLAT))

        for_tasks(b, grid, b.arg("rows"), b.arg("threads"), b.arg("queue"), lambda task: for_tiles(
            b, task.rows, WIDE.rows, lambda *tile: tiles(task, *tile)))
        amx.release(b)

    def _run(self, b: Builder, strip: ir.Function, task: Task, tiles: list[Value]) -> None:
        """Call a strip for all columns of a task and some tiles: their first row, their rows, and how many they are.

        A task's tiles ask for weights ahead, each for an equal part; a single one is as fast as weights arrive.
        """
        first, rows, count = tiles
        begin, end, after = (b.imin(b.mul(group, WIDE.panels), self.spec.panels)
                             for group in (task.first_group, task.last_group, task.next_group))
        together = b.ceildiv(task.rows, WIDE.rows)
        lines = WIDE.panels * Depth(self.spec).right_bytes // STEP_BYTES
        share = b.select(b.icmp(">", together, 1), b.ceildiv(constant(I64, lines), together), 0)
        b.ir.call(strip, [*self._from_row(b, first).values(), rows, count, begin, end, after, share])

    def _emit_amx(self, shape: Shape) -> ir.Function:
        name = f"{self.name}.{shape.rows}x{PANEL * shape.panels}"
        b = Builder(self.module, self.tier, name, Strip.params(self.spec), internal=True)
        Strip(b, self.spec, shape).emit()
        return b.function
