"""The code of a loop kernel: rows split over threads, passes over columns in 16 lanes, reductions in a fixed order.

Columns go in groups of 4 vectors; vector j of a row adds to float accumulator j mod 4, and accumulators and their lanes
are combined by a fixed tree. So a row's result depends on its own elements and length alone.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import llvmlite.ir as ir
import numpy as np

from q8c.codegen import loop_ops
from q8c.codegen.builder import I32, I64, PTR, Builder, Operand, Value, constant
from q8c.codegen.loop_fold import accumulators, neutral, taker, total
from q8c.codegen.loop_memory import (
    load_lanes,
    load_scalar,
    round_f16,
    scalar_type,
    store_lanes,
    store_scalar,
    vector_type,
)
from q8c.codegen.loop_plan import Plan, Result, RowPass
from q8c.codegen.loop_program import REDUCTIONS, Instr
from q8c.codegen.loop_space import Run, columns, each_row, each_run
from q8c.codegen.targets import Tier
from q8c.ir.types import DType

GROUP = 4
"""Vectors of one step over the columns."""
HEAVY = 16
"""An elementwise body of this weight or more goes in groups of 2: its own operations fill the machine."""


def emit_loop(module: ir.Module, tier: Tier, plan: Plan, name: str) -> ir.Function:
    """The kernel as a function of the module."""
    pointers = [f"x{n}" for n in range(len(plan.operands))] + [f"y{n}" for n in range(len(plan.results))]
    params = [(p, PTR) for p in pointers] + plan.sizes.params()
    params += [("scratch", PTR)] * (plan.scratch != 0) + [("tid", I64), ("threads", I64)]
    b = Builder(module, tier, name, params, internal=True)
    _Kernel(b, plan, pointers).emit()
    b.ret()
    return b.function


class _Kernel:
    """Emits the walk over rows (or chunks)."""

    def __init__(self, b: Builder, plan: Plan, pointers: Sequence[str]) -> None:
        self.b = b
        self.plan = plan
        self.bases = [b.arg(p) for p in pointers]
        self.itemsizes = [d.itemsize for d in plan.operands] + [r.dtype.itemsize for r in plan.results]
        size = plan.rows.cols
        self.cols: Operand = size if isinstance(size, int) else plan.sizes.value(b, size)

    def emit(self) -> None:
        rows = self.plan.rows
        row = _Row(self.b, self.plan)
        row.hoist()
        if rows.chunk:
            each_row(self.b, self.plan.sizes, rows,
                     lambda offsets, cols: row.emit(1, lambda _: self._addresses(offsets), cols))
        else:
            each_run(self.b, self.plan.sizes, rows.outer, lambda run: self._run(row, run))

    def _run(self, row: _Row, run: Run) -> None:
        b, size = self.b, self.plan.together
        with b.range(0, run.count, size) as first:
            count = 1 if size == 1 else b.imin(b.sub(run.count, first), size)
            row.emit(count, lambda index: self._addresses(run.offsets(b, b.add(first, index))), self.cols)

    def _addresses(self, offsets: list[Value]) -> list[Value]:
        return [self.b.at(base, self.b.mul(offset, size))
                for base, offset, size in zip(self.bases, offsets, self.itemsizes, strict=True)]


class _Row:
    """Emits what happens to the rows of a block: pass by pass, and in each pass row by row.

    While one row's reduction ends in a chain of dependent operations, the next row's loads and sums go on. Reductions
    wait on the stack for the next pass.
    """

    def __init__(self, b: Builder, plan: Plan) -> None:
        self.b = b
        self.plan = plan
        self.instrs = plan.program.instrs
        self.live = plan.live()
        self.fixed: dict[int, Value] = {}
        self.slots = {n: b.scratch(8 * plan.together, align=8) for n in self.live if self.instrs[n].op in REDUCTIONS}

    def hoist(self) -> None:
        """Compute before all rows what depends on no row."""
        size = self.plan.rows.cols
        cols: Operand = size if isinstance(size, int) else self.plan.sizes.value(self.b, size)
        for n in self.live:
            instr = self.instrs[n]
            if instr.op in ("columns", "reciprocal_columns"):
                self.fixed[n] = self._columns(instr, cols)

    def _columns(self, instr: Instr, cols: Operand) -> Value:
        typ = scalar_type(instr.dtype)
        if isinstance(cols, int):
            if instr.dtype.is_int:
                return constant(typ, cols)
            count = instr.dtype.numpy.type(cols)  # f32 arithmetic, as the code for a run-time size does
            value = count if instr.op == "columns" else instr.dtype.numpy.type(1) / max(count, type(count)(1))
            return loop_ops.number(value, instr.dtype, typ)
        if instr.dtype.is_int:
            return cols if typ == I64 else self.b.trunc(cols, typ)
        value = self.b.ir.sitofp(cols, typ)
        return value if instr.op == "columns" else self.b.ir.fdiv(constant(typ, 1.0), value)

    def emit(self, count: Operand, place: Callable[[Value], list[Value]], cols: Operand) -> None:
        """A block of `count` rows of `cols` columns; `place(i)` gives the addresses of row i's operands and results."""
        self.cols = cols
        for number, row_pass in enumerate(self.plan.passes or [RowPass((), (), ())]):
            if isinstance(count, int):
                self._row(ir.Constant(I64, 0), place, number, row_pass)
                continue
            with self.b.range(0, count) as index:
                self._row(index, place, number, row_pass)

    def _row(self, index: Value, place: Callable[[Value], list[Value]], number: int, row_pass: RowPass) -> None:
        self.index, self.addresses = index, place(index)
        self.rows = dict(self.fixed)
        self.splats: dict[int, Value] = {}
        self._pass(row_pass, number)
        if number >= len(self.plan.passes) - 1:
            for k, result in enumerate(self.plan.results):
                if not result.vector:
                    self._store_number(result, self.row_value(result.instr), self.result(k))

    def _store_number(self, result: Result, value: Value, address: Value) -> None:
        if result.r8:
            self.b.store(self.b.zext(value, I32), address)  # a row of one element and its padding
        else:
            store_scalar(self.b, result.dtype, value, address)

    def result(self, k: int) -> Value:
        """The address of a result's row."""
        return self.addresses[len(self.plan.operands) + k]

    def row_value(self, n: int) -> Value:
        """A number of the row as a scalar."""
        if n not in self.rows:
            instr = self.instrs[n]
            if instr.op == "input":
                value = load_scalar(self.b, instr.dtype, self.addresses[instr.attr("index")])
            elif instr.op == "constant":
                value = _constant(instr, scalar_type(instr.dtype))
            elif instr.op in REDUCTIONS:
                value = load_scalar(self.b, instr.dtype, self._slot(n))
            else:
                types = [self.instrs[a].dtype for a in instr.args]
                value = loop_ops.emit_op(self.b, instr, types, [self.row_value(a) for a in instr.args])
            self.rows[n] = value
        return self.rows[n]

    def _slot(self, n: int) -> Value:
        return self.b.at(self.slots[n], self.b.mul(self.index, self.instrs[n].dtype.itemsize))

    def splat(self, n: int) -> Value:
        """A number of the row in every lane."""
        instr = self.instrs[n]
        if instr.op == "constant":
            return _constant(instr, vector_type(instr.dtype))
        if n not in self.splats:
            self.splats[n] = self.b.splat(self.row_value(n), vector_type(instr.dtype))
        return self.splats[n]

    def _pass(self, row_pass: RowPass, number: int) -> None:
        for root in _operands_of_pass(self.plan, row_pass, number):
            if not self.instrs[root].vector:
                self.splat(root)  # before the loop over columns
        if row_pass == RowPass((), (), ()):
            return
        parts = [accumulators(self.instrs[n].op, self.instrs[n].dtype) for n in row_pass.reductions]
        start = [neutral(self.instrs[n].op, self.instrs[n].dtype)
                 for n, part in zip(row_pass.reductions, parts, strict=True) for _ in range(part)]
        block = _Block(self, row_pass, number)
        group = GROUP if row_pass.reductions or self.plan.weight() < HEAVY else 2
        sums = columns(self.b, self.cols, group, start, block.emit)
        for n, part in zip(row_pass.reductions, parts, strict=True):
            self.rows[n] = self._finish(self.instrs[n], sums[:part])
            store_scalar(self.b, self.instrs[n].dtype, self.rows[n], self._slot(n))
            sums = sums[part:]

    def _finish(self, instr: Instr, sums: Sequence[Value]) -> Value:
        value = total(self.b, instr.op, instr.dtype, sums)
        return round_f16(self.b, value) if instr.dtype is DType.f16 else value


class _Block:
    """Emits one vector of columns of a pass."""

    def __init__(self, row: _Row, row_pass: RowPass, number: int) -> None:
        self.row, self.row_pass, self.number = row, row_pass, number
        self.b, self.plan = row.b, row.plan

    def emit(self, col: Value, slot: int, count: Operand | None, sums: list[Value]) -> list[Value]:
        """Columns col ... col + 15, or `count` of them; returns the sums with accumulators `slot` advanced."""
        self.col, self.count = col, count
        self.memo: dict[int, Value] = {}
        b, row = self.b, self.row
        mask = None if count is None else b.tail_mask(count)
        results = [(k, self.vector(self.plan.results[k].instr)) for k in self.row_pass.results]
        kept = [(n, self.vector(n)) for n in self.row_pass.kept]
        sums, first = list(sums), 0
        for n in self.row_pass.reductions:
            instr = row.instrs[n]
            parts = accumulators(instr.op, instr.dtype)
            at, first = first + slot % parts, first + parts
            value = self.vector(instr.args[0])
            value = value if mask is None else b.select(mask, value, neutral(instr.op, instr.dtype))
            sums[at] = taker(b, instr.op, instr.dtype)(sums[at], value)
        for n, value in kept:
            store_lanes(b, row.instrs[n].dtype, value, self._kept_address(n), count)
        for k, value in results:
            self._store(k, value, mask)
        return sums

    def _store(self, k: int, value: Value, mask: Value | None) -> None:
        b, result = self.b, self.plan.results[k]
        address = b.at(self.row.result(k), b.mul(self.col, result.dtype.itemsize))
        count = self.count
        if result.r8 and count is not None and mask is not None:
            value = b.select(mask, value, constant(value.type, 0))
            count = (count + 3) // 4 * 4 if isinstance(count, int) else b.and_(b.add(count, 3), -4)
        store_lanes(b, result.dtype, value, address, count)

    def _kept_address(self, n: int) -> Value:
        b, kept, size = self.b, self.plan.kept[n], self.row.instrs[n].dtype.itemsize
        if kept.result is not None:
            return b.at(self.row.result(kept.result), b.mul(self.col, size))
        row = b.mul(self.row.index, self.plan.sizes.value(b, self.plan.row_scratch))
        base = b.at(b.arg("scratch"), b.add(row, self.plan.sizes.value(b, kept.offset)))
        return b.at(base, b.mul(self.col, size))

    def vector(self, n: int) -> Value:
        """An instruction's 16 lanes."""
        if n in self.memo:
            return self.memo[n]
        instr = self.row.instrs[n]
        if not instr.vector:
            return self.row.splat(n)
        if instr.op == "input":
            address = self.row.addresses[instr.attr("index")]
            value = load_lanes(self.b, instr.dtype, self.b.at(address, self.b.mul(self.col, instr.dtype.itemsize)),
                               self.count)
        elif self.plan.avail[n] < self.number and n in self.plan.kept:
            value = load_lanes(self.b, instr.dtype, self._kept_address(n), self.count)
        else:
            types = [self.row.instrs[a].dtype for a in instr.args]
            value = loop_ops.emit_op(self.b, instr, types, [self.vector(a) for a in instr.args])
        self.memo[n] = value
        return value


def _operands_of_pass(plan: Plan, row_pass: RowPass, number: int) -> set[int]:
    """Every instruction a pass reads or computes, row values included."""
    open_ = [plan.results[k].instr for k in row_pass.results] + list(row_pass.kept)
    open_ += [a for n in row_pass.reductions for a in plan.program.instrs[n].args]
    found: set[int] = set()
    while open_:
        n = open_.pop()
        if n not in found:
            found.add(n)
            reloaded = n in plan.kept and plan.avail[n] < number
            if plan.program.instrs[n].vector and not reloaded:
                open_.extend(plan.program.instrs[n].args)
    return found


def _constant(instr: Instr, typ: ir.Type) -> Value:
    value = np.frombuffer(instr.attr("bytes"), instr.dtype.numpy)[0]
    return loop_ops.number(value, instr.dtype, typ)
