"""Rows sorted by expert, and products of each expert's rows with its own columns."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.errors import CompileError, InputError
from q8c.ir import Array, interpret, parse_graph, q8
from q8c.ir.single import single

ROUTE = """graph @g(%ids: i64[n]) {
  %order: i64[n], %place: i64[n], %ends: i64[3] = route(%ids) {experts = 3} return %order, %place, %ends }"""
ENDS = np.array([2, 2, 5])
X = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((8, 3 * 4)).astype(np.float32)
OWN = np.array([0, 0, 2, 2, 2])
EXPECTED = np.stack([x @ W[:, 4 * e:4 * e + 4] for x, e in zip(X, OWN, strict=True)])


def test_rows_of_an_expert_stay_in_their_order() -> None:
    order, place, ends = interpret(parse_graph(ROUTE), {"ids": np.array([2, 0, -1, 0, 2])})
    assert (order.tolist(), place.tolist(), ends.tolist()) == ([1, 3, 0, 2, 4], [2, 0, 3, 1, 4], [2, 2, 5])


@pytest.mark.parametrize("wrong", [3, -4])
def test_there_are_no_other_experts(wrong: int) -> None:
    with pytest.raises(InputError, match="out of the range of 3"):
        interpret(parse_graph(ROUTE), {"ids": np.array([0, wrong])})


@pytest.mark.parametrize("op", ["expert_matmul(%x, %w, %ends)", "linear(%x, %w, -, -, %ends)"])
def test_each_row_has_the_columns_of_its_expert(op: str) -> None:
    graph = parse_graph(f"""graph @g(%x: f32[n, 8], %w: f32[8, 12], %ends: i64[3]) {{
      %y: f32[n, 4] = {op} return %y }}""")
    feed = {"x": X, "w": W, "ends": ENDS}
    for found in (interpret(graph, feed), interpret(graph, feed, instead=single)):
        np.testing.assert_allclose(found[0], EXPECTED, rtol=1e-5, atol=1e-6)


def test_integer_products_are_those_of_each_expert_alone() -> None:
    u, scale = q8.quantize_weight(W, 0)
    q, row_scale, row_sum = q8.quantize_rows(X, 0)
    feed: dict[str, Array] = {"q": q, "rs": row_scale, "sum": row_sum, "u": u, "s": scale, "ends": ENDS}
    head = "graph @g(%q: i8[n, 8], %rs: f32[n, 1], %sum: i32[n, 1], %u: u8[8, {c}], %s: f32[{c}], %ends: i64[3])"
    mixed, plain = (parse_graph(f"{head.format(c=c)} {{ %y: f32[n, 4] = q8_linear(%q, %rs, %sum, %u, %s{more}) "
                                f"return %y }}") for c, more in ((12, ", -, -, -, -, -, %ends"), (4, "")))
    found = interpret(mixed, feed)[0]
    for row, expert in enumerate(OWN):
        own = {**feed, **{k: feed[k][row:row + 1] for k in ("q", "rs", "sum")}, "u": u[:, 4 * expert:4 * expert + 4],
               "s": scale[4 * expert:4 * expert + 4]}
        assert np.array_equal(found[row:row + 1], interpret(plain, own)[0])
    np.testing.assert_allclose(interpret(mixed, feed, instead=single)[0], found, rtol=1e-5, atol=1e-6)


def test_columns_are_as_many_for_each() -> None:
    with pytest.raises(CompileError, match="12 columns are not as many for each of 5"):
        parse_graph("""graph @g(%x: f32[n, 8], %w: f32[8, 12], %ends: i64[5]) {
          %y: f32[n, 4] = expert_matmul(%x, %w, %ends) return %y }""")


def test_counts_of_rows_are_no_experts() -> None:
    u, scale = q8.quantize_weight(W, 0)
    q, row_scale, row_sum = q8.quantize_rows(X[None], 0)
    graph = parse_graph("""graph @g(%q: i8[1, n, 8], %rs: f32[1, n, 1], %sum: i32[1, n, 1], %u: u8[8, 12], %s: f32[12],
                                    %counts: i64[1]) {
      %y: f32[1, n, 12] = q8_linear(%q, %rs, %sum, %u, %s, -, -, -, -, -, -, %counts) return %y }""")
    feed: dict[str, Array] = {"q": q, "rs": row_scale, "sum": row_sum, "u": u, "s": scale, "counts": np.array([2])}
    np.testing.assert_allclose(interpret(graph, feed, instead=single)[0], interpret(graph, feed)[0], rtol=1e-5,
                               atol=1e-6)
