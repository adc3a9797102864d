"""Tables of embeddings in 8 bits, and one table for embeddings and head where they are the same."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.ir import q8
from q8c.ir.graph import Array, Graph, Node, Value
from q8c.ir.spill import release, spilled
from q8c.ir.types import DType
from q8c.passes.fold_weights import blocks
from q8c.passes.insert_dynamic_quantize import block_of
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import substitute
from q8c.passes.rules import attr

MIN_ELEMENTS = 2**20  # smaller tables load in no time and are in the cache
_CHUNK = 4096
_HALF = np.float32(0.51)  # of a step, as scales are rounded too


@dataclass(frozen=True)
class QuantizeEmbeddings(Pass):
    """Replaces gather(table, ids) by lookup(w, scale, ids) where a Q8 weight is the table turned, and else, where the
    table is large, by (gather(u8 table, ids) - 127) * gather(scales, ids), a scale per row.

    So a head that is tied to the embeddings is kept once, in the layout products read; a row takes 4 bytes from each
    of its panel's lines then, a few kilobytes in order.
    """

    name: ClassVar[str] = "quantize-embeddings"
    lossy: ClassVar[bool] = True

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a table was replaced."""
        changed = False
        for node in list(embeddings(graph)):
            table = node.input(0).array()
            weight = next((n for n in graph.nodes if n.op == "dequantize_weight" and is_table(n, table)), None)
            if weight is not None:
                row = graph.add("lookup", [*weight.inputs[:2], node.input(1)], blocks(block_of(weight)),
                                name=node.output.name, source=node.source, before=node).output
                report.rewrote(node, f"%{node.input(0).name} is the weight of a product too, kept once")
            elif table.size < MIN_ELEMENTS:
                continue
            elif not np.isfinite(table).all():
                report.decline(node, f"%{node.input(0).name} holds NaN or Inf")
                continue
            else:
                row = by_rows(graph, node)
                report.rewrote(node, f"%{node.input(0).name} with a scale per row")
            substitute(graph, node.output, row)
            changed = True
        graph.prune()
        return changed


def embeddings(graph: Graph) -> Iterator[Node]:
    """The nodes that pick rows of a float table."""
    for node in graph.nodes:
        if node.op == "gather" and node.input(0).is_constant and node.input(0).type.rank == 2 \
                and node.input(0).dtype is DType.f32 and attr(node, "axis") % 2 == 0:
            yield node


def is_tied(weight: Array, tables: Iterable[Array]) -> bool:
    """Whether a weight [depth, cols] is one of these tables of embeddings turned."""
    return any(same(table, weight.T) for table in tables)


def same(a: Array, b: Array) -> bool:
    """Whether two tables are equal; a few rows tell most apart."""
    step = max(len(a) // 16, 1)
    return a.shape == b.shape and np.array_equal(a[::step], b[::step]) and np.array_equal(a, b)


def is_table(weight: Node, table: Array) -> bool:
    """Whether a Q8 weight is a table turned: no element is farther from it than half a step of 8 bits.

    A file whose head has fewer bits than its embeddings has two tables.
    """
    u, scale = weight.input(0), weight.input(1)
    if not u.is_constant or u.shape != table.shape[::-1] or table.shape[1] % 16:
        return False
    block = block_of(weight)
    for start in range(0, len(table), _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = table[part].T
        near = q8.dequantize_weight(u.array()[:, part], scale.array()[..., part], block)
        largest = np.maximum.reduceat(np.abs(rows), range(0, len(rows), block or len(rows)))
        step = np.repeat(largest / q8.QMAX, block or len(rows), axis=0)[:len(rows)]
        if not (np.abs(near - rows) <= step * _HALF).all():
            return False
    return True


def by_rows(graph: Graph, node: Node) -> Value:
    """A gather from a table in 8 bits with a scale per row."""
    table = node.input(0)
    u, scale = q8.quantize_weight(table.array().T)
    release(table.array())

    def add(op: str, *inputs: Value, **attrs: int | DType) -> Value:
        return graph.add(op, inputs, attrs, name=node.output.name, source=node.source, before=node).output

    rows = add("gather", graph.constant(spilled(np.ascontiguousarray(u.T)), f"{table.name}.q8"), node.input(1), axis=0)
    steps = add("gather", graph.constant(scale[:, None], f"{table.name}.scale"), node.input(1), axis=0)
    zero = graph.constant(np.float32(q8.ZERO_POINT), "zero")
    return add("mul", add("sub", add("cast", rows, to=DType.f32), zero), steps)
