"""R8 by blocks of columns: scales for several blocks at once, in lanes.

256 columns at a time: each block's extremes are gathered in one vector, the vectors of all blocks are folded into one
with a lane per block, and scales come out for all of them. Then every 64 columns are multiplied, rounded and packed.
"""
from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from q8c.codegen import bf16, loop_ops
from q8c.codegen.bf16 import FEW_TOKENS
from q8c.codegen.builder import I8, I16, I32, I64, LANES, V16I, Builder, Operand, Value, constant
from q8c.codegen.loop_columns import ColumnPass
from q8c.codegen.loop_fold import combiner, neutral, taker
from q8c.codegen.loop_memory import scalar_type
from q8c.codegen.loop_pack import V32S, V64B, pack_steps, sum_bytes
from q8c.codegen.loop_plan import Blocks
from q8c.codegen.loop_program import Program
from q8c.codegen.loop_quantize import ABS_BITS, Step, symmetric_step, zero_point_step
from q8c.codegen.loop_row import number_of
from q8c.ir.types import DType

UNIT = 256
"""Columns whose blocks are scaled at once."""
PACK = 64
STEP = 32
"""Columns that a line has in bfloat16."""


def emit_blocks(columns: ColumnPass, blocks: Blocks) -> None:
    """Quantize the row at hand, or leave it in bfloat16 if it is wide and the tier multiplies so."""
    b = columns.b
    if not (blocks.wide and b.tier.has("amx-bf16")):
        _quantize(columns, blocks)
    elif blocks.counts is None:
        _round(columns, blocks)
    else:
        few = b.icmp("<=", columns.row.value(blocks.counts), FEW_TOKENS)
        b.if_else(few, lambda: _quantize(columns, blocks), lambda: _round(columns, blocks))


def _round(columns: ColumnPass, blocks: Blocks) -> list[Value]:
    """The row in bfloat16, 0 from its end to whole steps."""
    b, cols = columns.b, columns.row.cols
    assert isinstance(cols, int), "wide rows have a fixed depth"
    row = columns.row.result(dict(blocks.results)["block_q"])

    def step(col: Value, count: int) -> None:
        floats = []
        for first in (0, LANES):
            left = min(max(count - first, 0), LANES)
            x = columns.lanes(blocks.x, b.add(col, first), None if left == LANES else left)
            floats.append(x if left == LANES else b.select(b.tail_mask(left), x, 0.0))
        b.store(bf16.pack(b, *floats), b.at(row, b.mul(col, 2)), align=2 * STEP)

    whole = cols // STEP * STEP
    with b.range(0, whole, STEP) as col:
        step(col, STEP)
    if cols > whole:
        step(constant(I64, whole), cols - whole)
    return []


def _quantize(columns: ColumnPass, blocks: Blocks) -> list[Value]:
    """The row's bytes, and numbers per block."""
    b, cols = columns.b, columns.row.cols
    emitter = _Blocks(columns, blocks)
    if isinstance(cols, int):
        whole = cols // UNIT * UNIT
        with b.range(0, whole, UNIT) as col:
            emitter.unit(col, UNIT)
        if cols > whole:
            emitter.unit(ir.Constant(I64, whole), cols - whole)
        return []
    whole = b.and_(cols, -UNIT)
    with b.range(0, whole, UNIT) as col:
        emitter.unit(col, UNIT)
    with b.if_(b.icmp(">", cols, whole)):
        emitter.unit(whole, b.sub(cols, whole))
    return []


class _Blocks:
    """Emits units; `Step`s hold values with a lane per block here."""

    def __init__(self, columns: ColumnPass, blocks: Blocks) -> None:
        self.columns, self.blocks = columns, blocks
        self.b, self.row = columns.b, columns.row
        self.results = dict(blocks.results)
        self.stats = ["row_low", "row_high"] if blocks.zero_point else ["row_umax"]

    def unit(self, col: Value, count: Operand) -> None:
        """Columns col ... col + count - 1, at most 256."""
        b, size = self.b, self.blocks.block
        self.col, self.count = col, count
        present = -(-count // size) if isinstance(count, int) else UNIT // size
        lanes = 1 << (present - 1).bit_length()
        stats = [self._extremes(block) for block in range(present)]
        stats += [[neutral(stat, DType.i32) for stat in self.stats]] * (lanes - present)
        folded = [b.fold(parts, combiner(b, stat, DType.i32), LANES)
                  for stat, parts in zip(self.stats, zip(*stats, strict=True), strict=True)]
        scale, inverse, zero, finite = self._step(folded, lanes)
        total = self._bytes(inverse, zero, finite, present, lanes)
        for op, values in (("block_scale", scale), ("block_zero", zero), ("block_sum", total)):
            if op in self.results:
                self._store_numbers(self.row.result(self.results[op]), values, present)

    def _here(self, offset: int, most: int) -> Operand | None:
        """How many of `most` columns from an offset into the unit are there; None for all."""
        if isinstance(self.count, int):
            rest = min(max(self.count - offset, 0), most)
            return None if rest == most else rest
        return self.b.imin(self.b.imax(self.b.sub(self.count, offset), 0), most)

    def _lanes(self, offset: int, count: Operand | None) -> Value:
        return self.columns.lanes(self.blocks.x, self.b.add(self.col, offset), count)

    def _extremes(self, block: int) -> list[Value]:
        """A block's statistics, still 16 lanes each."""
        b = self.b
        found = [neutral(stat, DType.i32) for stat in self.stats]
        for offset in range(block * self.blocks.block, (block + 1) * self.blocks.block, LANES):
            count = self._here(offset, LANES)
            if count == 0:
                break
            x = self._lanes(offset, count)
            bits = b.bits(x) if self.blocks.zero_point else b.and_(b.bits(x), ABS_BITS)
            if count is not None:
                bits = b.select(b.tail_mask(count), bits, constant(bits.type, 0))
            found = [taker(b, stat, DType.i32)(part, bits) for stat, part in zip(self.stats, found, strict=True)]
        return found

    def _step(self, stats: Sequence[Value], lanes: int) -> list[Value]:
        """Scale, its inverse, zero point and finiteness, a lane per block."""
        p = Program()
        inputs = [p.input(n, DType.i32, vector=False) for n in range(len(stats))]
        step: Step = zero_point_step(p, *inputs) if self.blocks.zero_point else symmetric_step(p, *inputs)
        values: list[Value] = []
        for instr in p.instrs:
            if instr.op == "input":
                values.append(stats[instr.attr("index")])
            elif instr.op == "constant":
                values.append(number_of(instr, ir.VectorType(scalar_type(instr.dtype), lanes)))
            else:
                types = [p.dtype(a) for a in instr.args]
                values.append(loop_ops.emit_op(self.b, instr, types, [values[a] for a in instr.args]))
        return [values[n] for n in (step.scale, step.inverse, step.zero, step.finite)]

    def _bytes(self, inverse: Value, zero: Value, finite: Value, present: int, lanes: int) -> Value:
        """Store the unit's bytes; returns their sums, at least a lane per block."""
        b, size = self.b, self.blocks.block
        sums = [self._pack(offset, inverse, zero, finite, lanes) for offset in range(0, present * size, PACK)]
        sums += [constant(V16I, 0)] * (max(lanes * size // PACK, 1) - len(sums))
        while size > PACK:
            sums = [b.add(x, y) for x, y in zip(sums[::2], sums[1::2], strict=True)]
            size //= 2
        return b.fold(sums, b.add, LANES if self.blocks.block >= PACK else LANES // 2)

    def _pack(self, offset: int, inverse: Value, zero: Value, finite: Value, lanes: int) -> Value:
        """Store 64 bytes; returns their sums by fours."""
        b, size = self.b, self.blocks.block
        steps = []
        for at in range(offset, offset + PACK, LANES):
            count = self._here(at, LANES)
            if count == 0:
                steps.append(constant(V16I, 0))
            else:
                steps.append(b.to_i32(b.mul(self._lanes(at, count), b.splat(b.lane(inverse, at // size)))))
        owners = [min((offset + half) // size, lanes - 1) for half in (0, PACK // 2)]
        zeros = [b.splat(b.trunc(b.lane(zero, owner), I16), V32S) for owner in owners]
        keeps = [b.splat(b.sext(b.lane(finite, owner), I16), V32S) for owner in owners]
        packed = pack_steps(b, steps, zeros, keeps)
        count = self._here(offset, PACK)
        if count is not None:
            mask = b.ucmp("<", b.iota(V64B), b.splat(_as_byte(b, count), V64B))
            packed = b.select(mask, packed, constant(V64B, 0))
        if "block_q" in self.results:
            self._store_bytes(packed, offset, count)
        return sum_bytes(b, constant(V16I, 0), packed)

    def _store_bytes(self, packed: Value, offset: int, count: Operand | None) -> None:
        b = self.b
        target = b.at(self.row.result(self.results["block_q"]), b.add(self.col, offset))
        if count is None:
            b.store(packed, target)
            return
        padded = (count + 3) // 4 * 4 if isinstance(count, int) else b.and_(b.add(count, 3), -4)
        for at in range(0, PACK, LANES):
            part = b.shuffle(packed, packed, range(at, at + LANES))
            if not isinstance(padded, int):
                b.store_tail(part, b.at(target, at), b.imin(b.imax(b.sub(padded, at), 0), LANES))
            elif padded > at:
                b.store_tail(part, b.at(target, at), min(padded - at, LANES))

    def _store_numbers(self, row: Value, values: Value, present: int) -> None:
        """Store the lanes of the unit's blocks."""
        b, size = self.b, self.blocks.block
        target = b.at(row, b.lshr(self.col, size.bit_length() - 1), I32)
        if isinstance(self.count, int) and values.type.count == present:
            b.store(values, target)
            return
        for block in range(present):
            address = b.at(target, block, I32)
            if isinstance(self.count, int):
                b.store(b.lane(values, block), address)
                continue
            with b.if_(b.icmp(">", self.count, block * size)):
                b.store(b.lane(values, block), address)


def _as_byte(b: Builder, count: Operand) -> Value:
    return constant(I8, count) if isinstance(count, int) else b.trunc(count, I8)
