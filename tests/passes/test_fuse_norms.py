"""Layer norm, RMS norm and softmax from their parts; results agree to rounding."""
from __future__ import annotations

import pytest

from q8c.passes.canonicalize import Canonicalize
from q8c.passes.eliminate_dead_code import EliminateDeadCode
from q8c.passes.fuse_layer_norm import FuseLayerNorm
from q8c.passes.fuse_rms_norm import FuseRmsNorm
from q8c.passes.fuse_softmax import FuseSoftmax
from q8c.passes.manager import run_passes
from q8c.passes.share_common import ShareCommon
from tests.passes.support import check, parse

PASSES = [Canonicalize(), ShareCommon(), FuseSoftmax(), FuseLayerNorm(), FuseRmsNorm(), EliminateDeadCode()]
ROUNDING = 1e-6

HEAD = """graph @g(%x: f32[b, s, 8]) {
    const %eps: f32[] = 1e-12
    const %half: f32[] = 0.5
    const %mhalf: f32[] = -0.5
    const %one: f32[] = 1.0
    const %two: f32[] = 2.0
    const %w: f32[8] = @w
    const %bias: f32[1, 1, 8] = @bias
    const %bias1: f32[8] = @bias1
    const %ones: f32[8] = 1.0
"""
DEVIATION = """
    %mean: R = reduce_mean(%x) {axes = (-1)}
    %d: T = sub(%x, %mean)
"""
VARIANCE = DEVIATION + """
    %sq: T = pow(%d, %two)
    %var: R = reduce_mean(%sq) {axes = (2)}
    %ve: R = add(%var, %eps)
"""
FULL = "%y: T = layer_norm(%x, %w, %bias) {epsilon = 1e-12}"
SCALED = "%y: T = layer_norm(%x, %w) {epsilon = 1e-12}"
PLAIN = "%y: T = layer_norm(%x, %ones) {epsilon = 1e-12}"

LAYER_NORM = {
    "PyTorch below opset 17": (VARIANCE + """
        %sd: R = sqrt(%ve)
        %n: T = div(%d, %sd)
        %m: T = mul(%n, %w)
        %y: T = add(%m, %bias)""", FULL),
    "the deviation computed twice, constants to the left": (DEVIATION + """
        %mean2: R = reduce_mean(%x) {axes = (2)}
        %d2: T = sub(%x, %mean2)
        %sq: T = mul(%d2, %d2)
        %var: R = reduce_mean(%sq) {axes = (2)}
        %ve: R = add(%eps, %var)
        %sd: R = sqrt(%ve)
        %n: T = div(%d, %sd)
        %m: T = mul(%w, %n)
        %y: T = add(%bias, %m)""", FULL),
    "the variance as flax has it, mean(x^2) - mean(x)^2, not below 0": (DEVIATION + """
        const %zero: f32[] = 0.0
        %sq: T = mul(%x, %x)
        %msq: R = reduce_mean(%sq) {axes = (2)}
        %sqm: R = mul(%mean, %mean)
        %dif: R = sub(%msq, %sqm)
        %var: R = max(%zero, %dif)
        %ve: R = add(%var, %eps)
        %sd: R = sqrt(%ve)
        %n: T = div(%d, %sd)
        %m: T = mul(%n, %w)
        %y: T = add(%m, %bias)""", FULL),
    "means that drop their axis": ("""
        %mean: f32[b, s] = reduce_mean(%x) {axes = (2), keepdims = false}
        %mk: R = reshape(%mean) {shape = (b, s, 1)}
        %d: T = sub(%x, %mk)
        %sq: T = mul(%d, %d)
        %var: f32[b, s] = reduce_mean(%sq) {axes = (2), keepdims = false}
        %vk: R = reshape(%var) {shape = (b, s, 1)}
        %ve: R = add(%vk, %eps)
        %sd: R = sqrt(%ve)
        %y: T = div(%d, %sd)""", PLAIN),
    "Reciprocal": (VARIANCE + """
        %sd: R = sqrt(%ve)
        %r: R = reciprocal(%sd)
        %n: T = mul(%d, %r)
        %y: T = mul(%n, %w)""", SCALED),
    "1 / Sqrt, then the scale on the root": (VARIANCE + """
        %sd: R = sqrt(%ve)
        %r: R = div(%one, %sd)
        %rw: T = mul(%r, %w)
        %m: T = mul(%d, %rw)
        %y: T = add(%m, %bias)""", FULL),
    "Pow -0.5, the scale on the deviation": (VARIANCE + """
        %r: R = pow(%ve, %mhalf)
        %dw: T = mul(%w, %d)
        %y: T = mul(%r, %dw)""", SCALED),
    "Pow 0.5": (VARIANCE + """
        %r: R = pow(%ve, %half)
        %y: T = div(%d, %r)""", PLAIN),
    "Keras: x * s + (bias - mean * s)": (VARIANCE + """
        %r: R = rsqrt(%ve)
        %s: T = mul(%r, %w)
        %xs: T = mul(%x, %s)
        %ms: T = mul(%mean, %s)
        %shift: T = sub(%bias1, %ms)
        %y: T = add(%xs, %shift)""", "%y: T = layer_norm(%x, %w, %bias1) {epsilon = 1e-12}"),
}
SQUARES = """
    %sq: T = pow(%x, %two)
    %ms: R = reduce_mean(%sq) {axes = (-1)}
    %me: R = add(%ms, %eps)
"""
RMS_NORM = {
    "Llama": (SQUARES + """
        %sd: R = sqrt(%me)
        %r: R = reciprocal(%sd)
        %n: T = mul(%x, %r)
        %y: T = mul(%w, %n)""", "%y: T = rms_norm(%x, %w) {epsilon = 1e-12}"),
    "with casts around": ("""
        %x1: T = cast(%x) {to = f32}
        %sq: T = mul(%x1, %x1)
        %ms: R = reduce_mean(%sq) {axes = (-1)}
        %me: R = add(%ms, %eps)
        %r: R = rsqrt(%me)
        %n: T = mul(%x1, %r)
        %n1: T = cast(%n) {to = f32}
        %y: T = mul(%n1, %w)""", "%y: T = rms_norm(%x, %w) {epsilon = 1e-12}"),
    "division, no scale": (SQUARES + """
        %sd: R = sqrt(%me)
        %y: T = div(%x, %sd)""", "%y: T = rms_norm(%x, %ones) {epsilon = 1e-12}"),
    "the scale first": (SQUARES + """
        %r: R = rsqrt(%me)
        %xw: T = mul(%x, %w)
        %y: T = mul(%xw, %r)""", "%y: T = rms_norm(%x, %w) {epsilon = 1e-12}"),
}
SOFTMAX = {
    "quotient": ("""
        %m: R = reduce_max(%x) {axes = (-1)}
        %d: T = sub(%x, %m)
        %e: T = exp(%d)
        %t: R = reduce_sum(%e) {axes = (2)}
        %y: T = div(%e, %t)""", "%y: T = softmax(%x) {axis = 2}"),
    "product with the reciprocal, another axis": ("""
        %m: f32[b, 1, 8] = reduce_max(%x) {axes = (1)}
        %d: T = sub(%x, %m)
        %e: T = exp(%d)
        %t: f32[b, 1, 8] = reduce_sum(%e) {axes = (1)}
        %r: f32[b, 1, 8] = div(%one, %t)
        %y: T = mul(%r, %e)""", "%y: T = softmax(%x) {axis = 1}"),
    "shifted before": ("""
        %x1: T = mul(%x, %half)
        %m: R = reduce_max(%x1) {axes = (2)}
        %d: T = sub(%x1, %m)
        %d1: T = mul(%d, %two)
        %y: T = softmax(%d1) {axis = 2}""", "%y: T = softmax(%x) {axis = 2}"),
    "shifted before, then less": ("""
        %m: R = reduce_max(%x) {axes = (2)}
        %d: T = sub(%x, %m)
        %d1: T = mul(%d, %half)
        %y: T = softmax(%d1) {axis = 2}""", """
        %x1: T = mul(%x, %half)
        %y: T = softmax(%x1) {axis = 2}"""),
}
SPELLINGS = {**LAYER_NORM, **RMS_NORM, **SOFTMAX}


def graph_text(body: str) -> str:
    """A graph around a spelling; T is the type of x, R that of its rows' means."""
    return f"{HEAD}{body}\nreturn %y\n}}".replace(": T", ": f32[b, s, 8]").replace(": R", ": f32[b, s, 1]")


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str) -> None:
    before, after = SPELLINGS[name]
    report = check(PASSES, graph_text(before), graph_text(after).replace("[1, 1, 8] = @bias", "[8] = @bias"),
                   tolerance=ROUNDING)
    assert report.rewrites and not report.declines


DECLINED = {
    "epsilon is added to the standard deviation, expected inside the root": DEVIATION + """
        %sq: T = mul(%d, %d)
        %var: R = reduce_mean(%sq) {axes = (2)}
        %sd: R = sqrt(%var)
        %se: R = add(%sd, %eps)
        %y: T = div(%d, %se)""",
    "the mean is over axes (1,) of f32[b, s, 8], expected the last": """
        %mean: f32[b, 1, 8] = reduce_mean(%x) {axes = (1)}
        %d: T = sub(%x, %mean)
        %sq: T = mul(%d, %d)
        %var: f32[b, 1, 8] = reduce_mean(%sq) {axes = (1)}
        %ve: f32[b, 1, 8] = add(%var, %eps)
        %sd: f32[b, 1, 8] = sqrt(%ve)
        %y: T = div(%d, %sd)""",
    "epsilon is -0.5, expected a number >= 0": DEVIATION + """
        %sq: T = mul(%d, %d)
        %var: R = reduce_mean(%sq) {axes = (2)}
        %ve: R = add(%var, %mhalf)
        %sd: R = sqrt(%ve)
        %y: T = div(%d, %sd)""",
    "the deviation is not divided by sqrt(mean(deviation^2) + epsilon)": DEVIATION + """
        %sq: T = mul(%x, %x)
        %ms: R = reduce_mean(%sq) {axes = (2)}
        %sd: R = sqrt(%ms)
        %y: T = div(%d, %sd)""",
    "%y is read by others as well": VARIANCE + """
        %r: R = rsqrt(%ve)
        %y: T = mul(%d, %r)
        %other: T = mul(%y, %w)
        %more: T = add(%other, %y)""",
    "the largest element is not taken off before exp, so it may overflow where softmax does not": """
        %e: T = exp(%x)
        %t: R = reduce_sum(%e) {axes = (2)}
        %y: T = div(%e, %t)""",
    "the maximum and the sum are over different axes": """
        %m: f32[b, 1, 8] = reduce_max(%x) {axes = (1)}
        %d: T = sub(%x, %m)
        %e: T = exp(%d)
        %t: R = reduce_sum(%e) {axes = (2)}
        %y: T = div(%e, %t)""",
    "the sum is over axes (1, 2), expected one axis that is kept": """
        %m: f32[b, 1, 1] = reduce_max(%x) {axes = (1, 2)}
        %d: T = sub(%x, %m)
        %e: T = exp(%d)
        %t: f32[b, 1, 1] = reduce_sum(%e) {axes = (1, 2)}
        %y: T = div(%e, %t)""",
}


@pytest.mark.parametrize("reason", DECLINED)
def test_what_is_declined_and_why(reason: str) -> None:
    text = graph_text(DECLINED[reason])
    graph = parse(text.replace("return %y", "return %y, %more") if "%more" in text else text)
    report = run_passes(graph, PASSES)
    assert reason in {d.text for d in report.declines}


def test_an_unknown_row_length_is_declined() -> None:
    text = graph_text(VARIANCE + "%sd: R = sqrt(%ve)\n%y: T = div(%d, %sd)").replace("[b, s, 8]", "[b, s, n]")
    report = run_passes(parse(text), PASSES)
    assert {d.text for d in report.declines} == {
        "the last axis of f32[b, s, n] has no fixed, or a huge size to make a scale of ones for"}


def test_the_norm_stands_for_all_nodes_it_replaces() -> None:
    named = LAYER_NORM["PyTorch below opset 17"][0].split("\n")
    body = "\n".join(f'{line} from "n{i}"' if "=" in line else line for i, line in enumerate(named))
    graph = parse(graph_text(body))
    run_passes(graph, PASSES)
    assert len(graph.nodes) == 1 and len(graph.nodes[0].source) == 9
