"""The int8 linear kernel: R8 rows times a packed Q8 weight to float, with bias, activation and residual fused."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.amx_linear import AmxBlockLinear, AmxColumnLinear, AmxCountedLinear
from q8c.codegen.builder import Builder, Value
from q8c.codegen.linear import YMM_SCHEDULE, ZMM_BLOCK_SCHEDULE, ZMM_SCHEDULE, LinearKernel, Schedule
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import Q8TileEmitter, WidenedTileEmitter, emit_widen, widened_stride
from q8c.codegen.targets import Tier

SCRATCH_BYTES = 256 << 10
"""Most stack the widened rows of one tile may take."""
_WIDENED_SCHEDULE = Schedule(rows=10, panels=1, few_rows=0, few_panels=0)


def emit_q8_linear(module: ir.Module, tier: Tier, spec: Q8LinearSpec) -> ir.Function:
    """Add the kernel of `spec` to the module: `void name(params)` with `spec.params`.

    All threads of a run call it with the same arguments; it returns when no task is left for the caller, and all
    rows are done when all threads have returned. Weights, scales and bias are packed by `q8c.codegen.layout`
    (64-byte aligned); rows of `a` are `spec.lda` bytes apart, zero past depth, and wide ones are bfloat16 where
    products are (`loop_blocks`); `counter` points to an i64 that is 0 before the first call; y may be the residual
    itself.
    """
    if tier.has("amx-int8") and not spec.block:
        return AmxColumnLinear(module, tier, spec).emit()
    if tier.has("amx-bf16") and spec.wide:
        return (AmxCountedLinear if spec.counted else AmxBlockLinear)(module, tier, spec).emit()
    if not tier.has_vnni:
        return _WidenedLinear(module, tier, spec, _WIDENED_SCHEDULE, WidenedTileEmitter).emit()
    wide = ZMM_BLOCK_SCHEDULE if spec.block else ZMM_SCHEDULE
    schedule = wide if tier.vector_bits == 512 else YMM_SCHEDULE
    return LinearKernel(module, tier, spec, schedule, Q8TileEmitter).emit()


class _WidenedLinear(LinearKernel):
    """Without VNNI: a tile's rows are widened once, then go across the columns."""

    def prepare(self, b: Builder) -> int:
        stride = widened_stride(self.spec)
        most = max(1, min(self.schedule.rows, SCRATCH_BYTES // stride))
        self.scratch = b.scratch(most * stride)
        return most

    def rows_of_tile(self, b: Builder, a: Value, rows: Value) -> Value:
        emit_widen(b, self.spec, a, rows, self.scratch)
        return self.scratch
