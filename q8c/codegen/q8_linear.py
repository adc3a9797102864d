"""The int8 linear kernel: R8 rows times a packed Q8 weight to float, with bias, activation and residual fused."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.builder import Builder, Value
from q8c.codegen.linear import YMM_SCHEDULE, ZMM_SCHEDULE, LinearKernel, Schedule
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import Q8TileEmitter, WidenedTileEmitter, emit_widen, widened_stride
from q8c.codegen.targets import Tier
from q8c.codegen.tasks import Task, for_tiles

SCRATCH_BYTES = 256 << 10
"""Most stack the widened rows of one tile may take."""
_WIDENED_SCHEDULE = Schedule(rows=10, panels=1, few_rows=10, few_panels=1)


def emit_q8_linear(module: ir.Module, tier: Tier, spec: Q8LinearSpec) -> ir.Function:
    """Add the kernel of `spec` to the module: `void name(params)` with `spec.params`.

    All threads of a run call it with the same arguments; it returns when no task is left for the caller, and all
    rows are done when all threads have returned. Weights, scales and bias are packed by `q8c.codegen.layout`
    (64-byte aligned); rows of `a` are `spec.lda` bytes apart, zero past depth; `counter` points to an i64 that is 0
    before the first call; y may be the residual itself.
    """
    if not tier.has_vnni:
        return _WidenedLinear(module, tier, spec, _WIDENED_SCHEDULE, WidenedTileEmitter).emit()
    schedule = ZMM_SCHEDULE if tier.vector_bits == 512 else YMM_SCHEDULE
    return LinearKernel(module, tier, spec, schedule, Q8TileEmitter).emit()


class _WidenedLinear(LinearKernel):
    """Without VNNI: tile by tile, widen its rows once, then go across the columns."""

    def walk(self, b: Builder, rows: Value) -> None:
        stride = widened_stride(self.spec)
        most = max(1, min(self.schedule.rows, SCRATCH_BYTES // stride))
        scratch = b.scratch(most * stride)

        def tiles(task: Task, first: Value, size: Value, count: Value) -> None:
            with b.range(0, count) as tile:
                operands = self.from_row(b, b.add(b.add(task.first_row, first), b.mul(tile, size)))
                emit_widen(b, self.spec, operands["a"], size, scratch)
                self.strips_across(b, {**operands, "a": scratch}, size, task)

        self.tasks(b, rows, self.schedule.few_panels, lambda task: for_tiles(
            b, task.rows, most, lambda *tile: tiles(task, *tile)))
