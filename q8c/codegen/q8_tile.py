"""The innermost int8 code: a tile of rows x panels of columns whose int32 sums stay in registers."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import llvmlite.ir as ir

from q8c.codegen.builder import F32, I32, I64, V16F, V16I, Builder, Value, constant
from q8c.codegen.layout import GROUP, PANEL
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.ir.q8 import ZERO_POINT

STEP_BYTES = PANEL * GROUP  # of one panel per step of depth
V8I = ir.VectorType(I32, 8)
Step: TypeAlias = Callable[[list[Value], list[Value]], list[Value]]


@dataclass(frozen=True)
class Tile:
    """The static shape of a tile: rows x panels of 16 columns, of which the last panel has `tail`.

    `unroll` steps of depth make the loop body; `prefetch` asks for the weights of the tile to the right.
    """

    rows: int
    panels: int
    tail: int = PANEL
    unroll: int = 4
    prefetch: bool = False

    @property
    def cols(self) -> int:
        """Columns that exist."""
        return PANEL * (self.panels - 1) + self.tail


class TileEmitter:
    """Emits one tile into an open function; `values` are the operands of `Q8LinearSpec.operands` by name."""

    def __init__(self, b: Builder, spec: Q8LinearSpec, tile: Tile, values: dict[str, Value]) -> None:
        self.b = b
        self.spec = spec
        self.tile = tile
        self.values = values

    def emit(self) -> None:
        """The whole tile: sums, then the epilogue in registers."""
        b, values = self.b, self.values
        sums = self.sums()
        row_y, row_r = values["y"], values.get("residual")
        for r in range(self.tile.rows):
            scale = b.splat(b.load(F32, b.at(values["row_scale"], r, F32)))
            for p in range(self.tile.panels):
                y = self.epilogue(sums[r][p], scale, p)
                if row_r is not None:
                    y = b.add(y, self._load(b.at(row_r, p * PANEL, F32), p))
                self._store(y, b.at(row_y, p * PANEL, F32), p)
            row_y = b.at(row_y, values["ldy"], F32)
            row_r = b.at(row_r, values["ldr"], F32) if row_r is not None else None

    def epilogue(self, total: Value, scale: Value, panel: int) -> Value:
        """The float result of a row and panel, before the residual."""
        b = self.b
        factor = b.mul(scale, self.column_values("w_scale", panel))
        y = b.to_f32(total)
        y = b.fma(y, factor, self.column_values("bias", panel)) if self.spec.bias else b.mul(y, factor)
        return b.fmax(0.0, y) if self.spec.activation == "relu" else y

    def column_values(self, name: str, panel: int) -> Value:
        """16 per-column floats of a panel."""
        return self.b.load(V16F, self.b.at(self.values[name], panel * PANEL, F32), align=STEP_BYTES)

    def _is_tail(self, panel: int) -> bool:
        return panel == self.tile.panels - 1 and self.tile.tail < PANEL

    def _load(self, address: Value, panel: int) -> Value:
        if self._is_tail(panel):
            return self.b.load_tail(V16F, address, self.tile.tail)
        return self.b.load(V16F, address)

    def _store(self, y: Value, address: Value, panel: int) -> None:
        if self._is_tail(panel):
            self.b.store_tail(y, address, self.tile.tail)
        else:
            self.b.store(y, address)

    # -- the int32 sums

    def sums(self) -> list[list[Value]]:
        """<16 x i32> of every row and panel: sum of a * (w - 127)."""
        tile = self.tile
        starts = [start for r in range(tile.rows) for start in [self.start(r)] * tile.panels]
        totals = self.along_depth(starts, [self.values["a"], self.values["w"]], [GROUP, STEP_BYTES], self.step)
        return [totals[r * tile.panels:(r + 1) * tile.panels] for r in range(tile.rows)]

    def start(self, row: int) -> Value:
        """What a row's sums start at: minus the zero point times the row's sum."""
        b = self.b
        return b.splat(b.mul(b.load(I32, b.at(self.values["row_sum"], row, I32)), -ZERO_POINT), V16I)

    def along_depth(self, accs: Sequence[Value], pointers: Sequence[Value], strides: Sequence[int],
                    step: Step) -> list[Value]:
        """Run `step` for all steps of depth, `tile.unroll` in a loop body; pointers move by their strides."""
        b, unroll, count = self.b, self.tile.unroll, len(accs)

        def steps(carried: Sequence[Value], number: int) -> list[Value]:
            accs, pointers = list(carried[:count]), carried[count:]
            for u in range(number):
                accs = step(accs, [b.at(p, u * s) for p, s in zip(pointers, strides, strict=True)])
            return accs

        def body(_: Value, carried: list[Value]) -> list[Value]:
            moved = [b.at(p, unroll * s) for p, s in zip(carried[count:], strides, strict=True)]
            return [*steps(carried, unroll), *moved]

        carried = [*accs, *pointers]
        if self.spec.steps >= unroll:
            carried = b.loop(0, self.spec.steps // unroll, 1, carried, body)
        return steps(carried, self.spec.steps % unroll)

    def step(self, accs: list[Value], pointers: list[Value]) -> list[Value]:
        """One step of depth: every row's broadcast dword against every panel's register of weights."""
        b, tile = self.b, self.tile
        a, w = pointers
        weights = [b.load(V16I, b.at(w, p * self.spec.panel_bytes), align=STEP_BYTES) for p in range(tile.panels)]
        for p in range(tile.panels if tile.prefetch else 0):
            b.prefetch(b.at(w, (tile.panels + p) * self.spec.panel_bytes), 2)
        for r in range(tile.rows):
            dword = b.splat(b.load(I32, b.at(a, r * self.spec.lda)), V16I)
            for p in range(tile.panels):
                accs[r * tile.panels + p] = b.dot_u8s8(accs[r * tile.panels + p], weights[p], dword)
        return accs


class WidenedTileEmitter(TileEmitter):
    """The tile without VNNI: exact through `vpmaddwd` on rows widened to 16 bits beforehand (`emit_widen`).

    4 instructions per row and 8 columns, 2 more per 8 columns: so many rows by half a panel at a time.
    """

    def sums(self) -> list[list[Value]]:
        """<16 x i32> of every row and panel: sum of a * (w - 127)."""
        halves = [[self._half(p, h) for h in range(2)] for p in range(self.tile.panels)]
        return [[self.b.concat(low[r], high[r]) for low, high in halves] for r in range(self.tile.rows)]

    def _half(self, panel: int, half: int) -> list[Value]:
        b = self.b
        starts = [b.halves(self.start(r))[half] for r in range(self.tile.rows)]
        w = b.at(self.values["w"], panel * self.spec.panel_bytes + half * STEP_BYTES // 2)
        return self.along_depth(starts, [self.values["a"], w], [GROUP, STEP_BYTES], self.step)

    def step(self, accs: list[Value], pointers: list[Value]) -> list[Value]:
        """One step of depth: even and odd bytes apart."""
        b = self.b
        a, w = pointers
        pairs = b.split_u8(b.load(V8I, w, align=STEP_BYTES // 2))
        for r in range(self.tile.rows):
            for odd, weights in enumerate(pairs):
                dword = b.load(I32, b.at(a, r * widened_stride(self.spec) + odd * widened_stride(self.spec) // 2))
                wide = b.bitcast(b.splat(dword, V8I), weights.type)
                accs[r] = b.add(accs[r], b.dot_s16(weights, wide))
        return accs


def widened_stride(spec: Q8LinearSpec) -> int:
    """Bytes of one widened row: all even bytes as i16 pairs, then all odd ones, in whole registers."""
    return 2 * 32 * -(-spec.steps // 8)


def emit_widen(b: Builder, spec: Q8LinearSpec, a: Value, rows: Value, out: Value) -> None:
    """Write `rows` R8 rows as 16-bit even and odd bytes to `out`."""
    stride = widened_stride(spec)
    with b.range(0, rows) as r:
        source, target = b.at(a, b.mul(r, spec.lda)), b.at(out, b.mul(r, stride))

        def widen(dwords: Value, at: Value) -> None:
            for odd, wide in enumerate(b.split_s8(dwords)):
                b.store(wide, b.at(target, b.add(at, odd * stride // 2)), align=32)

        whole = spec.steps // 16 * 16
        with b.range(0, 4 * whole, 4 * 16) as at:
            for half in range(2):
                position = b.add(at, 32 * half)
                widen(b.load(V8I, b.at(source, position)), position)
        rest = spec.steps - whole
        if rest:
            dwords = b.load_tail(V16I, b.at(source, 4 * whole), rest)
            for half, part in enumerate(b.halves(dwords)[:-(-rest // 8)]):
                widen(part, constant(I64, 4 * whole + 32 * half))
