"""Softmax from its parts."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir import Graph, Node, Value
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import Declined, Rewriter, attr, nodes_between, orders, producer, rewrite


@dataclass(frozen=True)
class FuseSoftmax(Pass):
    """exp(x - max(x)) / sum(exp(x - max(x))) along one axis -> softmax(x)."""

    name: ClassVar[str] = "fuse-softmax"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a softmax was found."""
        return rewrite(graph, {"div": (fuse_quotient,), "mul": (fuse_product,)}, report, explain=True)


def fuse_quotient(r: Rewriter, node: Node) -> Value | Declined | None:
    """exp(x - max(x)) / sum(exp(x - max(x))) -> softmax(x)."""
    return _fuse(r, node, node.input(0), node.input(1))


def fuse_product(r: Rewriter, node: Node) -> Value | Declined | None:
    """exp(x - max(x)) * reciprocal(sum(exp(x - max(x)))) -> softmax(x)."""
    for power, factor in orders(node):
        inverse = producer(factor, "reciprocal")
        if inverse is not None:
            return _fuse(r, node, power, inverse.input(0))
    return None


def _fuse(r: Rewriter, root: Node, power: Value, total: Value) -> Value | Declined | None:
    exp, total_node = producer(power, "exp"), producer(total, "reduce_sum")
    if exp is None or total_node is None or total_node.input(0) is not power:
        return None
    axes = attr(total_node, "axes")
    if len(axes) != 1 or not attr(total_node, "keepdims"):
        return Declined(f"the sum is over axes {axes}, expected one axis that is kept")
    axis = axes[0] % power.type.rank
    shifted = producer(exp.input(0), "sub")
    largest = None if shifted is None else producer(shifted.input(1), "reduce_max")
    if shifted is None or largest is None or largest.input(0) is not shifted.input(0):
        return Declined("the largest element is not taken off before exp, so it may overflow where softmax does not")
    if [a % power.type.rank for a in attr(largest, "axes")] != [axis]:
        return Declined("the maximum and the sum are over different axes")
    x = shifted.input(0)
    return r.from_nodes(nodes_between(root, [x])).add("softmax", x, axis=axis)
