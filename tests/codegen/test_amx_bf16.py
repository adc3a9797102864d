"""Linear layers by blocks in bfloat16 on AMX: near the integers' results, and the same bits whoever else is there."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from q8c.codegen.bf16 import FEW_TOKENS
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.targets import TIERS
from q8c.ir import q8
from tests.codegen.jit import needs
from tests.codegen.q8 import Problem, bfloat16, problem, products, run

FAST = TIERS["amx-int8"].fast()
BLOCKS = Q8LinearSpec(163, 85, bias=True, activation="relu", residual=True, block=64, zero_point=True, half=True,
                      wide=True)
NARROW = Q8LinearSpec(160, 53, bias=True, block=32, zero_point=True, bits=4, offsets=True, wide=True)
ROWS = (1, 2, 7, 16, 17, 31, 32, 33, 70)

pytestmark = needs(FAST)


@pytest.mark.parametrize(("depth", "block"), [(1, 32), (33, 32), (64, 64), (130, 128), (1000, 32)])
def test_what_bfloat16_holds_is_exact(depth: int, block: int) -> None:
    spec = Q8LinearSpec(depth, 49, block=block, half=block == 32, wide=True)
    for rows in ROWS[::3]:
        p = problem(spec, rows, seed=rows, plain=True)
        np.testing.assert_array_equal(run(FAST, p), products(p).sum(axis=1))


def reference(p: Problem) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """y in float64, of rows rounded to bfloat16, and how far it may be off: weights rounded to 8 bits, their offset by
    a 500th of a step before, and every sum to 24 bits."""
    a = bfloat16(p.floats()).astype(np.float64)
    steps = np.repeat(np.abs(p.w_scale.astype(np.float64)), p.spec.block, axis=0)[:p.spec.depth]
    w = (p.w.astype(np.float64) - q8.ZERO_POINT) * steps
    y = a @ w + (p.bias if p.spec.bias else 0)
    if p.spec.activation == "relu":
        y = np.maximum(y, 0)
    all_of_a = np.abs(a) @ np.abs(w)
    rounded = 2.0**-8 * (1 + 2.0**-8) * all_of_a + np.abs(a) @ steps / 500
    more = [np.abs(p.bias)] * p.spec.bias + [np.abs(p.residual)] * p.spec.residual
    largest = all_of_a + sum(more, np.zeros_like(y))
    return np.asarray(y + (p.residual if p.spec.residual else 0)), rounded + (p.spec.depth + 2) * 2.0**-24 * largest


@pytest.mark.parametrize("spec", [BLOCKS, NARROW, Q8LinearSpec(576, 100, block=32, half=True, wide=True),
                                  Q8LinearSpec(5, 20, residual=True, block=128, wide=True)])
def test_results_are_within_the_roundings(spec: Q8LinearSpec) -> None:
    p = problem(spec, 45, seed=1)
    expected, budget = reference(p)
    assert (np.abs(run(FAST, p) - expected) <= budget).all()


@pytest.mark.parametrize("spec", [BLOCKS, NARROW])
def test_a_row_does_not_know_its_mates(spec: Q8LinearSpec) -> None:
    p = problem(spec, 70, seed=2)
    whole = run(FAST, p)
    for first, last in [*((0, n) for n in ROWS), (3, 4), (7, 12), (5, 30), (13, 26), (1, 34), (2, 67)]:
        assert run(FAST, p.rows(first, last)).tobytes() == whole[first:last].tobytes(), (first, last)


@pytest.mark.parametrize("rows", [3, 70, 1200])
def test_threads_change_nothing(rows: int) -> None:
    p = problem(Q8LinearSpec(516, 270, bias=True, block=32, wide=True), rows, seed=4)
    alone = run(FAST, p)
    for threads in (2, 3):
        assert run(FAST, p, threads=threads).tobytes() == alone.tobytes()


def test_4_bits_give_the_bits_of_8() -> None:
    for rows in (1, 6, 40):
        p = problem(NARROW, rows, seed=9)
        wide = replace(p, spec=replace(NARROW, bits=8, offsets=False))
        np.testing.assert_array_equal(run(FAST, p), run(FAST, wide))


def test_output_may_have_gaps_and_be_the_residual() -> None:
    p = problem(BLOCKS, 37, seed=5)
    plain = run(FAST, p)
    assert run(FAST, p, ldy=96).tobytes() == plain.tobytes()
    assert run(FAST, p, in_place=True).tobytes() == plain.tobytes()


@pytest.mark.parametrize("stride", [96, 112, 97])
def test_streamed_results_are_the_same(stride: int) -> None:
    p = problem(Q8LinearSpec(96, 85, bias=True, block=32, half=True, wide=True), 70, seed=10)
    streamed = replace(p, spec=replace(p.spec, streamed=True))
    assert run(FAST, streamed, ldy=stride).tobytes() == run(FAST, p).tobytes()


@pytest.mark.parametrize("rows", [14, 40])
def test_a_nan_row_stays_one_row(rows: int) -> None:
    p = problem(replace(BLOCKS, activation="none"), rows, seed=6)
    good = run(FAST, p)
    p.row_scale[5, -1] = np.nan
    y = run(FAST, p)
    assert np.isnan(y[5]).all()
    assert np.delete(y, 5, 0).tobytes() == np.delete(good, 5, 0).tobytes()


def test_only_wide_rows_are_bfloat16_and_only_in_fast_numerics() -> None:
    p = problem(BLOCKS, 33, seed=7)
    dense = replace(p, spec=replace(BLOCKS, wide=False))
    assert run(TIERS["amx-int8"], p).tobytes() == run(FAST, dense).tobytes() != run(FAST, p).tobytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_each_sequence_goes_by_its_own_count(threads: int) -> None:
    spec = replace(BLOCKS, counted=True)
    tokens, counts = 40, [FEW_TOKENS + 1, 1, 40, FEW_TOKENS, 0, 33]
    p = problem(spec, tokens * len(counts), seed=8)
    plain = replace(p, spec=BLOCKS)
    int8, bf16 = run(TIERS["amx-int8"], plain), run(FAST, plain)
    of_rows = np.repeat(np.array(counts) <= FEW_TOKENS, tokens)
    for in_place in (False, True):
        y = run(FAST, p, threads=threads, counts=counts, in_place=in_place)
        np.testing.assert_array_equal(y, np.where(of_rows[:, None], int8, bf16))
    for n, count in enumerate(counts):
        own = slice(n * tokens, n * tokens + max(count, 1))
        assert run(FAST, p.rows(own.start, own.stop), counts=[count]).tobytes() == y[own].tobytes()


@pytest.mark.parametrize("counts", [[40, 3, 9], [1, 1, 8], [9, 9, 9], [20, 2] * 10])
def test_a_row_of_each_sequence_goes_by_its_count(counts: list[int]) -> None:
    p = problem(replace(BLOCKS, counted=True), len(counts), seed=9)
    int8, bf16 = (run(tier, replace(p, spec=BLOCKS)) for tier in (TIERS["amx-int8"], FAST))
    few = np.array(counts)[:, None] <= FEW_TOKENS
    np.testing.assert_array_equal(run(FAST, p, counts=counts), np.where(few, int8, bf16))
