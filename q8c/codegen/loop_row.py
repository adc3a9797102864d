"""The numbers of one row of a loop: addresses, scalars, and reductions that wait on the stack for the next pass."""
from __future__ import annotations

import llvmlite.ir as ir
import numpy as np

from q8c.codegen import loop_ops
from q8c.codegen.builder import I32, I64, Builder, Operand, Value, constant
from q8c.codegen.loop_memory import load_scalar, scalar_type, store_scalar, vector_type
from q8c.codegen.loop_plan import Plan, Result
from q8c.codegen.loop_program import REDUCTIONS, Instr


class Row:
    """The row at hand. `begin` comes first in every pass; its `index` counts rows that go through passes together."""

    def __init__(self, b: Builder, plan: Plan) -> None:
        self.b = b
        self.plan = plan
        self.instrs = plan.program.instrs
        live = plan.live()
        self.fixed = {n: self._columns(self.instrs[n]) for n in live
                      if self.instrs[n].op in ("columns", "reciprocal_columns")}
        self.slots = {n: b.scratch(8 * plan.together, align=8) for n in live if self.instrs[n].op in REDUCTIONS}

    def _columns(self, instr: Instr) -> Value:
        b, size, typ = self.b, self.plan.rows.cols, scalar_type(instr.dtype)
        if isinstance(size, int) and instr.dtype.is_int:
            return constant(typ, size)
        if isinstance(size, int):
            count = instr.dtype.numpy.type(size)  # f32 arithmetic, as the code for a run-time size does
            one = instr.dtype.numpy.type(1)
            value = count if instr.op == "columns" else one / count if size else one * np.inf  # a mean of none is NaN
            return loop_ops.number(value, instr.dtype, typ)
        cols = self.plan.sizes.value(b, size)
        if instr.dtype.is_int:
            return cols if typ == I64 else b.trunc(cols, typ)
        value = b.ir.sitofp(cols, typ)
        return value if instr.op == "columns" else b.ir.fdiv(constant(typ, 1.0), value)

    def begin(self, index: Value, addresses: list[Value], cols: Operand) -> None:
        """Turn to a row: its number in the block, the addresses of its operands and results, and its columns."""
        self.index, self.addresses, self.cols = index, addresses, cols
        self.values = dict(self.fixed)
        self.splats: dict[int, Value] = {}

    def result(self, k: int) -> Value:
        """The address of a result's row."""
        return self.addresses[len(self.plan.operands) + k]

    def value(self, n: int) -> Value:
        """A number of the row as a scalar."""
        if n not in self.values:
            instr = self.instrs[n]
            if instr.op == "input":
                value = load_scalar(self.b, instr.dtype, self.addresses[instr.attr("index")])
            elif instr.op == "constant":
                value = number_of(instr, scalar_type(instr.dtype))
            elif instr.op in REDUCTIONS:
                value = load_scalar(self.b, instr.dtype, self._slot(n))
            else:
                types = [self.instrs[a].dtype for a in instr.args]
                value = loop_ops.emit_op(self.b, instr, types, [self.value(a) for a in instr.args])
            self.values[n] = value
        return self.values[n]

    def splat(self, n: int) -> Value:
        """A number of the row in every lane."""
        instr = self.instrs[n]
        if instr.op == "constant":
            return number_of(instr, vector_type(instr.dtype))
        if n not in self.splats:
            self.splats[n] = self.b.splat(self.value(n), vector_type(instr.dtype))
        return self.splats[n]

    def reduced(self, n: int, value: Value) -> None:
        """Note what a reduction came to."""
        self.values[n] = value
        store_scalar(self.b, self.instrs[n].dtype, value, self._slot(n))

    def _slot(self, n: int) -> Value:
        return self.b.at(self.slots[n], self.b.mul(self.index, self.instrs[n].dtype.itemsize))

    def store_numbers(self) -> None:
        """Store the results that are one number per row."""
        for k, result in enumerate(self.plan.results):
            if result.kind == "row":
                self._store_number(result, self.value(result.instr), self.result(k))

    def _store_number(self, result: Result, value: Value, address: Value) -> None:
        if result.r8:
            self.b.store(self.b.zext(value, I32), address)  # a row of one element and its padding
        else:
            store_scalar(self.b, result.dtype, value, address)


def number_of(instr: Instr, typ: ir.Type) -> Value:
    """A constant of a program as a scalar or vector type of its element type."""
    value = np.frombuffer(instr.attr("bytes"), instr.dtype.numpy)[0]
    return loop_ops.number(value, instr.dtype, typ)
