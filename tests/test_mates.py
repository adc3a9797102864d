"""On AMX, where attention rounds few tokens otherwise than many, batch mates change no bit in fast numerics either."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import q8c
from q8c.codegen.bf16 import FEW_TOKENS
from q8c.codegen.targets import TIERS
from q8c.ir import Array
from q8c.passes.pipeline import Options
from q8c.runtime.session import Session, load
from q8c.runtime.state import State
from tests.codegen.jit import needs
from tests.decoder import TOKENS, compile_graph, decoder_graph, plain_feed
from tests.test_group_query import group_feed, group_model

FAST = TIERS["amx-int8"].fast()
FIRST, MORE = [20, 7, 9, 1, FEW_TOKENS], [3, 12, 1, 9, FEW_TOKENS]  # tokens of each sequence, run by run
IDS = np.random.default_rng(5).integers(0, TOKENS, (len(FIRST), 32))

pytestmark = needs(FAST)


@pytest.fixture(scope="module", params=["int8", "int8 cache, window"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products in 8 bits; keys and values alone, and tokens that see the last few only."""
    by_cache = "cache" in request.param
    options = Options(quantize=not by_cache, balance=False, kv_cache="int8" if by_cache else "f32")
    graph = decoder_graph(window=6 if by_cache else 0)
    return compile_graph(graph, tmp_path_factory.mktemp("decoder") / "decoder.q8c", options, FAST)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def session(request: pytest.FixtureRequest, model: Path) -> Iterator[Session]:
    with load(model, threads=request.param) as loaded:
        yield loaded


def mask_of(counts: list[int]) -> Array:
    """1 for tokens, which padding stands behind."""
    return (np.arange(max(counts)) < np.array(counts)[:, None]).astype(np.int64)


def on_state(session: Session, ids: Array, counts: list[int], state: State) -> Array:
    """Logits of new tokens and of padding."""
    return session.run(None, {"input_ids": ids[:, :max(counts)], "attention_mask": mask_of(counts)}, state=state)[0]


def without(session: Session, ids: Array, counts: list[int]) -> Array:
    """The same of a prompt without a state."""
    return session.run(["logits"], plain_feed(ids[:, :max(counts)], mask_of(counts)))[0]


def test_few_and_many_round_otherwise(session: Session) -> None:
    few, many = (without(session, IDS[:1], [count])[0, :FEW_TOKENS] for count in (FEW_TOKENS, 20))
    assert not np.array_equal(few, many)
    np.testing.assert_allclose(few, many, rtol=0, atol=0.05 * np.abs(many).max())


def test_sequences_of_a_state(session: Session) -> None:
    state = session.new_state(40, batch=len(FIRST))
    first = on_state(session, IDS, FIRST, state)
    more = on_state(session, IDS[:, ::-1], MORE, state)
    for row in range(len(FIRST)):
        alone = session.new_state(64)
        for ids, counts, got in ((IDS, FIRST, first), (IDS[:, ::-1], MORE, more)):
            expected = on_state(session, ids[row:row + 1], counts[row:row + 1], alone)[0]
            assert np.array_equal(got[row, :counts[row]], expected), (row, counts[row])


def test_prompts_without_a_state(session: Session) -> None:
    got = without(session, IDS, FIRST)
    for row, count in enumerate(FIRST):
        assert np.array_equal(got[row, :count], without(session, IDS[row:row + 1], [count])[0]), (row, count)


def test_tokens_behind_others_without_a_state(session: Session) -> None:
    past = session(**plain_feed(IDS[:, :4]))
    mask = np.concatenate([np.ones((len(MORE), 4), np.int64), mask_of(MORE)], axis=1)
    got = session.run(["logits"], plain_feed(IDS[:, 4:4 + max(MORE)], mask, past))[0]
    for row, count in enumerate(MORE):
        own = {name: a[row:row + 1] for name, a in past.items()}
        feed = plain_feed(IDS[row:row + 1, 4:4 + count], mask[row:row + 1, :4 + count], own)
        assert np.array_equal(got[row, :count], session.run(["logits"], feed)[0][0]), (row, count)


@pytest.mark.parametrize("mask", [False, True], ids=["lengths", "mask"])
def test_group_query_attention(tmp_path: Path, mask: bool) -> None:
    total = max(FIRST)
    proto = group_model(True, total, rotary=True, mask=mask)
    path = q8c.compile(proto, tmp_path / "group.q8c", target="amx-int8")
    feed = group_feed(proto, len(FIRST), total, 32, total, [count - 1 for count in FIRST])
    with load(path, threads=2) as session:
        got = session.run(["y"], feed)[0]
        new = {n: a for n, a in feed.items() if n not in ("pk", "pv")}
        kept = session.run(["y"], new, state=session.new_state(40, batch=len(FIRST)))[0]
        for row, count in enumerate(FIRST):
            alone = {n: a[row:row + 1, :, :count] if mask and n in ("pk", "pv") else a[row:row + 1]
                     for n, a in feed.items()}
            alone |= {n: alone[n][:, :count] for n in ("q", "k", "v", "attention_mask") if n in alone}
            expected = session.run(["y"], alone)[0][0]
            assert np.array_equal(got[row, :count], expected), (row, count)
            if mask:  # without, a state takes padding for tokens
                assert np.array_equal(kept[row, :count], expected), (row, count)
