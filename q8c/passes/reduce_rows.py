"""Make reductions along rows, and softmax, look the way loops take them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.dims import product
from q8c.ir.graph import Graph, Node, Value
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import Rewriter, Rules, attr, rewrite

REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")


@dataclass(frozen=True)
class ReduceRows(Pass):
    """Makes reductions along the last axes reductions along one that is kept, and softmax one along the last axis.

    Reductions along other axes are kernels of their own, which read rows as they lie.
    """

    name: ClassVar[str] = "reduce-rows"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a node was rewritten."""
        return rewrite(graph, RULES, report, explain=True)


def reduce_last(r: Rewriter, node: Node) -> Value | None:
    """reduce(x) along the last axes -> reshape(reduce(reshape(x))) along one, which is kept."""
    x = node.input(0)
    rank = x.type.rank
    axes = sorted({axis % rank for axis in attr(node, "axes")})
    first = rank - len(axes)
    if not axes or axes[0] != first or (first == rank - 1 and attr(node, "keepdims")):
        return None
    rows = r.reshape(x, (*x.shape[:first], product(x.shape[first:])))
    return r.reshape(r.add(node.op, rows, axes=(first,), keepdims=True), node.output.shape)


def softmax_last(r: Rewriter, node: Node) -> Value | None:
    """softmax(x) along an axis -> transpose(softmax(transpose(x))) along the last."""
    rank = node.input(0).type.rank
    axis = attr(node, "axis") % rank
    if axis == rank - 1:
        return None
    perm = list(range(rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    rows = r.add("transpose", node.input(0), perm=tuple(perm))
    return r.add("transpose", r.add("softmax", rows, axis=rank - 1), perm=tuple(perm))


RULES: Rules = {"softmax": (softmax_last,), **dict.fromkeys(REDUCTIONS, (reduce_last,))}
