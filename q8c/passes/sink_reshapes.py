"""Let reshapes that keep rows whole come after the work on rows, where they meet and cancel."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops import OPS
from q8c.passes.canonical.movement import drop_same_shape, merge_reshapes
from q8c.passes.loopable import ROW_OPS, takes_rows
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import is_product
from q8c.passes.rules import Rewriter, Rules, producer, rewrite


@dataclass(frozen=True)
class SinkReshapes(Pass):
    """Replaces f(reshape(x)) by reshape(f(x)) where the reshape keeps the last axis and f works on rows.

    Exporters flatten [batch, seq, channels] to [batch * seq, channels] for a product and restore it behind; between
    two such reshapes loops would see another space of rows and could not fuse with what is before and after.
    """

    name: ClassVar[str] = "sink-reshapes"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a reshape was moved."""
        return rewrite(graph, RULES, report)


def rows_before(r: Rewriter, value: Value) -> Value | None:
    """x if a value is a reshape of x that merges axes before the last, else None."""
    node = producer(value, "reshape")
    x = None if node is None else node.input(0)
    if x is None or not value.shape or x.type.rank <= value.type.rank or value.shape[-1] == 0:
        return None  # of rows without elements any number fits any other
    return x if r.graph.known_equal(x.shape[-1], value.shape[-1]) else None


def sink_through_product(r: Rewriter, node: Node) -> Value | None:
    """matmul(reshape(x), w) -> reshape(matmul(x, w))."""
    x = rows_before(r, node.input(0))
    if x is None or not is_product(node):
        return None
    return r.reshape(r.add("matmul", x, node.input(1), **node.attrs), node.output.shape)


def sink_through_elementwise(r: Rewriter, node: Node) -> Value | None:
    """f(reshape(x), reshape(y), vector) -> reshape(f(x, y, vector)), x and y of the same rows."""
    rows = node.output.shape[:-1]
    operands: list[Value] = []
    found: Value | None = None
    for value in node.operands:
        x = rows_before(r, value) if r.same_shape(value.shape[:-1], rows) else None
        if x is not None and (found is None or r.same_shape(found.shape[:-1], x.shape[:-1])):
            found = x
        elif any(d != 1 for d in value.shape[:-1]):
            return None
        operands.append(value if x is None else x)
    if found is None or any(v.type.rank > found.type.rank for v in operands):
        return None
    return r.reshape(r.add(node.op, *operands, **node.attrs), node.output.shape)


def sink_through_rows(r: Rewriter, node: Node) -> Value | None:
    """norm(reshape(x), scale, bias) -> reshape(norm(x, scale, bias)), likewise softmax and reductions along rows."""
    x = rows_before(r, node.input(0))
    if x is None or not takes_rows(node):
        return None
    attrs = dict(node.attrs)
    for name, last in (("axis", x.type.rank - 1), ("axes", (x.type.rank - 1,))):
        if name in attrs:
            attrs[name] = last
    return r.reshape(r.add(node.op, x, *list(node.operands)[1:], **attrs), node.output.shape)


RULES: Rules = {
    "reshape": (drop_same_shape, merge_reshapes),
    "matmul": (sink_through_product,),
    **{op: (sink_through_elementwise,) for op, definition in OPS.items() if definition.elementwise},
    **{op: (sink_through_rows,) for op in ROW_OPS if op != "dynamic_quantize"}}
