"""Sizes of a graph replaced by others."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from q8c.ir.dims import Dim, Expr, substitute, symbols
from q8c.ir.graph import Graph


def rename(graph: Graph, sizes: Mapping[str, Dim]) -> None:
    """Replace sizes by others everywhere in a graph without loops."""
    for value in graph.values():
        if any(symbols(d) & sizes.keys() for d in value.shape):
            value.type = value.type.with_shape(substitute(d, sizes) for d in value.shape)
    for node in graph.nodes:
        node.attrs = {key: _renamed(value, sizes) for key, value in node.attrs.items()}
    pairs = [(substitute(a, sizes), substitute(b, sizes)) for a, b in graph.assumptions]
    graph.assumptions[:] = [(a, b) for a, b in dict.fromkeys(pairs) if a != b]


def _renamed(value: Any, sizes: Mapping[str, Dim]) -> Any:
    if isinstance(value, tuple):
        return tuple(_renamed(v, sizes) for v in value)
    return substitute(value, sizes) if isinstance(value, Expr) else value
