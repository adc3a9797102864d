"""Make every reduction one along rows, which is what loops take."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.dims import Dim, product
from q8c.ir.graph import Graph, Node, Value
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import Rewriter, Rules, attr, producer, rewrite

REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")


@dataclass(frozen=True)
class ReduceRows(Pass):
    """Moves the axes of reductions and of softmax to the end, as one axis, which reductions keep.

    Where the reduced axes do not take part in a broadcast of the operand, it is reduced before it is broadcast.
    """

    name: ClassVar[str] = "reduce-rows"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a node was rewritten."""
        return rewrite(graph, RULES, report, explain=True)


def reduced_axes(node: Node) -> tuple[int, ...]:
    """The axes a node reduces, counted from the front, ascending."""
    rank = node.input(0).type.rank
    return tuple(sorted({axis % rank for axis in attr(node, "axes")}))


def reduce_before_broadcast(r: Rewriter, node: Node) -> Value | None:
    """reduce(broadcast_to(x)) along axes that are not broadcast -> broadcast_to(reduce(x))."""
    inner = producer(node.input(0), "broadcast_to")
    if inner is None:
        return None
    shape = inner.output.shape
    padded = (1,) * (len(shape) - inner.input(0).type.rank) + inner.input(0).shape
    axes = reduced_axes(node)
    if not r.same_shape([padded[a] for a in axes], [shape[a] for a in axes]):
        return None
    keep = attr(node, "keepdims")
    small = r.add(node.op, r.reshape(inner.input(0), padded), axes=axes, keepdims=keep)
    return r.broadcast(small, node.output.shape)


def reduce_last(r: Rewriter, node: Node) -> Value | None:
    """reduce(x) along any axes -> reshape(reduce(reshape(transpose(x)))) along the last, which is kept."""
    x, axes = node.input(0), reduced_axes(node)
    rank = x.type.rank
    if not axes:
        return x
    if axes == (rank - 1,) and attr(node, "keepdims"):
        return None
    kept = [a for a in range(rank) if a not in axes]
    rows = to_end(r, x, kept, axes)
    reduced = r.add(node.op, rows, axes=(rows.type.rank - 1,), keepdims=True)
    return r.reshape(reduced, node.output.shape)


def to_end(r: Rewriter, x: Value, kept: Sequence[int], axes: Sequence[int]) -> Value:
    """x with `axes` at the end, as one."""
    perm = (*kept, *axes)
    moving = [a for a in perm if x.shape[a] != 1]  # an axis of one element is moved by the reshape
    moved = x if moving == sorted(moving) else r.add("transpose", x, perm=perm)
    last: Dim = product(x.shape[a] for a in axes)
    return r.reshape(moved, (*(x.shape[a] for a in kept), last))


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


RULES: Rules = {"softmax": (softmax_last,), **dict.fromkeys(REDUCTIONS, (reduce_before_broadcast, reduce_last))}
