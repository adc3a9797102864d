"""How long a node takes on one core, roughly: what decides how finely it is shared and how many threads a run gets."""
from __future__ import annotations

from q8c.ir.dims import Dim, dim_max, floordiv
from q8c.ir.graph import Graph, Node
from q8c.ir.work import work_of

RATES = {"int8": 256, "f32": 64, "attention": 64, "": 1}
"""Multiply-adds per nanosecond."""
BYTES = 16
"""Bytes that kernels without products read and write per nanosecond."""
WEIGHT_BYTES = 24
"""Bytes of weights that reach a core per nanosecond; for a few rows, products are as fast as that."""


def cost_of(node: Node) -> Dim:
    """Nanoseconds of one node, within a factor of two or three on CPUs of the last years."""
    work = work_of(node)
    if not work.kind:
        return floordiv(work.bytes, BYTES)
    return dim_max(floordiv(work.macs, RATES[work.kind]), floordiv(work.weight_bytes, WEIGHT_BYTES))


def total_cost(graph: Graph) -> Dim:
    """Nanoseconds of a whole graph."""
    total: Dim = 0
    for node in graph.nodes:
        total = cost_of(node) + total
    return total
