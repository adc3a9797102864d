"""A quantized file's products as float products, and what stays as the file prescribes it."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import clone, interpret
from q8c.passes.bounds import lower_bound
from q8c.passes.lift_quantized import LiftQuantized
from q8c.passes.lower_integer_products import LowerIntegerProducts
from q8c.passes.lower_quantized import LowerQuantized
from q8c.passes.manager import run_passes
from tests.passes.support import check, compare, parse

RNG = np.random.default_rng(1)
STEP, WEIGHT_STEP = np.float32(0.03), RNG.uniform(0.01, 0.02, 16).astype(np.float32)
CONSTANTS = {"s": STEP, "z": np.uint8(120), "w": RNG.integers(-127, 128, (32, 16)), "t": WEIGHT_STEP,
             "st": STEP * WEIGHT_STEP, "v": np.int8(3)}
X = RNG.uniform(-3, 3, (5, 32)).astype(np.float32)
FEEDS = {"x": X}
TOLERANCE = 0.02  # of the largest result: 32 products, each off by half a step of 0.03 times a weight of up to 2.5

STATIC = """
    graph @g(%x: f32[n, 32]) {
      const %s: f32[] = @s
      const %z: u8[] = @z
      const %w: i8[32, 16] = @w
      const %v: i8[] = @v
      const %st: f32[16] = @st
      %q: u8[n, 32] = quantize_linear(%x, %s, %z) {to = u8}
      %acc: i32[n, 16] = matmul_integer(%q, %w, %z, %v) from "product"
      %f: f32[n, 16] = cast(%acc) {to = f32}
      %y: f32[n, 16] = mul(%f, %st)
      return %y
    }"""
PRODUCT = """
    graph @g(%x: f32[n, 32]) {
      const %c: f32[32, 16] = @c
      %y: f32[n, 16] = matmul(%x, %c)
      return %y
    }"""
WEIGHT = (CONSTANTS["w"].astype(np.float32) - 3) * WEIGHT_STEP


def test_a_product_of_quantized_rows_becomes_a_float_product() -> None:
    check(LiftQuantized(), STATIC, PRODUCT, constants=CONSTANTS | {"c": WEIGHT}, feeds=FEEDS, tolerance=TOLERANCE)


def test_rows_quantized_with_a_computed_scale() -> None:
    before = STATIC.replace("graph @g(%x: f32[n, 32])", "graph @g(%x: f32[n, 32], %d: f32[])").replace(
        "quantize_linear(%x, %s, %z)", "quantize_linear(%x, %d, %z)").replace("const %st: f32[16] = @st", """
      const %t: f32[16] = @t
      %dt: f32[16] = mul(%d, %t)""").replace("%st)", "%dt)")
    check(LiftQuantized(), before, PRODUCT.replace("@g(%x: f32[n, 32])", "@g(%x: f32[n, 32], %d: f32[])"),
          constants=CONSTANTS | {"c": WEIGHT}, feeds=FEEDS | {"d": STEP}, tolerance=TOLERANCE)


def test_integers_may_be_moved_before_they_are_multiplied() -> None:
    before = STATIC.replace("f32[n, 32]", "f32[n, 2, 16]").replace("u8[n, 32] = quantize", "u8[n, 2, 16] = quantize")
    before = before.replace("%acc: i32[n, 16] = matmul_integer(%q,", """%r: u8[n, 32] = reshape(%q) {shape = (n, 32)}
      %acc: i32[n, 16] = matmul_integer(%r,""")
    after = PRODUCT.replace("f32[n, 32]", "f32[n, 2, 16]").replace("%y: f32[n, 16] = matmul(%x,", """
      %r: f32[n, 32] = reshape(%x) {shape = (n, 32)}
      %y: f32[n, 16] = matmul(%r,""")
    check(LiftQuantized(), before, after, constants=CONSTANTS | {"c": WEIGHT}, feeds={"x": X.reshape(5, 2, 16)},
          tolerance=TOLERANCE)


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("%y: f32[n, 16] = mul(%f, %st)", "%y: f32[n, 16] = add(%f, %st)", "not multiplied by a scale"),
    ("%q, %w, %z, %v", "%q, %w, %u, %v", "not quantized here"),
], ids=["no scale", "another zero point"])
def test_integer_products_that_stay(old: str, new: str, reason: str) -> None:
    before = STATIC.replace(old, new)
    if "%u" in new:
        before = before.replace("const %w", "const %u: u8[] = @u\n      const %w")
    report = check(LiftQuantized(), before, None, constants=CONSTANTS | {"u": np.uint8(7)}, feeds=FEEDS)
    assert [reason in note.text for note in report.declines] == [True]


PAIR = """
    graph @g(%x: f32[n, 32]) {
      const %s: f32[] = @s
      const %z: u8[] = @z
      const %a: f32[] = @a
      %q: u8[n, 32] = quantize_linear(%x, %s, %z) {to = u8}
      %y: f32[n, 32] = dequantize_linear(%q, %a, %z)
      return %y
    }"""


def test_quantized_and_dequantized_is_left_as_it_is() -> None:
    check(LiftQuantized(), PAIR, "graph @g(%x: f32[n, 32]) {\n return %x\n}", constants=CONSTANTS | {"a": STEP},
          feeds=FEEDS, tolerance=0.01)


def test_two_scales_are_a_factor_and_stay() -> None:
    report = check(LiftQuantized(), PAIR, None, constants=CONSTANTS | {"a": STEP * 2}, feeds=FEEDS)
    assert "one scale and dequantized with another" in report.declines[0].text


def test_a_range_from_zero_keeps_the_relu_it_stands_for() -> None:
    after = """
        graph @g(%x: f32[n, 32]) {
          const %low: f32[] = 0.0
          const %high: f32[] = @high
          %a: f32[n, 32] = max(%x, %low)
          %y: f32[n, 32] = min(%a, %high)
          return %y
        }"""
    constants = CONSTANTS | {"a": STEP, "z": np.uint8(0), "high": STEP * np.float32(255)}
    check(LiftQuantized(), PAIR, after, constants=constants, feeds=FEEDS, tolerance=0.01)


def test_a_range_from_zero_cuts_nothing_off_what_is_never_below() -> None:
    before = PAIR.replace("%q: u8", "%e: f32[n, 32] = sigmoid(%x)\n      %q: u8").replace("linear(%x", "linear(%e")
    after = "graph @g(%x: f32[n, 32]) {\n %y: f32[n, 32] = sigmoid(%x)\n return %y\n}"
    constants = CONSTANTS | {"a": np.float32(1 / 255), "s": np.float32(1 / 255), "z": np.uint8(0)}
    check(LiftQuantized(), before, after, constants=constants, feeds=FEEDS, tolerance=0.01)


@pytest.mark.parametrize("scale", [np.inf, 3e38])
def test_a_scale_too_large_for_a_float_tells_no_range(scale: float) -> None:
    """As quantizers give to masks that add the lowest number."""
    lifted = parse(PAIR, CONSTANTS | {"a": np.float32(scale), "s": np.float32(scale), "z": np.uint8(0)})
    run_passes(lifted, [LiftQuantized()])
    assert not lifted.nodes


@pytest.mark.parametrize(("expression", "bound"), [
    ("softmax(%x)", 0.0), ("erf(%x)", -1.0), ("neg(%x)", -np.inf), ("add(%one, %one)", 2.0), ("mul(%one, %x)", -np.inf),
    ("max(%one, %x)", 1.0), ("min(%one, %x)", -np.inf), ("where(%c, %one, %x)", -np.inf),
    ("where(%c, %one, %one)", 1.0), ("reshape(%one) {shape = (1, 1)}", 1.0)])
def test_lower_bounds(expression: str, bound: float) -> None:
    shape = "f32[1, 1]" if "reshape" in expression else "f32[]" if "%x" not in expression else "f32[n, 32]"
    graph = parse(f"graph @g(%x: f32[n, 32], %c: bool[]) {{\n const %one: f32[] = 1.0\n %y: {shape} = {expression}\n return %y\n}}")
    assert lower_bound(graph.outputs[0]) == bound


def test_what_is_left_is_written_out_with_the_same_bits() -> None:
    after = """
        graph @g(%x: f32[n, 32]) {
          const %s: f32[] = @s
          const %z: u8[] = @z
          const %a: f32[] = @a
          %d: f32[n, 32] = div(%x, %s)
          %r: f32[n, 32] = round(%d)
          %zf: f32[] = cast(%z) {to = f32}
          %m: f32[n, 32] = add(%r, %zf)
          %q: u8[n, 32] = cast(%m) {to = u8}
          %i: f32[n, 32] = cast(%q) {to = f32}
          %zg: f32[] = cast(%z) {to = f32}
          %t: f32[n, 32] = sub(%i, %zg)
          %y: f32[n, 32] = mul(%t, %a)
          return %y
        }"""
    check(LowerQuantized(), PAIR, after, constants=CONSTANTS | {"a": STEP * 2}, feeds={"x": 9 * X})


def test_a_quantized_table_stays_in_bytes() -> None:
    before = """
        graph @g(%ids: i64[n]) {
          const %w: i8[32, 16] = @w
          const %s: f32[] = @s
          const %v: i8[] = @v
          %table: f32[32, 16] = dequantize_linear(%w, %s, %v)
          %y: f32[n, 16] = gather(%table, %ids)
          return %y
        }"""
    graph = parse(before, CONSTANTS)
    reference = clone(graph)
    run_passes(graph, [LowerQuantized()])
    assert [n.op for n in graph.nodes if n.op != "reshape"] == ["gather", "cast", "cast", "sub", "mul"]
    compare(reference, graph, {"ids": np.array([3, 0, 31])})


@pytest.mark.parametrize("depth", [1, 256, 300, 1024])
def test_integer_products_are_exact(depth: int) -> None:
    graph = parse(f"""
        graph @g(%a: u8[2, n, {depth}], %b: i8[{depth}, 9], %z: u8[], %v: i8[9]) {{
          %y: i32[2, n, 9] = matmul_integer(%a, %b, %z, %v)
          return %y
        }}""")
    run_passes(graph, [LowerIntegerProducts()])
    a, b = np.full((2, 3, depth), 255, np.uint8), np.full((depth, 9), -128, np.int8)
    a[0, 0, 0] = b[0, 0] = 1
    v = np.full(9, 127, np.int8)
    got = interpret(graph, {"a": a, "b": b, "z": np.array(0, np.uint8), "v": v})[0]
    np.testing.assert_array_equal(got, a.astype(np.int64) @ (b.astype(np.int64) - v))
