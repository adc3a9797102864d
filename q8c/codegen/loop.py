"""Kernels for `loop` nodes, and for single elementwise and row ops seen as loops of one."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_body import can_loop
from q8c.codegen.loop_emit import emit_loop
from q8c.codegen.loop_schedule import make_plan
from q8c.codegen.targets import Tier
from q8c.codegen.units import shared
from q8c.errors import CompileError
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.memory import row_pitch


def loop_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of a `loop` node, or of one node that `can_loop`; equal bodies share one function in a module.

    Results must not overlap operands or each other. Raises CompileError for a body with an op that cannot loop.
    """
    body = node.body if node.body is not None else loop_of(node)
    plan = make_plan(body, [0 if v is None else row_pitch(v) for v in node.inputs])
    name = f"{plan.symbol()}__{tier.name.replace('-', '')}"
    function, = shared(module, [name], lambda unit: emit_loop(unit, tier, plan, len(body.inputs), name))
    return Kernel(function, tuple(plan.sizes.dims), plan.scratch if plan.scratch != 0 else None)


def loop_of(node: Node) -> Graph:
    """A body that holds one node."""
    if not can_loop(node):
        raise CompileError(f"{node}: no loop kernel can be made of it")
    body = Graph("body")
    operands: list[Value | None] = []
    for n, value in enumerate(node.inputs):
        operands.append(None if value is None else body.add_input(f"x{n}", value.type))
    copy = body.add(node.op, operands, node.attrs)
    for value in copy.outputs:
        body.add_output(value)
    return body
