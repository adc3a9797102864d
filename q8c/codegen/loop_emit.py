"""The code of a loop kernel: rows in pieces, and a few of them at a time through each pass.

While one row's reduction ends in a chain of dependent operations, the next row's loads and sums go on.
"""
from __future__ import annotations

from collections.abc import Callable

import llvmlite.ir as ir

from q8c.codegen.builder import I64, PTR, Builder, Operand, Value
from q8c.codegen.loop_blocks import emit_blocks
from q8c.codegen.loop_columns import ColumnPass
from q8c.codegen.loop_plan import Plan
from q8c.codegen.loop_row import Row
from q8c.codegen.loop_space import Run, each_row, each_run
from q8c.codegen.targets import Tier


def emit_loop(module: ir.Module, tier: Tier, plan: Plan, operands: int, name: str) -> ir.Function:
    """The kernel of a loop of so many operands as a function of the module."""
    pointers = [f"x{n}" for n in range(operands)] + [f"y{n}" for n in range(len(plan.results))]
    params = [(p, PTR) for p in pointers] + plan.sizes.params()
    params += [("scratch", PTR)] * (plan.scratch != 0) + [("piece", I64), ("pieces", I64)]
    b = Builder(module, tier, name, params, internal=True)
    _Kernel(b, plan).emit()
    b.ret()
    return b.function


class _Kernel:
    def __init__(self, b: Builder, plan: Plan) -> None:
        self.b = b
        self.plan = plan
        self.bases = [b.at(b.arg(f"x{operand}"), column * read.itemsize)
                      for (operand, column), read in zip(plan.places, plan.operands, strict=True)]
        self.bases += [b.arg(f"y{n}") for n in range(len(plan.results))]
        self.itemsizes = [d.itemsize for d in plan.operands] + [r.dtype.itemsize for r in plan.results]
        size = plan.rows.cols
        self.cols: Operand = size if isinstance(size, int) else plan.sizes.value(b, size)
        self.row = Row(b, plan)

    def emit(self) -> None:
        rows, sizes = self.plan.rows, self.plan.sizes
        if rows.chunk:
            each_row(self.b, sizes, rows, lambda offsets, cols: self._rows(1, lambda _: self._addresses(offsets), cols))
        else:
            each_run(self.b, sizes, rows.outer, self._run)

    def _run(self, run: Run) -> None:
        b, size = self.b, self.plan.together
        with b.range(0, run.count, size) as first:
            count = 1 if size == 1 else b.imin(b.sub(run.count, first), size)
            self._rows(count, lambda index: self._addresses(run.offsets(b, b.add(first, index))), self.cols)

    def _rows(self, count: Operand, place: Callable[[Value], list[Value]], cols: Operand) -> None:
        """`count` rows through all passes; `place(i)` gives the addresses of row i's operands and results."""
        for number in range(max(1, len(self.plan.passes))):
            if isinstance(count, int):
                self._pass(number, ir.Constant(I64, 0), place, cols)
                continue
            with self.b.range(0, count) as index:
                self._pass(number, index, place, cols)

    def _pass(self, number: int, index: Value, place: Callable[[Value], list[Value]], cols: Operand) -> None:
        self.row.begin(index, place(index), cols)
        if self.plan.passes:
            columns = ColumnPass(self.row, self.plan.passes[number], number)
            columns.emit()
            for blocks in self.plan.passes[number].blocks:
                emit_blocks(columns, blocks)
        if number >= len(self.plan.passes) - 1:
            self.row.store_numbers()

    def _addresses(self, offsets: list[Value]) -> list[Value]:
        return [self.b.at(base, self.b.mul(offset, size))
                for base, offset, size in zip(self.bases, offsets, self.itemsizes, strict=True)]
