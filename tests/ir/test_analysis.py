"""Graphs through networkx."""
from __future__ import annotations

from q8c.ir import parse_graph, print_graph
from q8c.ir.analysis import digraph, draw

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
    a, b, c, _ = graph.nodes
    found = digraph(graph)
    assert set(found.edges) == {(a, b), (a, c), (b, c)}
    assert found.edges[a, c]["values"] == [a.output]


def test_the_drawing_names_everything_once() -> None:
    text = draw(parse_graph(TEXT))
    assert text.count('"%b" [label="matmul') == 1 and "matmul +1 constant" in text and "f32[n, 4]" in text
    assert '"%a" -> "%c"' in text and '"%x" -> "%d"' in text and '"%c" -> "output the sum"' in text
    assert print_graph(parse_graph(TEXT)) == TEXT
