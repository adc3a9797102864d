"""Logits of the last token only, and all before them that only they need."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.errors import Error
from q8c.ir import interpret
from q8c.passes.last_logits import LastLogits
from q8c.passes.manager import run_passes
from tests.passes.support import check, parse

HEAD = """graph @g(%x: f32[b, s, 8], %mask: i64[b, p + s], %k: f32[b, 1, p, 8]) {
  const %w: f32[8, 40] = @w
  const %v: f32[8] = @v
  %n: i64[b] = past_lengths(%k)
  %kk: f32[b, 1, p + s, 8] = append(%k, %x, %n) {kv_heads = 1, head_size = 8}
"""
ATTENTION = "heads = 1, kv_heads = 1, head_size = 8, scale = 0.5, causal = true"
TAIL = """  %y: f32[b, s, 8] = add(%a, %x)
  %r: f32[b, s, 8] = rms_norm(%y, %v)
  %h: f32[b, s, 40] = matmul(%r, %w)
  %t: f32[b, s, 40] = tanh(%h)
  return %t as "logits", %kk as "present"
}"""


def test_up_to_the_attention() -> None:
    attention = f"  %a: f32[b, s, 8] = attention(%x, %kk, %kk, -, %mask, %n) {{{ATTENTION}}}\n"
    graph = parse(HEAD + attention + TAIL)
    after = parse(HEAD + attention + """  %al: f32[b, 1, 8] = last_token(%a, %mask, %n)
  %xl: f32[b, 1, 8] = last_token(%x, %mask, %n)
  %y: f32[b, 1, 8] = add(%al, %xl)
  %r: f32[b, 1, 8] = rms_norm(%y, %v)
  %h: f32[b, 1, 40] = matmul(%r, %w)
  %t: f32[b, 1, 40] = tanh(%h)
  return %t as "logits", %kk as "present"
}""")
    before = parse(HEAD + attention + TAIL)
    report = run_passes(graph, [LastLogits()])
    assert [n.op for n in graph.nodes] == [n.op for n in after.nodes] and "4 nodes" in str(report.rewrites[0])
    assert graph.output_names == ["logits", "present"] and str(graph.outputs[0].type) == "f32[b, 1, 40]"
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((3, 4, 8)).astype(np.float32), "k": np.ones((3, 1, 2, 8), np.float32),
             "mask": np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]])}
    (logits, present), (last, same) = interpret(before, feeds), interpret(graph, feeds)
    np.testing.assert_array_equal(last, logits[np.arange(3), [3, 1, 3]][:, None])
    np.testing.assert_array_equal(present, same)
    with pytest.raises(Error, match="there are no tokens"):
        interpret(graph, {**feeds, "x": feeds["x"][:, :0], "mask": feeds["mask"][:, :2]})


def test_the_last_position_where_nothing_tells_padding() -> None:
    text = """graph @g(%x: f32[b, s, 8], %m: i64[b, s]) {
  const %w: f32[8, 40] = @w
  %h: f32[b, s, 40] = matmul(%x, %w)
  return %h, %m
}"""
    after = text.replace("%h: f32[b, s, 40] = matmul(%x, %w)",
                         "%l: f32[b, 1, 8] = last_token(%x)\n  %h: f32[b, 1, 40] = matmul(%l, %w)")
    graph = parse(text)
    run_passes(graph, [LastLogits()])
    assert [n.op for n in graph.nodes] == [n.op for n in parse(after).nodes] and len(graph.nodes[0].inputs) == 1
    named = parse(text)
    run_passes(named, [LastLogits("m")])
    assert [v and v.name for v in named.nodes[0].inputs] == ["x", "m"]


def test_through_the_columns_of_a_merged_product() -> None:
    graph = parse("""graph @g(%x: f32[b, s, 8]) {
  const %w: f32[8, 12] = @w
  const %v: f32[6, 40] = @v
  %p: f32[b, s, 12] = matmul(%x, %w)
  %g: f32[b, s, 6] = slice(%p) {starts = (0, 0, 0), sizes = (b, s, 6), steps = (1, 1, 1)}
  %u: f32[b, s, 6] = slice(%p) {starts = (0, 0, 6), sizes = (b, s, 6), steps = (1, 1, 1)}
  %m: f32[b, s, 6] = mul(%g, %u)
  %h: f32[b, s, 40] = matmul(%m, %v)
  return %h
}""")
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    [all_of_them] = interpret(graph, {"x": x})
    run_passes(graph, [LastLogits()])
    assert [n.op for n in graph.nodes] == ["last_token", "matmul", "slice", "slice", "mul", "matmul"]
    np.testing.assert_array_equal(interpret(graph, {"x": x})[0], all_of_them[:, -1:])


def test_outputs_that_are_no_logits_stay() -> None:
    report = check(LastLogits(), """graph @g(%x: f32[b, s, 8], %z: f32[b, s, 8]) {
  %h: f32[b, s, 8] = add(%x, %z)
  return %h
}""", None)
    assert "no output is a product" in str(report.declines[0])


def test_what_others_read_is_computed_for_all_tokens() -> None:
    graph = parse("""graph @g(%x: f32[b, s, 8]) {
  const %w: f32[8, 40] = @w
  const %v: f32[8] = @v
  %r: f32[b, s, 8] = rms_norm(%x, %v)
  %h: f32[b, s, 40] = matmul(%r, %w)
  return %h, %r
}""")
    run_passes(graph, [LastLogits()])
    assert [n.op for n in graph.nodes] == ["rms_norm", "last_token", "matmul"]
    assert str(graph.outputs[1].type) == "f32[b, s, 8]"
