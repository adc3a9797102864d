"""Attention in bfloat16 on AMX: within the error its roundings explain, and bits that know no mates and no padding."""
from __future__ import annotations

from collections.abc import Mapping

import llvmlite.ir as ir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q8c.codegen.attention import attention_kernel
from q8c.codegen.attention_math import exp2_for_bf16
from q8c.codegen.builder import F32, I64, LANES, PTR, V16F, Builder
from q8c.codegen.module import new_module
from q8c.codegen.targets import TIERS, Tier
from q8c.ir.graph import Array
from tests.codegen import attention as f32
from tests.codegen.attention import CASES, LOWEST, Case, exact, reference
from tests.codegen.jit import build, needs

FAST = TIERS["amx-int8"].fast()
BF16 = 2.0**-8  # rounding to bfloat16, relative
EXP_ERROR = 9e-5  # of a weight, relative; attention_math states it
PADDED = "batch, 1, 1, seq"

pytestmark = needs(FAST)


def run(case: Case, feeds: Mapping[str, Array], threads: int = 1) -> Array:
    """The kernel's result."""
    return f32.run(case, feeds, FAST, threads)


def error_bound(case: Case, feeds: Mapping[str, Array]) -> Array:
    """The greatest difference that rounding to bfloat16 explains: of queries and keys in scores, of weights, of values.

    Scores and sums in float32 hardly matter beside it; a tenth more covers them.
    """
    parts = exact(case, feeds)
    score_error = np.where(parts.seen, (2 * BF16 + BF16**2) * parts.products, 0)
    return 1.1 * parts.bound(np.expm1(score_error) + EXP_ERROR, 2 * BF16)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=st.sampled_from(CASES), batch=st.sampled_from([1, 3, 4]), seq=st.integers(1, 70), keys=st.integers(1, 70),
       spread=st.sampled_from([0.1, 1.0, 3.0]), seed=st.integers(0, 999))
def test_matches_the_oracle(case: Case, batch: int, seq: int, keys: int, spread: float, seed: int) -> None:
    if case.causal:
        keys = max(keys, seq)  # else the first queries see nothing
    feeds = case.feeds(np.random.default_rng(seed), batch, seq, keys)
    feeds = {n: a * np.float32(spread) for n, a in feeds.items()}
    got = run(case, feeds)
    assert (np.abs(got.astype(np.float64) - reference(case, feeds)) <= error_bound(case, feeds)).all()
    assert (run(case, feeds, threads=3) == got).all()


def test_powers_of_two() -> None:
    def emit(module: ir.Module, tier: Tier) -> None:
        b = Builder(module, tier, "run", [("x", PTR), ("y", PTR), ("count", I64)])
        with b.range(0, b.arg("count"), LANES) as i:
            b.store(exp2_for_bf16(b, b.load(V16F, b.at(b.arg("x"), i, F32))), b.at(b.arg("y"), i, F32))
        b.ret()

    x = np.concatenate([-np.geomspace(1e-38, 125, 50_000), -np.linspace(0, 125, 50_000)]).astype(np.float32)
    x = np.concatenate([x, np.array([0, -0.0, LOWEST, -np.inf, np.nan, np.inf], np.float32), np.zeros(10, np.float32)])
    y = np.zeros_like(x)
    build(FAST, emit)("run", x, y, x.size)
    exact = np.exp2(x[:100_000].astype(np.float64))
    assert (np.abs(y[:100_000] - exact) <= EXP_ERROR * exact).all()
    np.testing.assert_array_equal(y[100_000:100_006], np.array([1, 1, 0, 0, np.nan, np.inf], np.float32))


def test_large_heads_and_long_sequences() -> None:
    rng = np.random.default_rng(1)
    for case, seq in ((Case(heads=1, kv_heads=1, size=256), 40), (Case(kv_heads=1, mask=PADDED), 700)):
        feeds = case.feeds(rng, 1, seq)
        assert (np.abs(run(case, feeds) - reference(case, feeds)) <= error_bound(case, feeds)).all()


def test_typical_error_is_far_below_the_bound() -> None:
    case = Case(heads=4, kv_heads=4, size=64, mask=PADDED)
    feeds = case.feeds(np.random.default_rng(2), 2, 128)
    difference = run(case, feeds) - reference(case, feeds)
    assert np.linalg.norm(difference) <= 0.004 * np.linalg.norm(reference(case, feeds))


@pytest.mark.parametrize("shape", [PADDED, "batch, 2, seq, seq", "1, 1, seq, seq", "batch, 1, seq, 1"])
@pytest.mark.parametrize("masked", [-np.inf, LOWEST, -10000.0])
def test_masks(shape: str, masked: float) -> None:
    case = Case(mask=shape)
    rng = np.random.default_rng(3)
    feeds = case.feeds(rng, 2, 37)
    feeds["m"] = np.where(rng.random(feeds["m"].shape) < 0.4, masked, 0).astype(np.float32)
    feeds["m"][..., 0] = 0
    expected = reference(case, feeds)
    np.testing.assert_allclose(run(case, feeds), expected, atol=0.05)
    full = Case(mask="batch, 2, seq, seq")
    feeds["m"] = np.ascontiguousarray(np.broadcast_to(feeds["m"], (2, 2, 37, 37)))
    np.testing.assert_allclose(run(full, feeds), expected, atol=0.05)


@pytest.mark.parametrize("masked", [-np.inf, LOWEST, -10000.0])
@pytest.mark.parametrize("real", [1, 5, 16, 31])
def test_padding_changes_no_bit(masked: float, real: int) -> None:
    case = Case(mask=PADDED)
    rng = np.random.default_rng(real)
    feeds = case.feeds(rng, 1, real)
    feeds["m"][:] = 0
    short = run(case, feeds)
    for padded in (real + 1, real + 8, 77):
        longer = case.feeds(rng, 1, padded)
        longer["x"][:, :real] = feeds["x"]
        longer["m"][...] = masked
        longer["m"][..., :real] = 0
        assert run(case, longer)[:, :real].tobytes() == short.tobytes()


def test_batch_mates_positions_and_other_queries_change_no_bit() -> None:
    case = Case(mask=PADDED)
    feeds = case.feeds(np.random.default_rng(4), 4, 45)
    feeds["x"][1:] *= 30
    together = run(case, feeds)
    for n in range(4):
        assert (run(case, {name: a[n:n + 1] for name, a in feeds.items()}) == together[n:n + 1]).all()
    assert (run(case, {name: a[::-1] for name, a in feeds.items()})[::-1] == together).all()
    case = Case(merged=False)
    feeds = case.feeds(np.random.default_rng(5), 1, 49, 30)
    together = run(case, feeds)
    for n, count in ((0, 17), (15, 1), (31, 5), (32, 17)):  # where nothing counts them, few are as many
        assert (run(case, {**feeds, "q": feeds["q"][:, n:n + count]}) == together[:, n:n + count]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_query_spoils_only_itself(value: float) -> None:
    case = Case(merged=False)
    feeds = case.feeds(np.random.default_rng(6), 2, 35, 20)
    clean = run(case, feeds)
    feeds["q"][1, 17, 3:3 + case.size] = value  # head 0 of one token
    got = run(case, feeds)
    assert np.isnan(got[1, 17, :case.size]).all()
    got[1, 17, :case.size] = clean[1, 17, :case.size]
    assert (got == clean).all()


def test_a_bad_key_spoils_its_head_in_its_batch_item() -> None:
    case = Case(merged=False)
    feeds = case.feeds(np.random.default_rng(7), 2, 35, 20)
    clean = run(case, feeds)
    feeds["k"][0, 19, 1] = np.nan  # the last key, which also fills up
    got = run(case, feeds)
    assert np.isnan(got[0, :, :case.size]).all()
    assert (got[0, :, case.size:] == clean[0, :, case.size:]).all() and (got[1] == clean[1]).all()


@pytest.mark.parametrize("shape", [PADDED, "batch, 1, seq, seq"])
@pytest.mark.parametrize("nan_to_zero", [False, True])
def test_queries_that_see_nothing(shape: str, nan_to_zero: bool) -> None:
    case = Case(mask=shape, nan_to_zero=nan_to_zero)
    feeds = case.feeds(np.random.default_rng(8), 2, 37)
    feeds["m"][:] = 0
    feeds["m"][1] = -np.inf
    got = run(case, feeds)
    np.testing.assert_array_equal(got[1], 0 if nan_to_zero else np.nan)
    np.testing.assert_allclose(got, reference(case, feeds), atol=0.05)


@pytest.mark.parametrize("seq, keys", [(40, 7), (7, 40), (33, 33), (1, 5), (65, 64), (70, 100)])
@pytest.mark.parametrize("nan_to_zero", [False, True])
def test_causal(seq: int, keys: int, nan_to_zero: bool) -> None:
    case = Case(size=33, causal=True, merged=False, nan_to_zero=nan_to_zero)
    feeds = case.feeds(np.random.default_rng(9), 2, seq, keys)
    got = run(case, feeds)
    np.testing.assert_allclose(got, reference(case, feeds), atol=0.05)
    np.testing.assert_array_equal(got[:, :max(seq - keys, 0)], 0 if nan_to_zero else np.nan)
    feeds["k"][:, -1], feeds["v"][:, -1] = 9, 9  # seen by the last query alone
    assert (run(case, feeds)[:, max(seq - keys, 0):-1] == got[:, max(seq - keys, 0):-1]).all()


def test_fully_masked_with_a_finite_number_is_uniform() -> None:
    case = Case(mask=PADDED)
    feeds = case.feeds(np.random.default_rng(10), 1, 20)
    feeds["m"][:] = LOWEST
    values = feeds["x"][:, :, -2 * case.size:]
    expected = np.broadcast_to(values.mean(1, keepdims=True, dtype=np.float64), values.shape)
    np.testing.assert_allclose(run(case, feeds), expected, atol=0.01)


@pytest.mark.parametrize("batch, seq, keys", [(0, 5, 5), (2, 0, 5), (2, 5, 0), (0, 0, 0)])
def test_zero_sizes(batch: int, seq: int, keys: int) -> None:
    for case in (Case(merged=False), Case(size=33, causal=True, merged=False)):
        feeds = case.feeds(np.random.default_rng(11), batch, seq, keys)
        np.testing.assert_array_equal(run(case, feeds), reference(case, feeds))


def test_the_name_says_bf16() -> None:
    kernel = attention_kernel(new_module("names"), FAST, Case().graph().nodes[0])
    assert kernel.function.name == "q8c_attention_bf16_2x32_q192at0_k192at64_v192at128_scale3e000000_first__amxint8"
