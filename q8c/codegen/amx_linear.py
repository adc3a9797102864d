"""The linear kernels on AMX: tiles of rows in tile registers, and a handful of rows apart."""
from __future__ import annotations

from dataclasses import replace

import llvmlite.ir as ir

from q8c.codegen import amx
from q8c.codegen.amx_bf16 import Bf16Stream, Bf16Strip
from q8c.codegen.amx_deep import DeepStrip
from q8c.codegen.amx_int8 import Int8Strip
from q8c.codegen.amx_shape import FLAT, SINGLE, WIDE, Shape, register_bytes, register_rows
from q8c.codegen.bf16 import FEW_TOKENS
from q8c.codegen.builder import I64, Builder, Value, constant
from q8c.codegen.layout import PANEL
from q8c.codegen.linear import ZMM_BLOCK_SCHEDULE, LinearKernel, Schedule
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.linear_tile import begins_lines
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import Q8TileEmitter
from q8c.codegen.targets import Tier
from q8c.codegen.tasks import THREAD_ROWS, Grid, Task, for_tasks

GRAIN = 1 << 21
"""Multiply-adds below which another task is not worth its dispatch and its first and last group (some 2 us)."""
FEW = Schedule(rows=4, panels=4, few_rows=4, few_panels=4)
"""Up to 4 rows are as fast as weights arrive, and `vpdpbusd` takes those 7 % faster."""
FEW_BY_BLOCKS = Schedule(rows=WIDE.rows, panels=WIDE.panels, few_rows=0, few_panels=0, stream_rows=WIDE.rows)
BLOCK_GRAIN = 1 << 23
"""A task's first weights are made bfloat16 before any product."""
BLOCK_COLS = 4
"""Each thread that takes rows by blocks reads all weights and makes them bfloat16; one that takes columns reads rows
that others wrote. Rows pay from one for so many columns on: two threads take 512 rows of 576 columns a quarter faster,
of 3072 alike, and of 49152 an eighth slower."""


def scratch_bytes(spec: Q8LinearSpec) -> int | None:
    """Bytes of `spec.memory`, the same on every tier; None if the kernel takes none."""
    return (Bf16Strip if spec.wide else Int8Strip).widened_bytes(spec) if spec.memory else None


def _call_either(b: Builder, condition: Value, then: ir.Function, otherwise: ir.Function) -> None:
    """Call one of two functions with those of the parameters at hand that it has."""
    def call(function: ir.Function) -> list[Value]:
        b.ir.call(function, [b.arg(a.name) for a in function.args])
        return []
    b.if_else(condition, lambda: call(then), lambda: call(otherwise))


class AmxLinear(LinearKernel):
    """A kernel being emitted."""

    spec: Q8LinearSpec
    few: Schedule
    strip: type[DeepStrip]

    def __init__(self, module: ir.Module, tier: Tier, spec: Q8LinearSpec) -> None:
        super().__init__(module, tier, spec, self.few, Q8TileEmitter)
        self.depth = self.strip.depth_of(spec)
        self.name = f"{spec.name}_{WIDE.rows}x{PANEL * WIDE.panels}__{tier.name.replace('-', '')}"

    def grid(self, grain: int, thread_rows: int) -> Grid:
        """How the result of many rows is cut into tasks."""
        spec = self.spec
        return Grid(groups=-(-spec.panels // WIDE.panels), work=spec.depth * spec.cols, tile_rows=WIDE.rows,
                    block_rows=self.strip.most_rows(spec), grain=grain, thread_rows=thread_rows)

    def panels_of(self, b: Builder, task: Task) -> tuple[Value, Value, Value, Value]:
        """A task's first panel, the one after those in whole groups of whole columns, the one after its last, and the
        one that begins what comes next."""
        spec = self.spec
        first, last, after = (b.imin(b.mul(g, WIDE.panels), spec.panels)
                              for g in (task.first_group, task.last_group, task.next_group))
        return first, b.imax(first, b.imin(last, spec.cols // PANEL // WIDE.panels * WIDE.panels)), last, after

    def call(self, b: Builder, strip: ir.Function, operands: dict[str, Value], rows: Value, tiles: Value,
             *panels: Value, lines: Value) -> None:
        """Call a strip for `tiles` tiles of rows times the panels from the first of `panels` to before the second."""
        memory = [b.arg(name) for name, _ in self.spec.memory]
        b.ir.call(strip, [*operands.values(), *memory, rows, tiles, *panels, lines])

    def lines(self, b: Builder, rows: Value) -> Value:
        """Lines of weights that each tile of so many rows asks for ahead in a step, an equal part; a single tile is as
        fast as weights arrive."""
        tiles = b.ceildiv(rows, WIDE.rows)
        steps = -(-self.depth.steps // self.depth.groups)
        lines = -(-WIDE.panels * self.spec.panel_bytes // (STEP_BYTES * steps))
        return b.select(b.icmp(">", tiles, 1), b.ceildiv(constant(I64, lines), tiles), 0)

    def emit_strip(self, shape: Shape, whole: bool) -> ir.Function:
        """The function of a strip. One that may write past the caches goes there with whole cache lines only."""
        name = f"{self.name}.{shape.rows}x{PANEL * shape.panels}{'.whole' if whole else ''}"
        if not (whole and self.spec.streamed):
            return self._strip_function(name, self.spec, shape, whole)
        ways = (self._strip_function(f"{name}.streamed", self.spec, shape, whole),
                self._strip_function(f"{name}.stored", replace(self.spec, streamed=False), shape, whole))
        b = Builder(self.module, self.tier, name, self.strip.params(self.spec), internal=True)
        _call_either(b, begins_lines(b, b.arg("y"), b.arg("ldy")), *ways)
        b.ret()
        return b.function

    def _strip_function(self, name: str, spec: Q8LinearSpec, shape: Shape, whole: bool) -> ir.Function:
        b = Builder(self.module, self.tier, name, self.strip.params(spec), internal=True)
        self.strip(b, spec, shape, whole).emit()
        return b.function


class AmxColumnLinear(AmxLinear):
    """The kernel of weights with one scale per column: int8 products."""

    few = FEW
    strip = Int8Strip

    def many(self, b: Builder, some: int) -> None:
        """All tasks of a thread: whole tiles of rows, and one of what is left."""
        wide, part, flat = (self.emit_strip(*key) for key in ((WIDE, True), (WIDE, False), (FLAT, False)))
        shapes = {s: amx.TileShapes(b, register_bytes(self.depth, s)) for s in (WIDE, FLAT)}

        def run(task: Task) -> None:
            tiles, rest = b.div(task.rows, WIDE.rows), b.rem(task.rows, WIDE.rows)
            begin, middle, end, after = self.panels_of(b, task)
            lines = self.lines(b, task.rows)

            def strip(function: ir.Function, shape: Shape, first: Value, rows: Value, count: Value, *to: Value) -> None:
                with b.if_(b.and_(b.icmp(">", b.mul(rows, count), 0), b.icmp("<", *to))):
                    shapes[shape].configure(register_rows(b, self.depth, shape, rows))
                    operands = self._from_row(b, b.add(task.first_row, first))
                    self.call(b, function, operands, rows, count, *to, after, lines=lines)

            none, one, all_rows = (constant(I64, n) for n in (0, 1, WIDE.rows))
            strip(wide, WIDE, none, all_rows, tiles, begin, middle)
            strip(part, WIDE, none, all_rows, tiles, middle, end)
            first, few = b.mul(tiles, WIDE.rows), b.icmp("<=", rest, FLAT.rows)
            strip(part, WIDE, first, b.select(few, 0, rest), one, begin, end)
            strip(flat, FLAT, first, b.select(few, rest, 0), one, begin, end)

        for_tasks(b, self.grid(GRAIN, THREAD_ROWS), b.arg("rows"), b.arg("threads"), b.arg("queue"), run)
        amx.release(b)


class AmxBlockLinear(AmxLinear):
    """The kernel of wide rows and weights with scales by blocks: bfloat16 products."""

    few = FEW_BY_BLOCKS
    strip = Bf16Strip

    def many(self, b: Builder, some: int) -> None:
        """All tasks of a thread."""
        self.of_columns = [self.emit_strip(WIDE, whole) for whole in (True, False)]
        all_rows = constant(I64, WIDE.rows)
        amx.TileShapes(b, register_bytes(self.depth, WIDE)).configure(register_rows(b, self.depth, WIDE, all_rows))
        grid = self.grid(BLOCK_GRAIN, max(self.spec.cols // BLOCK_COLS, THREAD_ROWS))
        for_tasks(b, grid, b.arg("rows"), b.arg("threads"), b.arg("queue"), lambda task: self.task(b, task))
        amx.release(b)

    def task(self, b: Builder, task: Task) -> None:
        """One task."""
        self.products(b, task, task.first_row, task.rows)

    def products(self, b: Builder, task: Task, first: Value, rows: Value) -> list[Value]:
        """The results of rows that are bfloat16 in a task's columns."""
        operands = self._from_row(b, first)
        begin, middle, end, after = self.panels_of(b, task)
        tiles, lines = b.ceildiv(rows, WIDE.rows), self.lines(b, rows)
        for strip, panels in zip(self.of_columns, ((begin, middle), (middle, end)), strict=True):
            with b.if_(b.icmp("<", *panels)):
                self.call(b, strip, operands, rows, tiles, *panels, after, lines=lines)
        return []

    def stream(self, b: Builder) -> None:
        """All tasks of a thread where one tile of rows, or two, have all."""
        few = b.icmp("<=", b.arg("rows"), SINGLE.rows)
        b.if_else(few, lambda: self._stream(b, SINGLE), lambda: self._stream(b, WIDE))

    def _stream(self, b: Builder, shape: Shape) -> list[Value]:
        spec, rows = self.spec, b.arg("rows")
        stream = Bf16Stream(b, spec, shape, {n: b.arg(n) for n, _ in spec.operands}, rows)

        def run(task: Task) -> None:
            stream.groups(*(b.imin(b.mul(g, shape.panels), spec.panels) for g in (task.first_group, task.last_group)))
        grid = Grid(groups=-(-spec.panels // shape.panels), work=spec.depth * spec.cols, tile_rows=shape.rows,
                    block_rows=shape.rows)
        for_tasks(b, grid, rows, b.arg("threads"), b.arg("queue"), run)
        amx.release(b)
        return []


class AmxCountedLinear(AmxBlockLinear):
    """That of sequences: those that have few new tokens are multiplied in int8, whatever their mates do."""

    def __init__(self, module: ir.Module, tier: Tier, spec: Q8LinearSpec) -> None:
        super().__init__(module, tier, spec)
        self.int8 = LinearKernel(module, tier, replace(spec, counted=False), ZMM_BLOCK_SCHEDULE, Q8TileEmitter)

    def emit(self) -> ir.Function:
        """Where all sequences have few, no row goes the way of many."""
        inner, few = super().emit(), self.int8.emit()
        for function in (inner, few):
            function.linkage = "internal"
        b = Builder(self.module, self.tier, f"{self.name}.counted", self.spec.params)
        sequences = b.div(b.arg("rows"), b.imax(b.arg("tokens"), 1))
        all_few = b.icmp("==", self._with_few(b, constant(I64, 0), sequences), sequences)
        _call_either(b, all_few, few, inner)
        b.ret()
        return b.function

    def has_many(self, b: Builder, some: int) -> Value:
        """Few rows, too, are tasks where those of sequences with few new tokens are apart."""
        apart = self._with_few(b, constant(I64, 0), b.div(b.arg("rows"), b.imax(b.arg("tokens"), 1)))
        return b.or_(super().has_many(b, some), b.icmp(">", apart, 0))

    def task(self, b: Builder, task: Task) -> None:
        """Where sequences with few are among others, one sequence after the other: that is rare."""
        tokens, end = b.arg("tokens"), b.add(task.first_row, task.rows)
        first, last = b.div(task.first_row, tokens), b.ceildiv(end, tokens)

        def apart() -> list[Value]:
            begin, _, stop, _ = self.panels_of(b, task)
            with b.range(first, last) as sequence:
                row = b.imax(b.mul(sequence, tokens), task.first_row)
                after = b.imin(b.mul(b.add(sequence, 1), tokens), end)
                b.if_else(self._has_few(b, sequence), lambda: self._in_int8(b, row, after, begin, stop),
                          lambda: self.products(b, task, row, b.sub(after, row)))
            return []

        def together() -> list[Value]:
            super(AmxCountedLinear, self).task(b, task)
            return []
        b.if_else(b.icmp("!=", self._with_few(b, first, last), 0), apart, together)

    def _has_few(self, b: Builder, sequence: Value) -> Value:
        return b.icmp("<=", b.load(I64, b.at(b.arg("counts"), sequence, I64)), FEW_TOKENS)

    def _with_few(self, b: Builder, first: Value, last: Value) -> Value:
        """How many of some sequences have few new tokens."""
        return b.loop(first, last, 1, [constant(I64, 0)], lambda sequence, found: [
            b.add(found[0], b.select(self._has_few(b, sequence), 1, 0))])[0]

    def _in_int8(self, b: Builder, row: Value, after: Value, first: Value, last: Value) -> list[Value]:
        with b.range(row, after) as one:
            self.int8.one_row(b, one, first, last)
        return []
