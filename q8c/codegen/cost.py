"""How long a node takes on one core, roughly: what decides how finely it is shared and how many threads a run gets."""
from __future__ import annotations

from q8c.ir.dims import Dim, floordiv
from q8c.ir.graph import Graph, Node
from q8c.ir.work import work_of

RATES = {"int8": 256, "f32": 64, "attention": 64, "": 1}
"""Multiply-adds per nanosecond."""
BYTES = 8
"""Bytes that kernels without products read and write per nanosecond."""


def cost_of(node: Node) -> Dim:
    """Nanoseconds of one node, within a factor of two or three on CPUs of the last years."""
    work = work_of(node)
    return floordiv(work.macs, RATES[work.kind]) if work.kind else floordiv(work.bytes, BYTES)


def total_cost(graph: Graph) -> Dim:
    """Nanoseconds of a whole graph."""
    total: Dim = 0
    for node in graph.nodes:
        total = cost_of(node) + total
    return total
