"""What becomes of int32 sums that AMX left in memory: row by row, between the products of the next ones."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen.amx_shape import Depth, Shape
from q8c.codegen.builder import F32, I16, I32, I64, LANES, V16F, V16I, VOID, Builder, Value, constant
from q8c.codegen.layout import PANEL
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.ir.q8 import ZERO_POINT

V32S = ir.VectorType(I16, 2 * LANES)


@dataclass(frozen=True)
class Operands:
    """What all groups of a strip have in common.

    Attributes:
        values: the kernel's operands by name, from the strip's first row on.
        rows: rows of a tile. `last`: the panel after the strip's last one.
        totals: memory for a group's float sums, all 0, if its blocks come in several chunks.
    """

    spec: Q8LinearSpec
    shape: Shape
    values: Mapping[str, Value]
    rows: Value
    last: Value
    totals: Value | None


class Work(ABC):
    """Something to be done with a group's sums: those of `limit` rows from the strip's row `row` on, of the panels from
    `panel` on, of the blocks `block` and following, which lie at `buffer` one after the other."""

    def __init__(self, b: Builder, operands: Operands, row: Value, panel: Value, buffer: Value, limit: Value,
                 blocks: Sequence[Value]) -> None:
        self.b, self.operands, self.spec, self.shape = b, operands, operands.spec, operands.shape
        self.first_row, self.panel, self.buffer, self.limit, self.blocks = row, panel, buffer, limit, blocks
        self.columns = [b.imin(b.add(panel, n), b.sub(operands.last, 1)) for n in range(self.shape.panels)]
        self.w_scale = [[self._of_block("w_scale", V16F, c, n) for c in self.columns] for n in blocks]
        self.w_sum = [[self._of_block("w_sum", V32S, c, n) for c in self.columns] if self.spec.zero_point else []
                      for n in blocks]

    def _of_block(self, name: str, typ: ir.Type, column: Value, number: Value) -> Value:
        """16 per-column values of a block, from [panels][blocks][16]."""
        b = self.b
        place = b.add(b.mul(column, self.spec.blocks), number)
        return b.load(typ, b.at(self.operands.values[name], b.mul(place, STEP_BYTES)), align=STEP_BYTES)

    def start(self) -> list[Value]:
        """The state before the first row: its number, where its sums are, and what else moves from row to row."""
        return [constant(I64, 0), self.buffer]

    @abstractmethod
    def row(self, state: list[Value]) -> list[Value]:
        """Do one row; gives the state of the next."""

    def some(self, state: Sequence[Value], rows: int) -> list[Value]:
        """Do the next `rows` rows, as far as there are any."""
        stop = self.b.imin(self.b.add(state[0], rows), self.limit)
        return self.b.loop(state[0], stop, 1, list(state), lambda _, state: self.row(state))

    def next_row(self, state: Sequence[Value]) -> list[Value]:
        """The start of the next row's state."""
        return [self.b.add(state[0], 1), self.b.at(state[1], self.shape.stride)]

    def scaled(self, state: Sequence[Value], totals: list[Value] | None) -> list[Value]:
        """One row's sums as floats by panel, added to `totals` if given."""
        b, values = self.b, self.operands.values
        row = b.mul(b.add(self.first_row, state[0]), self.spec.blocks)
        for n, number in enumerate(self.blocks):
            place = b.add(row, number)
            scale = b.splat(b.load(F32, b.at(values["row_scale"], place, F32)))
            sums = self._sums(n, place, b.at(state[1], self.shape.bytes * n))
            factors = [b.mul(scale, w_scale) for w_scale in self.w_scale[n]]
            if totals is None:
                totals = [b.mul(x, f) for x, f in zip(sums, factors, strict=True)]
            else:
                totals = [b.fma(x, f, t) for x, f, t in zip(sums, factors, totals, strict=True)]
        assert totals is not None
        return totals

    def _sums(self, n: int, place: Value, sums: Value) -> list[Value]:
        """One row of a block's sums by panel, with what the zero points of weight and row take off."""
        b, values = self.b, self.operands.values
        start = b.splat(b.mul(b.load(I32, b.at(values["row_sum"], place, I32)), -ZERO_POINT), V16I)
        starts = [start] * self.shape.panels
        if self.spec.zero_point:
            minus = b.sub(0, b.load(I32, b.at(values["row_zero"], place, I32)))
            pair = b.splat(b.or_(b.and_(minus, 0xFFFF), b.shl(minus, 24)), V16I)  # as `layout.pack_sums` wants
            starts = [b.dot_s16(start, w_sum, b.bitcast(pair, V32S)) for w_sum in self.w_sum[n]]
        return [b.to_f32(b.add(b.load(V16I, b.at(sums, STEP_BYTES * j), align=STEP_BYTES), own))
                for j, own in enumerate(starts)]

    def totals(self, state: Sequence[Value]) -> list[Value]:
        """Where one row's totals are, by panel."""
        row = self.b.at(self.operands.totals, self.b.mul(state[0], self.shape.stride))
        return [self.b.at(row, STEP_BYTES * j) for j in range(self.shape.panels)]


class Add(Work):
    """Sums of blocks, scaled and added to the totals."""

    def row(self, state: list[Value]) -> list[Value]:
        b, places = self.b, self.totals(state)
        totals = self.scaled(state, [b.load(V16F, p, align=STEP_BYTES) for p in places])
        for place, total in zip(places, totals, strict=True):
            b.store(total, place, align=STEP_BYTES)
        return self.next_row(state)


class Finish(Work):
    """Sums of the last blocks, or of all depth, become results."""

    def __init__(self, b: Builder, operands: Operands, row: Value, panel: Value, buffer: Value, limit: Value) -> None:
        spec, panels = operands.spec, operands.shape.panels
        last = [constant(I64, n) for n in Depth(spec).chunks[-1]]
        super().__init__(b, operands, row, panel, buffer, limit, last)
        places = [b.add(panel, n) for n in range(panels)]
        left = [b.select(b.icmp("<", p, operands.last), b.sub(spec.cols, b.mul(p, PANEL)), 0) for p in places]
        self.masks = [b.tail_mask(n) for n in left]
        self.bias = [b.load(V16F, b.at(operands.values["bias"], b.mul(c, STEP_BYTES)), align=STEP_BYTES)
                     for c in self.columns] if spec.bias else []

    def start(self) -> list[Value]:
        b, values = self.b, self.operands.values

        def place(name: str, stride: str) -> Value:
            first = b.add(b.mul(self.first_row, values[stride]), b.mul(self.panel, PANEL))
            return b.at(values[name], first, F32)
        return [*super().start(), place("y", "ldy"), *([place("residual", "ldr")] if self.spec.residual else [])]

    def row(self, state: list[Value]) -> list[Value]:
        b, values = self.b, self.operands.values
        _, _, y, *residual = state
        for j, x in enumerate(self._floats(state)):
            if self.spec.activation == "relu":
                x = b.fmax(0.0, x)
            if residual:
                x = b.add(x, self._load(b.at(residual[0], PANEL * j, F32), self.masks[j]))
            self._store(x, b.at(y, PANEL * j, F32), self.masks[j])
        return [*self.next_row(state), b.at(y, values["ldy"], F32), *(b.at(r, values["ldr"], F32) for r in residual)]

    def _floats(self, state: Sequence[Value]) -> list[Value]:
        """One row with bias, by panel; totals are 0 again for the next group."""
        b = self.b
        if not self.spec.block:
            return self.scaled(state, self.bias or None)
        if self.operands.totals is None:
            ys = self.scaled(state, [b.splat(0.0)] * self.shape.panels)
        else:
            places = self.totals(state)
            ys = self.scaled(state, [b.load(V16F, p, align=STEP_BYTES) for p in places])
            for place in places:
                b.store(b.splat(0.0), place, align=STEP_BYTES)
        return [b.add(y, bias) for y, bias in zip(ys, self.bias, strict=True)] if self.bias else ys

    def _load(self, address: Value, mask: Value) -> Value:
        args = [address, constant(I32, 4), mask, self.b.splat(0.0)]
        return self.b.intrinsic("llvm.masked.load.v16f32.p0", args, V16F)

    def _store(self, value: Value, address: Value, mask: Value) -> None:
        self.b.intrinsic("llvm.masked.store.v16f32.p0", [value, address, constant(I32, 4), mask], VOID)
