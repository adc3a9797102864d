"""Tiers with vectors of one width differ in the products of integers alone: tests of float code take one of each."""
from __future__ import annotations

import pytest

from q8c.codegen.attention import attention_kernel
from q8c.codegen.kernels import kernel_for
from q8c.codegen.module import new_module
from q8c.codegen.targets import TIERS, Tier
from q8c.ir import Graph, parse_graph
from tests.codegen.attention import Case
from tests.codegen.kernels import loop_text

ROW = {"x": "f32[n, 40]"}
LOOPS = ["gelu(%x) {approximate = \"none\"}", "softmax(%x) {axis = -1}", "pow(%x, %x)", "sin(%x)"]
OTHERS = {
    "linear": """graph @g(%x: f32[n, 40]) {
        const %w: f32[40, 48] = @w
        const %b: f32[48] = @b
        %y: f32[n, 48] = linear(%x, %w, %b) {activation = "relu"}
        return %y
    }""",
    "matmul": "graph @g(%a: f32[h, s, 8], %b: f32[h, 8, t]) { %y: f32[h, s, t] = matmul(%a, %b) return %y }",
    "quantize": loop_text(ROW, "%q: i8[n, 40], %s: f32[n, 1], %t: i32[n, 1] = dynamic_quantize(%x)",
                          {"q": "i8[n, 40]", "s": "f32[n, 1]", "t": "i32[n, 1]"}),
    "transpose": "graph @g(%x: f32[n, 40]) { %y: f32[40, n] = transpose(%x) {perm = (1, 0)} return %y }",
    "gather": "graph @g(%x: f32[9, 40], %i: i64[n]) { %y: f32[n, 40] = gather(%x, %i) {axis = 0} return %y }",
}
PAIRS = [("avx2", "avx-vnni"), ("avx512-vnni", "amx-int8")]


def written(graph: Graph, tier: Tier) -> str:
    """A node's kernel as LLVM's text, without the tier's name."""
    module = new_module("widths")
    node = graph.nodes[-1]
    make = attention_kernel if node.op == "attention" else kernel_for(node)
    make(module, tier, node)
    return str(module).replace(f"__{tier.name.replace('-', '')}", "")


def graphs() -> dict[str, Graph]:
    """One node each, by what it is called."""
    loops = {op: parse_graph(loop_text(ROW, f"%y: f32[n, 40] = {op}", {"y": "f32[n, 40]"})) for op in LOOPS}
    attention = {str(case): case.graph() for case in (
        Case(size=16, mask="batch, 1, seq, seq"),
        Case(size=16, merged=False, split="kv", causal=True, key_mask="i64[batch, keys]", lengths=True))}
    return loops | attention | {name: parse_graph(text) for name, text in OTHERS.items()}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_float_code_is_that_of_the_width(one: str, other: str) -> None:
    for name, graph in graphs().items():
        assert written(graph, TIERS[one]) == written(graph, TIERS[other]), name


def test_the_two_widths_differ() -> None:
    graph = parse_graph(OTHERS["linear"])
    assert written(graph, TIERS[PAIRS[0][0]]) != written(graph, TIERS[PAIRS[1][0]])
