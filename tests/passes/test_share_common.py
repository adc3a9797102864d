"""Common subexpressions and equal constants."""
from __future__ import annotations

import numpy as np

from q8c.passes.eliminate_dead_code import EliminateDeadCode
from q8c.passes.manager import run_passes
from q8c.passes.share_common import ShareCommon
from tests.passes.support import check, parse


def test_equal_nodes_are_one_even_with_operands_the_other_way_round() -> None:
    check(ShareCommon(), """
        graph @g(%x: f32[b], %z: f32[b]) {
          %a: f32[b] = add(%x, %z)
          %c: f32[b] = add(%z, %x)
          %d: f32[b] = exp(%a)
          %e: f32[b] = exp(%c)
          %f: f32[b] = sub(%x, %z)
          %g: f32[b] = sub(%z, %x)
          %y: f32[b] = mul(%d, %e)
          return %y, %f, %g
        }""", """
        graph @g(%x: f32[b], %z: f32[b]) {
          %a: f32[b] = add(%x, %z)
          %d: f32[b] = exp(%a)
          %f: f32[b] = sub(%x, %z)
          %g: f32[b] = sub(%z, %x)
          %y: f32[b] = mul(%d, %d)
          return %y, %f, %g
        }""")


def test_attributes_matter_and_defaults_count_as_given() -> None:
    check(ShareCommon(), """
        graph @g(%x: f32[b, 2]) {
          %a: f32[b, 2] = softmax(%x) {axis = -1}
          %c: f32[b, 2] = softmax(%x)
          %d: f32[b, 2] = softmax(%x) {axis = 0}
          return %a, %c, %d
        }""", """
        graph @g(%x: f32[b, 2]) {
          %a: f32[b, 2] = softmax(%x) {axis = -1}
          %d: f32[b, 2] = softmax(%x) {axis = 0}
          return %a, %a, %d
        }""")


def test_all_results_of_a_node_are_shared() -> None:
    check(ShareCommon(), """
        graph @g(%x: f32[b, 4]) {
          %q: i8[b, 4], %s: f32[b, 1], %t: i32[b, 1] = dynamic_quantize(%x)
          %q1: i8[b, 4], %s1: f32[b, 1], %t1: i32[b, 1] = dynamic_quantize(%x)
          return %q, %s1, %t1
        }""", """
        graph @g(%x: f32[b, 4]) {
          %q: i8[b, 4], %s: f32[b, 1], %t: i32[b, 1] = dynamic_quantize(%x)
          return %q, %s, %t
        }""")


def test_the_node_that_stays_stands_for_both() -> None:
    check(ShareCommon(), """
        graph @g(%x: f32[b]) {
          %a: f32[b] = exp(%x) from "one"
          %c: f32[b] = exp(%x) from "two"
          return %a, %c
        }""", """
        graph @g(%x: f32[b]) {
          %a: f32[b] = exp(%x) from "one", "two"
          return %a, %a
        }""")


def test_constants_are_equal_by_type_and_bits() -> None:
    graph = parse("""
        graph @g(%x: f32[2]) {
          const %a: f32[2] = [0.0, nan]
          const %b: f32[2] = [0.0, nan]
          const %c: f32[2] = [-0.0, nan]
          const %d: f64[2] = [0.0, nan]
          const %e: f32[1, 2] = [0.0, nan]
          %p: f32[2] = add(%x, %a)
          %q: f32[2] = add(%x, %b)
          %r: f32[2] = add(%x, %c)
          return %p, %q, %r, %d, %e
        }""")
    run_passes(graph, [ShareCommon(), EliminateDeadCode()])
    assert list(graph.constants) == ["a", "c", "d", "e"]
    assert graph.outputs[0] is graph.outputs[1] and len(graph.nodes) == 2


def test_large_constants_that_differ_in_one_element_are_two() -> None:
    w = np.zeros(10_000, np.float32)
    v = w.copy()
    v[7777] = 1
    graph = parse("""
        graph @g(%x: f32[10000]) {
          const %w: f32[10000] = @w
          const %v: f32[10000] = @v
          const %u: f32[10000] = @u
          %p: f32[10000] = add(%x, %w)
          %q: f32[10000] = add(%p, %v)
          %r: f32[10000] = add(%q, %u)
          return %r
        }""", {"w": w, "v": v, "u": w.copy()})
    run_passes(graph, [ShareCommon()])
    assert list(graph.constants) == ["w", "v"]
