"""The float linear kernel: rows times a packed float weight, with bias, activation and residual fused.

Every output is one chain of fma over ascending depth, so its bits depend on its row and column alone.
"""
from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen.builder import F32, V16F, Value
from q8c.codegen.linear import YMM_SCHEDULE, ZMM_SCHEDULE, LinearKernel
from q8c.codegen.linear_spec import STEP_BYTES, LinearSpec
from q8c.codegen.linear_tile import TileEmitter
from q8c.codegen.targets import Tier


@dataclass(frozen=True)
class F32LinearSpec(LinearSpec):
    """y = act(a @ w + bias) + residual for float rows a."""

    @property
    def formats(self) -> str:
        """Floats throughout."""
        return "f32"

    @property
    def steps(self) -> int:
        """Elements along depth."""
        return self.depth


def emit_f32_linear(module: ir.Module, tier: Tier, spec: F32LinearSpec) -> ir.Function:
    """Add the kernel of `spec` to the module: `void name(params)` with `spec.params`.

    All threads of a run call it with the same arguments, as in `emit_q8_linear`. Weight and bias are packed by
    `q8c.codegen.layout` (64-byte aligned); rows of `a` follow each other without gaps; y may be the residual itself.
    """
    schedule = ZMM_SCHEDULE if tier.vector_bits == 512 else YMM_SCHEDULE
    return LinearKernel(module, tier, spec, schedule, _F32TileEmitter).emit()


class _F32TileEmitter(TileEmitter):
    """Rows of broadcast floats against registers of weights."""

    def scaled(self, total: Value, row: int, panel: int) -> Value:
        return self.b.add(total, self.column_values("bias", panel)) if self.spec.bias else total

    def sums(self) -> list[list[Value]]:
        tile = self.tile
        starts = [self.b.splat(0.0)] * (tile.rows * tile.panels)
        pointers = self.start([self.values["a"], self.values["w"]])
        totals, _ = self.along_depth(starts, pointers, self.spec.steps, self._step)
        return [totals[r * tile.panels:(r + 1) * tile.panels] for r in range(tile.rows)]

    def _step(self, accs: list[Value], pointers: list[Value], number: int) -> list[Value]:
        b, tile = self.b, self.tile
        a, w = pointers
        weights = [b.load(V16F, b.at(w, p * self.spec.panel_bytes), align=STEP_BYTES) for p in range(tile.panels)]
        for r in range(tile.rows):
            value = b.splat(b.load(F32, b.at(a, r * self.spec.lda)))
            for p in range(tile.panels):
                at = r * tile.panels + p
                accs[at] = b.fma(value, weights[p], accs[at])
        return accs
