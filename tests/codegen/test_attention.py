"""Fused attention against the interpreter's, its bits over tiers, threads, batches and padding, and odd inputs."""
from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q8c.codegen.attention import attention_kernel
from q8c.codegen.module import compile_module, new_module
from q8c.codegen.targets import TIERS, Tier, tier
from q8c.ir.graph import Array
from tests.codegen.attention import CASES, LOWEST, Case, check, reference, run, run_everywhere
from tests.codegen.jit import each_width


@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=st.sampled_from(CASES), batch=st.integers(1, 3), seq=st.integers(1, 70), keys=st.integers(1, 70),
       spread=st.sampled_from([0.1, 1.0, 5.0]), seed=st.integers(0, 999))
def test_matches_the_oracle(case: Case, batch: int, seq: int, keys: int, spread: float, seed: int) -> None:
    if case.causal:
        keys = max(keys, seq)  # else the first queries see nothing
    feeds = case.feeds(np.random.default_rng(seed), batch, seq, keys)
    check(case, {n: a * np.float32(spread) for n, a in feeds.items()})


def test_large_heads_and_long_sequences() -> None:
    rng = np.random.default_rng(1)
    case = Case(heads=1, kv_heads=1, size=256)
    check(case, case.feeds(rng, 1, 40))
    case = Case(heads=1, kv_heads=1, mask="batch, 1, 1, seq")
    check(case, case.feeds(rng, 1, 700))


def _masked_feeds(case: Case, masked: float, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feeds = case.feeds(rng, 2, 37)
    feeds["m"] = np.where(rng.random(feeds["m"].shape) < 0.4, masked, 0).astype(np.float32)
    return feeds


@pytest.mark.parametrize("shape", ["batch, 1, 1, seq", "batch, 2, seq, seq", "1, 1, seq, seq"])
@pytest.mark.parametrize("masked", [-np.inf, LOWEST, -10000.0])
def test_masked_keys_have_no_weight(shape: str, masked: float) -> None:
    case = Case(mask=shape)
    feeds = _masked_feeds(case, masked)
    feeds["m"][..., 5] = 0
    got = run_everywhere(case, feeds)
    hidden = np.where(np.broadcast_to(feeds["m"], (2, 2, 37, 37)) == 0, 0.0, -1e9)
    feeds["m"] = np.ascontiguousarray(np.broadcast_to(feeds["m"], (2, 2, 37, 37)))
    full = Case(mask="batch, 2, seq, seq")
    assert (np.abs(got - reference(full, {**feeds, "m": hidden.astype(np.float32)})) <= 2e-6).all()
    assert (run_everywhere(full, feeds) == got).all()


@pytest.mark.parametrize("masked", [-np.inf, LOWEST, -10000.0])
@pytest.mark.parametrize("real", [1, 5, 16, 29])
def test_padding_changes_no_bit(masked: float, real: int) -> None:
    case = Case(mask="batch, 1, 1, seq")
    rng = np.random.default_rng(real)
    feeds = case.feeds(rng, 1, real)
    feeds["m"][:] = 0
    for padded in (real + 1, real + 8, 77):
        longer = case.feeds(rng, 1, padded)
        longer["x"][:, :real] = feeds["x"]
        longer["m"][...] = masked
        longer["m"][..., :real] = 0
        assert (run_everywhere(case, longer)[:, :real] == run_everywhere(case, feeds)).all()


@each_width
def test_batch_mates_and_positions_change_no_bit(tier: Tier) -> None:
    case = Case(mask="batch, 1, 1, seq")
    feeds = case.feeds(np.random.default_rng(2), 4, 21)
    feeds["x"][1:] *= 30
    together = run(case, feeds, tier)
    for n in range(4):
        alone = run(case, {name: a[n:n + 1] for name, a in feeds.items()}, tier)
        assert (alone == together[n:n + 1]).all()
    turned = run(case, {name: a[::-1] for name, a in feeds.items()}, tier)
    assert (turned[::-1] == together).all()


@each_width
@pytest.mark.parametrize("threads", [2, 3, 7, 100])
def test_threads_change_no_bit(tier: Tier, threads: int) -> None:
    case = Case(heads=3, kv_heads=3, size=64, mask="batch, 1, 1, seq")
    feeds = case.feeds(np.random.default_rng(3), 2, 50)
    assert (run(case, feeds, tier, threads) == run(case, feeds, tier)).all()


def test_queries_change_no_bit_of_each_other() -> None:
    case = Case(merged=False)
    feeds = case.feeds(np.random.default_rng(4), 1, 49, 30)
    together = run_everywhere(case, feeds)
    for n in (0, 15, 31, 32, 48):
        assert (run_everywhere(case, {**feeds, "q": feeds["q"][:, n:n + 1]}) == together[:, n:n + 1]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.uint32(0x7FC00001).view(np.float32)])
def test_a_bad_query_spoils_only_itself(value: float) -> None:
    case = Case(merged=False)
    feeds = case.feeds(np.random.default_rng(5), 2, 35, 20)
    clean = run_everywhere(case, feeds)
    feeds["q"][1, 17, 3:3 + case.size] = value  # head 0 of one token
    got = run_everywhere(case, feeds)
    assert np.isnan(got[1, 17, :case.size]).all()
    got[1, 17, :case.size] = clean[1, 17, :case.size]
    assert (got == clean).all()


def test_a_bad_key_spoils_its_head_in_its_batch_item() -> None:
    case = Case(merged=False)
    feeds = case.feeds(np.random.default_rng(6), 2, 35, 20)
    clean = run_everywhere(case, feeds)
    feeds["k"][0, 7, 1] = np.nan
    got = run_everywhere(case, feeds)
    assert np.isnan(got[0, :, :case.size]).all()
    assert (got[0, :, case.size:] == clean[0, :, case.size:]).all() and (got[1] == clean[1]).all()


@pytest.mark.parametrize("shape", ["batch, 1, 1, seq", "batch, 1, seq, seq"])
@pytest.mark.parametrize("nan_to_zero", [False, True])
def test_queries_that_see_nothing(shape: str, nan_to_zero: bool) -> None:
    case = Case(mask=shape, nan_to_zero=nan_to_zero)
    feeds = _masked_feeds(case, -np.inf)
    feeds["m"][1] = -np.inf
    feeds["m"][0, ..., 3] = 0
    got = run_everywhere(case, feeds)
    np.testing.assert_array_equal(got[1], 0 if nan_to_zero else np.nan)
    np.testing.assert_allclose(got, reference(case, feeds), atol=2e-6)


@pytest.mark.parametrize("seq, keys", [(40, 7), (7, 40), (33, 33), (1, 5), (65, 64)])
@pytest.mark.parametrize("nan_to_zero", [False, True])
def test_causal(seq: int, keys: int, nan_to_zero: bool) -> None:
    case = Case(size=33, causal=True, merged=False, nan_to_zero=nan_to_zero)
    feeds = case.feeds(np.random.default_rng(7), 2, seq, keys)
    got, expected = run_everywhere(case, feeds), reference(case, feeds)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    blind = max(seq - keys, 0)
    np.testing.assert_array_equal(got[:, :blind], 0 if nan_to_zero else np.nan)


def test_fully_masked_with_a_finite_number_is_uniform() -> None:
    case = Case(mask="batch, 1, 1, seq")
    feeds = case.feeds(np.random.default_rng(8), 1, 20)
    feeds["m"][:] = LOWEST
    values = feeds["x"][:, :, -2 * case.size:]
    expected = np.broadcast_to(values.mean(1, keepdims=True, dtype=np.float64), values.shape)
    np.testing.assert_allclose(run_everywhere(case, feeds), expected, atol=1e-6)


@pytest.mark.parametrize("batch, seq, keys", [(0, 5, 5), (2, 0, 5), (2, 5, 0), (0, 0, 0)])
def test_zero_sizes(batch: int, seq: int, keys: int) -> None:
    for case in (Case(merged=False), Case(size=33, causal=True, merged=False)):
        feeds = case.feeds(np.random.default_rng(9), batch, seq, keys)
        np.testing.assert_array_equal(run_everywhere(case, feeds), reference(case, feeds))


def _names(cases: Sequence[Case]) -> list[str]:
    module = new_module("names")
    return [attention_kernel(module, tier("avx2"), case.graph().nodes[0]).function.name for case in cases]


def test_equal_specs_share_a_function() -> None:
    first, second = _names([Case(), Case()])
    assert first == second == "q8c_attention_f32_2x32_q192at0_k192at64_v192at128_scale3e000000__avx2"
    assert _names([CASES[6]]) == [
        "q8c_attention_f32_6x20by2_q200at0_k200at120_v200at160_scale3e000000_maskqk_causal__avx2"]
    assert len(set(_names(CASES))) == len(CASES)


@pytest.mark.parametrize("name", list(TIERS))
def test_loops_keep_their_sums_in_registers(name: str) -> None:
    module = new_module("attention")
    attention_kernel(module, tier(name), Case(size=64).graph().nodes[0]).function.linkage = "external"
    text = compile_module(module, tier(name)).assembly()
    loops = re.findall(r"^(\.LBB\d+_\d+):((?:\n(?!\.LBB).*)*?\n\tj\w+\t\1)$", text, re.MULTILINE)
    hot = [body for _, body in loops if body.count("vfmadd") >= 12]
    assert len(hot) >= 3
    assert not [body for body in hot if re.search(r"vmov\w+\s+%[yz]mm\d+, .*\(%r[sb]p", body)]
