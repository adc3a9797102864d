"""Products by blocks are told how many new tokens each sequence has, where their rows are those tokens."""
from __future__ import annotations

import numpy as np

from q8c.ir import Array, interpret, parse_graph, print_graph
from q8c.passes.count_rows import CountRows
from q8c.passes.manager import run_passes

TEXT = """
graph @g(%past: f32[batch, 2, past, 4], %x: f32[batch, seq, 32], %other: f32[batch, seq_2, 32]) {{
  const %w: u8[32, 8] = @w
  const %s: f16[1, 8] = @s
  const %column: f32[8] = @column
  {first}
  %q: i8[batch, seq, 32], %r: f32[batch, seq, 1], %m: i32[batch, seq, 1] = dynamic_quantize(%x) {{block = 32}}
  %y: f32[batch, seq, 8] = q8_linear(%q, %r, %m, %w, %s{counts}) {{block = 32}}
  %q_2: i8[batch, seq_2, 32], %r_2: f32[batch, seq_2, 1], %m_2: i32[batch, seq_2, 1] = dynamic_quantize(%other) \
{{block = 32}}
  %z: f32[batch, seq_2, 8] = q8_linear(%q_2, %r_2, %m_2, %w, %s) {{block = 32}}
  %q_3: i8[batch, seq, 32], %r_3: f32[batch, seq, 1], %m_3: i32[batch, seq, 1] = dynamic_quantize(%x)
  %u: f32[batch, seq, 8] = q8_linear(%q_3, %r_3, %m_3, %w, %column)
  {last}
  return %y, %z, %u, {said}
}}"""


def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(2)
    return {"w": rng.integers(0, 255, (32, 8)).astype(np.uint8), "s": np.full((1, 8), 0.5, np.float16),
            "column": np.full(8, 0.5, np.float32)}


def test_rows_of_new_tokens_are_told_and_others_not() -> None:
    said = "%{}: i64[batch] = new_counts(%past) {{tokens = seq}}"
    graph = parse_graph(TEXT.format(first="", counts="", last=said.format("c"), said="%c"), arrays())
    rng = np.random.default_rng(3)
    feed = {"past": np.zeros((2, 2, 5, 4), np.float32), "x": rng.standard_normal((2, 3, 32), np.float32),
            "other": rng.standard_normal((2, 4, 32), np.float32)}
    before = interpret(graph, feed)
    assert run_passes(graph, [CountRows()]).steps[0].changed
    wanted = TEXT.format(first=said.format("counts"), counts=", -, -, -, -, -, -, %counts", last="",
                         said='%counts as "c"')
    assert print_graph(graph) == print_graph(parse_graph(wanted, arrays()))
    for value, expected in zip(interpret(graph, feed), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    assert not run_passes(graph, [CountRows()]).steps[0].changed


def test_nothing_is_told_where_nobody_counts() -> None:
    graph = parse_graph(TEXT.format(first="", counts="", last="", said="%x"), arrays())
    text = print_graph(graph)
    run_passes(graph, [CountRows()])
    assert print_graph(graph) == text
