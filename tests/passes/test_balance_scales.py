"""Scales balanced between activations and weights: where the factor goes, and that results stay as they were."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import Array, Graph, clone, interpret
from q8c.ir.feeds import typical_feeds
from q8c.passes.balance_scales import BalanceScales, best_factors, factors
from q8c.passes.calibration import Calibration
from q8c.passes.fold_weights import FoldWeights
from q8c.passes.insert_dynamic_quantize import InsertDynamicQuantize
from q8c.passes.manager import Report, run_passes
from tests.passes.support import check, compare, normal_text, parse

ROUNDING = 1e-5  # of the largest result: factors and their inverses round, and products of 32 add that up
RNG = np.random.default_rng(7)
LOUD = np.where(np.arange(32) == 5, 40, 1).astype(np.float32) * RNG.uniform(0.5, 1.5, 32).astype(np.float32)
CONSTANTS = {"s": LOUD, "b": (LOUD * RNG.standard_normal(32)).astype(np.float32),
             "v": (RNG.standard_normal((16, 32)) * LOUD).astype(np.float32)}
HEAD = """
    graph @g(%x: f32[batch, seq, 32], %t: f32[batch, seq, 16]) {
      const %s: f32[32] = @s
      const %b: f32[32] = @b
      const %v: f32[16, 32] = @v
      const %w: f32[32, 16] = @w
      const %w2: f32[32, 24] = @w2
"""
FACTOR = "      const %f: f32[32] = @f\n"


def balanced(body: str, after: str | None = None) -> Report:
    """Run the pass; the text must become `after`, or stay but for the constants' data."""
    before = HEAD + body + "\n    }"
    body = body.replace("add(%b, %p)", "add(%p, %b)")  # as the pass writes it anew
    head = HEAD if after is None else HEAD + FACTOR
    return check([BalanceScales()], before, head + (after or body) + "\n    }", constants=CONSTANTS,
                 tolerance=ROUNDING)


NORM = "%n: f32[batch, seq, 32] = layer_norm(%x, %s, %b)"


@pytest.mark.parametrize(("body", "into"), [
    (f"{NORM}\n %y: f32[batch, seq, 16] = matmul(%n, %w)\n return %y", "layer_norm"),
    ("%n: f32[batch, seq, 32] = rms_norm(%x, %s)\n %y: f32[batch, seq, 16] = matmul(%n, %w)\n return %y", "rms_norm"),
    (f"{NORM}\n %y: f32[batch, seq, 16] = matmul(%n, %w)\n %z: f32[batch, seq, 24] = matmul(%n, %w2)\n return %y, %z",
     "layer_norm"),
    ("%p: f32[batch, seq, 32] = matmul(%t, %v)\n %y: f32[batch, seq, 16] = matmul(%p, %w)\n return %y", "matmul"),
    ("%p: f32[batch, seq, 32] = matmul(%t, %v)\n %a: f32[batch, seq, 32] = add(%b, %p)\n"
     "%y: f32[batch, seq, 16] = matmul(%a, %w)\n return %y", "matmul"),
    ("%p: f32[batch, seq, 32] = matmul(%t, %v)\n %a: f32[batch, seq, 32] = add(%p, %b)\n"
     "%r: f32[batch, seq, 32] = relu(%a)\n %y: f32[batch, seq, 16] = matmul(%r, %w)\n return %y", "matmul"),
    ("%p: f32[batch, seq, 32] = matmul(%t, %v)\n %g: f32[batch, seq, 32] = silu(%x)\n"
     "%m: f32[batch, seq, 32] = mul(%g, %p)\n %y: f32[batch, seq, 16] = matmul(%m, %w)\n return %y", "matmul"),
    ("%p: f32[batch, seq, 32] = matmul(%t, %v)\n"
     "%m: f32[batch, seq, 32] = attention(%x, %x, %p) {heads = 2, kv_heads = 2, head_size = 16, scale = 0.25}\n"
     "%y: f32[batch, seq, 16] = matmul(%m, %w)\n return %y", "matmul"),
    ("%p: f32[batch, seq, 32] = matmul(%t, %v)\n %a: f32[batch, seq, 32] = add(%p, %b)\n"
     "%m: f32[batch, seq, 32] = attention(%x, %x, %a) {heads = 2, kv_heads = 2, head_size = 16, scale = 0.25}\n"
     "%y: f32[batch, seq, 16] = matmul(%m, %w)\n return %y", "matmul"),
], ids=["layer_norm", "rms_norm", "two products of one norm", "a product", "a product's bias", "relu", "gate",
        "attention", "attention with a bias"])
def test_what_makes_x_takes_the_factor(body: str, into: str) -> None:
    report = balanced(body)
    assert [f" in {into} " in note.text for note in report.rewrites] == [True]


@pytest.mark.parametrize(("body", "after"), [
    (f"{NORM}\n %y: f32[batch, seq, 16] = matmul(%n, %w)\n %z: f32[batch, seq, 32] = exp(%n)\n return %y, %z",
     f"{NORM}\n %m: f32[batch, seq, 32] = mul(%n, %f)\n %y: f32[batch, seq, 16] = matmul(%m, %w)\n"
     "%z: f32[batch, seq, 32] = exp(%n)\n return %y, %z"),
    (f"{NORM}\n %y: f32[batch, seq, 16] = matmul(%n, %w)\n return %y, %n",
     f"{NORM}\n %m: f32[batch, seq, 32] = mul(%n, %f)\n %y: f32[batch, seq, 16] = matmul(%m, %w)\n return %y, %n"),
    ("%p: f32[batch, seq, 32] = matmul(%t, %v)\n %g: f32[batch, seq, 32] = gelu(%p)\n"
     "%y: f32[batch, seq, 16] = matmul(%g, %w)\n %z: f32[batch, seq, 24] = matmul(%g, %w2)\n return %y, %z",
     "%p: f32[batch, seq, 32] = matmul(%t, %v)\n %g: f32[batch, seq, 32] = gelu(%p)\n"
     "%m: f32[batch, seq, 32] = mul(%g, %f)\n %y: f32[batch, seq, 16] = matmul(%m, %w)\n"
     "%z: f32[batch, seq, 24] = matmul(%m, %w2)\n return %y, %z"),
    ("%p: f32[batch, seq, 32] = matmul(%t, %v)\n %r: f32[batch, seq, 32] = relu(%p)\n"
     "%y: f32[batch, seq, 16] = matmul(%r, %w)\n return %y, %p",
     "%p: f32[batch, seq, 32] = matmul(%t, %v)\n %r: f32[batch, seq, 32] = relu(%p)\n"
     "%m: f32[batch, seq, 32] = mul(%r, %f)\n %y: f32[batch, seq, 16] = matmul(%m, %w)\n return %y, %p"),
    ("%p: f32[batch, seq, 32] = matmul(%t, %v)\n %m: f32[batch, seq, 32] = mul(%p, %p)\n"
     "%y: f32[batch, seq, 16] = matmul(%m, %w)\n return %y",
     "%p: f32[batch, seq, 32] = matmul(%t, %v)\n %m: f32[batch, seq, 32] = mul(%p, %p)\n"
     "%n: f32[batch, seq, 32] = mul(%m, %f)\n %y: f32[batch, seq, 16] = matmul(%n, %w)\n return %y"),
], ids=["another reader", "an output of the graph", "not linear", "read before relu", "a square"])
def test_elsewhere_it_is_a_multiplication_before_quantizing(body: str, after: str) -> None:
    assert ["before quantizing" in note.text for note in balanced(body, after).rewrites] == [True]


def test_heads_that_share_values_cannot_take_a_factor_per_channel() -> None:
    heads = "{heads = 4, kv_heads = 2, head_size = 8, scale = 0.25}"
    body = """
    graph @g(%q: f32[batch, seq, 32], %k: f32[batch, seq, 16], %t: f32[batch, seq, 16]) {{
      const %v: f32[16, 16] = @v
      const %w: f32[32, 16] = @w
      {factor}
      %p: f32[batch, seq, 16] = matmul(%t, %v)
      %a: f32[batch, seq, 32] = attention(%q, %k, %p) {heads}
      {rest}
      return %y
    }}"""
    loud = {"v": (RNG.standard_normal((16, 16)) * LOUD[:16]).astype(np.float32)}
    check([BalanceScales()],
          body.format(factor="", heads=heads, rest="%y: f32[batch, seq, 16] = matmul(%a, %w)"),
          body.format(factor=FACTOR, heads=heads, rest="%m: f32[batch, seq, 32] = mul(%a, %f)\n"
                                                       "%y: f32[batch, seq, 16] = matmul(%m, %w)"),
          constants=loud, tolerance=ROUNDING)


def test_products_of_the_models_inputs_are_left_alone() -> None:
    report = check(BalanceScales(), HEAD.replace("const", "# const", 3) + """
      %y: f32[batch, seq, 16] = matmul(%x, %w)
      %z: f32[batch, seq, 24] = matmul(%x, %w2)
      return %y, %z
    }""", None)
    assert not report.rewrites


def norm_graph() -> Graph:
    """A norm with one loud channel and the product that reads it."""
    return parse(HEAD + f"{NORM}\n %y: f32[batch, seq, 16] = matmul(%n, %w)\n return %y\n }}", CONSTANTS)


def quantized_error(graph: Graph, reference: Graph, format: str) -> float:
    """The relative L2 of a graph's output after its products are quantized."""
    run_passes(graph, [FoldWeights(format), InsertDynamicQuantize()])
    feeds = typical_feeds(reference, seed=1)
    [y], [r] = interpret(graph, feeds), interpret(reference, feeds)
    return float(np.linalg.norm(y - r) / np.linalg.norm(r))


@pytest.mark.parametrize("format", ["q8-channel", "q8-block32"])
def test_a_loud_channel_costs_less_once_balanced(format: str) -> None:
    reference, plain, balanced = norm_graph(), norm_graph(), norm_graph()
    run_passes(balanced, [BalanceScales(format)])
    assert quantized_error(balanced, reference, format) < 0.75 * quantized_error(plain, reference, format)


def test_calibration_on_feeds_sees_what_made_up_inputs_do_not() -> None:
    graph = norm_graph()
    rows = RNG.standard_normal((8, 16, 32)).astype(np.float32)
    rows[..., 3] *= 1000  # the norm leaves little else
    feeds = ({"x": rows, "t": np.zeros((8, 16, 16), np.float32)},)
    made_up, given = clone(graph), clone(graph)
    run_passes(made_up, [BalanceScales()])
    run_passes(given, [BalanceScales(calibration=Calibration(feeds))])
    scale = {name: g.nodes[0].input(1).array() for name, g in (("made up", made_up), ("given", given))}
    assert scale["given"][3] / LOUD[3] < 0.7 * scale["made up"][3] / LOUD[3]
    for g in (made_up, given):
        compare(graph, g, feeds[0], ROUNDING)


def test_rows_of_zeros_and_dead_channels_give_finite_factors() -> None:
    a, b = np.array([0, 1, 4.0, 0]), np.array([1, 0, 1.0, 0])
    assert factors(a, b, 0.5).tolist() == [1, 1, 1, 1]
    assert np.isfinite(factors(np.array([1e-30, 1e30]), np.array([1.0, 1.0]), 0.6)).all()
    graph = norm_graph()
    graph.constants["s"].data = np.zeros(32, np.float32)
    graph.constants["b"].data = np.zeros(32, np.float32)
    report = run_passes(graph, [BalanceScales()])
    assert not report.rewrites and "no factors" in report.declines[0].text


def test_a_few_rows_are_not_enough_to_go_by() -> None:
    feeds = ({"x": RNG.standard_normal((1, 3, 32)).astype(np.float32), "t": np.zeros((1, 3, 16), np.float32)},)
    report = run_passes(norm_graph(), [BalanceScales(calibration=Calibration(feeds))])
    assert [note.text for note in report.declines] == ["3 rows were seen, balancing wants 16 to go by"]


def test_the_same_graph_gives_the_same_bits() -> None:
    results: list[list[Array]] = []
    for _ in range(2):
        graph = norm_graph()
        run_passes(graph, [BalanceScales()])
        results.append([v.array() for v in graph.constants.values()])
    assert [a.tobytes() for a in results[0]] == [a.tobytes() for a in results[1]]


def test_a_model_that_made_up_inputs_do_not_fit_is_left_as_it_is() -> None:
    graph = parse("""
    graph @g(%x: f32[n, 32], %ids: i64[n]) {
      const %table: f32[4, 32] = @table
      const %w: f32[32, 16] = @w
      const %far: i64[] = 9
      %i: i64[n] = add(%ids, %far)
      %e: f32[n, 32] = gather(%table, %i)
      %h: f32[n, 32] = mul(%e, %x)
      %y: f32[n, 16] = matmul(%h, %w)
      return %y
    }""")
    text = normal_text(graph)
    report = run_passes(graph, [BalanceScales()])
    assert normal_text(graph) == text and "give inputs to calibrate on" in report.declines[0].text


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_left_to_be_refused_by_name(odd: float) -> None:
    rows, w = np.ones((64, 8), np.float32), np.ones((8, 4), np.float32)
    w[3, 2] = odd
    assert (best_factors(rows, [w], 0) == 1).all()
