"""The int8 linear kernel on AMX: tiles of rows in tile registers, and a handful of rows as without."""
from __future__ import annotations

from dataclasses import replace

import llvmlite.ir as ir

from q8c.codegen import amx
from q8c.codegen.amx_blocks import BlockStrip
from q8c.codegen.amx_deep import DeepStrip
from q8c.codegen.amx_shape import BY_BLOCKS, FLAT, WIDE, Depth, Shape, row_bytes, tile_rows
from q8c.codegen.amx_strip import Strip, strip_rows
from q8c.codegen.builder import I64, Builder, Value, constant
from q8c.codegen.layout import PANEL
from q8c.codegen.linear import LinearKernel, Schedule
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import Q8TileEmitter
from q8c.codegen.targets import Tier
from q8c.codegen.tasks import Grid, Task, for_tasks

GRAIN = 1 << 21
"""Multiply-adds below which another task is not worth its dispatch and its first and last group (some 2 us)."""
FEW = Schedule(rows=4, panels=4, few_rows=4, few_panels=4)
"""Up to 4 rows are as fast as weights arrive, and `vpdpbusd` takes those 7 % faster."""
FEW_BY_BLOCKS = replace(FEW, few_rows=2, stream_rows=8)
"""From 9 rows on tiles are as fast."""


class AmxLinear(LinearKernel):
    """One kernel being emitted."""

    spec: Q8LinearSpec

    def __init__(self, module: ir.Module, tier: Tier, spec: Q8LinearSpec) -> None:
        super().__init__(module, tier, spec, FEW_BY_BLOCKS if spec.block else FEW, Q8TileEmitter)
        self.shape, self.last_shape = (BY_BLOCKS, BY_BLOCKS) if spec.block else (WIDE, FLAT)
        self.name = f"{spec.name}_{self.shape.rows}x{PANEL * self.shape.panels}__{tier.name.replace('-', '')}"

    def many(self, b: Builder, some: int) -> None:
        """All tasks of a thread: whole tiles of rows, and one of what is left."""
        spec, shape, last = self.spec, self.shape, self.last_shape
        strips = {key: self._emit_amx(*key) for key in {(shape, True): 0, (shape, False): 0, (last, False): 0}}
        shapes = {s: amx.TileShapes(b, row_bytes(spec, s)) for s in {shape: 0, last: 0}}
        grid = Grid(groups=-(-spec.panels // shape.panels), work=spec.depth * spec.cols, tile_rows=WIDE.rows,
                    block_rows=strip_rows(spec), grain=GRAIN)

        def run(task: Task) -> None:
            tiles, rest = b.div(task.rows, shape.rows), b.rem(task.rows, shape.rows)
            begin, end = (b.imin(b.mul(g, shape.panels), spec.panels) for g in (task.first_group, task.last_group))
            after = b.imin(b.mul(task.next_group, shape.panels), spec.panels)
            together = b.ceildiv(task.rows, shape.rows)

            def strip(shape: Shape, whole: bool, first: Value, rows: Value, count: Value, *panels: Value) -> None:
                with b.if_(b.and_(b.icmp(">", b.mul(rows, count), 0), b.icmp("<", *panels))):
                    shapes[shape].configure(tile_rows(b, spec, shape, rows))
                    operands = [*self._from_row(b, b.add(task.first_row, first)).values(),
                                *([b.arg("wide")] if spec.bits == 4 else [])]
                    b.ir.call(strips[shape, whole], [*operands, rows, count, *panels, after, self._lines(b, together)])

            all_rows = constant(I64, shape.rows)
            middle = b.imax(begin, b.imin(end, spec.cols // PANEL // shape.panels * shape.panels))
            strip(shape, True, constant(I64, 0), all_rows, tiles, begin, middle)
            strip(shape, False, constant(I64, 0), all_rows, tiles, middle, end)
            first = b.mul(tiles, shape.rows)
            if last != shape:
                few = b.icmp("<=", rest, last.rows)
                strip(shape, False, first, b.select(few, 0, rest), constant(I64, 1), begin, end)
                rest = b.select(few, rest, 0)
            strip(last, False, first, rest, constant(I64, 1), begin, end)

        for_tasks(b, grid, b.arg("rows"), b.arg("threads"), b.arg("queue"), run)
        amx.release(b)

    def _lines(self, b: Builder, tiles: Value) -> Value:
        """Lines of weights that each of a task's tiles asks for ahead in a step, an equal part; a single tile is as
        fast as weights arrive."""
        lines = -(-self.shape.panels * Depth(self.spec).groups * self.spec.step_bytes // STEP_BYTES)
        return b.select(b.icmp(">", tiles, 1), b.ceildiv(constant(I64, lines), tiles), 0)

    def _emit_amx(self, shape: Shape, whole: bool) -> ir.Function:
        name = f"{self.name}.{shape.rows}x{PANEL * shape.panels}{'.whole' if whole else ''}"
        b = Builder(self.module, self.tier, name, Strip.params(self.spec), internal=True)
        (BlockStrip if self.spec.block else DeepStrip)(b, self.spec, shape, whole).emit()
        return b.function
