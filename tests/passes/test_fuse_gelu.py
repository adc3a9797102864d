"""GELU in every spelling exporters write; results agree to rounding."""
from __future__ import annotations

import pytest

from q8c.passes.canonicalize import Canonicalize
from q8c.passes.eliminate_dead_code import EliminateDeadCode
from q8c.passes.fuse_gelu import FuseGelu
from q8c.passes.manager import run_passes
from q8c.passes.share_common import ShareCommon
from tests.passes.support import check, parse

PASSES = [Canonicalize(), ShareCommon(), FuseGelu(), EliminateDeadCode()]
ROUNDING = 1e-6  # the spelled-out GELU rounds five times in f32, gelu once

CONSTANTS = """
    const %half: f32[] = 0.5
    const %one: f32[] = 1.0
    const %two: f32[] = 2.0
    const %three: f32[] = 3.0
    const %root2: f32[] = 1.4142135
    const %short: f32[] = 1.41421
    const %inverse: f32[] = 0.70710677
    const %k: f32[] = 0.044715
    const %c: f32[] = 0.7978846
    const %ck: f32[] = 0.035677407
"""

ERF = {
    "PyTorch: x * (1 + erf(x / sqrt2)) * 0.5": """
        %a: T = div(%x, %root2)
        %b: T = erf(%a)
        %d: T = add(%b, %one)
        %e: T = mul(%x, %d)
        %y: T = mul(%e, %half)""",
    "0.5 * x * (1 + erf(x * 0.7071))": """
        %a: T = mul(%inverse, %x)
        %b: T = erf(%a)
        %d: T = add(%one, %b)
        %h: T = mul(%half, %x)
        %y: T = mul(%h, %d)""",
    "x * (0.5 * (1 + erf(x / sqrt2))), six digits of sqrt2": """
        %a: T = div(%x, %short)
        %b: T = erf(%a)
        %d: T = add(%b, %one)
        %e: T = mul(%d, %half)
        %y: T = mul(%x, %e)""",
    "0.5 * (x + x * erf(x / sqrt2))": """
        %a: T = div(%x, %root2)
        %b: T = erf(%a)
        %d: T = mul(%x, %b)
        %e: T = add(%x, %d)
        %y: T = mul(%half, %e)""",
    "0.5 * x + 0.5 * x * erf(x / sqrt2)": """
        %a: T = div(%x, %root2)
        %b: T = erf(%a)
        %h: T = mul(%x, %half)
        %d: T = mul(%h, %b)
        %y: T = add(%d, %h)""",
    "x * (1 + erf(x / sqrt2)) / 2": """
        %a: T = div(%x, %root2)
        %b: T = erf(%a)
        %d: T = add(%b, %one)
        %e: T = mul(%x, %d)
        %y: T = div(%e, %two)""",
}
TANH = {
    "BERT in TensorFlow: x * (0.5 * (1 + tanh(c * (x + k * pow(x, 3)))))": """
        %p: T = pow(%x, %three)
        %q: T = mul(%k, %p)
        %s: T = add(%x, %q)
        %a: T = mul(%c, %s)
        %b: T = tanh(%a)
        %d: T = add(%one, %b)
        %e: T = mul(%half, %d)
        %y: T = mul(%x, %e)""",
    "GPT-2: 0.5 * x * (1 + tanh(c * (x + k * x * x * x)))": """
        %p: T = mul(%x, %x)
        %p3: T = mul(%p, %x)
        %q: T = mul(%p3, %k)
        %s: T = add(%x, %q)
        %a: T = mul(%s, %c)
        %b: T = tanh(%a)
        %d: T = add(%b, %one)
        %h: T = mul(%x, %half)
        %y: T = mul(%h, %d)""",
    "fast: 0.5 * x * (1 + tanh(x * c * (1 + k * x * x)))": """
        %h: T = mul(%x, %half)
        %w: T = mul(%x, %c)
        %kx: T = mul(%x, %k)
        %p: T = mul(%kx, %x)
        %s: T = add(%p, %one)
        %a: T = mul(%w, %s)
        %b: T = tanh(%a)
        %d: T = add(%b, %one)
        %y: T = mul(%h, %d)""",
    "x * (c + ck * x^2), constants multiplied out": """
        %h: T = mul(%x, %half)
        %p: T = pow(%x, %two)
        %q: T = mul(%p, %ck)
        %s: T = add(%q, %c)
        %a: T = mul(%x, %s)
        %b: T = tanh(%a)
        %d: T = add(%b, %one)
        %y: T = mul(%h, %d)""",
}


def graph_text(body: str, shape: str = "b, s, 8") -> str:
    """A graph around a spelling: the input is a sum, as in a model."""
    head = f"graph @g(%in: T, %bias: T) {{ {CONSTANTS} %x: T = add(%in, %bias) from \"bias\"\n"
    return f"{head}{body}\n return %y\n}}".replace(": T", f": f32[{shape}]")


def after(approximate: str) -> str:
    """The one graph all spellings of a kind become."""
    return f"""
        graph @g(%in: f32[b, s, 8], %bias: f32[b, s, 8]) {{
          %x: f32[b, s, 8] = add(%in, %bias)
          %y: f32[b, s, 8] = gelu(%x) {{approximate = "{approximate}"}}
          return %y
        }}"""


@pytest.mark.parametrize("name", ERF)
def test_erf(name: str) -> None:
    tolerance = 5e-6 if "six digits" in name else ROUNDING
    check(PASSES, graph_text(ERF[name]), after("none"), tolerance=tolerance)


@pytest.mark.parametrize("name", TANH)
def test_tanh(name: str) -> None:
    check(PASSES, graph_text(TANH[name]), after("tanh"), tolerance=ROUNDING)


def test_the_input_may_be_a_product_itself() -> None:
    body = ERF["0.5 * x * (1 + erf(x * 0.7071))"]
    before = graph_text(body).replace("= add(%in, %bias)", "= mul(%in, %half)")
    check(PASSES, before, after("none").replace("add(%in, %bias)", "mul(%in, %half)").replace(
        "{\n          %x", "{\n          const %half: f32[] = 0.5\n          %x", 1), tolerance=ROUNDING)


def test_the_result_stands_for_all_nodes_it_replaces() -> None:
    check(FuseGelu(), """
        graph @g(%x: f32[b]) {
          const %half: f32[] = 0.5
          const %one: f32[] = 1.0
          const %root2: f32[] = 1.4142135
          %a: f32[b] = div(%x, %root2) from "act/Div"
          %b: f32[b] = erf(%a) from "act/Erf"
          %d: f32[b] = add(%b, %one) from "act/Add"
          %e: f32[b] = mul(%x, %d) from "act/Mul"
          %y: f32[b] = mul(%e, %half) from "act/Mul_1"
          return %y
        }""", """
        graph @g(%x: f32[b]) {
          const %half: f32[] = 0.5
          const %one: f32[] = 1.0
          const %root2: f32[] = 1.4142135
          %y: f32[b] = gelu(%x) {approximate = "none"} from "act/Div", "act/Erf", "act/Add", "act/Mul", "act/Mul_1"
          return %y
        }""", tolerance=ROUNDING)


def test_a_gelu_whose_parts_are_read_elsewhere_is_fused_and_the_parts_stay() -> None:
    before = graph_text(ERF["0.5 * x * (1 + erf(x * 0.7071))"]).replace("return %y", "return %y, %b")
    check(PASSES, before, """
        graph @g(%in: f32[b, s, 8], %bias: f32[b, s, 8]) {
          const %inverse: f32[] = 0.70710677
          %x: f32[b, s, 8] = add(%in, %bias)
          %a: f32[b, s, 8] = mul(%x, %inverse)
          %b: f32[b, s, 8] = erf(%a)
          %y: f32[b, s, 8] = gelu(%x) {approximate = "none"}
          return %y, %b
        }""", tolerance=ROUNDING)


@pytest.mark.parametrize("change", [
    ("%half: f32[] = 0.5", "%half: f32[] = 0.51"), ("%one: f32[] = 1.0", "%one: f32[] = -1.0"),
    ("%inverse: f32[] = 0.70710677", "%inverse: f32[] = 0.7072"), ("%d: f32[b, s, 8] = add", "%d: f32[b, s, 8] = sub"),
    ("mul(%half, %x)", "mul(%half, %in)")])
def test_anything_else_stays_and_is_declined(change: tuple[str, str]) -> None:
    text = graph_text(ERF["0.5 * x * (1 + erf(x * 0.7071))"])
    assert change[0] in text
    graph = parse(text.replace(*change))
    report = run_passes(graph, PASSES)
    assert [n.op for n in graph.nodes].count("erf") == 1 and "gelu" not in [n.op for n in graph.nodes]
    assert [str(d) for d in report.declines] == [
        "fuse-gelu: erf %b: no product 0.5 * x * (1 + erf(x / sqrt(2))) was found around it"]


@pytest.mark.parametrize(("dtype", "root", "fused"), [
    ("f16", "1.414", True), ("f32", "1.4140625", True), ("f32", "1.414", False)])
def test_half_precision_constants_are_compared_in_their_precision(dtype: str, root: str, fused: bool) -> None:
    """Those of a file in float16 that is computed in float32 too."""
    text = graph_text(ERF["PyTorch: x * (1 + erf(x / sqrt2)) * 0.5"])
    graph = parse(text.replace("f32", dtype).replace("1.4142135", root))
    run_passes(graph, PASSES)
    assert ("gelu" in [n.op for n in graph.nodes]) == fused
