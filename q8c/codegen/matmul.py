"""The kernel of a `matmul` node: both operands are computed at run time."""
from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from q8c.codegen.builder import LANES
from q8c.codegen.f32_matmul import SCRATCH_PER_DEPTH, F32MatmulSpec, emit_f32_matmul
from q8c.codegen.kernel import Kernel
from q8c.codegen.plain_matmul import plain_matmul
from q8c.codegen.targets import Tier
from q8c.codegen.units import shared
from q8c.ir.dims import Dim, floordiv, product
from q8c.ir.graph import Node
from q8c.ir.types import DType


def matmul_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The batched product, in registers for f32. Raises CompileError for f16 and bool."""
    a, b = node.input(0).type, node.input(1).type
    if a.dtype is not DType.f32:
        return plain_matmul(module, tier, node)
    batch = node.output.shape[:-2]
    spec = F32MatmulSpec(len(batch), bool(node.attrs.get("transpose_b", False)))
    name = f"{spec.name}__{tier.name.replace('-', '')}"
    function, = shared(module, [name], lambda unit: emit_f32_matmul(unit, tier, spec))
    rows, cols, depth = *node.output.shape[-2:], a.shape[-1]
    strides = zip(batch, _strides(a.shape, batch), _strides(b.shape, batch), strict=True)
    sizes: tuple[Dim, ...] = (rows, cols, depth, *(d for entry in strides for d in entry))
    scratch = SCRATCH_PER_DEPTH * LANES * floordiv(depth + LANES - 1, LANES)
    return Kernel(function, sizes, scratch=scratch, draws=True)


def _strides(shape: Sequence[Dim], batch: Sequence[Dim]) -> list[Dim]:
    """Elements from one matrix to the next along each batch dimension; 0 where the operand is repeated."""
    strides: list[Dim] = []
    for n in range(len(batch)):
        at = n - len(batch) + len(shape) - 2
        repeated = at < 0 or (shape[at] == 1 and batch[n] != 1)
        strides.append(0 if repeated else product(shape[at + 1:]))
    return strides
