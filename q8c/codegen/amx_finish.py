"""What becomes of int32 sums that AMX left in memory: row by row, between the products of the next ones."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import llvmlite.ir as ir

from q8c.codegen.amx_shape import Shape
from q8c.codegen.builder import F32, I16, I32, I64, LANES, V16F, V16I, VOID, Builder, Value, constant
from q8c.codegen.layout import PANEL
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import FLOAT_OFFSET, load_scales

ROWS_AHEAD = 8
"""So many rows ahead results are asked for: stores wait for each other to reach the first-level cache."""
V32S = ir.VectorType(I16, 2 * LANES)


@dataclass(frozen=True)
class Operands:
    """What all groups of a strip have in common.

    Attributes:
        values: the kernel's operands by name, from the strip's first row on, and what `Q8TileEmitter.prepare` makes of
            its rows.
        rows: rows of a tile. `last`: the panel after the strip's last one.
        whole: whether all tiles have all rows of the shape and all groups all columns.
    """

    spec: Q8LinearSpec
    shape: Shape
    values: Mapping[str, Value]
    rows: Value
    last: Value
    whole: bool


class Group(NamedTuple):
    """Sums of `rows` rows from the strip's row `first` on, of the panels from `panel` on."""

    first: Value
    panel: Value
    rows: Value


class Work(ABC):
    """Something to be done with a group's sums of one block at `buffer`."""

    def __init__(self, b: Builder, operands: Operands, group: Group, buffer: Value, block: Value) -> None:
        self.b, self.operands, self.spec, self.shape = b, operands, operands.spec, operands.shape
        self.first_row, self.panel, self.limit = group
        self.buffer, self.block = buffer, block
        panel = group.panel
        self.columns = [b.add(panel, n) for n in range(self.shape.panels)]
        if not operands.whole:
            self.columns = [b.imin(c, b.sub(operands.last, 1)) for c in self.columns]
        scale_type = I16 if self.spec.half else F32
        self.w_scale = [load_scales(b, scale_type, self._of_block("w_scale", scale_type, c)) for c in self.columns]
        self.w_sum = [b.load(V32S, self._of_block("w_sum", I32, c))
                      for c in self.columns] if self.spec.zero_point else []

    def _of_block(self, name: str, typ: ir.Type, column: Value) -> Value:
        """Where 16 per-column values of the block are, in [panels][blocks][16]."""
        b = self.b
        place = b.add(b.mul(column, self.spec.blocks), self.block)
        return b.at(self.operands.values[name], b.mul(place, PANEL), typ)

    def start(self, row: Value) -> list[Value]:
        """The state before a row: its number, where its sums are, and what else moves from row to row."""
        return [row, self.b.at(self.buffer, self.b.mul(row, self.shape.stride))]

    @abstractmethod
    def row(self, state: list[Value]) -> list[Value]:
        """Do one row; gives the state of the next."""

    def some(self, state: Sequence[Value], rows: int) -> list[Value]:
        """Do the next `rows` rows, as far as there are any; in whole tiles there are, and they are written out one by
        one, so that products and rows overlap."""
        if not self.operands.whole:
            return self.loop(state, rows)
        state = list(state)
        for _ in range(rows):
            state = self.row(state)
        return state

    def loop(self, state: Sequence[Value], rows: int) -> list[Value]:
        """Do the next `rows` rows, as far as there are any."""
        stop = self.b.imin(self.b.add(state[0], rows), self.limit)
        return self.b.loop(state[0], stop, 1, list(state), lambda _, state: self.row(state))

    def next_row(self, state: Sequence[Value]) -> list[Value]:
        """The start of the next row's state."""
        return [self.b.add(state[0], 1), self.b.at(state[1], self.shape.stride)]

    def added(self, state: Sequence[Value], totals: list[Value]) -> list[Value]:
        """One row's sums, scaled and added to its totals, by panel."""
        b = self.b
        scale = self._of_row("row_scale", F32, V16F, state)
        scaled = [b.fma(b.from_bits(x), w_scale, b.mul(w_scale, -FLOAT_OFFSET))
                  for x, w_scale in zip(self._sums(state), self.w_scale, strict=True)]
        return [b.fma(x, scale, total) for x, total in zip(scaled, totals, strict=True)]

    def _of_row(self, name: str, scalar: ir.Type, typ: ir.Type, state: Sequence[Value]) -> Value:
        """A row's value for the block, in all lanes."""
        b = self.b
        place = b.add(b.mul(b.add(self.first_row, state[0]), self.spec.blocks), self.block)
        return b.splat(b.load(scalar, b.at(self.operands.values[name], place, scalar)), typ)

    def _sums(self, state: Sequence[Value]) -> list[Value]:
        """One row's sums by panel, with what the zero points of weight and row take off."""
        b = self.b
        starts = [self._of_row("starts", I32, V16I, state)] * self.shape.panels
        if self.spec.zero_point:
            zeros = b.bitcast(self._of_row("zeros", I32, V16I, state), V32S)
            starts = [b.dot_s16(start, w_sum, zeros) for start, w_sum in zip(starts, self.w_sum, strict=True)]
        return [b.add(b.load(V16I, b.at(state[1], STEP_BYTES * j), align=STEP_BYTES), start)
                for j, start in enumerate(starts)]


class Add(Work):
    """Sums of a block, scaled and added to the float sums at `totals`."""

    def __init__(self, b: Builder, operands: Operands, group: Group, buffer: Value, block: Value,
                 totals: Value) -> None:
        super().__init__(b, operands, group, buffer, block)
        self.totals = totals

    def row(self, state: list[Value]) -> list[Value]:
        b = self.b
        row = b.at(self.totals, b.mul(state[0], self.shape.stride))
        places = [b.at(row, STEP_BYTES * j) for j in range(self.shape.panels)]
        totals = self.added(state, [b.load(V16F, p, align=STEP_BYTES) for p in places])
        for place, total in zip(places, totals, strict=True):
            b.store(total, place, align=STEP_BYTES)
        return self.next_row(state)


class Finish(Work):
    """Sums of all depth become results."""

    def __init__(self, b: Builder, operands: Operands, group: Group, buffer: Value) -> None:
        spec = operands.spec
        super().__init__(b, operands, group, buffer, constant(I64, spec.blocks - 1))
        places = [b.add(group.panel, n) for n in range(operands.shape.panels)]
        left = [b.select(b.icmp("<", p, operands.last), b.sub(spec.cols, b.mul(p, PANEL)), 0) for p in places]
        self.masks = [None if operands.whole else b.tail_mask(n) for n in left]
        self.bias = [b.load(V16F, b.at(operands.values["bias"], b.mul(c, STEP_BYTES)), align=STEP_BYTES)
                     for c in self.columns] if spec.bias else []

    def start(self, row: Value) -> list[Value]:
        b, values = self.b, self.operands.values

        def place(name: str, stride: str) -> Value:
            first = b.add(b.mul(b.add(self.first_row, row), values[stride]), b.mul(self.panel, PANEL))
            return b.at(values[name], first, F32)
        return [*super().start(row), place("y", "ldy"), *([place("residual", "ldr")] if self.spec.residual else [])]

    def row(self, state: list[Value]) -> list[Value]:
        b, values = self.b, self.operands.values
        _, _, y, *residual = state
        soon = b.at(y, b.mul(values["ldy"], ROWS_AHEAD), F32)
        for j in range(self.shape.panels):
            b.prefetch(b.at(soon, PANEL * j, F32), 1)
        for j, x in enumerate(self._floats(state)):
            if self.spec.activation == "relu":
                x = b.fmax(0.0, x)
            if residual:
                x = b.add(x, self._load(b.at(residual[0], PANEL * j, F32), self.masks[j]))
            self._store(x, b.at(y, PANEL * j, F32), self.masks[j])
        return [*self.next_row(state), b.at(y, values["ldy"], F32), *(b.at(r, values["ldr"], F32) for r in residual)]

    def _floats(self, state: Sequence[Value]) -> list[Value]:
        """One row with bias, by panel."""
        return self._scaled(state) if not self.spec.block else self._biased(
            self.added(state, [self.b.splat(0.0)] * self.shape.panels))

    def _biased(self, ys: list[Value]) -> list[Value]:
        return [self.b.add(y, bias) for y, bias in zip(ys, self.bias, strict=True)] if self.bias else ys

    def _scaled(self, state: Sequence[Value]) -> list[Value]:
        """One row's sums of all depth with scale and bias, by panel."""
        b = self.b
        sums = [b.to_f32(x) for x in self._sums(state)]
        scale = self._of_row("row_scale", F32, V16F, state)
        factors = [b.mul(scale, w_scale) for w_scale in self.w_scale]
        if not self.bias:
            return [b.mul(x, f) for x, f in zip(sums, factors, strict=True)]
        return [b.fma(x, f, bias) for x, f, bias in zip(sums, factors, self.bias, strict=True)]

    def _load(self, address: Value, mask: Value | None) -> Value:
        if mask is None:
            return self.b.load(V16F, address)
        args = [address, constant(I32, 4), mask, self.b.splat(0.0)]
        return self.b.intrinsic("llvm.masked.load.v16f32.p0", args, V16F)

    def _store(self, value: Value, address: Value, mask: Value | None) -> None:
        if mask is None:
            self.b.store(value, address)
            return
        self.b.intrinsic("llvm.masked.store.v16f32.p0", [value, address, constant(I32, 4), mask], VOID)


class FinishTotals(Finish):
    """Float sums of all blocks become results; 0 is left in their place."""

    def _floats(self, state: Sequence[Value]) -> list[Value]:
        b = self.b
        places = [b.at(state[1], STEP_BYTES * j) for j in range(self.shape.panels)]
        ys = self._biased([b.load(V16F, p, align=STEP_BYTES) for p in places])
        for place in places:
            b.store(b.splat(0.0), place, align=STEP_BYTES)
        return ys
