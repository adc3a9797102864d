"""Constant folding, with its limit."""
from __future__ import annotations

import numpy as np

from q8c.passes.fold_constants import FoldConstants
from q8c.passes.manager import run_passes
from tests.passes.support import check, parse


def test_what_depends_on_constants_only_is_computed() -> None:
    check(FoldConstants(), """
        graph @g(%x: f32[b, 3]) {
          const %w: f32[2, 3] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
          const %two: f32[] = 2.0
          %t: f32[3, 2] = transpose(%w) {perm = (1, 0)}
          %s: f32[3, 2] = mul(%t, %two)
          %i: i64[2] = iota() {size = 2}
          %n: i64[2] = sizes() {values = (5, 7)}
          %j: i64[2] = add(%i, %n)
          %y: f32[b, 2] = matmul(%x, %s)
          return %y, %j
        }""", """
        graph @g(%x: f32[b, 3]) {
          const %s: f32[3, 2] = [2.0, 8.0, 4.0, 10.0, 6.0, 12.0]
          const %j: i64[2] = [5, 8]
          %y: f32[b, 2] = matmul(%x, %s)
          return %y, %j
        }""")


def test_the_constant_takes_the_name_of_the_node() -> None:
    graph = parse("""
        graph @g(%x: f32[2]) {
          const %w: f32[2] = [1.0, 2.0]
          %neg: f32[2] = neg(%w)
          %y: f32[2] = add(%x, %neg)
          return %y
        }""")
    run_passes(graph, [FoldConstants()])
    assert list(graph.constants) == ["neg"] and graph.nodes[0].input(1) is graph.constants["neg"]


def test_sizes_that_are_not_known_stay() -> None:
    check(FoldConstants(), """
        graph @g(%x: f32[b]) {
          const %c: f32[] = 1.0
          %i: i64[b] = iota() {size = b}
          %n: i64[1] = sizes() {values = (b)}
          %w: f32[b] = broadcast_to(%c) {shape = (b)}
          return %i, %n, %w
        }""", None)


def test_a_result_over_the_limit_is_declined_unless_it_replaces_as_much() -> None:
    report = check(FoldConstants(limit_kib=1), """
        graph @g(%x: f32[b]) {
          const %c: f32[1] = 1.0
          const %w: f32[2, 1024] = @w
          %a: f32[2048] = broadcast_to(%c) {shape = (2048)}
          %t: f32[1024, 2] = transpose(%w) {perm = (1, 0)}
          return %a, %t
        }""", """
        graph @g(%x: f32[b]) {
          const %c: f32[1] = 1.0
          const %t: f32[1024, 2] = @t
          %a: f32[2048] = broadcast_to(%c) {shape = (2048)}
          return %a, %t
        }""", constants={"t": np.random.default_rng(0).standard_normal((2, 1024)).astype(np.float32).T,
                         "w": np.random.default_rng(0).standard_normal((2, 1024)).astype(np.float32)})
    assert [d.text for d in report.declines] == ["the constant would take 8 KiB, expected at most 1"]


def test_an_index_out_of_range_is_left_for_the_run() -> None:
    graph = parse("""
        graph @g(%x: f32[2]) {
          const %w: f32[2] = [1.0, 2.0]
          const %i: i64[] = 2
          %y: f32[] = gather(%w, %i) {axis = 0}
          return %y
        }""")
    report = run_passes(graph, [FoldConstants()])
    assert [n.op for n in graph.nodes] == ["gather"]
    assert [d.text for d in report.declines] == ["its value cannot be computed: gather: index 2 is out of range [0, 2)"]


def test_folded_data_is_dense() -> None:
    graph = parse("""
        graph @g(%x: f32[2, 2]) {
          const %w: f32[2, 3, 2] = @w
          %t: f32[2, 2, 3] = transpose(%w) {perm = (2, 0, 1)}
          return %t
        }""")
    run_passes(graph, [FoldConstants()])
    assert graph.outputs[0].array().flags.c_contiguous
