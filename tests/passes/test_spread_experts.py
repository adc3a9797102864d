"""Experts whose weights are gathered for every token: the same sums from products with all experts' weights."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import Graph, clone
from q8c.ir.interpret import interpret
from q8c.passes import spread_experts
from q8c.passes.manager import Report, run_passes
from q8c.passes.spread_experts import SpreadExperts
from tests.passes.support import parse

TOKENS, CHOSEN, EXPERTS, HIDDEN, INNER = 6, 2, 3, 4, 5

_TAIL = """
      %b: f32[{n}, {h}] = {last}
      %s: f32[{n}, 1] = reshape(%score) {{shape = ({n}, 1)}}
      %m: f32[{n}, {h}] = mul(%b, %s)
      %r: f32[t, {k}, {h}] = reshape(%m) {{shape = (t, {k}, {h})}}
      %y: f32[t, {h}] = reduce_sum(%r) {{axes = (1), keepdims = false}}
      return %y
    }}"""
COLUMNS = """
    graph @g(%x: f32[t, {h}], %id: i64[t, {k}], %score: f32[t, {k}]) {{
      const %up: f32[{e}, 2*{i}, {h}] = @up
      const %down: f32[{e}, {h}, {i}] = @down
      %i: i64[{n}] = reshape(%id) {{shape = ({n})}}
      %apart: f32[t, 1, {h}] = reshape(%x) {{shape = (t, 1, {h})}}
      %twice: f32[t, {k}, {h}] = broadcast_to(%apart) {{shape = (t, {k}, {h})}}
      %column: f32[{n}, {h}, 1] = reshape(%twice) {{shape = ({n}, {h}, 1)}}
      %w: f32[{n}, 2*{i}, {h}] = gather(%up, %i) {{axis = 0}}
      %p: f32[{n}, 2*{i}, 1] = matmul(%w, %column)
      %q: f32[{n}, 2*{i}] = reshape(%p) {{shape = ({n}, 2*{i})}}
      %gate: f32[{n}, {i}] = slice(%q) {{starts = (0, 0), sizes = ({n}, {i}), steps = (1, 1)}}
      %u: f32[{n}, {i}] = slice(%q) {{starts = (0, {i}), sizes = ({n}, {i}), steps = (1, 1)}}
      %a: f32[{n}, {i}] = silu(%gate)
      %o: f32[{n}, {i}] = mul(%a, %u)
      %oc: f32[{n}, {i}, 1] = reshape(%o) {{shape = ({n}, {i}, 1)}}
      %v: f32[{n}, {h}, {i}] = gather(%down, %i) {{axis = 0}}
      %d: f32[{n}, {h}, 1] = matmul(%v, %oc)""" + _TAIL
ROWS = """
    graph @g(%x: f32[t, {h}], %id: i64[t, {k}], %score: f32[t, {k}]) {{
      const %up: f32[{e}, {h}, {i}] = @up
      const %shift: f32[{e}, {i}] = @shift
      const %down: f32[{e}, {i}, {h}] = @down
      const %bias: f32[{e}, {h}] = @bias
      %i: i64[{n}, 1] = reshape(%id) {{shape = ({n}, 1)}}
      %apart: f32[t, 1, {h}] = reshape(%x) {{shape = (t, 1, {h})}}
      %twice: f32[t, {k}, {h}] = broadcast_to(%apart) {{shape = (t, {k}, {h})}}
      %row: f32[{n}, 1, {h}] = reshape(%twice) {{shape = ({n}, 1, {h})}}
      %w: f32[{n}, {h}, {i}] = gather_nd(%up, %i)
      %p: f32[{n}, 1, {i}] = matmul(%row, %w)
      %q: f32[{n}, {i}] = reshape(%p) {{shape = ({n}, {i})}}
      %by: f32[{n}, {i}] = gather_nd(%shift, %i)
      %z: f32[{n}, {i}] = add(%q, %by)
      %o: f32[{n}, {i}] = tanh(%z)
      %or: f32[{n}, 1, {i}] = reshape(%o) {{shape = ({n}, 1, {i})}}
      %v: f32[{n}, {i}, {h}] = gather_nd(%down, %i)
      %d: f32[{n}, 1, {h}] = matmul(%or, %v)
      %c: f32[{n}, {h}] = gather_nd(%bias, %i)
      %e: f32[{n}, {h}] = reshape(%d) {{shape = ({n}, {h})}}""" + _TAIL
SIZES = {"h": HIDDEN, "k": CHOSEN, "e": EXPERTS, "i": INNER, "n": f"{CHOSEN}*t"}
FORMS = {"columns": COLUMNS.format(**SIZES, last=f"reshape(%d) {{shape = ({CHOSEN}*t, {HIDDEN})}}"),
         "rows": ROWS.format(**SIZES, last="add(%e, %c)")}


def outputs(graph: Graph) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """For made-up tokens, of which the last chose one expert twice."""
    rng = np.random.default_rng(0)
    chosen = np.array([rng.permutation(EXPERTS)[:CHOSEN] for _ in range(TOKENS)])
    chosen[-1] = 1
    return interpret(graph, {"x": rng.standard_normal((TOKENS, HIDDEN)).astype(np.float32), "id": chosen,
                             "score": rng.random((TOKENS, CHOSEN)).astype(np.float32)})[0]


@pytest.mark.parametrize("deepest", [1 << 15, 2 * INNER])
@pytest.mark.parametrize("form", FORMS)
def test_products_with_all_experts_give_the_same(form: str, deepest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread_experts, "_DEEPEST", deepest)
    graph = parse(FORMS[form])
    before = clone(graph)
    run_passes(graph, [SpreadExperts()])
    products = [n for n in graph.nodes if n.op == "matmul"]
    parts = -(-EXPERTS * INNER // deepest)
    assert len(products) == 1 + parts + (form == "rows") and all(n.input(1).is_constant for n in products)
    assert not any(n.op in ("gather", "gather_nd") for n in graph.nodes)
    np.testing.assert_allclose(outputs(graph), outputs(before), rtol=0, atol=2e-6 * np.abs(outputs(before)).max())
    assert not SpreadExperts().run(graph, Report())


@pytest.mark.parametrize(("old", "new"), [
    ("slice(%q) {starts = (0, 0)", "slice(%q) {starts = (t, 0)"),       # rows of other tokens
    ("silu(%gate)", "softmax(%gate) {axis = 0}"), ("silu(%gate)", "cumsum(%gate) {axis = 0}")])
def test_what_mixes_rows_is_left_alone(old: str, new: str) -> None:
    text = FORMS["columns"].replace(old, new)
    if "starts = (t" in new:
        text = text.replace(f"sizes = ({CHOSEN}*t, {INNER}), steps = (1, 1)}}\n      %u", f"sizes = (t, {INNER}), "
                            "steps = (1, 1)}\n      %u").replace(f"%gate: f32[{CHOSEN}*t", "%gate: f32[t")
        text = text.replace(f"%a: f32[{CHOSEN}*t, {INNER}] = silu(%gate)",
                            f"%aa: f32[t, {INNER}] = silu(%gate)\n      %a: f32[{CHOSEN}*t, {INNER}] = "
                            "concat(%aa, %aa) {axis = 0}")
    graph = parse(text)
    report = run_passes(graph, [SpreadExperts()])
    assert [note.text for note in report.declines] == ["what its experts compute is not understood"]
    assert not report.rewrites
