"""int8 tiles: with `vpdpbusd`, and without it on rows widened beforehand."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.builder import F32, I32, I64, V16F, V16I, Builder, Value, constant
from q8c.codegen.linear_spec import STEP_BYTES, LinearSpec
from q8c.codegen.linear_tile import TileEmitter
from q8c.ir.q8 import ZERO_POINT

V8I = ir.VectorType(I32, 8)


class Q8TileEmitter(TileEmitter):
    """Rows of broadcast dwords against registers of weights, 4 steps of depth in one instruction."""

    def scaled(self, total: Value, row: int, panel: int) -> Value:
        """float(total) * (row scale * column scale) + bias, the last two in one fma."""
        b = self.b
        scale = b.splat(b.load(F32, b.at(self.values["row_scale"], row, F32)), V16F)
        factor = b.mul(scale, self.column_values("w_scale", panel))
        y = b.to_f32(total)
        return b.fma(y, factor, self.column_values("bias", panel)) if self.spec.bias else b.mul(y, factor)

    def sums(self) -> list[list[Value]]:
        """sum of a * (w - 127), int32."""
        tile = self.tile
        starts = [start for r in range(tile.rows) for start in [self.start(r)] * tile.panels]
        totals = self.along_depth(starts, [self.values["a"], self.values["w"]], self.step)
        return [totals[r * tile.panels:(r + 1) * tile.panels] for r in range(tile.rows)]

    def start(self, row: int) -> Value:
        """What a row's sums start at: minus the zero point times the row's sum."""
        b = self.b
        return b.splat(b.mul(b.load(I32, b.at(self.values["row_sum"], row, I32)), -ZERO_POINT), V16I)

    def step(self, accs: list[Value], pointers: list[Value]) -> list[Value]:
        """4 columns of depth for every row and panel."""
        b, tile = self.b, self.tile
        a, w = pointers
        weights = [b.load(V16I, b.at(w, p * self.spec.panel_bytes), align=STEP_BYTES) for p in range(tile.panels)]
        for r in range(tile.rows):
            dword = b.splat(b.load(I32, b.at(a, r * self.spec.lda)), V16I)
            for p in range(tile.panels):
                accs[r * tile.panels + p] = b.dot_u8s8(accs[r * tile.panels + p], weights[p], dword)
        return accs


class WidenedTileEmitter(Q8TileEmitter):
    """The tile without VNNI: exact through `vpmaddwd` on rows widened to 16 bits beforehand (`emit_widen`).

    4 instructions per row and 8 columns, 2 more per 8 columns: so many rows by half a panel at a time.
    """

    def sums(self) -> list[list[Value]]:
        """sum of a * (w - 127), int32."""
        halves = [[self._half(p, h) for h in range(2)] for p in range(self.tile.panels)]
        return [[self.b.concat(low[r], high[r]) for low, high in halves] for r in range(self.tile.rows)]

    def _half(self, panel: int, half: int) -> list[Value]:
        b = self.b
        starts = [b.halves(self.start(r))[half] for r in range(self.tile.rows)]
        w = b.at(self.values["w"], panel * self.spec.panel_bytes + half * STEP_BYTES // 2)
        return self.along_depth(starts, [self.values["a"], w], self.step)

    def step(self, accs: list[Value], pointers: list[Value]) -> list[Value]:
        """4 columns of depth for every row, even and odd bytes apart."""
        b, stride = self.b, widened_stride(self.spec)
        a, w = pointers
        pairs = b.split_u8(b.load(V8I, w, align=STEP_BYTES // 2))
        for r in range(self.tile.rows):
            for odd, weights in enumerate(pairs):
                dword = b.load(I32, b.at(a, r * stride + odd * stride // 2))
                accs[r] = b.add(accs[r], b.dot_s16(weights, b.bitcast(b.splat(dword, V8I), weights.type)))
        return accs


def widened_stride(spec: LinearSpec) -> int:
    """Bytes of one widened row: all even bytes as i16 pairs, then all odd ones, in whole registers."""
    return 2 * 32 * -(-spec.steps // 8)


def emit_widen(b: Builder, spec: LinearSpec, a: Value, rows: Value, out: Value) -> None:
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
