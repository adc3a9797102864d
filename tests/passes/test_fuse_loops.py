"""Which nodes share a loop, what becomes of operands and results, and that the order stays legal."""
from __future__ import annotations

import time

import pytest

from q8c.ir import clone, verify
from q8c.ir.feeds import random_feeds
from q8c.passes.fuse_loops import MAX_NODES, FuseLoops
from q8c.passes.manager import Report, run_passes
from tests.passes.random_graphs import random_graph
from tests.passes.support import check, compare, parse


def test_residual_norm_and_quantize_in_one_pass_over_rows() -> None:
    report = check(FuseLoops(), """
    graph @g(%x: f32[b, s, 12], %r: f32[b, s, 12]) {
      const %g: f32[12] = @g
      const %w: u8[12, 16] = @w
      const %c: f32[16] = @c
      %a: f32[b, s, 12] = add(%x, %r) from "add"
      %n: f32[b, s, 12] = layer_norm(%a, %g, %g) from "norm"
      %q: i8[b, s, 12], %rs: f32[b, s, 1], %sum: i32[b, s, 1] = dynamic_quantize(%n)
      %y: f32[b, s, 16] = q8_linear(%q, %rs, %sum, %w, %c) from "dense"
      return %y, %n
    }""", """
    graph @g(%x: f32[b, s, 12], %r: f32[b, s, 12]) {
      const %g: f32[12] = @g
      const %w: u8[12, 16] = @w
      const %c: f32[16] = @c
      %n: f32[b, s, 12], %q: i8[b, s, 12], %rs: f32[b, s, 1], %sum: i32[b, s, 1] = loop(%x, %r, %g)
          from "add", "norm" body(%x: f32[b, s, 12], %r: f32[b, s, 12], %g: f32[12]) {
        %a: f32[b, s, 12] = add(%x, %r)
        %n: f32[b, s, 12] = layer_norm(%a, %g, %g)
        %q: i8[b, s, 12], %rs: f32[b, s, 1], %sum: i32[b, s, 1] = dynamic_quantize(%n)
        return %n, %q, %rs, %sum
      }
      %y: f32[b, s, 16] = q8_linear(%q, %rs, %sum, %w, %c) from "dense"
      return %y, %n
    }""")
    assert [note.text for note in report.rewrites] == ["add + layer_norm + dynamic_quantize"]


def test_a_value_per_row_and_what_reads_it_share_the_rows_loop() -> None:
    check(FuseLoops(), """
    graph @g(%x: f32[b, s, 8], %m: i64[b, s, 1]) {
      const %eps: f32[] = 0.5
      %keep: f32[b, s, 1] = cast(%m) {to = f32}
      %mean: f32[b, s, 1] = reduce_mean(%x) {axes = (2)}
      %shift: f32[b, s, 1] = add(%mean, %eps)
      %y: f32[b, s, 8] = sub(%x, %shift)
      %z: f32[b, s, 8] = mul(%y, %keep)
      return %z, %shift
    }""", """
    graph @g(%x: f32[b, s, 8], %m: i64[b, s, 1]) {
      %shift: f32[b, s, 1], %z: f32[b, s, 8] = loop(%m, %x) body(%m: i64[b, s, 1], %x: f32[b, s, 8]) {
        const %eps: f32[] = 0.5
        %keep: f32[b, s, 1] = cast(%m) {to = f32}
        %mean: f32[b, s, 1] = reduce_mean(%x) {axes = (2)}
        %shift: f32[b, s, 1] = add(%mean, %eps)
        %y: f32[b, s, 8] = sub(%x, %shift)
        %z: f32[b, s, 8] = mul(%y, %keep)
        return %shift, %z
      }
      return %z, %shift
    }""")


def test_small_spaces_stay_apart_from_large_ones() -> None:
    check(FuseLoops(), """
    graph @g(%m: i64[b, 1, 1, s], %x: f32[b, 4, s, s]) {
      const %one: f32[] = 1.0
      const %low: f32[1] = [-100.0]
      %f: f32[b, 1, 1, s] = cast(%m) {to = f32}
      %hidden: f32[b, 1, 1, s] = sub(%one, %f)
      %mask: f32[b, 1, 1, s] = mul(%hidden, %low)
      %y: f32[b, 4, s, s] = add(%x, %mask)
      %z: f32[b, 4, s, s] = softmax(%y)
      return %z
    }""", """
    graph @g(%m: i64[b, 1, 1, s], %x: f32[b, 4, s, s]) {
      %mask: f32[b, 1, 1, s] = loop(%m) body(%m: i64[b, 1, 1, s]) {
        const %one: f32[] = 1.0
        const %low: f32[] = -100.0
        %f: f32[b, 1, 1, s] = cast(%m) {to = f32}
        %hidden: f32[b, 1, 1, s] = sub(%one, %f)
        %mask: f32[b, 1, 1, s] = mul(%hidden, %low)
        return %mask
      }
      %z: f32[b, 4, s, s] = loop(%x, %mask) body(%x: f32[b, 4, s, s], %mask: f32[b, 1, 1, s]) {
        %y: f32[b, 4, s, s] = add(%x, %mask)
        %z: f32[b, 4, s, s] = softmax(%y)
        return %z
      }
      return %z
    }""")


def test_a_loop_waits_for_no_node_that_reads_it() -> None:
    """The second add reads the transpose of the first, so it cannot be in the first's loop; the third can."""
    check(FuseLoops(), """
    graph @g(%x: f32[4, 4]) {
      %a: f32[4, 4] = abs(%x)
      %t: f32[4, 4] = transpose(%a) {perm = (1, 0)}
      %b: f32[4, 4] = add(%a, %t)
      %c: f32[4, 4] = neg(%a)
      return %b, %c
    }""", """
    graph @g(%x: f32[4, 4]) {
      %a: f32[4, 4], %c: f32[4, 4] = loop(%x) body(%x: f32[4, 4]) {
        %a: f32[4, 4] = abs(%x)
        %c: f32[4, 4] = neg(%a)
        return %a, %c
      }
      %t: f32[4, 4] = transpose(%a) {perm = (1, 0)}
      %b: f32[4, 4] = loop(%a, %t) body(%a: f32[4, 4], %t: f32[4, 4]) {
        %b: f32[4, 4] = add(%a, %t)
        return %b
      }
      return %b, %c
    }""")


def test_uniform_constants_go_inside_unless_they_make_the_shape() -> None:
    check(FuseLoops(), """
    graph @g(%x: f32[n, 1]) {
      const %two: f32[1, 1] = [2.0]
      const %zeros: f32[4] = 0.0
      const %signs: f32[4] = [0.0, 0.0, -0.0, 0.0]
      %a: f32[n, 1] = mul(%x, %two)
      %b: f32[n, 4] = add(%a, %zeros)
      %c: f32[n, 4] = div(%b, %zeros)
      %d: f32[n, 4] = div(%c, %signs)
      return %d
    }""", """
    graph @g(%x: f32[n, 1]) {
      const %zeros: f32[4] = 0.0
      const %signs: f32[4] = [0.0, 0.0, -0.0, 0.0]
      %d: f32[n, 4] = loop(%x, %zeros, %signs) body(%x: f32[n, 1], %zeros: f32[4], %signs: f32[4]) {
        const %two: f32[] = 2.0
        const %zero: f32[] = 0.0
        %a: f32[n, 1] = mul(%x, %two)
        %b: f32[n, 4] = add(%a, %zeros)
        %c: f32[n, 4] = div(%b, %zero)
        %d: f32[n, 4] = div(%c, %signs)
        return %d
      }
      return %d
    }""")


def test_unused_results_are_not_written_and_dead_nodes_go() -> None:
    check(FuseLoops(), """
    graph @g(%x: f32[n, 4]) {
      %q: i8[n, 4], %scale: f32[n, 1], %sum: i32[n, 1] = dynamic_quantize(%x)
      %dead: f32[n, 4] = abs(%x)
      return %scale
    }""", """
    graph @g(%x: f32[n, 4]) {
      %scale: f32[n, 1] = loop(%x) body(%x: f32[n, 4]) {
        %q: i8[n, 4], %scale: f32[n, 1], %sum: i32[n, 1] = dynamic_quantize(%x)
        return %scale
      }
      return %scale
    }""")


@pytest.mark.parametrize("node", ["softmax(%x) {axis = 0}", "transpose(%x) {perm = (0, 1)}",
                                  "reduce_sum(%x) {axes = (0), keepdims = true}"])
def test_what_is_no_row_work_stays_outside(node: str) -> None:
    kept = "1" if "reduce" in node else "4"
    check(FuseLoops(), f"graph @g(%x: f32[4, 4]) {{\n %y: f32[{kept}, 4] = {node}\n return %y\n}}", None)


def test_sizes_taken_to_be_equal_are_one_space() -> None:
    graph = parse("""
    graph @g(%x: f32[s, 4], %y: f32[t, 4]) {
      assume s == t
      %a: f32[s, 4] = abs(%x)
      %b: f32[t, 4] = abs(%y)
      %c: f32[s, 4] = add(%a, %b)
      return %c
    }""")
    run_passes(graph, [FuseLoops()])
    assert [len(n.body.nodes) for n in graph.nodes if n.body] == [3]


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs_keep_their_meaning(seed: int) -> None:
    graph = random_graph(seed, 40)
    reference = clone(graph)
    run_passes(graph, [FuseLoops()])
    compare(reference, graph, random_feeds(reference))
    assert not any(n.op in ("abs", "add", "dynamic_quantize") for n in graph.nodes)
    assert not FuseLoops().run(graph, Report())


def test_ten_thousand_nodes_take_seconds_and_long_chains_are_cut() -> None:
    graph = random_graph(1, 10_000)
    start = time.process_time()
    FuseLoops().run(graph, Report())
    assert time.process_time() - start < 5
    verify(graph)
    sizes = [len(n.body.nodes) for n in graph.nodes if n.body]
    assert max(sizes) <= MAX_NODES
