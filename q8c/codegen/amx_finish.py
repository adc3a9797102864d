"""What becomes of a group's sums that AMX left in memory: results, row by row."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import llvmlite.ir as ir

from q8c.codegen.amx_shape import Shape
from q8c.codegen.builder import F32, I16, I32, LANES, V16F, V16I, VOID, Builder, Value, constant
from q8c.codegen.layout import PANEL
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.linear_tile import activated
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.ir.ops.fused import GATE_COLS

ROWS_AHEAD = 8
"""So many rows ahead results are asked for: stores wait for each other to reach the first-level cache."""
V32S = ir.VectorType(I16, 2 * LANES)


@dataclass(frozen=True)
class Operands:
    """What all groups of a strip have in common.

    Attributes:
        values: the kernel's operands by name, from the strip's first row on, and what else is made of its rows.
        rows: rows of a tile. `last`: the panel after the strip's last one.
        whole: whether all tiles have all rows of the shape and all groups all columns.
    """

    spec: Q8LinearSpec
    shape: Shape
    values: Mapping[str, Value]
    rows: Value
    last: Value
    whole: bool

    @property
    def streamed(self) -> bool:
        """Whether results are whole cache lines, which go past the caches."""
        return self.spec.streamed and self.whole


class Group(NamedTuple):
    """Sums of `rows` rows from the strip's row `first` on, of the panels from `panel` on."""

    first: Value
    panel: Value
    rows: Value


class Finish(ABC):
    """A group's sums at `buffer` become results."""

    def __init__(self, b: Builder, operands: Operands, group: Group, buffer: Value) -> None:
        self.b, self.operands, self.spec, self.shape = b, operands, operands.spec, operands.shape
        self.first_row, self.panel, self.limit = group
        self.buffer = buffer
        spec, places = operands.spec, [b.add(group.panel, n) for n in range(self.shape.panels)]
        self.masks = [None if operands.whole else b.tail_mask(n) for n in self._left(places)]
        self.columns = places if operands.whole else [b.imin(p, b.sub(operands.last, 1)) for p in places]
        self.bias = self.of_columns("bias", V16F) if spec.bias else []

    def _left(self, places: list[Value]) -> list[Value]:
        """Columns from each 16 of the result on; of a gate's result, 16 are those of two panels, or 8 of the last."""
        b, last, count = self.b, self.operands.last, self.shape.panels
        if self.spec.gated:
            return [b.mul(b.imin(b.imax(b.sub(last, places[n]), 0), count - n), GATE_COLS) for n in range(0, count, 2)]
        return [b.select(b.icmp("<", p, last), b.sub(self.spec.cols, b.mul(p, PANEL)), 0) for p in places]

    def of_columns(self, name: str, typ: ir.Type) -> list[Value]:
        """16 per-column values by panel, from [panels][16]."""
        b = self.b
        values = self.operands.values[name]
        return [b.load(typ, b.at(values, b.mul(c, STEP_BYTES)), align=STEP_BYTES) for c in self.columns]

    def start(self, row: Value) -> list[Value]:
        """The state before a row: its number, and where its sums, result and residual are."""
        b, values = self.b, self.operands.values

        def place(name: str, stride: str, bytes_: int) -> Value:
            first = b.at(values[name], b.mul(b.add(self.first_row, row), values[stride]), F32)
            return b.at(first, b.mul(self.panel, PANEL * bytes_))
        residual = [place("residual", "ldr", 4)] if self.spec.residual else []
        y = place("y", "ldy", self.spec.result_bytes)
        return [row, b.at(self.buffer, b.mul(row, self.shape.stride)), y, *residual]

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

    def row(self, state: list[Value]) -> list[Value]:
        """Do one row; gives the state of the next."""
        b, values = self.b, self.operands.values
        row, sums, y, *residual = state
        if not self.operands.streamed:
            soon = b.at(y, b.mul(values["ldy"], ROWS_AHEAD), F32)
            for j in range(len(self.masks)):
                b.prefetch(b.at(soon, PANEL * j, F32), 1)
        floats = self.floats(row, [b.at(sums, STEP_BYTES * j) for j in range(self.shape.panels)])
        for j, x in enumerate(activated(b, self.spec, floats)):
            if residual:
                x = b.add(x, self._load(b.at(residual[0], PANEL * j, F32), self.masks[j]))
            self._store(x, b.at(y, PANEL * j, F32), self.masks[j])
        return [b.add(row, 1), b.at(sums, self.shape.stride), b.at(y, values["ldy"], F32),
                *(b.at(r, values["ldr"], F32) for r in residual)]

    @abstractmethod
    def floats(self, row: Value, sums: list[Value]) -> list[Value]:
        """One row with bias, by panel, from what is at `sums`."""

    def _load(self, address: Value, mask: Value | None) -> Value:
        if mask is None:
            return self.b.load(V16F, address)
        args = [address, constant(I32, 4), mask, self.b.splat(0.0)]
        return self.b.intrinsic("llvm.masked.load.v16f32.p0", args, V16F)

    def _store(self, value: Value, address: Value, mask: Value | None) -> None:
        if mask is None:
            (self.b.stream if self.operands.streamed else self.b.store)(value, address)
            return
        self.b.intrinsic("llvm.masked.store.v16f32.p0", [value, address, constant(I32, 4), mask], VOID)


class FinishSums(Finish):
    """int32 sums of all depth, which have one scale."""

    def __init__(self, b: Builder, operands: Operands, group: Group, buffer: Value) -> None:
        super().__init__(b, operands, group, buffer)
        self.w_scale = self.of_columns("w_scale", V16F)
        self.w_sum = self.of_columns("w_sum", V32S) if self.spec.zero_point else []

    def floats(self, row: Value, sums: list[Value]) -> list[Value]:
        """Scaled."""
        b, starts = self.b, [self._of_row("starts", I32, V16I, row)] * self.shape.panels
        if self.spec.zero_point:
            zeros = b.bitcast(self._of_row("zeros", I32, V16I, row), V32S)
            starts = [b.dot_s16(start, w_sum, zeros) for start, w_sum in zip(starts, self.w_sum, strict=True)]
        xs = [b.to_f32(b.add(b.load(V16I, at, align=STEP_BYTES), start))
              for at, start in zip(sums, starts, strict=True)]
        scale = self._of_row("row_scale", F32, V16F, row)
        factors = [b.mul(scale, w_scale) for w_scale in self.w_scale]
        if not self.bias:
            return [b.mul(x, f) for x, f in zip(xs, factors, strict=True)]
        return [b.fma(x, f, bias) for x, f, bias in zip(xs, factors, self.bias, strict=True)]

    def _of_row(self, name: str, scalar: ir.Type, typ: ir.Type, row: Value) -> Value:
        """A row's value, in all lanes."""
        b = self.b
        return b.splat(b.load(scalar, b.at(self.operands.values[name], b.add(self.first_row, row), scalar)), typ)


class FinishFloats(Finish):
    """Float sums."""

    def floats(self, row: Value, sums: list[Value]) -> list[Value]:
        """As they are."""
        ys = [self.b.load(V16F, at, align=STEP_BYTES) for at in sums]
        return [self.b.add(y, bias) for y, bias in zip(ys, self.bias, strict=True)] if self.bias else ys
