"""Attention of few queries: the bits of many, masks of keys, lengths, memory that is not to be read."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from q8c.codegen.attention_few import FEW
from q8c.codegen.attention_spec import SPAN
from q8c.codegen.bf16 import FEW_TOKENS
from q8c.codegen.targets import TIERS
from q8c.ir.graph import Array
from tests.codegen.attention import Case, reference, run, run_everywhere
from tests.codegen.jit import runnable

FAST = TIERS["amx-int8"].fast()
APPROXIMATE = TIERS["avx512-vnni"].fast()
DECODE = Case(heads=6, kv_heads=2, size=20, merged=False, split="kv", causal=True)
MASKS = {"bool": "bool[batch, keys]", "i64": "i64[1, keys]", "f32": "f32[batch, keys]", "i8": "i8[batch, keys]"}
SHOWN = Case(heads=5, kv_heads=1, size=33, merged=False, split="kv", causal=True, lengths=True,
             key_mask="i64[batch, keys]")
CASES = [
    DECODE, replace(DECODE, heads=3, kv_heads=1, size=64, lengths=True),
    replace(DECODE, heads=5, kv_heads=1, size=33, split="", lengths=True, key_mask=MASKS["i64"]),
    replace(DECODE, causal=False, key_mask=MASKS["bool"], split="qkv", size=1),
    replace(DECODE, key_mask=MASKS["f32"], mask="1, 6, seq, keys", spread=True, size=16),
    replace(DECODE, key_mask=MASKS["i8"], mask="batch, 1, seq, 1", causal=False),
    replace(DECODE, heads=3, kv_heads=1, size=64, lengths=True, int8=True), replace(SHOWN, int8=True),
    replace(DECODE, mask="1, 6, seq, keys", key_mask=MASKS["bool"], softcap=0.6),
    replace(SHOWN, int8=True, softcap=0.6),
    replace(DECODE, heads=3, kv_heads=1, size=64, lengths=True, sinks=True),
    replace(DECODE, size=48, value_size=20, lengths=True, key_mask=MASKS["i64"], int8=True),
    replace(DECODE, size=24, value_size=40, split="k", spread=True),
]

COUNTED = [replace(case, counts=True) for case in (
    replace(DECODE, lengths=True), replace(DECODE, causal=False), CASES[6],
    replace(DECODE, lengths=True, window=30, split="qkv"))]


def close(case: Case, feeds: dict[str, Array]) -> Array:
    """The result, the same on every tier and in any number of pieces, which is near the reference's."""
    got = run_everywhere(case, feeds)
    np.testing.assert_allclose(got, reference(case, feeds), rtol=0, atol=3e-6)
    return got


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_matches_the_reference(case: Case) -> None:
    for queries, keys in ((1, 1), (1, 33), (2, 64), (5, 131), (FEW, 70)):
        close(case, case.feeds(np.random.default_rng(keys), 2, queries, keys))


@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[6], CASES[9], CASES[10], CASES[12]], ids=range(6))
def test_a_token_alone_has_its_bits_among_many(case: Case) -> None:
    """A step at a time, a few at a time, and all at once, which is the kernel of many queries."""
    queries, keys = FEW + 8, SPAN + 90
    feeds = case.feeds(np.random.default_rng(1), 2, queries, keys)
    past = feeds.pop("lengths", np.full(2, keys - queries))
    wide = replace(case, lengths=True)
    together = run_everywhere(wide, {**feeds, "lengths": past})
    axis = 2 if "q" in case.split else 1
    for start, stop in ((0, 1), (5, 8), (7, 7 + FEW), (queries - 1, queries)):
        some = {**feeds, "q": np.ascontiguousarray(feeds["q"].take(range(start, stop), axis)), "lengths": past + start}
        np.testing.assert_array_equal(run_everywhere(wide, some), together[:, start:stop])
        if runnable(APPROXIMATE):
            every = run(wide, {**feeds, "lengths": past}, APPROXIMATE)
            np.testing.assert_array_equal(run(wide, some, APPROXIMATE), every[:, start:stop])
            assert 0 < np.linalg.norm(every - together) < 1e-4 * np.linalg.norm(together)


@pytest.mark.parametrize("queries", [3, FEW + 3])
@pytest.mark.parametrize("case", [SHOWN, CASES[7]], ids=["f32", "int8"])
def test_nothing_is_read_that_no_query_sees(case: Case, queries: int) -> None:
    keys = 100
    feeds = case.feeds(np.random.default_rng(2), 3, queries, keys)
    feeds["lengths"] = np.array([0, 40, 77])
    clean = run_everywhere(case, feeds)
    for row, length in enumerate(feeds["lengths"].tolist()):
        for n in ("k", "v"):
            feeds[n][row, :, length + queries:] = np.nan
            feeds[n][row][:, feeds["seen"][row] == 0] = np.nan
    np.testing.assert_array_equal(run_everywhere(case, feeds), clean)
    if runnable(FAST):
        np.testing.assert_allclose(run(case, feeds, FAST), clean, rtol=0, atol=0.05)


@pytest.mark.parametrize("queries", [4, FEW + 4])
@pytest.mark.parametrize("causal, otherwise", [
    *((causal, otherwise) for causal in (False, True) for otherwise in ("spread", "nan_to_zero", "")),
    (True, "spread int8")])
def test_queries_that_see_no_key(queries: int, causal: bool, otherwise: str) -> None:
    case = replace(DECODE, causal=causal, key_mask="i64[batch, keys]", spread="spread" in otherwise, size=16,
                   nan_to_zero=otherwise == "nan_to_zero", heads=2, int8="int8" in otherwise)
    feeds = case.feeds(np.random.default_rng(3), 3, queries, 40)
    feeds["seen"][0, :40 - queries + 2] = 0  # padding on the left: two queries see nothing if causal
    feeds["seen"][1] = 0
    got = run_everywhere(case, feeds)
    np.testing.assert_allclose(got, reference(case, feeds), rtol=0, atol=3e-6)
    assert np.isnan(got).any() == (otherwise == "")
    if runnable(FAST):
        np.testing.assert_allclose(run(case, feeds, FAST), got, rtol=0, atol=0.05)


@pytest.mark.parametrize("queries", [4, FEW + 4])
@pytest.mark.parametrize("case", [replace(SHOWN, sinks=True), replace(SHOWN, int8=True, window=9, sinks=True)],
                         ids=["f32", "int8 window"])
def test_sinks_take_their_share(case: Case, queries: int) -> None:
    """All of it where a query sees no key; sinks far above and below the scores too."""
    feeds = case.feeds(np.random.default_rng(6), 2, queries, 70)
    feeds["seen"][0] = 0
    feeds["sinks"] = np.array([0.5, -3, 60, -200, 2], np.float32)
    got = run_everywhere(case, feeds)
    np.testing.assert_allclose(got, reference(case, feeds), rtol=0, atol=3e-6)
    assert (got[0] == 0).all() and (np.abs(got[1]).max(-1) > 0.1).all()
    assert np.abs(got[1].reshape(queries, 5, -1)).max((0, 2))[2] < 1e-20
    if runnable(FAST):
        np.testing.assert_allclose(run(case, feeds, FAST), got, rtol=0, atol=0.05)


def test_batch_mates_change_no_bit() -> None:
    case = CASES[2]
    feeds = case.feeds(np.random.default_rng(4), 4, 2, 75)
    together = run_everywhere(case, feeds)
    for n in range(4):
        alone = {name: a if name == "seen" else a[n:n + 1] for name, a in feeds.items()}
        np.testing.assert_array_equal(run_everywhere(case, alone), together[n:n + 1])


def test_a_bad_query_or_key_spoils_only_its_own() -> None:
    feeds = DECODE.feeds(np.random.default_rng(5), 2, 3, 40)
    clean = run_everywhere(DECODE, feeds)
    feeds["q"][0, 1, 3 + 20] = np.nan      # head 1 of the second token
    feeds["k"][1, 1, 38] = np.inf          # seen by the last two
    got = run_everywhere(DECODE, feeds)
    assert np.isnan(got[0, 1, 20:40]).all() and np.isnan(got[1, 1:, 60:]).all()
    got[0, 1, 20:40], got[1, 1:, 60:] = clean[0, 1, 20:40], clean[1, 1:, 60:]
    np.testing.assert_array_equal(got, clean)


@pytest.mark.parametrize("batch, queries, keys", [(0, 1, 5), (2, 0, 5), (2, 3, 0)])
def test_zero_sizes(batch: int, queries: int, keys: int) -> None:
    for case in (DECODE, CASES[4]):
        close(case, case.feeds(np.random.default_rng(6), batch, queries, keys))


@pytest.mark.skipif(not runnable(FAST), reason="this CPU has no AMX with bfloat16")
def test_few_queries_are_float32_beside_amx() -> None:
    case = replace(DECODE, counts=True)
    feeds = case.feeds(np.random.default_rng(7), 1, FEW_TOKENS, 50)
    np.testing.assert_array_equal(run(case, feeds, FAST), run(case, feeds, APPROXIMATE))


@pytest.mark.skipif(not runnable(FAST), reason="this CPU has no AMX with bfloat16")
@pytest.mark.parametrize("case", COUNTED, ids=range(len(COUNTED)))
def test_padding_does_not_choose_how_products_are_rounded(case: Case) -> None:
    counts = np.array([3, 20, FEW_TOKENS, FEW_TOKENS + 1, 1])
    feeds = case.feeds(np.random.default_rng(9), len(counts), 20, SPAN + 40) | {"counts": counts}
    together = run(case, feeds, FAST)
    np.testing.assert_array_equal(run(case, feeds, FAST, 3), together)
    np.testing.assert_allclose(together, reference(case, feeds), rtol=0, atol=0.05)  # that of padding too
    in_bfloat16 = run(case, feeds | {"counts": np.full(len(counts), 20)}, FAST)
    for row, count in enumerate(counts.tolist()):
        alone = {n: a[row:row + 1] for n, a in feeds.items()}
        alone["q"] = np.ascontiguousarray(alone["q"][:, :, :count] if "q" in case.split else alone["q"][:, :count])
        np.testing.assert_array_equal(run(case, alone, FAST)[0], together[row, :count])
        assert (together[row, :count] == in_bfloat16[row, :count]).all() == (count > FEW_TOKENS)


@pytest.mark.skipif(not runnable(FAST), reason="this CPU has no AMX with bfloat16")
def test_bounded_scores_are_float32_beside_amx() -> None:
    case = replace(DECODE, softcap=0.6)
    feeds = case.feeds(np.random.default_rng(8), 1, 40, 50)
    np.testing.assert_array_equal(run(case, feeds, FAST), run(case, feeds, APPROXIMATE))
