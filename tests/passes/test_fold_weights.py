"""Weights quantized offline: which, how, and why others are left alone."""
from __future__ import annotations

import re

import numpy as np
import pytest

from q8c.errors import CompileError
from q8c.ir import clone, q8
from q8c.passes.fold_weights import FoldWeights, Names
from q8c.passes.manager import parse_passes, run_passes
from tests.passes.support import check, compare, parse

RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_normal((32, 48)).astype(np.float32)
BEFORE = """
    graph @g(%x: f32[batch, seq, 32]) {
      const %w: f32[32, 48] = @w
      %y: f32[batch, seq, 48] = matmul(%x, %w) from "dense"
      return %y
    }"""
AFTER = """
    graph @g(%x: f32[batch, seq, 32]) {
      const %u: u8[32, 48] = @u
      const %s: f32[48] = @s
      %w: f32[32, 48] = dequantize_weight(%u, %s) from "dense"
      %y: f32[batch, seq, 48] = matmul(%x, %w) from "dense"
      return %y
    }"""
TOLERANCE = 0.02  # of the largest result: each of 32 products is off by at most half a step of 1/127


def test_a_constant_weight_becomes_q8() -> None:
    report = check(FoldWeights(), BEFORE, AFTER, constants={"w": WEIGHT}, tolerance=TOLERANCE)
    assert [note.text for note in report.rewrites] == ["weight f32[32, 48] as q8-channel"]


@pytest.mark.parametrize(("shape", "attrs"), [("f32[48, 32]", "{transpose_b = true}"), ("f32[1, 32, 48]", ""),
                                              ("f32[1, 48, 32]", "{transpose_b = true}")])
def test_transposed_weights_and_batches_of_one_are_the_same_weight(shape: str, attrs: str) -> None:
    data = WEIGHT.T if "48, 32" in shape else WEIGHT
    data = np.ascontiguousarray(data.reshape([int(d) for d in re.findall(r"\d+", shape[3:])]))
    before = BEFORE.replace("f32[32, 48] = @w", f"{shape} = @w").replace(' from "dense"', f' {attrs} from "dense"')
    graph = parse(before, {"w": data})
    reference = clone(graph)
    run_passes(graph, [FoldWeights()])
    u, scale = q8.quantize_weight(WEIGHT)
    folded = graph.nodes[0]
    np.testing.assert_array_equal(folded.input(0).array(), u)
    np.testing.assert_array_equal(folded.input(1).array(), scale)
    assert graph.nodes[1].attrs == {}
    compare(reference, graph, {"x": RNG.standard_normal((2, 3, 32)).astype(np.float32)}, TOLERANCE)


def test_a_shared_weight_is_quantized_once_and_stays_for_other_readers() -> None:
    check(FoldWeights(), """
        graph @g(%ids: i64[n], %x: f32[n, 32]) {
          const %table: f32[32, 48] = @table
          %rows: f32[n, 48] = gather(%table, %ids)
          %a: f32[n, 48] = matmul(%x, %table)
          %b: f32[n, 48] = matmul(%x, %table)
          return %rows, %a, %b
        }""", """
        graph @g(%ids: i64[n], %x: f32[n, 32]) {
          const %table: f32[32, 48] = @table
          const %u: u8[32, 48] = @u
          const %s: f32[48] = @s
          %rows: f32[n, 48] = gather(%table, %ids)
          %wa: f32[32, 48] = dequantize_weight(%u, %s)
          %a: f32[n, 48] = matmul(%x, %wa)
          %wb: f32[32, 48] = dequantize_weight(%u, %s)
          %b: f32[n, 48] = matmul(%x, %wb)
          return %rows, %a, %b
        }""", tolerance=TOLERANCE)


@pytest.mark.parametrize(("before", "reason"), [
    ("graph @g(%x: f32[n, 32], %w: f32[32, 48]) {\n  %y: f32[n, 48] = matmul(%x, %w)\n  return %y\n}",
     "its second operand is not constant"),
    ("graph @g(%x: f32[n, 32]) {\n  const %w: f32[32, 15] = @w\n  %y: f32[n, 15] = matmul(%x, %w)\n  return %y\n}",
     "a weight of 32 x 15 is too small to pay for quantizing rows"),
    ("graph @g(%x: f32[n, 3]) {\n  const %w: f32[3, 48] = @w\n  %y: f32[n, 48] = matmul(%x, %w)\n  return %y\n}",
     "a weight of 3 x 48 is too small to pay for quantizing rows"),
    ("graph @g(%x: f64[n, 32]) {\n  const %w: f64[32, 48] = @w\n  %y: f64[n, 48] = matmul(%x, %w)\n  return %y\n}",
     "its operands are f64, not f32"),
    ("graph @g(%x: f32[7, n, 32]) {\n  const %w: f32[7, 32, 48] = @w\n"
     "  %y: f32[7, n, 48] = matmul(%x, %w)\n  return %y\n}",
     "its weight is a batch of matrices, f32[7, 32, 48]"),
    ("graph @g(%x: f32[n, 66001]) {\n  const %w: f32[66001, 16] = @w\n"
     "  %y: f32[n, 16] = matmul(%x, %w)\n  return %y\n}",
     "a depth of 66001 overflows int32 sums, which hold 66000"),
])
def test_declines(before: str, reason: str) -> None:
    assert [note.text for note in check(FoldWeights(), before, None).declines] == [reason]


def test_named_nodes_stay_float() -> None:
    report = check(FoldWeights(keep=Names("dense")), BEFORE, None)
    assert [note.text for note in report.declines] == ["it was asked to stay float"]
    assert parse_passes("fold-weights{keep=a;b/c}", {"fold-weights": FoldWeights}) == (
        FoldWeights(keep=Names(["a", "b/c"])),)
    assert str(FoldWeights(keep=Names("a;b/c"))) == "fold-weights{keep=a;b/c}"


LOUD = """graph @g(%x: f32[n, 32]) {
  const %loud: f32[32] = @loud
  const %w: f32[32, 48] = @w
  %m: f32[n, 32] = mul(%x, %loud)
  %y: f32[n, 48] = matmul(%m, %w)
  return %y
}"""


@pytest.mark.parametrize(("format", "limit", "stays"), [
    ("q8-channel", 0.2, True), ("q8-channel", float("inf"), False), ("q8-channel", 0.9, False),
    ("q8-block32", 0.2, True)])
def test_a_product_whose_loud_channel_drowns_the_others_stays_float(format: str, limit: float, stays: bool) -> None:
    loud, weight = np.ones(32, np.float32), WEIGHT.copy()
    loud[3], weight[3] = 300, 0  # steps of rows are as coarse as the channel that adds nothing is loud
    graph = parse(LOUD, {"loud": loud, "w": weight})
    report = run_passes(graph, [FoldWeights(format, max_layer_error=limit)])
    assert [n.op for n in graph.nodes] == (["mul"] if stays else ["mul", "dequantize_weight"]) + ["matmul"]
    assert [re.sub(r"0\.\d+ off", "X off", note.text) for note in report.declines] == [
        f"as {format} its results would be X off, 0.2 is allowed (--max-layer-error)"] * stays


def test_a_limit_must_be_above_nothing() -> None:
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(CompileError, match="the largest error of a layer is"):
            FoldWeights(max_layer_error=limit)


def test_a_name_that_is_no_matmul_is_an_error() -> None:
    with pytest.raises(CompileError, match="no matmul comes from node 'dence'"):
        run_passes(parse(BEFORE), [FoldWeights(keep=Names("dence"))])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_an_error_that_names_the_node(bad: float) -> None:
    weight = WEIGHT.copy()
    weight[5, 7] = bad
    with pytest.raises(CompileError, match=r"matmul %y \(dense\), %w: a weight holds NaN or Inf"):
        run_passes(parse(BEFORE, {"w": weight}), [FoldWeights()])


def test_an_unknown_format_is_an_error() -> None:
    with pytest.raises(CompileError, match="weight format 'q4' is unknown; expected one of q8-channel"):
        FoldWeights("q4")
