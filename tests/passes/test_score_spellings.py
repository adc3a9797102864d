"""Scores of attention written otherwise: as choices by a factor, and with positions split by row and column."""
from __future__ import annotations

import pytest

from q8c.passes.bounds import zeros_and_ones
from q8c.passes.fuse_attention import FuseAttention
from tests.passes.attention_text import ATTRS, HEADS, INPUTS, JOIN, RAW, SOFTMAX, fused, run
from tests.passes.support import check, parse

FACTOR = """
  const %one: f32[] = 1.0
  const %much: f32[] = 10000.0
  const %less: f32[] = -10000.0
  %f: f32[b, 1, 1, t] = cast(%c) {to = f32}
  %kept: f32[b, 3, s, t] = mul(%raw, %f)
  %not: f32[b, 1, 1, t] = sub(%one, %f)
"""
CHOSEN = """
  const %zero: f32[] = 0.0
  const %low: f32[] = -1e30
  %f: f32[b, 1, 1, t] = cast(%c) {to = f32}
  %there: bool[b, 1, 1, t] = cast(%f) {to = bool}
  %mask: f32[b, 1, 1, t] = where(%there, %zero, %low)
"""


@pytest.mark.parametrize("added", ["""
  %away: f32[b, 1, 1, t] = mul(%not, %much)
  %masked: f32[b, 3, s, t] = sub(%kept, %away)""", """
  %away: f32[b, 1, 1, t] = mul(%less, %not)
  %masked: f32[b, 3, s, t] = add(%away, %kept)""", """
  %hidden: bool[b, 1, 1, t] = not(%c)
  %h: f32[b, 1, 1, t] = cast(%hidden) {to = f32}
  %away: f32[b, 1, 1, t] = mul(%h, %less)
  %masked: f32[b, 3, s, t] = add(%kept, %away)"""])
def test_a_factor_and_what_is_added_where_it_is_0_choose(added: str) -> None:
    """As GPT and early GPT-2 hide what comes later, and tf2onnx what Keras hides."""
    run(INPUTS + HEADS + RAW + FACTOR + added + SOFTMAX + JOIN, fused(CHOSEN, "scale = 1.0"))


@pytest.mark.parametrize(("factor", "much"), [("%m", 10000.0), ("%f", 10.0)])
def test_other_factors_choose_nothing(factor: str, much: float) -> None:
    """Neither what is not known to be 0 or 1, nor what leaves a score that weighs something."""
    made = "%f: f32[b, 1, 1, t] = cast(%c) {to = f32}" if factor == "%f" else ""
    run(f"""{INPUTS}{HEADS}{RAW}
  const %one: f32[] = 1.0
  const %much: f32[] = {much}
  {made}
  %kept: f32[b, 3, s, t] = mul(%raw, {factor})
  %not: f32[b, 1, 1, t] = sub(%one, {factor})
  %away: f32[b, 1, 1, t] = mul(%not, %much)
  %masked: f32[b, 3, s, t] = sub(%kept, %away)
{SOFTMAX}{JOIN}""", None)


@pytest.mark.parametrize(("expression", "known"), [
    ("cast(%c) {to = f32}", True), ("mul(%f, %f)", True), ("sub(%one, %f)", True), ("sub(%f, %one)", False),
    ("mul(%f, %x)", False), ("add(%f, %f)", False), ("reshape(%f) {shape = (2, 1)}", True),
    ("iota() {size = 2, dtype = f32}", False)])
def test_zeros_and_ones(expression: str, known: bool) -> None:
    shape = "2, 1" if "shape" in expression else "2"
    graph = parse(f"""
        graph @g(%c: bool[2], %x: f32[2]) {{
          const %one: f32[] = 1.0
          %f: f32[2] = cast(%c) {{to = f32}}
          %y: f32[{shape}] = {expression}
          return %y
        }}""")
    assert zeros_and_ones(graph.outputs[0]) is known


IMAGE = """
graph @g(%q: f32[b, 6, 24], %k: f32[b, 6, 24], %v: f32[b, 6, 24], %high: f32[b, 3, 2, 3, 2, 1],
         %wide: f32[b, 3, 2, 3, 1, 3]) {
"""


def test_terms_for_rows_and_columns_of_an_image_are_one_mask() -> None:
    """As ViTDet adds relative positions."""
    heads = HEADS.replace("s, ", "6, ").replace("t, ", "6, ").replace("t]", "6]").replace(' from "split"', "")
    join = JOIN.replace("s, ", "6, ").replace("t, ", "6, ").replace(' from "weighted"', "")
    check(FuseAttention(), f"""{IMAGE}{heads}
  %raw: f32[b, 3, 6, 6] = matmul(%qh, %kt)
  %split: f32[b, 3, 2, 3, 2, 3] = reshape(%raw) {{shape = (b, 3, 2, 3, 2, 3)}}
  %rows: f32[b, 3, 2, 3, 2, 3] = add(%split, %high)
  %both: f32[b, 3, 2, 3, 2, 3] = add(%rows, %wide)
  %masked: f32[b, 3, 6, 6] = reshape(%both) {{shape = (b, 3, 6, 6)}}
  %p: f32[b, 3, 6, 6] = softmax(%masked)
{join}""", f"""{IMAGE}
  %both: f32[b, 3, 2, 3, 2, 3] = add(%high, %wide)
  %mask: f32[b, 3, 6, 6] = reshape(%both) {{shape = (b, 3, 6, 6)}}
  %z: f32[b, 6, 24] = attention(%q, %k, %v, %mask) {{{ATTRS}, scale = 1.0}}
  return %z
}}""", sizes={"b": 2}, tolerance=1e-5)
