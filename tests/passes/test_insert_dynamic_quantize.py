"""Products with Q8 weights become integer products of rows quantized as they come."""
from __future__ import annotations

from q8c.passes.insert_dynamic_quantize import InsertDynamicQuantize
from tests.passes.support import check

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
