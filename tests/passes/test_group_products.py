"""Products with a constant matrix for each head or group become those of experts."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.passes.fold_weights import FoldWeights
from q8c.passes.group_products import GroupProducts
from q8c.passes.manager import run_passes
from tests.passes.support import check, parse

W = np.random.default_rng(0).standard_normal((3, 16, 20), dtype=np.float32)
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
      %ends: i64[3] = sizes() {values = (b*s, 2*b*s, 3*b*s)}
      %heads: f32[3, b, s, 16] = transpose(%split) {perm = (2, 0, 1, 3)}
      %rows: f32[3*b*s, 16] = reshape(%heads) {shape = (3*b*s, 16)}
      %wide: f32[3*b*s, 32] = expert_matmul(%rows, %side, %ends)
      %own: f32[3*b*s, 20] = slice(%wide) {starts = (0, 0), sizes = (3*b*s, 20), steps = (1, 1)}
      %apart: f32[3, b, s, 20] = reshape(%own) {shape = (3, b, s, 20)}
      %y: f32[b, 3, s, 20] = transpose(%apart) {perm = (1, 0, 2, 3)}
      return %y
    }"""


@pytest.mark.parametrize("turned", [False, True])
def test_heads_that_each_have_a_matrix(turned: bool) -> None:
    before = HEADS
    if turned:
        before = before.replace("16, 20] = @w", "20, 16] = @w").replace("%w)", "%w) {transpose_b = true}")
    side = np.pad(W, [(0, 0), (0, 0), (0, 12)]).transpose(1, 0, 2).reshape(16, 96)
    check(GroupProducts(), before, SORTED, constants={"w": W.swapaxes(1, 2) if turned else W, "side": side},
          sizes={"b": 2, "s": 3}, tolerance=1e-6)


def test_groups_in_front_need_no_move() -> None:
    """As those of a convolution."""
    graph = parse("""
        graph @g(%x: f32[2, n, 32]) {
          const %w: f32[2, 32, 16] = @w
          %y: f32[2, n, 16] = matmul(%x, %w)
          return %y
        }""")
    run_passes(graph, [GroupProducts(), FoldWeights()])
    assert [n.op for n in graph.nodes if n.op != "reshape"] == ["sizes", "dequantize_weight", "expert_matmul"]


@pytest.mark.parametrize(("x", "w"), [
    ("b, 1, s, 16", "3, 16, 20"), ("b, 3, s, 16", "3, 16, 4"), ("b, 3, s, 16", "1, 16, 20")])
def test_other_products_stay(x: str, w: str) -> None:
    """Of rows that all matrices meet, of matrices too small to be int8, of a single one."""
    check(GroupProducts(), f"""
        graph @g(%x: f32[{x}]) {{
          const %w: f32[{w}] = @w
          %y: f32[b, 3, s, {w.split()[-1]}] = matmul(%x, %w)
          return %y
        }}""", None)
