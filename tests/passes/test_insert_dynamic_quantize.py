"""Products with Q8 weights become integer products of rows quantized as they come."""
from __future__ import annotations

import re

import numpy as np
import pytest

from q8c.errors import CompileError
from q8c.passes.calibration import Calibration
from q8c.passes.insert_dynamic_quantize import InsertDynamicQuantize
from q8c.passes.manager import run_passes
from tests.passes.support import check, parse

HEAD = """
    graph @g(%x: f32[batch, seq, 32]) {
      const %u: u8[32, 16] = @u
      const %s: f32[16] = @s
"""
TOLERANCE = 0.03  # of the largest result: each of 32 products is off by at most half a step of 1/127


def test_rows_are_quantized_once_for_all_products() -> None:
    check(InsertDynamicQuantize(), HEAD + """
      %w: f32[32, 16] = dequantize_weight(%u, %s)
      %a: f32[batch, seq, 16] = matmul(%x, %w) from "a"
      %b: f32[batch, seq, 16] = matmul(%x, %w) from "b"
      %z: f32[batch, seq, 16] = sub(%a, %b)
      return %a, %z
    }""", HEAD + """
      %q: i8[batch, seq, 32], %rs: f32[batch, seq, 1], %sum: i32[batch, seq, 1] = dynamic_quantize(%x)
      %a_acc: i32[batch, seq, 16] = q8_matmul(%q, %u) from "a"
      %a: f32[batch, seq, 16] = dequantize(%a_acc, %rs, %s) from "a"
      %b_acc: i32[batch, seq, 16] = q8_matmul(%q, %u) from "b"
      %b: f32[batch, seq, 16] = dequantize(%b_acc, %rs, %s) from "b"
      %z: f32[batch, seq, 16] = sub(%a, %b)
      return %a, %z
    }""", tolerance=TOLERANCE)


def test_rows_quantized_already_are_used() -> None:
    check(InsertDynamicQuantize(), HEAD + """
      %q: i8[batch, seq, 32], %rs: f32[batch, seq, 1], %sum: i32[batch, seq, 1] = dynamic_quantize(%x)
      %w: f32[32, 16] = dequantize_weight(%u, %s)
      %a: f32[batch, seq, 16] = matmul(%x, %w)
      return %q, %a
    }""", HEAD + """
      %q: i8[batch, seq, 32], %rs: f32[batch, seq, 1], %sum: i32[batch, seq, 1] = dynamic_quantize(%x)
      %a_acc: i32[batch, seq, 16] = q8_matmul(%q, %u)
      %a: f32[batch, seq, 16] = dequantize(%a_acc, %rs, %s)
      return %q, %a
    }""", tolerance=TOLERANCE)


def test_float_products_and_transposed_weights_are_left_alone() -> None:
    check(InsertDynamicQuantize(), """
    graph @g(%x: f32[n, 16], %y: f32[16, 16]) {
      const %u: u8[16, 16] = @u
      const %s: f32[16] = @s
      %w: f32[16, 16] = dequantize_weight(%u, %s)
      %a: f32[n, 16] = matmul(%x, %w) {transpose_b = true}
      %b: f32[n, 16] = matmul(%a, %y)
      return %b
    }""", None)


PLAIN = """
      %q: i8[batch, seq, 32], %rs: f32[batch, seq, 1], %sum: i32[batch, seq, 1] = dynamic_quantize({x})
      %acc: i32[batch, seq, 16] = q8_matmul(%q, %u)
      %y: f32[batch, seq, 16] = dequantize(%acc, %rs, %s)
      return %y
    }}"""
WITH_ZERO = """
      %q: i8[batch, seq, 32], %rs: f32[batch, seq, 1], %sum: i32[batch, seq, 1], %z: i32[batch, seq, 1] = \
dynamic_quantize({x}) {{zero_point = true}}
      %acc: i32[batch, seq, 16] = q8_matmul(%q, %u, %z)
      %y: f32[batch, seq, 16] = dequantize(%acc, %rs, %s)
      return %y
    }}"""
FLOAT = """
      %w: f32[32, 16] = dequantize_weight(%u, %s)
      %y: f32[batch, seq, 16] = matmul({x}, %w)
      return %y
    }}"""


@pytest.mark.parametrize(("body", "policy", "after"), [
    ("%r: f32[batch, seq, 32] = relu(%x)", "auto", WITH_ZERO),
    ("%r: f32[batch, seq, 32] = gelu(%x)", "auto", WITH_ZERO),
    ("%r: f32[batch, seq, 32] = relu(%x)", "never", PLAIN),
    ("%r: f32[batch, seq, 32] = tanh(%x)", "auto", PLAIN),
    ("%r: f32[batch, seq, 32] = tanh(%x)", "always", WITH_ZERO),
])
def test_a_zero_point_where_rows_lean_to_one_side(body: str, policy: str, after: str) -> None:
    head = HEAD + f"      {body}\n"
    check(InsertDynamicQuantize(policy), head + FLOAT.format(x="%r"), head + after.format(x="%r"), tolerance=TOLERANCE)


def test_the_models_inputs_are_not_guessed_at() -> None:
    check(InsertDynamicQuantize(), HEAD + FLOAT.format(x="%x"), HEAD + PLAIN.format(x="%x"), tolerance=TOLERANCE)


def test_the_reason_against_a_zero_point_is_kept() -> None:
    graph = parse(HEAD + "      %r: f32[batch, seq, 32] = tanh(%x)\n" + FLOAT.format(x="%r"))
    [note] = run_passes(graph, [InsertDynamicQuantize()]).declines
    assert re.fullmatch(r"a zero point takes \d% off the rows' squared error, 20% would pay", note.text)


def test_calibration_inputs_decide() -> None:
    text = HEAD + "      %r: f32[batch, seq, 32] = tanh(%x)\n" + FLOAT.format(x="%r")
    rows = np.random.default_rng(0).uniform(1, 2, (2, 16, 32)).astype(np.float32)
    graph = parse(text)
    run_passes(graph, [InsertDynamicQuantize(calibration=Calibration(({"x": rows},)))])
    assert [n.attrs for n in graph.nodes if n.op == "dynamic_quantize"] == [{"zero_point": True}]


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(CompileError, match="'sometimes' is unknown; expected one of auto, always, never"):
        InsertDynamicQuantize("sometimes")


@pytest.mark.parametrize(("block", "blocks"), [(32, 2), (64, 1), (128, 1)])
def test_rows_have_the_blocks_of_the_weight_they_meet(block: int, blocks: int) -> None:
    head = f"""
    graph @g(%x: f32[n, 33]) {{
      const %u: u8[33, 16] = @u
      const %s: f32[{blocks}, 16] = @s
"""
    check(InsertDynamicQuantize(), head + f"""
      %w: f32[33, 16] = dequantize_weight(%u, %s) {{block = {block}}}
      %y: f32[n, 16] = matmul(%x, %w)
      return %y
    }}""", head + f"""
      %q: i8[n, 33], %rs: f32[n, {blocks}], %sum: i32[n, {blocks}] = dynamic_quantize(%x) {{block = {block}}}
      %acc: i32[n, {blocks}, 16] = q8_matmul(%q, %u) {{block = {block}}}
      %y: f32[n, 16] = dequantize(%acc, %rs, %s) {{block = {block}}}
      return %y
    }}""", tolerance=TOLERANCE)


def test_products_in_two_formats_quantize_their_rows_twice() -> None:
    graph = parse("""
    graph @g(%x: f32[n, 64]) {
      const %u: u8[64, 16] = @u
      const %s: f32[16] = @s
      const %t: f32[2, 16] = @t
      %w: f32[64, 16] = dequantize_weight(%u, %s)
      %v: f32[64, 16] = dequantize_weight(%u, %t) {block = 32}
      %y: f32[n, 16] = matmul(%x, %w)
      %z: f32[n, 16] = matmul(%x, %v)
      return %y, %z
    }""")
    run_passes(graph, [InsertDynamicQuantize()])
    assert [n.attrs for n in graph.nodes if n.op == "dynamic_quantize"] == [{}, {"block": 32}]
