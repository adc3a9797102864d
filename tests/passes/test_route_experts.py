"""Experts whose weights are gathered for every token: the same from products of each expert and its own rows."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import Graph, clone
from q8c.ir.dims import sym
from q8c.ir.graph import ancestors
from q8c.ir.interpret import interpret
from q8c.passes.manager import Report, run_passes
from q8c.passes.route_experts import RouteExperts
from q8c.passes.share_common import ShareCommon
from tests.experts import mixture
from tests.passes.support import parse

TOKENS, CHOSEN, EXPERTS, HIDDEN, INNER = 6, 2, 3, 4, 5
FORMS = {form: mixture(form, HIDDEN, INNER, EXPERTS, CHOSEN) for form in ("columns", "rows")}


def outputs(graph: Graph) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """For made-up tokens, of which the last chose one expert twice."""
    rng = np.random.default_rng(0)
    chosen = np.array([rng.permutation(EXPERTS)[:CHOSEN] for _ in range(TOKENS)])
    chosen[-1] = 1
    return interpret(graph, {"x": rng.standard_normal((TOKENS, HIDDEN)).astype(np.float32), "id": chosen,
                             "score": rng.random((TOKENS, CHOSEN)).astype(np.float32)})[0]


@pytest.mark.parametrize("form", FORMS)
def test_products_of_sorted_rows_give_the_same(form: str) -> None:
    graph = parse(FORMS[form])
    before = clone(graph)
    run_passes(graph, [RouteExperts(), ShareCommon()])
    ops = [n.op for n in graph.nodes]
    assert (ops.count("expert_matmul"), ops.count("route"), ops.count("matmul")) == (2, 1, 0)
    down = next(n for n in reversed(graph.nodes) if n.op == "expert_matmul").output
    behind = [n.op for n in graph.nodes if n.op == "gather" and down in ancestors(n.output)]
    assert len(behind) == 1, "rows are put back once, behind the last product"
    assert not any(n.op == "gather" and n.input(0).shape == (CHOSEN * sym("t"), HIDDEN) and down not in ancestors(
        n.output) for n in graph.nodes), "rows of tokens are picked from the tokens"
    np.testing.assert_allclose(outputs(graph), outputs(before), rtol=0, atol=2e-6 * np.abs(outputs(before)).max())
    assert not RouteExperts().run(graph, Report())


@pytest.mark.parametrize(("old", "new"), [
    ("slice(%q) {starts = (0, 0)", "slice(%q) {starts = (t, 0)"),       # rows of other tokens
    ("silu(%gate)", "softmax(%gate) {axis = 0}"), ("silu(%gate)", "cumsum(%gate) {axis = 0}")])
def test_what_mixes_rows_is_computed_in_their_own_order(old: str, new: str) -> None:
    text = FORMS["columns"].replace(old, new)
    if "starts = (t" in new:
        text = text.replace(f"sizes = ({CHOSEN}*t, {INNER}), steps = (1, 1)}}\n      %u", f"sizes = (t, {INNER}), "
                            "steps = (1, 1)}\n      %u").replace(f"%gate: f32[{CHOSEN}*t", "%gate: f32[t")
        text = text.replace(f"%a: f32[{CHOSEN}*t, {INNER}] = silu(%gate)",
                            f"%aa: f32[t, {INNER}] = silu(%gate)\n      %a: f32[{CHOSEN}*t, {INNER}] = "
                            "concat(%aa, %aa) {axis = 0}")
    graph = parse(text)
    before = clone(graph)
    run_passes(graph, [RouteExperts()])
    assert sum(n.op == "expert_matmul" for n in graph.nodes) == 2
    np.testing.assert_allclose(outputs(graph), outputs(before), rtol=0, atol=2e-6 * np.abs(outputs(before)).max())
