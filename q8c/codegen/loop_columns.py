"""One pass over the columns of a row: loads, lane operations, reductions and stores, 16 lanes at a time.

Columns go in groups of 4 vectors; vector j of a row adds to float accumulator j mod 4, and accumulators and their lanes
are combined by a fixed tree. So a row's result depends on its own elements and length alone.
"""
from __future__ import annotations

from collections.abc import Iterator

from q8c.codegen import loop_ops
from q8c.codegen.builder import I16, Operand, Value, constant
from q8c.codegen.loop_fold import accumulators, neutral, taker, total
from q8c.codegen.loop_memory import load_lanes, round_f16, store_lanes
from q8c.codegen.loop_pack import V32S, pack_steps, sum_bytes
from q8c.codegen.loop_plan import RowPass
from q8c.codegen.loop_row import Row
from q8c.codegen.loop_space import Part, column_groups
from q8c.ir.types import DType

GROUP = 4
"""Vectors of one step over the columns."""
HEAVY = 16
"""An elementwise body of this weight or more goes in groups of 2: its own operations fill the machine."""


class ColumnPass:
    """Emits one pass of the row at hand."""

    def __init__(self, row: Row, row_pass: RowPass, number: int) -> None:
        self.row, self.row_pass, self.number = row, row_pass, number
        self.b, self.plan, self.instrs = row.b, row.plan, row.instrs
        self.memo: dict[int, Value] = {}
        self.places: dict[int, range] = {}
        at = 0
        for n in row_pass.reductions:
            count = accumulators(self.b.tier, self.instrs[n].op, self.instrs[n].dtype)
            self.places[n] = range(at, at + count)
            at += count

    def emit(self) -> None:
        """The pass; its reductions are then the row's."""
        for n in self._reads():
            if not self.instrs[n].vector:
                self.row.splat(n)  # before the loop over columns
        if not (self.places or self.row_pass.kept or self.row_pass.results):
            return
        start = [neutral(self.instrs[n].op, self.instrs[n].dtype) for n, place in self.places.items() for _ in place]
        group = GROUP if self.places or self.plan.weight() < HEAVY else 2
        sums = column_groups(self.b, self.row.cols, group, start, self._group)
        for n, place in self.places.items():
            instr = self.instrs[n]
            value = total(self.b, instr.op, instr.dtype, [sums[at] for at in place])
            self.row.reduced(n, round_f16(self.b, value) if instr.dtype is DType.f16 else value)

    def _reads(self) -> set[int]:
        """Every instruction the pass reads or computes, numbers of the row included."""
        open_ = [self.plan.results[k].instr for k in self.row_pass.results] + list(self.row_pass.kept)
        open_ += [a for n in self.row_pass.reductions for a in self.instrs[n].args]
        open_ += [blocks.x for blocks in self.row_pass.blocks]
        found: set[int] = set()
        while open_:
            n = open_.pop()
            if n not in found:
                found.add(n)
                if self.instrs[n].vector and not self._is_kept(n):
                    open_.extend(self.instrs[n].args)
        return found

    def _is_kept(self, n: int) -> bool:
        return n in self.plan.kept and self.plan.avail[n] < self.number

    def _group(self, parts: list[Part], sums: list[Value]) -> list[Value]:
        """Some vectors of columns; R8 bytes are packed where all 4 are whole. Returns the sums."""
        whole = len(parts) == GROUP and all(count is None for _, _, count in parts)
        packed: dict[int, list[Value]] = {n: [] for n in self._r8_results()} if whole else {}
        for col, slot, count in parts:
            self.col, self.count = col, count
            self.memo = {}
            sums = self._vector(slot, sums, packed)
            for n, steps in packed.items():
                steps.append(self.vector(self.instrs[n].args[0]))
        for n, steps in packed.items():
            sums = self._pack(n, steps, parts[0][0], sums)
        return sums

    def _r8_results(self) -> Iterator[int]:
        for k in self.row_pass.results:
            n = self.plan.results[k].instr
            if self.instrs[n].op == "r8_bytes":
                yield n

    def _vector(self, slot: int, sums: list[Value], packed: dict[int, list[Value]]) -> list[Value]:
        """The columns at hand, without what will be packed."""
        b = self.b
        mask = None if self.count is None else b.tail_mask(self.count)
        results = [(k, self.vector(self.plan.results[k].instr)) for k in self.row_pass.results
                   if self.plan.results[k].instr not in packed]
        kept = [(n, self.vector(n)) for n in self.row_pass.kept]
        sums = list(sums)
        for n, place in self.places.items():
            instr = self.instrs[n]
            if instr.args[0] in packed:
                continue
            value = self.vector(instr.args[0])
            if mask is not None:
                value = b.select(mask, value, neutral(instr.op, self.instrs[instr.args[0]].dtype))
            at = place[slot % len(place)]
            sums[at] = taker(b, instr.op, instr.dtype)(sums[at], value)
        for n, value in kept:
            store_lanes(b, self.instrs[n].dtype, value, self._kept_address(n), self.count)
        for k, value in results:
            self._store(k, value, mask)
        return sums

    def _pack(self, n: int, steps: list[Value], col: Value, sums: list[Value]) -> list[Value]:
        """Store 64 R8 bytes and add them to their sum."""
        b = self.b
        _, zero, finite = self.instrs[n].args
        zeros = b.splat(b.trunc(self.row.value(zero), I16), V32S)
        keep = b.splat(b.sext(self.row.value(finite), I16), V32S)
        packed = pack_steps(b, steps, [zeros, zeros], [keep, keep])
        for k in self.row_pass.results:
            if self.plan.results[k].instr == n:
                b.store(packed, b.at(self.row.result(k), col))
        sums = list(sums)
        for reduction, place in self.places.items():
            if self.instrs[reduction].args == (n,):
                sums[place[0]] = sum_bytes(b, sums[place[0]], packed)
        return sums

    def _store(self, k: int, value: Value, mask: Value | None) -> None:
        b, result, count = self.b, self.plan.results[k], self.count
        if result.r8 and count is not None:
            value = b.select(mask, value, constant(value.type, 0))
            count = (count + 3) // 4 * 4 if isinstance(count, int) else b.and_(b.add(count, 3), -4)
        store_lanes(b, result.dtype, value, self._at(self.row.result(k), result.dtype), count)

    def _at(self, row: Value, dtype: DType) -> Value:
        return self.b.at(row, self.b.mul(self.col, dtype.itemsize))

    def _kept_address(self, n: int) -> Value:
        b, kept, dtype = self.b, self.plan.kept[n], self.instrs[n].dtype
        if kept.result is not None:
            return self._at(self.row.result(kept.result), dtype)
        row = b.mul(self.row.index, self.plan.sizes.value(b, self.plan.row_scratch))
        return self._at(b.at(b.arg("scratch"), b.add(row, self.plan.sizes.value(b, kept.offset))), dtype)

    def lanes(self, n: int, col: Value, count: Operand | None) -> Value:
        """An instruction's lanes at some columns, computed or read anew."""
        self.col, self.count, self.memo = col, count, {}
        return self.vector(n)

    def vector(self, n: int) -> Value:
        """An instruction's 16 lanes at the columns at hand."""
        if n in self.memo:
            return self.memo[n]
        instr = self.instrs[n]
        if not instr.vector:
            return self.row.splat(n)
        if instr.op == "input":
            address = self._at(self.row.addresses[instr.attr("index")], instr.dtype)
            value = load_lanes(self.b, instr.dtype, address, self.count)
        elif self._is_kept(n):
            value = load_lanes(self.b, instr.dtype, self._kept_address(n), self.count)
        else:
            types = [self.instrs[a].dtype for a in instr.args]
            value = loop_ops.emit_op(self.b, instr, types, [self.vector(a) for a in instr.args])
        self.memo[n] = value
        return value
