"""Tell products how many new tokens of each sequence are no padding."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.graph import Graph, Node
from q8c.ir.ops.fused import Q8_COUNTS
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import attr


@dataclass(frozen=True)
class CountRows(Pass):
    """Gives new_counts, where attention goes by it, to products of weights by blocks whose rows are new tokens, or one
    of each sequence.

    Code that rounds few tokens of a sequence otherwise than many can then choose for each sequence by its own.
    """

    name: ClassVar[str] = "count-rows"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether any product is told."""
        said = next((n for n in graph.nodes if n.op == "new_counts"), None)
        found = [n for n in graph.nodes if said is not None and goes_by(said, n)]
        if said is None or not found:
            return False
        # in front of all products, and of what makes their rows
        counts = graph.add("new_counts", said.inputs, dict(said.attrs), name="counts", before=graph.nodes[0]).output
        graph.replace_uses(said.output, counts)
        graph.erase(said)
        for node in found:
            graph.set_inputs(node, [*node.inputs, *[None] * (Q8_COUNTS - len(node.inputs)), counts])
        return True


def goes_by(said: Node, node: Node) -> bool:
    """Whether a node is a product by blocks of rows [batch, tokens or 1, depth], and is not told yet."""
    if node.op != "q8_linear" or not attr(node, "block") or len(node.inputs) > Q8_COUNTS - 1:
        return False
    batch, = said.output.shape
    return node.input(0).shape[:-1] in ((batch, said.attrs["tokens"]), (batch, 1))
