"""Graphs through networkx."""
from __future__ import annotations

import random

import pytest

from q8c.errors import CompileError
from q8c.ir import clone, parse_graph, print_graph, verify
from q8c.ir.analysis import depends, digraph, draw, longest_chain, sort_nodes

TEXT = """\
graph @g(%x: f32[n, 4]) {
  const %w: f32[4, 4] = 0.5
  %a: f32[n, 4] = exp(%x)
  %b: f32[n, 4] = matmul(%a, %w)
  %c: f32[n, 4] = add(%a, %b)
  %d: f32[n, 4] = neg(%x)
  return %c as "the sum", %d
}
"""


def test_edges_hold_what_is_read() -> None:
    graph = parse_graph(TEXT)
    a, b, c, d = graph.nodes
    found = digraph(graph)
    assert set(found.edges) == {(a, b), (a, c), (b, c)}
    assert found.edges[a, c]["values"] == [a.output]
    assert depends(graph, c, a) and not depends(graph, d, a) and not depends(graph, a, c)
    assert longest_chain(graph) == [a, b, c]


def test_any_order_is_put_right_and_a_right_one_stays() -> None:
    graph = parse_graph(TEXT)
    assert not sort_nodes(graph)
    shuffled = clone(graph)
    while shuffled.nodes == graph.nodes or shuffled.nodes[0].op in ("exp", "neg"):
        random.Random(1).shuffle(shuffled.nodes)
    with pytest.raises(CompileError, match="before it is defined"):
        verify(shuffled)
    assert sort_nodes(shuffled)
    verify(shuffled)


def test_a_cycle_is_named() -> None:
    graph = parse_graph(TEXT)
    a, _, c, _ = graph.nodes
    graph.set_inputs(a, [c.output])
    with pytest.raises(CompileError, match="has a cycle: .*exp %a"):
        sort_nodes(graph)


def test_the_drawing_names_everything_once() -> None:
    text = draw(parse_graph(TEXT))
    assert text.count('"%b" [label="matmul') == 1 and "matmul +1 constant" in text and "f32[n, 4]" in text
    assert '"%a" -> "%c"' in text and '"%x" -> "%d"' in text and '"%c" -> "output the sum"' in text
    assert print_graph(parse_graph(TEXT)) == TEXT
