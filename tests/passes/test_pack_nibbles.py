"""Weights that 4 bits hold get 4 bits, and results stay the same to the bit."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import Graph, constant_data, interpret, parse_graph, print_graph, q4, q8
from q8c.ir.single import single
from q8c.passes.manager import run_passes
from q8c.passes.pack_nibbles import PackNibbles

DEPTH, COLS = 80, 20
RANGES = {"as they are": (-8, 7), "scales turned": (-7, 8), "offsets": (-3, 12), "far from 0": (0, 15)}


def linear(low: int, high: int, block: int, zero_point: bool = False, depth: int = DEPTH) -> Graph:
    """A product with a weight whose numbers are `low` to `high`."""
    rng = np.random.default_rng(1)
    numbers = rng.integers(low, high + 1, (depth, COLS))
    numbers[::16], numbers[1::16] = low, high
    u = (numbers + q8.ZERO_POINT).astype(np.uint8)
    blocks = q8.block_count(depth, block)
    scales = rng.uniform(0.5, 1, (blocks, COLS)).astype(np.float16 if block else np.float32)
    shape, scale = (f"{blocks}, {COLS}", "f16") if block else (str(COLS), "f32")
    zero, z, sums, more = ("", "", "", "")
    if zero_point:
        zero, z, sums = f", %z: i32[n, {blocks}]", ", zero_point = true", ", -, -, %z, %t"
        more = f"const %t: {'i16' if block else 'i32'}[{shape}] = @t"
    return parse_graph(f"""
    graph @g(%x: f32[n, {depth}]) {{
      const %w: u8[{depth}, {COLS}] = @w
      const %s: {scale}[{shape}] = @s
      {more}
      %q: i8[n, {depth}], %r: f32[n, {blocks}], %m: i32[n, {blocks}]{zero} = dynamic_quantize(%x) {{block = {block}{z}}}
      %y: f32[n, {COLS}] = q8_linear(%q, %r, %m, %w, %s{sums}) {{block = {block}}}
      return %y
    }}""", {"w": u, "s": scales if block else scales[0], "t": q8.column_sums(u, block)})


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize(("block", "zero_point"), [(0, False), (0, True), (32, True)])
def test_results_are_the_same(kind: str, block: int, zero_point: bool) -> None:
    graph = linear(*RANGES[kind], block, zero_point)
    x = {"x": np.random.default_rng(2).standard_normal((5, DEPTH)).astype(np.float32)}
    before, = interpret(graph, x)
    report = run_passes(graph, [PackNibbles()])
    node = graph.nodes[-1]
    assert node.attrs["bits"] == 4 and node.input(3).array().max() < q4.STEPS
    assert (len(node.inputs) > 9) is (kind in ("offsets", "far from 0"))
    assert ((node.input(4).array() < 0).any()) == (kind == "scales turned")
    assert [note.text for note in report.rewrites] == [f"weight u8[{DEPTH}, {COLS}] in 4 bits"]
    text = print_graph(graph)
    assert print_graph(parse_graph(text, constant_data(graph))) == text
    np.testing.assert_array_equal(interpret(graph, x)[0], before)
    np.testing.assert_allclose(interpret(graph, x, instead=single)[0], before, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("low", "high", "depth"), [(-8, 8, DEPTH), (-16, -1, DEPTH), (-8, 7, DEPTH + 4)])
def test_what_does_not_fit_keeps_8_bits(low: int, high: int, depth: int) -> None:
    graph = linear(low, high, 32, depth=depth)
    before = print_graph(graph)
    run_passes(graph, [PackNibbles()])
    assert print_graph(graph) == before


@pytest.mark.parametrize(("high", "told"), [(7, ["%w is a table too, which is read in 8 bits"]), (8, [])])
def test_a_weight_that_is_a_table_keeps_8_bits(high: int, told: list[str]) -> None:
    graph = linear(-8, high, 0)
    ids = graph.constant(np.array([1, 2]), "ids")
    found = graph.add("lookup", [graph.constants["w"], graph.constants["s"], ids]).output
    graph.add_output(found, "rows")
    report = run_passes(graph, [PackNibbles()])
    assert graph.nodes[1].attrs.get("bits", 8) == 8
    assert [note.text for note in report.declines] == told
