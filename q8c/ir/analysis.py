"""Graphs seen through networkx: who reads whom, and a drawing."""
from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from q8c.ir.graph import Graph, Node, Value

if TYPE_CHECKING:
    import networkx


def digraph(graph: Graph) -> networkx.DiGraph:
    """The nodes of a graph, with an edge from each to those that read its results; edges hold the `values` read."""
    import networkx as nx
    found = nx.DiGraph()
    found.add_nodes_from(graph.nodes)
    for node in graph.nodes:
        for value in dict.fromkeys(node.operands):
            if value.producer is not None:
                values = found.edges[value.producer, node]["values"] if found.has_edge(value.producer, node) else []
                found.add_edge(value.producer, node, values=[*values, value])
    return found


def draw(graph: Graph) -> str:
    """The graph in the DOT language of Graphviz: a box per node with its results' types, inputs and outputs round.

    Constants are left out but for their number. Nodes are named by their first result, so that text and drawing can
    be read side by side.
    """
    lines = [f"digraph {_quoted(graph.name)} {{", '  node [shape=box, fontname="monospace", fontsize=10];']
    for value in graph.inputs:
        lines.append(f"  {_quoted('%' + value.name)} [shape=oval, label={_quoted(f'%{value.name}', str(value.type))}];")
    for node in graph.nodes:
        weights = sum(v.is_constant for v in node.operands)
        label = [node.op + (f" +{weights} constant{'s' * (weights > 1)}" if weights else "")]
        if node.body is not None:
            label.append(", ".join(f"{n} {op}" if n > 1 else op for op, n in Counter(
                n.op for n in node.body.nodes).items()))
        lines.append(f"  {_name(node)} [label={_quoted(*label, *(f'%{v.name}: {v.type}' for v in node.outputs))}];")
    for value in graph.inputs:
        lines += [f"  {_quoted('%' + value.name)} -> {_name(user)};" for user in dict.fromkeys(value.users)]
    for source, target, values in digraph(graph).edges(data="values"):
        lines.append(f"  {_name(source)} -> {_name(target)} [label={_quoted(*_names(values))}, fontsize=8];")
    for value, name in zip(graph.outputs, graph.output_names, strict=True):
        end = _quoted("output " + name)
        lines.append(f"  {end} [shape=oval];")
        start = _name(value.producer) if value.producer is not None else _quoted("%" + value.name)
        lines.append(f"  {start} -> {end};")
    return "\n".join([*lines, "}"]) + "\n"


def _name(node: Node) -> str:
    return _quoted("%" + node.output.name)


def _names(values: list[Value]) -> list[str]:
    return [f"%{v.name}" for v in values]


def _quoted(*lines: Any) -> str:
    return '"' + "\\n".join(str(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'
