"""Rows that only products by blocks read lie as far apart as in bfloat16, and are told what the products are."""
from __future__ import annotations

import pytest

from q8c.ir import parse_graph, print_graph
from q8c.ir.dims import evaluate
from q8c.ir.memory import WIDE_TILE, is_wide, stored_bytes, wide_pitch
from q8c.passes.fuse_loops import FuseLoops
from q8c.passes.manager import run_passes
from q8c.passes.widen_rows import WidenRows
from tests.passes.test_count_rows import arrays

TEXT = """
graph @g(%past: f32[batch, 2, past, 4], %x: f32[batch, seq, 32]) {{
  const %w: u8[32, 8] = @w
  const %s: f16[1, 8] = @s
  %counts: i64[batch] = new_counts(%past) {{tokens = seq}}
  {shaped}
  %q: i8[batch, seq, 32], %r: f32[batch, seq, 1], %m: i32[batch, seq, 1] = dynamic_quantize(%x{given}) {{block = 32{wide}}}
  %y: f32[batch, seq, 8] = q8_linear(%q, %r, %m, %w, %s{first}) {{block = 32}}
  %z: f32[batch, seq, 8] = q8_linear(%q, %r, %m, %w, %s{second}) {{block = 32}}
  return %y, %z{also}
}}"""
PLAIN = {"shaped": "", "given": "", "wide": "", "first": "", "second": "", "also": ""}
COUNTED = ", -, -, -, -, -, -, %counts"


@pytest.mark.parametrize("counted", [False, True])
def test_rows_are_wide_and_told_what_products_are(counted: bool) -> None:
    told = {"first": COUNTED, "second": COUNTED} if counted else {}
    graph = parse_graph(TEXT.format(**PLAIN | told), arrays())
    assert run_passes(graph, [WidenRows()]).steps[0].changed
    shaped = {"shaped": "%counts_1: i64[batch, 1, 1] = reshape(%counts) {shape = (batch, 1, 1)}",
              "given": ", %counts_1"} if counted else {}
    wanted = TEXT.format(**PLAIN | told | shaped | {"wide": ", wide = true"})
    assert print_graph(graph) == print_graph(parse_graph(wanted, arrays()))
    assert not run_passes(graph, [WidenRows()]).steps[0].changed


@pytest.mark.parametrize("other", [{"also": ", %q"}, {"also": ", %r"}, {"second": COUNTED}])
def test_rows_that_something_else_reads_stay_dense(other: dict[str, str]) -> None:
    graph = parse_graph(TEXT.format(**PLAIN | other), arrays())
    assert not run_passes(graph, [WidenRows()]).steps[0].changed


def test_there_is_room_for_a_tile_behind_the_last_row_in_a_loop_too() -> None:
    graph = parse_graph(TEXT.format(**PLAIN), arrays())
    dense = stored_bytes(graph.nodes[1].output)
    run_passes(graph, [WidenRows(), FuseLoops()])
    loop = next(n for n in graph.nodes if n.op == "loop")
    assert [is_wide(v) for v in loop.outputs] == [True, False, False]
    sizes = {"batch": 3, "seq": 5}
    assert evaluate(dense, sizes) == 15 * 32
    assert evaluate(stored_bytes(loop.outputs[0]), sizes) == (15 + WIDE_TILE - 1) * wide_pitch(32)
