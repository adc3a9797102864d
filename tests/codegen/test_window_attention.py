"""Attention to keys that are near enough: near the interpreter's, the same bits in any company, and no others read."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from q8c.codegen.attention_few import BLOCK, FEW
from q8c.codegen.attention_spec import SPAN
from q8c.codegen.targets import TIERS
from tests.codegen.attention import Case, reference, run, run_everywhere
from tests.codegen.jit import runnable

FAST = TIERS["amx-int8"].fast()
DECODE = Case(heads=3, kv_heads=1, size=20, merged=False, split="kv", causal=True, lengths=True, window=70)
ENCODE = Case(heads=2, kv_heads=2, size=16, window=11, key_mask="i64[batch, seq]", spread=True)
CASES = {"decoder": DECODE, "8 bits": replace(DECODE, window=5, int8=True), "encoder": ENCODE,
         "mask": replace(DECODE, lengths=False, window=40, mask="1, 3, seq, keys", key_mask="i64[batch, keys]")}


@pytest.mark.parametrize("name", CASES)
def test_matches_the_reference(name: str) -> None:
    case = CASES[name]
    for queries, keys in ((1, 1), (1, 300), (3, 64), (FEW + 1, 40), (75, 75 if case.merged else 400)):
        feeds = case.feeds(np.random.default_rng(keys), 2, queries, queries if case.merged else keys)
        if case.merged:  # queries at the end see none
            feeds["seen"][1, queries // 2:] = 0
        expected = reference(case, feeds)
        np.testing.assert_allclose(run_everywhere(case, feeds), expected, rtol=0, atol=3e-6)
        if runnable(FAST):
            np.testing.assert_allclose(run(case, feeds, FAST), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["decoder", "8 bits"])
def test_a_token_alone_has_its_bits_among_many(name: str) -> None:
    queries, keys = FEW + 50, SPAN + 190
    feeds = CASES[name].feeds(np.random.default_rng(1), 2, queries, keys)
    feeds["lengths"] = np.array([keys - queries, 60])
    together = run_everywhere(CASES[name], feeds)
    for start, stop in ((0, 1), (17, 17 + FEW), (queries - 20, queries)):
        some = {**feeds, "q": feeds["q"][:, start:stop].copy(), "lengths": feeds["lengths"] + start}
        np.testing.assert_array_equal(run_everywhere(CASES[name], some), together[:, start:stop])


@pytest.mark.parametrize("queries", [1, FEW + 40])
def test_keys_far_behind_are_not_read(queries: int) -> None:
    keys = SPAN + 300
    feeds = DECODE.feeds(np.random.default_rng(2), 2, queries, keys)
    feeds["lengths"] = np.array([keys - queries, SPAN + 10])
    clean = run_everywhere(DECODE, feeds)
    for row, length in enumerate(feeds["lengths"].tolist()):
        for name in ("k", "v"):
            feeds[name][row, :, :(length - DECODE.window) // BLOCK * BLOCK] = np.nan
    np.testing.assert_array_equal(run_everywhere(DECODE, feeds), clean)


def test_batch_mates_change_no_bit() -> None:
    feeds = ENCODE.feeds(np.random.default_rng(3), 3, 40)
    together = run_everywhere(ENCODE, feeds)
    for n in range(3):
        alone = {name: a[n:n + 1] for name, a in feeds.items()}
        np.testing.assert_array_equal(run_everywhere(ENCODE, alone), together[n:n + 1])
