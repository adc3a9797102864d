"""Which kernel computes which op of a final graph."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import llvmlite.ir as ir

from q8c.codegen.amx_linear import scratch_bytes
from q8c.codegen.append import append_kernel, kept_kernel
from q8c.codegen.attention import attention_kernel
from q8c.codegen.builder import I64, PTR, Builder
from q8c.codegen.conv import conv_kernel
from q8c.codegen.expert_linear import each_expert, pointers_of
from q8c.codegen.f32_linear import F32LinearSpec, emit_f32_linear
from q8c.codegen.kernel import Kernel
from q8c.codegen.last_token import last_token_kernel
from q8c.codegen.linear_spec import LinearSpec
from q8c.codegen.lookup import lookup_kernel
from q8c.codegen.loop import loop_kernel
from q8c.codegen.matmul import matmul_kernel
from q8c.codegen.movement import MOVEMENT_OPS, movement_kernel
from q8c.codegen.q8_linear import emit_q8_linear
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.rotary import rotary_kernel
from q8c.codegen.targets import Tier
from q8c.codegen.units import shared
from q8c.errors import CompileError
from q8c.ir.dims import Dim, product
from q8c.ir.graph import Node
from q8c.ir.graph import Value as Operand
from q8c.ir.memory import is_wide, row_pitch
from q8c.ir.ops.fused import Q8_COUNTS
from q8c.ir.types import DType

STREAMED_COLS = 1 << 14
"""From so many columns on a few rows fill the second-level cache: lines of the result are then not read before they are
written. 128 rows of 49152 columns, from a depth of 576, take a quarter less time with `vpdpbusd`."""
EmitKernel = Callable[[ir.Module, Tier, Node], Kernel]


def kernel_for(node: Node) -> EmitKernel:
    """The function that generates a node's kernel. Raises CompileError where there is none."""
    found = _KERNELS.get(node.op)
    if found is None:
        raise CompileError(f"{node}: there is no kernel for {node.op}; expected one of {', '.join(sorted(_KERNELS))}")
    return found


def q8_linear_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The int8 linear layer: R8 rows (row stride a multiple of 4) times a packed Q8 weight."""
    bias, residual = _present(node, 5), _present(node, 6)
    depth, gated = _fixed(node.input(3).shape[0]), bool(node.attrs.get("gated"))
    cols = _fixed(node.output.shape[-1]) * (2 if gated else 1)  # of one expert
    spec = Q8LinearSpec(depth, cols, bias=bias, residual=residual, activation=_activation(node),
                        block=int(str(node.attrs.get("block", 0))), zero_point=_present(node, 7),
                        half=node.input(4).dtype is DType.f16, bits=int(str(node.attrs.get("bits", 8))),
                        offsets=_present(node, 9), streamed=_streamed(node), gated=gated,
                        counted=_present(node, Q8_COUNTS), wide=is_wide(node.input(0)))
    kernel = _adapt(module, tier, spec, node, _experts(node, 10), {}, lambda unit: emit_q8_linear(unit, tier, spec))
    return replace(kernel, scratch=scratch_bytes(spec))


def linear_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The float linear layer: dense rows times a packed float weight."""
    bias, residual = _present(node, 2), _present(node, 3)
    depth, cols = _fixed(node.input(1).shape[0]), _fixed(node.output.shape[-1])
    spec = F32LinearSpec(depth, cols, bias=bias, residual=residual, activation=_activation(node),
                         streamed=_streamed(node))
    return _adapt(module, tier, spec, node, _experts(node, 4), {"lda": depth},
                  lambda unit: emit_f32_linear(unit, tier, spec))


def _adapt(module: ir.Module, tier: Tier, spec: LinearSpec, node: Node, experts: int, fixed: dict[str, int],
           emit: Callable[[ir.Module], ir.Function]) -> Kernel:
    """A linear kernel behind a function with the parameters of a `Kernel`, for each expert if there are any; rows come
    last, strides are known: those of operands are `fixed`."""
    rows: Dim = product(node.output.shape[:-1])
    pitch = row_pitch(node.output)
    fixed = {**fixed, "ldy": pitch or spec.result_cols, "ldr": spec.cols}
    symbol = f"{spec.name}_{f'e{experts}' if experts else 'dense'}{f'_every{pitch}' if pitch else ''}__" \
             f"{tier.name.replace('-', '')}"

    def emit_adapted(unit: ir.Module) -> None:
        inner = emit(unit)
        inner.linkage = "internal"
        own = [param for param in spec.params if param[0] == "scratch"]
        sizes = [("rows", I64), *spec.counts[1:]]
        b = Builder(unit, tier, symbol, [*pointers_of(spec, experts), *sizes, *own, ("threads", I64), ("queue", PTR)],
                    internal=True)
        if experts:
            each_expert(b, spec, inner, fixed, experts)
        else:
            b.ir.call(inner, [ir.Constant(I64, fixed[n]) if n in fixed else b.arg(n) for n, _ in spec.params])
        b.ret()

    function, = shared(module, [symbol], emit_adapted)
    tokens = [node.output.shape[1]] if spec.counts else []
    return Kernel(function, (rows, *tokens), draws=True, turns=max(experts, 1))


def _experts(node: Node, ends: int) -> int:
    """Of how many experts a linear's weight has the columns; 0 if it is no mixture's."""
    found = node.inputs[ends] if _present(node, ends) else None
    return 0 if found is None else _fixed(found.shape[0])


def _streamed(node: Node) -> bool:
    """Whether a linear's result is long rows for the caller alone, such as scores of every word of a vocabulary."""
    def is_read(value: Operand) -> bool:
        return any(user.op != "reshape" or is_read(user.output) for user in value.users)
    return _fixed(node.output.shape[-1]) >= STREAMED_COLS and not is_read(node.output)


def _activation(node: Node) -> str:
    return str(node.attrs.get("activation", "none"))


def _present(node: Node, operand: int) -> bool:
    return len(node.inputs) > operand and node.inputs[operand] is not None


def _fixed(size: Dim) -> int:
    if not isinstance(size, int):
        raise CompileError(f"a weight's size {size} is not fixed")
    return size


_KERNELS: dict[str, EmitKernel] = {
    "q8_linear": q8_linear_kernel,
    "linear": linear_kernel,
    "append": append_kernel,
    "kept": kept_kernel,
    "conv": conv_kernel,
    "rotary": rotary_kernel,
    "lookup": lookup_kernel,
    "last_token": last_token_kernel,
    **dict.fromkeys(("attention", "packed_attention"), attention_kernel),
    "loop": loop_kernel,
    "matmul": matmul_kernel,
    **dict.fromkeys(MOVEMENT_OPS, movement_kernel),
}
