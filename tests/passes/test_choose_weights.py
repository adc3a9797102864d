"""Products with many weights of which each row keeps one become one product."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import clone
from q8c.ir.feeds import random_feeds
from q8c.passes.choose_weights import ChooseWeights
from q8c.passes.manager import run_passes
from q8c.passes.route_experts import RouteExperts
from tests.passes.support import compare, parse

# rows sorted by group, whose ends are counted: what is left of a product by groups where there is no op for it
GROUPS = """graph @g(%x: f32[n, 8], %ends: i64[3]) {
  const %w0: f32[8, 6] = @w0
  const %w1: f32[8, 6] = @w1
  const %w2: f32[8, 6] = @w2
  const %v0: f32[6, 4] = @v0
  const %v1: f32[6, 4] = @v1
  const %v2: f32[6, 4] = @v2
  %i: i64[n] = iota() {size = n, dtype = i64}
  %row: i64[n, 1] = reshape(%i) {shape = (n, 1)}
  %e0: i64[1] = slice(%ends) {starts = (0), sizes = (1), steps = (1)}
  %e1: i64[1] = slice(%ends) {starts = (1), sizes = (1), steps = (1)}
  %c1: bool[n, 1] = greater_equal(%row, %e0)
  %c2: bool[n, 1] = less(%row, %e1)
  %a0: f32[n, 6] = matmul(%x, %w0)
  %a1: f32[n, 6] = matmul(%x, %w1)
  %a2: f32[n, 6] = matmul(%x, %w2)
  %a: f32[n, 6] = where(%c1, %a1, %a0)
  %b: f32[n, 6] = where(%c2, %a, %a2)
  %s: f32[n, 6] = silu(%b)
  %d0: f32[n, 4] = matmul(%s, %v0)
  %d1: f32[n, 4] = matmul(%s, %v1)
  %d2: f32[n, 4] = matmul(%s, %v2)
  %d: f32[n, 4] = where(%c1, %d1, %d0)
  %y: f32[n, 4] = where(%c2, %d, %d2)
  return %y
}"""
CONSTANTS = {f"{name}{n}": np.random.default_rng(n).standard_normal(shape).astype(np.float32)
             for name, shape in (("w", (8, 6)), ("v", (6, 4))) for n in range(3)}


def test_each_row_is_multiplied_once() -> None:
    graph = parse(GROUPS, CONSTANTS)
    before = clone(graph)
    run_passes(graph, [ChooseWeights(), RouteExperts()])
    ops = [n.op for n in graph.nodes]
    assert (ops.count("expert_matmul"), ops.count("route"), ops.count("matmul")) == (2, 1, 0)
    feeds = random_feeds(before, sizes={"n": 9})
    for ends in ([2, 5, 9], [0, 9, 9], [4, 4, 9]):
        compare(before, graph, {**feeds, "ends": np.array(ends)}, 1e-5)


@pytest.mark.parametrize(("old", "new"), [
    ("%a2: f32[n, 6] = matmul(%x, %w2)", "%z: f32[n, 8] = neg(%x) %a2: f32[n, 6] = matmul(%z, %w2)"),  # other rows
    ("%s: f32[n, 6] = silu(%b)", "%s: f32[n, 6] = mul(%b, %a2)"),                                      # read elsewhere
    ("%a2: f32[n, 6] = matmul(%x, %w2)", "%a2: f32[n, 6] = slice(%x) {starts = (0, 0), sizes = (n, 6), "
     "steps = (1, 1)}")])                                                                              # no product
def test_other_choices_stay(old: str, new: str) -> None:
    assert old in GROUPS
    graph = parse(GROUPS.replace(old, new), CONSTANTS)
    before = clone(graph)
    run_passes(graph, [ChooseWeights()])
    compare(before, graph, {**random_feeds(before, sizes={"n": 9}), "ends": np.array([2, 5, 9])}, 1e-5)
    assert "a2" in [n.output.name for n in graph.nodes]
