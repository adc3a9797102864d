"""Write out the 8-bit arithmetic of a file that was left as the file prescribes it."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.graph import Graph, Node, Value
from q8c.ir.interpret import run_node
from q8c.ir.ops.registry import attributes
from q8c.ir.types import DType
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import Declined, Rewriter, producer, rewrite


@dataclass(frozen=True)
class LowerQuantized(Pass):
    """Replaces quantize_linear by a division, a rounding and a cast, dequantize_linear by a difference and a product.

    Dequantized constants become constants, but tables that are gathered from are dequantized behind the gather, so
    that they stay 8 bits in memory.
    """

    name: ClassVar[str] = "lower-quantized"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether such an op was there."""
        changed = rewrite(graph, {"gather": (gather_quantized,)}, report)
        return rewrite(graph, {"quantize_linear": (quantize,), "dequantize_linear": (known, dequantize)},
                       report) or changed


def gather_quantized(r: Rewriter, node: Node) -> Value | Declined | None:
    """gather(dequantize_linear(q), i) -> dequantize_linear(gather(q, i))."""
    table = producer(node.input(0), "dequantize_linear")
    if table is None or not table.input(0).is_constant:
        return None
    if any(v.type.size != 1 for v in list(table.operands)[1:]):
        return Declined("its table has more than one scale, so it is kept as floats")
    q = r.add("gather", table.input(0), node.input(1), **node.attrs)
    return r.from_nodes([table, node]).add(
        "dequantize_linear", q, *(r.reshape(v, ()) for v in list(table.operands)[1:]))


def quantize(r: Rewriter, node: Node) -> Value:
    """quantize_linear(x, s, z) -> cast(round(x / s) + z), where the cast cuts to the range; `zero_first`,
    cast(round(x / s + z))."""
    attrs = attributes(node)
    steps = without_bits(r, r.add("div", node.input(0), node.input(1)), int(str(attrs["dropped"])))
    steps = steps if attrs["zero_first"] else r.add("round", steps)
    if len(node.inputs) > 2:
        steps = r.add("add", steps, r.add("cast", node.input(2), to=DType.f32))
    return r.add("cast", r.add("round", steps) if attrs["zero_first"] else steps, to=node.output.dtype)


def without_bits(r: Rewriter, x: Value, dropped: int) -> Value:
    """Floats rounded to fewer bits, ties to even."""
    if not dropped:
        return x
    bits, step = r.add("bitcast", x, to=DType.u32), 1 << dropped
    odd = r.add("bit_and", r.add("shift_right", bits, r.constant(dropped, DType.u32)), r.constant(1, DType.u32))
    up = r.add("add", r.add("add", bits, odd), r.constant(step // 2 - 1, DType.u32))
    return r.add("bitcast", r.add("bit_and", up, r.constant(2**32 - step, DType.u32)), to=DType.f32)


def known(r: Rewriter, node: Node) -> Value | None:
    """dequantize_linear(constants) -> a constant."""
    if not all(v.is_constant for v in node.operands):
        return None
    return r.constant(run_node(node, [v.array() for v in node.operands], {})[0], DType.f32)


def dequantize(r: Rewriter, node: Node) -> Value:
    """dequantize_linear(q, s, z) -> (q - z) * s."""
    steps = r.add("cast", node.input(0), to=DType.f32)
    if len(node.inputs) > 2:
        steps = r.add("sub", steps, r.add("cast", node.input(2), to=DType.f32))
    return r.add("mul", steps, node.input(1))
