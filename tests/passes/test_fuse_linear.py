"""A product, its bias, activation and residual become one node, where that pays."""
from __future__ import annotations

import pytest

from q8c.passes.fuse_linear import FuseLinear
from tests.passes.support import check

TOLERANCE = 1e-6  # the fused reference rounds as the separate nodes do, but for bias shapes
Q8 = """
    graph @g(%x: f32[b, s, 32], %r: f32[b, s, 16], %v: f32[16]) {
      const %u: u8[32, 16] = @u
      const %scale: f32[16] = @scale
      const %bias: f32[16] = @bias
      %q: i8[b, s, 32], %rs: f32[b, s, 1], %sum: i32[b, s, 1] = dynamic_quantize(%x)
"""
PRODUCT = """
      %acc: i32[b, s, 16] = q8_matmul(%q, %u) from "dense"
      %y: f32[b, s, 16] = dequantize(%acc, %rs, %scale) from "dense"
"""
RESULT = "%z: f32[b, s, 16] = "
LINEAR = "q8_linear(%q, %rs, %sum, %u, %scale"


@pytest.mark.parametrize(("tail", "fused"), [
    ("%z: f32[b, s, 16] = exp(%y)", f"%y: f32[b, s, 16] = {LINEAR})\n %z: f32[b, s, 16] = exp(%y)"),
    ("%z: f32[b, s, 16] = add(%y, %bias)", f"{RESULT}{LINEAR}, %bias)"),
    ("%z: f32[b, s, 16] = add(%bias, %y)", f"{RESULT}{LINEAR}, %bias)"),
    ("%a: f32[b, s, 16] = add(%y, %bias)\n %z: f32[b, s, 16] = relu(%a)",
     f'{RESULT}{LINEAR}, %bias) {{activation = "relu"}}'),
    ("%a: f32[b, s, 16] = add(%y, %bias)\n %z: f32[b, s, 16] = gelu(%a)",
     f"%a: f32[b, s, 16] = {LINEAR}, %bias)\n %z: f32[b, s, 16] = gelu(%a)"),
    ("%z: f32[b, s, 16] = add(%y, %r)", f"{RESULT}{LINEAR}, -, %r)"),
    ("%z: f32[b, s, 16] = add(%r, %y)", f"{RESULT}{LINEAR}, -, %r)"),
    ("%a: f32[b, s, 16] = add(%y, %bias)\n %z: f32[b, s, 16] = add(%r, %a)", f"{RESULT}{LINEAR}, %bias, %r)"),
    # a bias that is no constant is no bias the kernel can have packed, and too small for a residual
    ("%z: f32[b, s, 16] = add(%y, %v)",
     f"%y: f32[b, s, 16] = {LINEAR})\n %z: f32[b, s, 16] = add(%y, %v)"),
    # read twice: nothing after the product is fused
    ("%a: f32[b, s, 16] = add(%y, %bias)\n %z: f32[b, s, 16] = mul(%a, %y)",
     f"%y: f32[b, s, 16] = {LINEAR})\n %a: f32[b, s, 16] = add(%y, %bias)\n %z: f32[b, s, 16] = mul(%a, %y)"),
])
def test_epilogues(tail: str, fused: str) -> None:
    end = "\n return %z\n}"
    unused = "" if "%bias" in fused else "      const %bias: f32[16] = @bias\n"
    check(FuseLinear(), Q8 + PRODUCT + tail + end, Q8.replace(unused, "") + fused + end, tolerance=TOLERANCE)


def test_bias_of_other_shapes_becomes_a_vector() -> None:
    report = check(FuseLinear(), """
    graph @g(%x: f32[n, 32]) {
      const %w: f32[32, 16] = @w
      const %wide: f32[1, 16] = @wide
      const %one: f32[] = 0.5
      %a: f32[n, 16] = matmul(%x, %w) from "first"
      %b: f32[n, 16] = add(%a, %wide) from "bias"
      %c: f32[n, 16] = matmul(%x, %w)
      %d: f32[n, 16] = add(%c, %one)
      return %b, %d
    }""", """
    graph @g(%x: f32[n, 32]) {
      const %w: f32[32, 16] = @w
      const %v: f32[16] = @v
      const %halves: f32[16] = 0.5
      %b: f32[n, 16] = linear(%x, %w, %v) from "first", "bias"
      %d: f32[n, 16] = linear(%x, %w, %halves)
      return %b, %d
    }""", tolerance=TOLERANCE)
    assert [note.text for note in report.rewrites] == ["matmul + add", "matmul + add"]


def test_a_bias_that_adds_an_axis_is_none() -> None:
    check(FuseLinear(), """
    graph @g(%x: f32[n, 32]) {
      const %w: f32[32, 16] = @w
      const %b: f32[1, 1, 16] = @b
      %a: f32[n, 16] = matmul(%x, %w)
      %z: f32[1, n, 16] = add(%a, %b)
      return %z
    }""", """
    graph @g(%x: f32[n, 32]) {
      const %w: f32[32, 16] = @w
      const %b: f32[1, 1, 16] = @b
      %a: f32[n, 16] = linear(%x, %w)
      %z: f32[1, n, 16] = add(%a, %b)
      return %z
    }""", tolerance=TOLERANCE)


def test_transposed_weights_are_transposed_offline() -> None:
    check(FuseLinear(), """
    graph @g(%x: f32[b, s, 32], %m: f32[b, 32, s]) {
      const %w: f32[1, 16, 32] = @w
      %y: f32[b, s, 16] = matmul(%x, %w) {transpose_b = true}
      %scores: f32[b, s, s] = matmul(%x, %m)
      return %y, %scores
    }""", """
    graph @g(%x: f32[b, s, 32], %m: f32[b, 32, s]) {
      const %w: f32[32, 16] = @w2
      %y: f32[b, s, 16] = linear(%x, %w)
      %scores: f32[b, s, s] = matmul(%x, %m)
      return %y, %scores
    }""", tolerance=TOLERANCE)


HEAD = """
    graph @g(%x: f32[n, 32], %r: f32[n, 32]) {
      const %w: f32[32, 32] = @w
"""
NORM = HEAD + "const %g: f32[32] = @g"


def test_a_sum_that_only_a_norm_reads_is_left_to_the_norms_loop() -> None:
    check(FuseLinear(), NORM + """
      %a: f32[n, 32] = matmul(%x, %w)
      %s: f32[n, 32] = add(%a, %r)
      %y: f32[n, 32] = layer_norm(%s, %g)
      return %y
    }""", NORM + """
      %a: f32[n, 32] = linear(%x, %w)
      %s: f32[n, 32] = add(%a, %r)
      %y: f32[n, 32] = layer_norm(%s, %g)
      return %y
    }""", tolerance=TOLERANCE)


def test_a_sum_that_is_read_twice_is_made_in_the_epilogue() -> None:
    check(FuseLinear(), NORM + """
      %a: f32[n, 32] = matmul(%x, %w)
      %s: f32[n, 32] = add(%a, %r)
      %y: f32[n, 32] = rms_norm(%s, %g)
      %z: f32[n, 32] = add(%s, %y)
      return %z
    }""", NORM + """
      %s: f32[n, 32] = linear(%x, %w, -, %r)
      %y: f32[n, 32] = rms_norm(%s, %g)
      %z: f32[n, 32] = add(%s, %y)
      return %z
    }""", tolerance=TOLERANCE)


@pytest.mark.parametrize("operands", ["%a, %b", "%b, %a"])
def test_of_two_products_added_up_the_later_takes_the_add(operands: str) -> None:
    check(FuseLinear(), NORM + f"""
      %a: f32[n, 32] = matmul(%x, %w)
      %c: f32[n, 32] = matmul(%r, %w)
      %b: f32[n, 32] = add(%c, %g)
      %s: f32[n, 32] = add({operands})
      return %s
    }}""", NORM + """
      %a: f32[n, 32] = linear(%x, %w)
      %s: f32[n, 32] = linear(%r, %w, %g, %a)
      return %s
    }""", tolerance=TOLERANCE)


def test_a_product_added_to_itself() -> None:
    check(FuseLinear(), HEAD + """
      %a: f32[n, 32] = matmul(%x, %w)
      %s: f32[n, 32] = add(%a, %a)
      return %s
    }""", HEAD + """
      %a: f32[n, 32] = linear(%x, %w)
      %s: f32[n, 32] = add(%a, %a)
      return %s
    }""", tolerance=TOLERANCE)


def test_an_output_in_between_ends_the_fusion() -> None:
    check(FuseLinear(), NORM + """
      %a: f32[n, 32] = matmul(%x, %w)
      %b: f32[n, 32] = add(%a, %g)
      %s: f32[n, 32] = relu(%b)
      return %b, %s
    }""", NORM + """
      %b: f32[n, 32] = linear(%x, %w, %g)
      %s: f32[n, 32] = relu(%b)
      return %b, %s
    }""", tolerance=TOLERANCE)
