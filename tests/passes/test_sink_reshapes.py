"""Reshapes that merge axes before the last move behind the work on rows."""
from __future__ import annotations

import pytest

from q8c.ir import parse_graph
from q8c.passes.manager import Report
from q8c.passes.sink_reshapes import SinkReshapes
from tests.passes.support import check

HEAD = """graph @g(%x: f32[b, s, 8], %y: f32[b, s, 8], %m: f32[b*s, 8]) {
  const %w: f32[8, 16] = @w
  const %v: f32[1, 16] = @v
  const %half: f32[] = 0.5
"""


def graph(body: str, result: str = "return %z") -> str:
    """A graph with the constants its body names."""
    lines = [line for line in HEAD.splitlines() if "const" not in line or line.split(":")[0].split()[-1] in body]
    return "\n".join([*lines, body, result, "}"])


def test_a_layer_on_flattened_rows_becomes_one_on_rows_as_they_were() -> None:
    check(SinkReshapes(), graph("""
      %a: f32[b*s, 8] = reshape(%x) {shape = (b*s, 8)}
      %h: f32[b*s, 16] = matmul(%a, %w)
      %i: f32[b*s, 16] = add(%h, %v)
      %j: f32[b*s, 16] = mul(%half, %i)
      %k: f32[b*s, 16] = gelu(%j)
      %n: f32[b*s, 16] = softmax(%k) {axis = 1}
      %o: f32[b*s, 1] = reduce_max(%n) {axes = (-1)}
      %p: f32[b*s, 16] = sub(%n, %o)
      %z: f32[b, s, 16] = reshape(%p) {shape = (b, s, 16)}"""), graph("""
      %h: f32[b, s, 16] = matmul(%x, %w)
      %i: f32[b, s, 16] = add(%h, %v)
      %j: f32[b, s, 16] = mul(%half, %i)
      %k: f32[b, s, 16] = gelu(%j)
      %n: f32[b, s, 16] = softmax(%k) {axis = 2}
      %o: f32[b, s, 1] = reduce_max(%n) {axes = (2)}
      %z: f32[b, s, 16] = sub(%n, %o)"""))


def test_two_reshapes_of_the_same_rows_become_one() -> None:
    check(SinkReshapes(), graph("""
      %a: f32[b*s, 8] = reshape(%x) {shape = (b*s, 8)}
      %c: f32[b*s, 8] = reshape(%y) {shape = (b*s, 8)}
      %z: f32[b*s, 8] = add(%a, %c)"""), graph("""
      %a: f32[b, s, 8] = add(%x, %y)
      %z: f32[b*s, 8] = reshape(%a) {shape = (b*s, 8)}"""))


@pytest.mark.parametrize("body", [
    "%a: f32[b*s, 8] = reshape(%x) {shape = (b*s, 8)}\n %z: f32[b*s, 8] = add(%a, %m)",
    "%a: f32[8*b*s] = reshape(%x) {shape = (8*b*s)}\n %z: f32[8*b*s] = abs(%a)",
    "%a: f32[b, 1, s, 8] = reshape(%x) {shape = (b, 1, s, 8)}\n %z: f32[b, 1, s, 8] = abs(%a)",
    "%a: f32[b*s, 8] = reshape(%x) {shape = (b*s, 8)}\n %z: f32[b*s, 8] = softmax(%a) {axis = 0}",
    "%a: f32[s, 8*b] = reshape(%x) {shape = (s, 8*b)}\n %z: f32[s, 8*b] = abs(%a)",
])
def test_other_reshapes_stay(body: str) -> None:
    check(SinkReshapes(), graph(body), None)


def test_rows_without_elements_stay() -> None:
    graph = parse_graph("""graph @g(%x: f32[2, 3, 0]) {
      %r: f32[0] = reshape(%x) {shape = (0)}
      %y: f32[0] = softmax(%r) {axis = 0}
      return %y
    }""")
    assert not SinkReshapes().run(graph, Report())


def test_transposes_around_work_on_rows_cancel() -> None:
    """As around PyTorch's attention, which wants the sequence first; %y is not swapped, so the last add waits."""
    check(SinkReshapes(), graph("""
      %a: f32[s, b, 8] = transpose(%x) {perm = (1, 0, 2)}
      %h: f32[s, b, 16] = matmul(%a, %w)
      %i: f32[s, b, 16] = add(%h, %v)
      %n: f32[s, b, 16] = softmax(%i) {axis = 2}
      %p: f32[s, b, 16] = mul(%n, %h)
      %q: f32[b, s, 16] = transpose(%p) {perm = (1, 0, 2)}
      %y2: f32[s, b, 8] = transpose(%y) {perm = (1, 0, 2)}
      %z: f32[s, b, 8] = add(%y2, %t)""", "return %q, %z").replace("%m:", "%t: f32[s, b, 8], %m:"), graph("""
      %h: f32[b, s, 16] = matmul(%x, %w)
      %i: f32[b, s, 16] = add(%h, %v)
      %n: f32[b, s, 16] = softmax(%i) {axis = 2}
      %p: f32[b, s, 16] = mul(%n, %h)
      %y2: f32[s, b, 8] = transpose(%y) {perm = (1, 0, 2)}
      %z: f32[s, b, 8] = add(%y2, %t)""", "return %p, %z").replace("%m:", "%t: f32[s, b, 8], %m:"))


def test_heads_that_are_rows_of_the_batch_are_told_apart_behind_a_gather() -> None:
    """As DeBERTa's relative positions have them."""
    check(SinkReshapes(), """
    graph @g(%x: f32[b, 2, s, 5], %i: i64[1, s, s]) {
      const %half: f32[] = 0.5
      %f: f32[2*b, s, 5] = reshape(%x) {shape = (2*b, s, 5)}
      %g: f32[2*b, s, s] = gather_elements(%f, %i) {axis = 2, shape = (2*b, s, s)}
      %t: f32[2*b, s, s] = transpose(%g) {perm = (0, 2, 1)}
      %m: f32[2*b, s, s] = mul(%t, %half)
      %y: f32[b, 2, s, s] = reshape(%m) {shape = (b, 2, s, s)}
      return %y
    }""", """
    graph @g(%x: f32[b, 2, s, 5], %i: i64[1, s, s]) {
      const %half: f32[] = 0.5
      %r: i64[1, 1, s, s] = reshape(%i) {shape = (1, 1, s, s)}
      %g: f32[b, 2, s, s] = gather_elements(%x, %r) {axis = 3, shape = (b, 2, s, s)}
      %t: f32[b, 2, s, s] = transpose(%g) {perm = (0, 1, 3, 2)}
      %y: f32[b, 2, s, s] = mul(%t, %half)
      return %y
    }""")
