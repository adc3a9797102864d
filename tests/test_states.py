"""Decoding with a state: the same bits as without, at any lengths, and nothing changed by what is refused."""
from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from q8c.errors import InputError
from q8c.ir import Array, Graph, interpret
from q8c.passes.keep_cache import KeepCache
from q8c.passes.manager import run_passes
from q8c.passes.pipeline import Options
from q8c.runtime import state as state_of_the_run_time
from q8c.runtime.session import Session, load
from q8c.runtime.state import State
from tests.decoder import LONGEST, SIZES, TOKENS, compile_graph, decoder_graph, plain_feed

RNG = np.random.default_rng(3)
IDS = RNG.integers(0, TOKENS, (3, 20))
LENGTHS = np.array([20, 7, 13])
MASK = (np.arange(20) < LENGTHS[:, None]).astype(np.int64)
NEXT = RNG.integers(0, TOKENS, (3, 5))


@pytest.fixture(scope="module", params=["int8", "f32", "int8 cache, window"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products in 8 bits; none; keys and values alone, and tokens that see the last few only."""
    path: Path = tmp_path_factory.mktemp("decoder") / f"{request.param}.q8c"
    options = Options(quantize=request.param == "int8", balance=False,
                      kv_cache="int8" if "cache" in request.param else "f32")
    return compile_graph(graph_of(path), path, options)


def graph_of(path: Path) -> Graph:
    """What a file was compiled from."""
    return decoder_graph(window=6 if "window" in path.name else 0)


@pytest.fixture
def session(model: Path) -> Iterator[Session]:
    with load(model, threads=2) as loaded:
        yield loaded


def logits(session: Session, ids: Array, state: State, mask: Array | None = None) -> Array:
    """Of new tokens on a state."""
    feed = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}
    [found] = session.run(None, feed, state=state)
    return found


def floats(state: State) -> list[Array]:
    """Rows of what a state keeps, or their scales [batch, heads, tokens, ...], without copying."""
    return [part.array for buffer in state._buffers for part in buffer.parts if part.array.dtype == np.float32]


def whole(session: Session, *parts: Array) -> Array:
    """Logits of one sequence in a single run without a state."""
    [found] = session.run(["logits"], plain_feed(np.concatenate(parts)[None]))
    return np.asarray(found[0])


def prompted(session: Session, max_tokens: int = 40) -> State:
    """A state with the three prompts."""
    state = session.new_state(max_tokens, batch=3)
    logits(session, IDS, state, MASK)
    assert state.lengths.tolist() == LENGTHS.tolist()
    return state


def test_the_plain_signature_is_the_models(session: Session) -> None:
    graph = graph_of(Path(session.path))
    first = session(**plain_feed(IDS[:, :9]))
    second = session(**plain_feed(IDS[:, 9:12], past=first))
    together = session(**plain_feed(IDS[:, :12]))
    for name in ("k0.present", "v1.present"):
        size = SIZES[name[0]]
        assert first[name].shape == (3, 2, 9, size) and second[name].shape == (3, 2, 12, size)
        assert np.array_equal(second[name], together[name])
    assert np.array_equal(np.concatenate([first["logits"], second["logits"]], axis=1), together["logits"])
    if "int8.q8c" in session.path:
        return
    run_passes(graph, [KeepCache("int8" if "cache" in session.path else "f32")])
    tolerance = 2**-15 if "cache" in session.path else 2e-6  # a step of the scales of kept rows, cut to 16 bits
    for got, expected in zip(second.values(), interpret(graph, plain_feed(IDS[:, 9:12], past=first)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_greedy_text_is_the_same_with_a_state_and_without(session: Session) -> None:
    state = session.new_state(40)
    feed = plain_feed(IDS[:1, :6])
    new = IDS[:1, :6]
    for _ in range(12):
        plain = session(**feed)
        step = logits(session, new, state)
        assert np.array_equal(step, plain["logits"])
        new = step[:, -1:].argmax(-1)
        feed = plain_feed(new, past=plain)
    assert state.lengths.tolist() == [17]


@pytest.mark.parametrize("threads", [1, 2])
def test_sequences_of_any_lengths_are_as_each_alone(model: Path, threads: int) -> None:
    with load(model, threads=threads) as session:
        state = session.new_state(40, batch=3)
        prompts = logits(session, IDS, state, MASK)
        more = logits(session, NEXT, state)
        one = logits(session, NEXT[:, :1], state)
        assert state.lengths.tolist() == (LENGTHS + 6).tolist()
        for row, length in enumerate(LENGTHS):
            expected = whole(session, IDS[row, :length], NEXT[row], NEXT[row, :1])
            got = np.concatenate([prompts[row, :length], more[row], one[row]])
            assert np.array_equal(got, expected)


def test_the_order_of_sequences_and_the_room_do_not_matter(session: Session) -> None:
    expected = logits(session, NEXT, prompted(session))
    turned = logits(session, NEXT[::-1].copy(), prompted(session, 150).copy([2, 1, 0]))
    assert np.array_equal(turned[::-1], expected)


def test_what_lies_behind_the_tokens_is_never_read(session: Session) -> None:
    expected = logits(session, NEXT[:, :1], prompted(session))
    state = session.new_state(40, batch=3)
    for array in floats(state):
        array[...] = np.nan
    logits(session, IDS, state, MASK)
    for array in floats(state):
        for row, length in enumerate(LENGTHS):
            array[row, :, length:] = np.nan
    assert np.array_equal(logits(session, NEXT[:, :1], state), expected)


def test_nan_in_one_sequence_stays_there(session: Session) -> None:
    expected = logits(session, NEXT, prompted(session))
    state = prompted(session)
    floats(state)[0][1, 0, 2] = np.nan
    got = logits(session, NEXT, state)
    assert np.isnan(got[1]).all() and np.array_equal(got[[0, 2]], expected[[0, 2]])


def test_a_state_without_padding_to_spare(session: Session) -> None:
    state = prompted(session, max_tokens=20)
    with pytest.raises(InputError, match=r"sequence 0 would be 25 tokens long, 20 held and 5 new; .* room for 20"):
        logits(session, NEXT, state)
    there = np.array([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    got = logits(session, NEXT, state, there)
    assert state.lengths.tolist() == [20, 12, 15]
    assert np.array_equal(got[1], whole(session, IDS[1, :7], NEXT[1])[7:])
    assert np.array_equal(got[2, :2], whole(session, IDS[2, :13], NEXT[2, :2])[13:])


def test_logits_of_the_last_token_that_is_no_padding(tmp_path: Path) -> None:
    options = Options(balance=False)
    paths = [compile_graph(decoder_graph(), tmp_path / f"{last}.q8c", replace(options, last_logits=last))
             for last in (False, True)]
    there = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]])
    with load(paths[0], threads=2) as session, load(paths[1], threads=2) as last:
        states = [one.new_state(40, batch=3) for one in (session, last)]
        for ids, mask in ((IDS, MASK), (NEXT, there)):
            everything, got = (logits(one, ids, state, mask)
                               for one, state in zip((session, last), states, strict=True))
            assert np.array_equal(got, everything[np.arange(3), mask.sum(1) - 1][:, None])
        assert states[0].lengths.tolist() == states[1].lengths.tolist() == [25, 8, 16]


def test_ids_below_zero_count_from_the_end_as_onnx_has_them(session: Session) -> None:
    assert np.array_equal(logits(session, IDS - TOKENS, session.new_state(20, batch=3)),
                          logits(session, IDS, session.new_state(20, batch=3)))


def test_forks_go_their_own_ways(session: Session) -> None:
    state = prompted(session)
    beams = state.copy([1, 1, 0, 1])
    new = RNG.integers(0, TOKENS, (4, 3))
    got = logits(session, new, beams)
    for beam, row in enumerate([1, 1, 0, 1]):
        assert np.array_equal(got[beam], whole(session, IDS[row, :LENGTHS[row]], new[beam])[LENGTHS[row]:])
    assert np.array_equal(logits(session, NEXT, state), logits(session, NEXT, prompted(session)))


def test_rewinding_forgets(session: Session) -> None:
    state = prompted(session)
    expected = logits(session, NEXT, state)
    state.truncate(LENGTHS)
    logits(session, NEXT[::-1].copy(), state)
    state.truncate(LENGTHS.tolist())
    assert np.array_equal(logits(session, NEXT, state), expected)
    state.truncate(0)
    logits(session, IDS, state, MASK)
    assert np.array_equal(logits(session, NEXT, state), expected)


def test_masks_and_positions_as_code_for_onnx_runtime_has_them(session: Session) -> None:
    state = prompted(session)
    expected = logits(session, NEXT, state.copy())
    held = np.arange(20) < LENGTHS[:, None]
    feed = {"input_ids": NEXT, "attention_mask": np.concatenate([held, np.ones((3, 5))], axis=1).astype(np.int64),
            "position_ids": LENGTHS[:, None] + np.arange(5)}
    assert np.array_equal(session.run(["logits"], feed, state=state.copy())[0], expected)
    assert session(**feed, state=state).keys() == {"logits"}
    assert state.lengths.tolist() == (LENGTHS + 5).tolist()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_course_of_a_state(session: Session, data: st.DataObject) -> None:
    """Runs, forks and rewinds in any order: logits are those of the tokens that are left, each sequence by itself."""
    state, tokens = session.new_state(32, batch=2), [np.zeros(0, np.int64)] * 2
    for step in range(data.draw(st.integers(1, 5))):
        what = data.draw(st.sampled_from(["run", "run", "copy", "truncate"]))
        if what == "copy":
            rows = data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=1, max_size=4))
            state, tokens = state.copy(rows), [tokens[row] for row in rows]
        elif what == "truncate":
            kept = [data.draw(st.integers(0, len(t))) for t in tokens]
            state.truncate(kept)
            tokens = [t[:n] for t, n in zip(tokens, kept, strict=True)]
        else:
            new = data.draw(st.integers(1, 6))
            counts = [data.draw(st.integers(0, min(new, 32 - len(t)))) for t in tokens]
            ids = np.random.default_rng(step).integers(0, TOKENS, (len(tokens), new))
            got = logits(session, ids, state, (np.arange(new) < np.array(counts)[:, None]).astype(np.int64))
            for row, count in enumerate(counts):
                tokens[row] = np.concatenate([tokens[row], ids[row, :count]])
                if count:
                    assert np.array_equal(got[row, :count], whole(session, tokens[row])[-count:])
        assert state.lengths.tolist() == list(map(len, tokens))


def test_what_no_token_sees_is_forgotten(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_of_the_run_time, "_SPAN", 64)
    windowed = "window" in session.path
    state, ids = session.new_state(LONGEST, batch=2), RNG.integers(0, TOKENS, (2, 190))
    counts = [(19, 11)] * 10
    found: list[list[Array]] = [[], []]
    for n, new in enumerate(counts):
        part = np.stack([np.resize(ids[row, n * count:(n + 1) * count], 19) for row, count in enumerate(new)])
        got = logits(session, part, state, (np.arange(19) < np.array(new)[:, None]).astype(np.int64))
        for row, count in enumerate(new):
            found[row].append(got[row, :count])
    expected = [whole(session, ids[row, :10 * count]) for row, count in enumerate(counts[0])]
    for row in range(2):
        assert np.array_equal(np.concatenate(found[row]), expected[row])
    assert state.lengths.tolist() == [190, 110] and state.forgotten == ([128, 64] if windowed else [0, 0])
    copy = state.copy([1, 0])
    if windowed:
        with pytest.raises(InputError, match="sequence 0 has forgotten its first 64 tokens, as a token sees 6: it can "
                                             "keep 69 or more, or none, not 68"):
            copy.truncate([68, 150])
        copy.truncate([69, 133])
    else:
        copy.truncate([69, 133])
    more = logits(session, np.stack([ids[1, 69:79], ids[0, 133:143]]), copy)
    assert np.array_equal(more, [expected[1][69:79], expected[0][133:143]])
    copy.truncate([0, 143])
    again = logits(session, ids[:, :1], copy)
    assert copy.forgotten == ([0, 128] if windowed else [0, 0])
    assert np.array_equal(again[0, 0], expected[0][0])


def test_no_new_tokens(session: Session) -> None:
    state = prompted(session)
    assert logits(session, NEXT[:, :0], state).shape == (3, 0, TOKENS)
    assert logits(session, NEXT, state, np.zeros_like(NEXT)).shape == (3, 5, TOKENS)
    assert np.array_equal(logits(session, NEXT, state), logits(session, NEXT, prompted(session)))
    assert logits(session, NEXT[:1, :0], session.new_state(1)).shape == (1, 0, TOKENS)


HELD = np.concatenate([MASK, np.ones((3, 5), np.int64)], axis=1)
REFUSED = {
    "too long": ({"input_ids": np.zeros((3, 21), np.int64)}, "sequence 0 would be 41 tokens long, 20 held and 21 new"),
    "padding too long": ({"input_ids": np.zeros((3, 41), np.int64), "attention_mask": np.zeros((3, 41), np.int64)},
                         "41 tokens of each sequence, with padding, are more than the state has room for: 40"),
    "an id too large": ({"input_ids": np.full((3, 1), TOKENS)}, f"index {TOKENS} is out of range"),
    "a negative id": ({"input_ids": np.full((3, 1), -TOKENS - 1)}, f"index {-TOKENS - 1} is out of range"),
    "a position too large": ({"input_ids": NEXT, "position_ids": np.full((3, 5), LONGEST)},
                             f"index {LONGEST} is out of range"),
    "another batch": ({"input_ids": NEXT[:2]}, r"'input_ids' has 2 sequences \(shape \(2, 5\)\), the state has 3"),
    "another rank": ({"input_ids": NEXT[0]}, "'input_ids' must have 2 dimensions"),
    "other positions": ({"input_ids": NEXT, "position_ids": np.zeros((3, 4), np.int64)}, "'position_ids': dimension 1"),
    "padding in front": ({"input_ids": NEXT, "attention_mask": np.array([[1] * 5, [0, 1, 1, 1, 1], [1] * 5])},
                         "padding before a token: with a state, padding stands behind"),
    "a token forgotten": ({"input_ids": NEXT, "attention_mask": HELD * (np.arange(25) != 3)},
                          "contradicts the state: it must be 1 for the tokens held, .* first 20, 7, 13, and 0 from"),
    "a token invented": ({"input_ids": NEXT, "attention_mask": np.ones((3, 25), np.int64)}, "contradicts the state"),
    "a mask of another shape": ({"input_ids": NEXT, "attention_mask": np.ones((3, 9), np.int64)},
                                r"must have the shape \(3, 5\), new tokens only, or \(3, 25\) with those held, got"),
    "a mask of floats": ({"input_ids": NEXT, "attention_mask": np.ones((3, 5))}, "'attention_mask' must be int64"),
    "what is kept": ({"input_ids": NEXT, "k1.past": np.zeros((3, 2, 0, 8), np.float32)},
                     "'k1.past' is what the state holds; leave it out"),
    "no ids": ({}, "the feed lacks 'input_ids'; with a state the inputs are input_ids, attention_mask, position_ids"),
    "an unknown name": ({"input_ids": NEXT, "ids": NEXT}, "the feed has the unknown 'ids'"),
    "no dict": ([1], "must be a dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_the_state_as_it_was(session: Session, name: str) -> None:
    feed, message = REFUSED[name]
    state = prompted(session)
    with pytest.raises(InputError, match=message) as caught:
        session.run(None, feed, state=state)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and state.lengths.tolist() == LENGTHS.tolist()
    assert np.array_equal(logits(session, NEXT, state), logits(session, NEXT, prompted(session)))


def test_outputs_that_stay(session: Session) -> None:
    with pytest.raises(InputError, match="output 'k0.present' stays in the state; ask for other outputs"):
        session.run(["logits", "k0.present"], {"input_ids": NEXT}, state=session.new_state(9, batch=3))


def test_states_go_with_their_file(session: Session, tmp_path: Path) -> None:
    with load(compile_graph(decoder_graph(layers=1), tmp_path / "other.q8c", Options(quantize=False))) as other:
        foreign = other.new_state(9)
    for state, message in ((foreign, "the state belongs to another model"),
                           (3, "state must be what session.new_state gave, got a int")):
        with pytest.raises(InputError, match=message):
            session.run(None, {"input_ids": NEXT[:1]}, state=state)  # type: ignore[arg-type]
    state = prompted(session)
    with load(session.path, threads=1) as again:
        assert np.array_equal(logits(again, NEXT, state), logits(session, NEXT, prompted(session)))


def test_one_run_at_a_time(session: Session) -> None:
    state = prompted(session)
    with state.held(), pytest.raises(InputError, match="in use by another run; give each its own"):
        logits(session, NEXT, state)
    states = [prompted(session) for _ in range(4)]
    expected = logits(session, NEXT, prompted(session))
    found: list[Array] = []
    threads = [threading.Thread(target=lambda s=s: found.append(logits(session, NEXT, s))) for s in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(f, expected) for f in found)


def test_a_model_that_counts_its_tokens_takes_sequences_of_one_length(tmp_path: Path) -> None:
    path = compile_graph(decoder_graph(positions=False), tmp_path / "counts.q8c", Options(quantize=False))
    with load(path, threads=1) as session:
        state = session.new_state(30, batch=3)
        first, second = logits(session, IDS[:, :7], state), logits(session, NEXT, state)
        feed = plain_feed(np.concatenate([IDS[:, :7], NEXT], axis=1))
        del feed["position_ids"]
        assert np.array_equal(np.concatenate([first, second], axis=1), session.run(["logits"], feed)[0])
        with pytest.raises(InputError, match="would be 13, 17, 15 tokens long, and this model computes with one"):
            logits(session, NEXT, state, (np.arange(5) < np.array([[1], [5], [3]])).astype(np.int64))
        assert state.lengths.tolist() == [12, 12, 12]
