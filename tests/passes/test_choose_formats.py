"""The fastest format of each product under a bound on the model's error."""
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from q8c.errors import CompileError
from q8c.ir import Graph, clone, interpret
from q8c.ir.feeds import typical_feeds
from q8c.passes.choose_formats import ChooseFormats
from q8c.passes.fold_weights import Names, fold
from q8c.passes.format_search import FLOAT, SPEED, Search, distance
from q8c.passes.insert_dynamic_quantize import InsertDynamicQuantize
from q8c.passes.manager import Report, run_passes
from tests.passes.support import check, parse

TEXT = """
    graph @g(%x: f32[n, 160]) {
      const %s: f32[160] = @s
      const %w1: f32[160, 192] = @w1
      const %w2: f32[192, 160] = @w2
      const %w3: f32[160, 64] = @w3
      %n: f32[n, 160] = rms_norm(%x, %s)
      %a: f32[n, 192] = matmul(%n, %w1) from "up"
      %g: f32[n, 192] = gelu(%a)
      %b: f32[n, 160] = matmul(%g, %w2) from "down"
      %c: f32[n, 160] = add(%b, %n)
      %y: f32[n, 64] = matmul(%c, %w3) from "head"
      return %y
    }"""
LOUD = np.where(np.arange(160) % 50 == 3, 30, 1).astype(np.float32)


def graph() -> Graph:
    rng = np.random.default_rng(3)
    return parse(TEXT, {"s": LOUD, "w1": rng.standard_normal((160, 192)) / 13,
                        "w2": rng.standard_normal((192, 160)) / 14, "w3": rng.standard_normal((160, 64)) / 13})


def formats(graph: Graph) -> dict[str, str]:
    """What became of each product, by the name of its node."""
    found = {}
    for node in graph.nodes:
        if node.op == "matmul":
            weight = node.input(1).producer
            block = 0 if weight is None else weight.attrs.get("block", 0)
            found[node.source[0]] = FLOAT if weight is None else f"q8-block{block}" if block else "q8-channel"
    return found


def chosen(max_error: float) -> tuple[dict[str, str], Graph, Report]:
    g = graph()
    report = run_passes(g, [ChooseFormats(max_error)])
    return formats(g), g, report


@pytest.mark.parametrize("max_error", [1.0, 0.02, 0.012, 0.008, 0.004, 1e-6])
def test_the_error_stays_under_the_bound(max_error: float) -> None:
    found, quantized, report = chosen(max_error)
    run_passes(quantized, [InsertDynamicQuantize()])
    feeds = typical_feeds(graph())
    error = distance(interpret(quantized, feeds), interpret(graph(), feeds))
    assert error <= max_error * (1 + 1e-4)  # the search runs in single precision
    told = {n.source[0] for n in (*report.rewrites, *report.declines) if f"{max_error:g} allowed" in n.text}
    assert told == set(found) == {"up", "down", "head"}


def test_a_wide_bound_takes_the_fastest_and_a_narrow_one_float() -> None:
    assert set(chosen(1.0)[0].values()) == {"q8-channel"}
    assert set(chosen(1e-6)[0].values()) == {FLOAT}
    between = Counter(chosen(0.008)[0].values())
    assert between["q8-channel"] < 3 and between[FLOAT] < 3


def test_a_narrower_bound_is_never_faster() -> None:
    times = [sum(SPEED[f] for f in chosen(bound)[0].values()) for bound in (0.03, 0.015, 0.01, 0.006, 0.003)]
    assert times == sorted(times)


def test_products_of_one_tensor_share_a_format() -> None:
    g = parse(TEXT.replace("return %y", '%z: f32[n, 64] = matmul(%c, %w4) from "other"\n return %y, %z').replace(
        "      const %w3", "      const %w4: f32[160, 64] = @w4\n      const %w3"), {"s": LOUD})
    run_passes(g, [ChooseFormats(0.006)])
    found = formats(g)
    assert found["head"] == found["other"]


def test_the_search_sees_what_the_passes_will_do() -> None:
    g = graph()
    products = [n for n in g.nodes if n.op == "matmul"]
    feeds = typical_feeds(g)
    choice = dict(zip(products, ("q8-block32", "q8-channel", "q8-block64"), strict=True))
    predicted = Search(g, products, (feeds,)).error(choice)
    quantized = clone(g)
    nodes = [n for n in quantized.nodes if n.op == "matmul"]
    fold(quantized, dict(zip(nodes, choice.values(), strict=True)), Report())
    run_passes(quantized, [InsertDynamicQuantize()])
    actual = distance(interpret(quantized, feeds), interpret(g, feeds))
    assert predicted == pytest.approx(actual, rel=0.02)  # elements next to a boundary may round the other way


def test_products_asked_to_stay_float_stay_so() -> None:
    g = graph()
    run_passes(g, [ChooseFormats(0.05, Names("down"))])
    assert formats(g)["down"] == FLOAT
    with pytest.raises(CompileError, match="no matmul comes from node 'sideways'"):
        run_passes(graph(), [ChooseFormats(0.05, Names("sideways"))])


def test_nothing_to_quantize_is_nothing_to_do() -> None:
    check(ChooseFormats(), "graph @g(%x: f32[n, 4]) {\n  %y: f32[n, 4] = exp(%x)\n  return %y\n}", None)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_bound_must_be_above_0(bad: float) -> None:
    with pytest.raises(CompileError, match="expected a number above 0"):
        ChooseFormats(bad)


def test_distance_of_what_is_not_finite() -> None:
    nan, one = np.array([np.nan]), np.array([1.0])
    assert distance([one], [one]) == 0 and distance([nan], [one]) == np.inf
    assert distance([nan], [nan]) == 0 and distance([one], [0 * one]) == np.inf
