"""Lay rows that products by blocks read as far apart as they would lie in bfloat16."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops.fused import Q8_COUNTS
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import attr


@dataclass(frozen=True)
class WidenRows(Pass):
    """dynamic_quantize(x) -> dynamic_quantize(x, counts) {wide}, where products by blocks are all that reads its rows.

    Code that multiplies in bfloat16 then leaves rows so from the start, rounded once, where it need not go by counts:
    those of the products, if they are told of any.
    """

    name: ClassVar[str] = "widen-rows"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether there were such rows."""
        found = [(n, readers) for n in graph.nodes if n.op == "dynamic_quantize" and not attr(n, "wide")
                 and (readers := products_of(graph, n))]
        told: dict[Value, Value] = {}
        for node, readers in found:
            counts = counts_of(readers[0])
            if counts is not None and counts not in told:
                shape = (*counts.shape, 1, 1)
                told[counts] = graph.add("reshape", [counts], {"shape": shape}, name=counts.name, before=node).output
            node.attrs["wide"] = True
            graph.set_inputs(node, [node.input(0), *([told[counts]] if counts is not None else [])])
        return bool(found)


def products_of(graph: Graph, node: Node) -> list[Node]:
    """The products that read quantized rows by blocks, all told the same of sequences; none if anything else reads
    them."""
    depth = node.input(0).shape[-1]
    if not attr(node, "block") or not isinstance(depth, int) or depth == 1:
        return []
    readers = list(dict.fromkeys(u for v in node.outputs for u in v.users))
    alike = all(u.op == "q8_linear" and u.input(0) is node.output and counts_of(u) is counts_of(readers[0])
                for u in readers)
    return readers if alike and not any(map(graph.is_output, node.outputs)) else []


def counts_of(node: Node) -> Value | None:
    """What a product is told of sequences."""
    return node.inputs[Q8_COUNTS] if len(node.inputs) > Q8_COUNTS else None
