"""The int8 linear kernel: exact integers, float results within one rounding, and the same bits everywhere."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q8c.codegen.kernels import linear_kernel
from q8c.codegen.module import new_module
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.targets import Tier
from q8c.errors import CompileError
from q8c.ir import parse_graph, q8
from q8c.ir.ops.fused import GATE_COLS, activate
from tests.codegen.jit import all_tiers, runnable_tiers
from tests.codegen.q8 import linear_ref, problem, products, run, sum_of_blocks

WIDE = Q8LinearSpec(512, 270, bias=True)
FUSED = Q8LinearSpec(70, 53, bias=True, activation="relu", residual=True)
BLOCKS = Q8LinearSpec(168, 53, bias=True, residual=True, block=64, zero_point=True, half=True)
WIDE_ROWS = replace(BLOCKS, wide=True)
ROUNDINGS = 2
"""Half-ulp roundings that `linear_ref` does not make: the fma's (one per block) and the residual's."""


@all_tiers
@pytest.mark.parametrize(("depth", "cols"), [(1, 1), (33, 17), (67, 100)])
def test_integers_are_exact(tier: Tier, depth: int, cols: int) -> None:
    spec = Q8LinearSpec(depth, cols, zero_point=cols == 17)
    for rows in (*range(15), 25, 31, 67):
        p = problem(spec, rows, seed=rows, plain=True)
        np.testing.assert_array_equal(run(tier, p), products(p))


@all_tiers
@pytest.mark.parametrize(("depth", "block"), [(129, 32), (200, 64), (260, 128)])
def test_blocks_are_exact(tier: Tier, depth: int, block: int) -> None:
    spec = Q8LinearSpec(depth, 49, block=block, zero_point=block != 64, half=block == 32)
    for rows in (1, 3, 7, 13, 26, 70):
        p = problem(spec, rows, seed=rows, plain=True)
        np.testing.assert_array_equal(run(tier, p), products(p).sum(axis=1))


@all_tiers
@pytest.mark.parametrize(("depth", "block", "offsets"), [(72, 0, True), (160, 32, False), (200, 64, True)])
def test_weights_of_4_bits_are_exact(tier: Tier, depth: int, block: int, offsets: bool) -> None:
    spec = Q8LinearSpec(depth, 69, block=block, zero_point=offsets, bits=4, offsets=offsets)
    for rows in (1, 2, 3, 7, 13, 26, 70):
        p = problem(spec, rows, seed=rows, plain=True)
        expected = products(p).sum(axis=1) if block else products(p)
        np.testing.assert_array_equal(run(tier, p), expected)


@all_tiers
def test_4_bits_give_the_bits_of_8(tier: Tier) -> None:
    spec = replace(BLOCKS, bits=4, offsets=True)
    for rows in (1, 6, 40):
        p = problem(spec, rows, seed=9)
        wide = replace(p, spec=BLOCKS)
        assert run(tier, p).tobytes() == run(tier, wide).tobytes()


@all_tiers
def test_extremes_do_not_saturate_or_overflow(tier: Tier) -> None:
    p = problem(Q8LinearSpec(q8.MAX_DEPTH, 17, zero_point=True), 4, plain=True)
    p.a[:2], p.a[2:], p.w[:], p.row_zero[:, 0] = 127, -127, 254, [0, -127, 0, 127]
    p.__post_init__()
    unit = 127 * 127 * q8.MAX_DEPTH
    np.testing.assert_array_equal(run(tier, p)[:, :1], np.array([[unit], [2 * unit], [-unit], [-2 * unit]], np.float32))


@all_tiers
@pytest.mark.parametrize("spec", [FUSED, BLOCKS, WIDE])
def test_fused_steps_are_within_their_roundings(tier: Tier, spec: Q8LinearSpec) -> None:
    p = problem(spec, 29, seed=1)
    y, expected = run(tier, p), linear_ref(p)
    largest = np.maximum(np.abs(y), np.abs(y - p.residual) if spec.residual else 0)
    if spec.block:
        largest = spec.blocks * sum_of_blocks(p, np.abs(products(p)).astype(np.float64)) + np.abs(p.bias) + largest
    assert (np.abs(y - expected) <= ROUNDINGS * 2.0**-24 * largest).all()


@all_tiers
@pytest.mark.parametrize("block", [32, 64, 128])
def test_sums_of_blocks_are_rounded_as_told(tier: Tier, block: int) -> None:
    p = problem(Q8LinearSpec(2 * block, 16, block=block, zero_point=True), 40, seed=8)
    p.row_scale[:] = 1
    p.a[:20], p.row_zero[:20], p.w[:, :8], p.w[:, 8:] = 127, -127, 0, 254
    p.a[20:], p.row_zero[20:] = -127, 127
    p.__post_init__()
    scaled = products(p).astype(np.float32) * p.w_scale
    np.testing.assert_array_equal(run(tier, p), scaled[:, 0] + scaled[:, 1])


@all_tiers
@pytest.mark.parametrize("spec", [FUSED, BLOCKS])
def test_a_row_does_not_know_its_mates(tier: Tier, spec: Q8LinearSpec) -> None:
    p = problem(spec, 70, seed=2)
    whole = run(tier, p)
    for first, last in [(0, n) for n in range(1, 15)] + [(3, 4), (7, 12), (5, 30), (13, 26), (1, 34), (2, 67)]:
        assert run(tier, p.rows(first, last)).tobytes() == whole[first:last].tobytes(), (first, last)


@pytest.mark.parametrize("specs", [[FUSED], [BLOCKS, WIDE_ROWS]])
def test_every_tier_gives_the_same_bits(specs: list[Q8LinearSpec]) -> None:
    problems = [problem(spec, 70, seed=3) for spec in specs]
    assert len({run(tier, p).tobytes() for tier in runnable_tiers() for p in problems}) == 1


@all_tiers
@pytest.mark.parametrize("rows", [3, 90])
def test_threads_change_nothing(tier: Tier, rows: int) -> None:
    p = problem(WIDE, rows, seed=4)
    alone = run(tier, p)
    for threads in (2, 3, 5):
        assert run(tier, p, threads=threads).tobytes() == alone.tobytes()


@all_tiers
def test_output_may_have_gaps_and_be_the_residual(tier: Tier) -> None:
    p = problem(FUSED, 17, seed=5)
    plain = run(tier, p)
    assert run(tier, p, ldy=64).tobytes() == plain.tobytes()
    assert run(tier, p, in_place=True).tobytes() == plain.tobytes()


@all_tiers
def test_streamed_results_are_exact_aligned_or_not(tier: Tier) -> None:
    spec = Q8LinearSpec(70, 64, block=32, zero_point=True, streamed=True)
    for rows in (2, 7, 21, 70):
        p = problem(spec, rows, seed=7, plain=True)
        for stride in (64, 80, 65):
            np.testing.assert_array_equal(run(tier, p, ldy=stride), products(p).sum(axis=1))


GATES = [Q8LinearSpec(70, 80, bias=True, activation="silu", gated=True),
         Q8LinearSpec(70, 112, activation="gelu_tanh", block=32, zero_point=True, half=True, gated=True),
         Q8LinearSpec(96, 16, bias=True, activation="relu", block=32, bits=4, gated=True)]


@all_tiers
@pytest.mark.parametrize("spec", GATES, ids=lambda spec: spec.activation)
def test_gates_multiply_the_halves_of_the_product(tier: Tier, spec: Q8LinearSpec) -> None:
    for rows in (1, 3, 7, 45):
        p = problem(spec, rows, seed=8)
        plain = problem(replace(spec, activation="none", gated=False), rows, seed=8)
        firsts, seconds = run(tier, plain).reshape(rows, -1, 2, GATE_COLS).astype(np.float64).transpose(2, 0, 1, 3)
        expected, gated = activate(firsts, spec.activation) * seconds, run(tier, p)
        assert (np.abs(gated.reshape(expected.shape) - expected) <= 5e-7 * np.abs(firsts * seconds)).all()
        assert run(tier, p, ldy=spec.result_cols + 3, threads=2).tobytes() == gated.tobytes()
        assert run(tier, p.rows(0, 1)).tobytes() == gated[:1].tobytes()


LOGITS = """graph @logits(%a: f32[n, 4], %w: f32[4, {cols}]) {{
  %x: f32[n, {cols}] = linear(%a, %w)
  %y: f32[n, {shape}] = {op}
  return %y
}}"""


@pytest.mark.parametrize(("cols", "shape", "op", "expected"), [
    (1 << 14, "128, 128", "reshape(%x) {shape = (n, 128, 128)}", True), (1 << 14, "16384", "relu(%x)", False),
    (1 << 10, "32, 32", "reshape(%x) {shape = (n, 32, 32)}", False)])
def test_long_rows_that_no_code_reads_are_streamed(cols: int, shape: str, op: str, expected: bool) -> None:
    node = parse_graph(LOGITS.format(cols=cols, shape=shape, op=op)).nodes[0]
    module = new_module("test")
    kernel = linear_kernel(module, runnable_tiers()[0], node)
    assert ("streamed" in kernel.function.name) is expected
    assert ("!nontemporal" in str(module)) is expected


@all_tiers
@pytest.mark.parametrize("spec", [FUSED, BLOCKS])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_row_stays_one_row(tier: Tier, bad: float, spec: Q8LinearSpec) -> None:
    p = problem(spec, 14, seed=6)
    good = run(tier, p)
    p.row_scale[5, -1] = bad
    y = run(tier, p)
    assert not np.isfinite(y[5]).all() and (np.isnan(y[5]).all() or bad == np.inf)
    assert np.delete(y, 5, 0).tobytes() == np.delete(good, 5, 0).tobytes()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_any_row_count_and_data(rows: int, seed: int, threads: int) -> None:
    p = problem(Q8LinearSpec(67, 100), rows, seed=seed, plain=True)
    expected = products(p)
    for tier in runnable_tiers():
        np.testing.assert_array_equal(run(tier, p, threads=threads), expected)


def test_impossible_specs_are_refused() -> None:
    with pytest.raises(CompileError, match="depth 66001: expected at most 66000"):
        Q8LinearSpec(66_001, 4)
    with pytest.raises(CompileError, match=r"block 48, expected one of \[0, 32, 64, 128\]"):
        Q8LinearSpec(64, 4, block=48)
    with pytest.raises(CompileError, match="scales per column are float32"):
        Q8LinearSpec(64, 4, half=True)
    with pytest.raises(CompileError, match="activation 'swish', expected one of none, relu"):
        Q8LinearSpec(4, 4, activation="swish")
    with pytest.raises(CompileError, match="gated linear of 24 columns: expected whole panels"):
        Q8LinearSpec(4, 24, gated=True)
