"""Constants of products come second, and are one matrix for each row."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.passes.fold_weights import FoldWeights
from q8c.passes.manager import run_passes
from q8c.passes.place_weights import PlaceWeights
from tests.passes.support import check, parse

W = np.random.default_rng(0).standard_normal((3, 16, 20), dtype=np.float32)
SIDE = np.pad(W, [(0, 0), (0, 0), (0, 12)]).transpose(1, 0, 2).reshape(16, 96)
HEADS = """
    graph @g(%x: f32[b, s, 48]) {
      const %w: f32[1, 3, 16, 20] = @w
      %split: f32[b, s, 3, 16] = reshape(%x) {shape = (b, s, 3, 16)}
      %heads: f32[b, 3, s, 16] = transpose(%split) {perm = (0, 2, 1, 3)}
      %y: f32[b, 3, s, 20] = matmul(%heads, %w)
      return %y
    }"""
SORTED = """
    graph @g(%x: f32[b, s, 48]) {
      const %side: f32[16, 96] = @side
      %split: f32[b, s, 3, 16] = reshape(%x) {shape = (b, s, 3, 16)}
      %heads: f32[3, b, s, 16] = transpose(%split) {perm = (2, 0, 1, 3)}
      %ends: i64[3] = sizes() {values = (b*s, 2*b*s, 3*b*s)}
      %rows: f32[3*b*s, 16] = reshape(%heads) {shape = (3*b*s, 16)}
      %wide: f32[3*b*s, 32] = expert_matmul(%rows, %side, %ends)
      %apart: f32[3, b, s, 32] = reshape(%wide) {shape = (3, b, s, 32)}
      %own: f32[3, b, s, 20] = slice(%apart) {starts = (0, 0, 0, 0), sizes = (3, b, s, 20), steps = (1, 1, 1, 1)}
      %y: f32[b, 3, s, 20] = transpose(%own) {perm = (1, 0, 2, 3)}
      return %y
    }"""


@pytest.mark.parametrize("turned", [False, True])
def test_heads_that_each_have_a_matrix(turned: bool) -> None:
    before = HEADS
    if turned:
        before = before.replace("16, 20] = @w", "20, 16] = @w").replace("%w)", "%w) {transpose_b = true}")
    check(PlaceWeights(), before, SORTED, constants={"w": W.swapaxes(1, 2) if turned else W, "side": SIDE},
          sizes={"b": 2, "s": 3}, tolerance=1e-6)


def test_groups_in_front_need_no_move() -> None:
    """As those of a convolution."""
    graph = parse("""
        graph @g(%x: f32[2, n, 32]) {
          const %w: f32[2, 32, 16] = @w
          %y: f32[2, n, 16] = matmul(%x, %w)
          return %y
        }""")
    run_passes(graph, [PlaceWeights(), FoldWeights()])
    assert [n.op for n in graph.nodes if n.op != "reshape"] == ["sizes", "dequantize_weight", "expert_matmul"]


def test_rows_that_all_matrices_meet_have_all_columns_side_by_side() -> None:
    check(PlaceWeights(), """
        graph @g(%x: f32[b, 1, s, 16]) {
          const %w: f32[3, 16, 20] = @w
          %y: f32[b, 3, s, 20] = matmul(%x, %w)
          return %y
        }""", """
        graph @g(%x: f32[b, 1, s, 16]) {
          const %side: f32[16, 96] = @side
          %rows: f32[b, s, 16] = reshape(%x) {shape = (b, s, 16)}
          %all: f32[b, s, 96] = matmul(%rows, %side)
          %apart: f32[b, s, 3, 32] = reshape(%all) {shape = (b, s, 3, 32)}
          %own: f32[b, s, 3, 20] = slice(%apart) {starts = (0, 0, 0, 0), sizes = (b, s, 3, 20), steps = (1, 1, 1, 1)}
          %y: f32[b, 3, s, 20] = transpose(%own) {perm = (0, 2, 1, 3)}
          return %y
        }""", constants={"w": W, "side": SIDE}, sizes={"b": 2, "s": 3}, tolerance=1e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_a_constant_that_comes_first_comes_second(turned: bool) -> None:
    """As in Gemm and in layers of sound, whose channels come before time."""
    x, attrs = ("t, 32", " {transpose_b = true}") if turned else ("32, t", "")
    check(PlaceWeights(), f"""
        graph @g(%x: f32[b, {x}]) {{
          const %w: f32[16, 32] = @w
          %y: f32[b, 16, t] = matmul(%w, %x){attrs}
          return %y
        }}""", f"""
        graph @g(%x: f32[b, {x}]) {{
          const %w: f32[16, 32] = @w
          {"" if turned else "%xt: f32[b, t, 32] = transpose(%x) {perm = (0, 2, 1)}"}
          %z: f32[b, t, 16] = matmul({"%x" if turned else "%xt"}, %w) {{transpose_b = true}}
          %y: f32[b, 16, t] = transpose(%z) {{perm = (0, 2, 1)}}
          return %y
        }}""", sizes={"b": 2, "t": 3}, tolerance=1e-6)


@pytest.mark.parametrize(("x", "w"), [
    ("b, 3, s, 16", "3, 16, 4"), ("b, 3, s, 16", "1, 16, 20")])
def test_other_products_stay(x: str, w: str) -> None:
    """Of matrices too small to be int8, of a single one."""
    check(PlaceWeights(), f"""
        graph @g(%x: f32[{x}]) {{
          const %w: f32[{w}] = @w
          %y: f32[b, 3, s, {w.split()[-1]}] = matmul(%x, %w)
          return %y
        }}""", None)
