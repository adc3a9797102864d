"""Sizes of a graph replaced by others."""
from __future__ import annotations

from collections.abc import Mapping

from q8c.ir.dims import Dim, substitute
from q8c.ir.graph import Graph
from q8c.ir.nested import names_in, substituted


def rename(graph: Graph, sizes: Mapping[str, Dim]) -> None:
    """Replace sizes by others everywhere in a graph without loops."""
    for value in graph.values():
        if names_in(value.shape) & sizes.keys():
            value.type = value.type.with_shape(substitute(d, sizes) for d in value.shape)
    for node in graph.nodes:
        node.attrs = {key: substituted(value, sizes) for key, value in node.attrs.items()}
    pairs = [(substitute(a, sizes), substitute(b, sizes)) for a, b in graph.assumptions]
    graph.assumptions[:] = [(a, b) for a, b in dict.fromkeys(pairs) if a != b]
