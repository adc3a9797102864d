"""Let moves that keep rows whole come after the work on rows, where they meet and cancel."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops import OPS
from q8c.passes.canonical.movement import drop_identity_transpose, drop_same_shape, merge_reshapes, merge_transposes
from q8c.passes.loopable import ROW_OPS, takes_rows
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import is_product
from q8c.passes.rules import Rewriter, Rules, attr, producer, rewrite

SWAP = (1, 0, 2)


@dataclass(frozen=True)
class SinkReshapes(Pass):
    """Replaces f(move(x)) by move(f(x)) where f works on rows and the move is a reshape that keeps the last axis, or a
    transpose of [batch, seq, channels] to [seq, batch, channels].

    Exporters flatten [batch, seq, channels] to [batch * seq, channels] for a product and restore it behind; between
    two such reshapes loops would see another space of rows and could not fuse with what is before and after. PyTorch's
    own attention wants the sequence first, and whoever has the batch first transposes before and behind it.
    """

    name: ClassVar[str] = "sink-reshapes"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a move was moved."""
        return rewrite(graph, RULES, report)


def before_reshape(r: Rewriter, value: Value) -> Value | None:
    """x if a value is a reshape of x that merges axes before the last, else None."""
    node = producer(value, "reshape")
    x = None if node is None else node.input(0)
    if x is None or not value.shape or x.type.rank <= value.type.rank or value.shape[-1] == 0:
        return None  # of rows without elements any number fits any other
    return x if r.graph.known_equal(x.shape[-1], value.shape[-1]) else None


def before_swap(r: Rewriter, value: Value) -> Value | None:
    """x if a value is x with its first two axes of three exchanged, else None."""
    node = producer(value, "transpose")
    return node.input(0) if node is not None and attr(node, "perm") == SWAP else None


def reshaped(r: Rewriter, x: Value, like: Value) -> Value:
    """x in the shape that `like` has."""
    return r.reshape(x, like.shape)


def swapped(r: Rewriter, x: Value, like: Value) -> Value:
    """x with its first two axes exchanged."""
    return r.add("transpose", x, perm=SWAP)


Before: TypeAlias = "Callable[[Rewriter, Value], Value | None]"
MOVES = ((before_reshape, reshaped), (before_swap, swapped))
"""What a value was before a move, and the same move of another value."""


def sink_through_product(r: Rewriter, node: Node) -> Value | None:
    """matmul(move(x), w) -> move(matmul(x, w))."""
    for before, again in MOVES:
        x = before(r, node.input(0))
        if x is not None and is_product(node):
            return again(r, r.add("matmul", x, node.input(1), **node.attrs), node.output)
    return None


def sink_through_elementwise(r: Rewriter, node: Node) -> Value | None:
    """f(move(x), move(y), vector) -> move(f(x, y, vector)), x and y of the same rows."""
    for before, again in MOVES:
        operands = unmoved(r, node, before)
        if operands is not None:
            return again(r, r.add(node.op, *operands, **node.attrs), node.output)
    return None


def unmoved(r: Rewriter, node: Node, before: Before) -> list[Value] | None:
    """A node's operands before a move that all of them took but those without rows, None if they did not."""
    rows = node.output.shape[:-1]
    operands: list[Value] = []
    found: Value | None = None
    for value in node.operands:
        x = before(r, value) if r.same_shape(value.shape[:-1], rows) else None
        if x is not None and (found is None or r.same_shape(found.shape[:-1], x.shape[:-1])):
            found = x
        elif any(d != 1 for d in value.shape[:-1]):
            return None
        operands.append(value if x is None else x)
    if found is None or any(v.type.rank > found.type.rank for v in operands):
        return None
    return operands


def sink_through_rows(r: Rewriter, node: Node) -> Value | None:
    """norm(move(x), scale, bias) -> move(norm(x, scale, bias)), likewise softmax and reductions along rows."""
    for before, again in MOVES:
        x = before(r, node.input(0))
        if x is not None and takes_rows(node):
            attrs = dict(node.attrs)
            for name, last in (("axis", x.type.rank - 1), ("axes", (x.type.rank - 1,))):
                if name in attrs:
                    attrs[name] = last
            return again(r, r.add(node.op, x, *list(node.operands)[1:], **attrs), node.output)
    return None


def split_batch(r: Rewriter, value: Value) -> Value | None:
    """x [a, b, ...] if a value [a*b, ...] is x reshaped, else None."""
    x = before_reshape(r, value)
    lead = 0 if x is None else x.type.rank - value.type.rank + 1
    return x if x is not None and r.same_shape(x.shape[lead:], value.shape[1:]) else None


def sink_through_transpose(r: Rewriter, node: Node) -> Value | None:
    """transpose(reshape(x)) -> reshape(transpose(x)), the first axis staying where it is, which the reshape merged."""
    perm, x = attr(node, "perm"), split_batch(r, node.input(0))
    if x is None or perm[0] != 0:
        return None
    more = x.type.rank - len(perm)
    return r.reshape(r.add("transpose", x, perm=(*range(more + 1), *(p + more for p in perm[1:]))), node.output.shape)


def sink_through_gather(r: Rewriter, node: Node) -> Value | None:
    """gather_elements(reshape(x), indices) -> reshape(gather_elements(x, indices)), the same for all that is merged."""
    x, indices, axis = split_batch(r, node.input(0)), node.input(1), attr(node, "axis")
    if x is None or indices.shape[0] != 1 or axis == 0:
        return None
    lead = x.shape[:x.type.rank - indices.type.rank + 1]
    apart = r.reshape(indices, (*(1,) * len(lead), *indices.shape[1:]))
    shape = (*lead, *node.output.shape[1:])
    return r.reshape(r.add("gather_elements", x, apart, axis=axis + len(lead) - 1, shape=shape), node.output.shape)


RULES: Rules = {
    "reshape": (drop_same_shape, merge_reshapes),
    "transpose": (merge_transposes, drop_identity_transpose, sink_through_transpose),
    "gather_elements": (sink_through_gather,),
    "matmul": (sink_through_product,),
    **{op: (sink_through_elementwise,) for op, definition in OPS.items() if definition.elementwise},
    **{op: (sink_through_rows,) for op in ROW_OPS if op != "dynamic_quantize"}}
