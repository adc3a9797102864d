"""Softmax from its parts, and without what it takes off anyway."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir import Graph, Node, Value
from q8c.passes.attention_heads import scaling
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import Declined, Rewriter, attr, is_close, nodes_between, orders, producer, rewrite


@dataclass(frozen=True)
class FuseSoftmax(Pass):
    """exp(x - max(x)) / sum(exp(x - max(x))) -> softmax(x), and softmax(x - max(x)) -> softmax(x), along one axis."""

    name: ClassVar[str] = "fuse-softmax"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a softmax was found."""
        rules = {"div": (fuse_quotient,), "mul": (fuse_product,), "softmax": (drop_shift,)}
        return rewrite(graph, rules, report, explain=True)


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


def drop_shift(r: Rewriter, node: Node) -> Value | None:
    """softmax(factor * (x - max(x))) -> softmax(factor * x), which takes off the largest element itself."""
    x, factor = _unscaled(node.input(0))
    shifted = producer(x, "sub")
    largest = None if shifted is None else producer(shifted.input(1), "reduce_max")
    axis = attr(node, "axis") % x.type.rank
    if shifted is None or largest is None or largest.input(0) is not shifted.input(0):
        return None
    if [a % x.type.rank for a in attr(largest, "axes")] != [axis] or not attr(largest, "keepdims"):
        return None
    x, inner = _unscaled(shifted.input(0))
    factor *= inner
    one = is_close(factor, 1.0, x.dtype)
    if not one and not 0 < factor < 1:  # what masks put in the place of a score may overflow
        return None
    r.from_nodes(nodes_between(node, [x]))
    return r.add("softmax", x if one else r.add("mul", x, r.constant(factor, x.dtype)), axis=axis)


def _unscaled(x: Value) -> tuple[Value, float]:
    """What is multiplied by a constant, and that."""
    return (None if x.producer is None else scaling(x.producer)) or (x, 1.0)


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
