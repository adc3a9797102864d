"""States by themselves: what they hold, copies, rewinding, bad sizes; and the manifest's word on the cache."""
from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from q8c.errors import ArtifactError, Error, InputError
from q8c.runtime import memory, strict_json
from q8c.runtime.cache import Cache
from q8c.runtime.kept import Kept
from q8c.runtime.model import Model, Tensor
from q8c.runtime.session import Session, load
from q8c.runtime.state import Layout, State
from tests.runtime import native
from tests.runtime.files import manifest_of, save, with_manifest

LAYOUT = Layout(b"file", (Kept(2, 3), Kept(1, 5)))
BYTES = Layout(b"file", (Kept(2, 3, "int8-keys"), Kept(1, 5, "int8-values")))


def arrays(state: State) -> list[Any]:
    """What a state keeps, [batch, heads, groups of tokens, ...]."""
    return [part.array for buffer in state._buffers for part in buffer.parts]


def filled(lengths: list[int], max_tokens: int = 6, layout: Layout = LAYOUT) -> State:
    """A state whose tokens are all different."""
    state = State(layout, max_tokens, len(lengths))
    state.advance(lengths)
    for n, array in enumerate(arrays(state)):
        array[...] = (np.arange(array.size).reshape(array.shape) + 1000 * n) % (119 if array.itemsize == 1 else 1e9)
    return state


def test_an_empty_state() -> None:
    state = State(LAYOUT, 10, 2)
    assert (state.batch, state.max_tokens, state.lengths.tolist()) == (2, 10, [0, 0])
    assert LAYOUT.token_bytes == 4 * (6 + 5) and state.nbytes == 2 * 10 * 44
    assert BYTES.token_bytes == 2 * (3 + 4) + 5 + 4 and State(BYTES, 10, 2).nbytes == 20 * BYTES.token_bytes
    assert (state.capacity, State(BYTES, 10).capacity, State(BYTES, 65).capacity) == (10, 64, 128)
    assert repr(state) == "<State of 2 sequences, 0 of 10 tokens, 0.0 MiB>"
    assert repr(filled([1, 4, 2])) == "<State of 3 sequences, 1 to 4 of 6 tokens, 0.0 MiB>"
    assert all(a % 64 == 0 for a in state.addresses + State(BYTES, 70, 3).addresses)
    state.lengths[0] = 7
    assert state.lengths.tolist() == [0, 0], "what is given out is a copy"


@pytest.mark.parametrize("layout, lengths", [(LAYOUT, [2, 6, 0]), (BYTES, [2, 64, 0]), (BYTES, [17, 3, 48])])
def test_copies_have_the_same_tokens_and_memory_of_their_own(layout: Layout, lengths: list[int]) -> None:
    state = filled(lengths, max(lengths), layout)
    for rows in (None, [1], [2, 0, 0, 1], np.array([1, 1], np.uint8)):
        copy = state.copy(rows)
        taken = [0, 1, 2] if rows is None else list(rows)
        assert copy.lengths.tolist() == state.lengths[taken].tolist() and copy.max_tokens == max(lengths)
        for mine, other in zip(state._buffers, copy._buffers, strict=True):
            for here, there in zip(mine.parts, other.parts, strict=True):
                for new, old in enumerate(taken):
                    groups = -(-lengths[old] // here.tokens)
                    assert np.array_equal(there.array[new, :, :groups], here.array[old, :, :groups])
                    assert not there.array[new, :, groups:].any(), "room is not copied"
                there.array[...] = -1
    assert all((a != -1).all() for a in arrays(state))


def test_rewinding() -> None:
    state = filled([2, 6, 3])
    state.truncate(2)
    assert state.lengths.tolist() == [2, 2, 2]
    state.advance([2, 4, 5])
    state.truncate([1, 4, 0])
    assert state.lengths.tolist() == [1, 4, 0]
    for tokens, message in ((2, "sequence 0 holds 1 tokens, cannot keep the first 2"),
                            ([1, -1, 0], "sequence 1 holds 4 tokens, cannot keep the first -1"),
                            ([1, 2], "tokens has 2 numbers, the state has 3 sequences"),
                            ([1.5, 1, 1], "a list of integers"), ("abc", "a list of integers"), ([[1]], "integers"),
                            ([2**70], "a list of integers"), ([[1], [1, 2]], "a list of integers")):
        with pytest.raises(InputError, match=message):
            state.truncate(tokens)  # type: ignore[arg-type]
        assert state.lengths.tolist() == [1, 4, 0]
    for rows, message in (([3], "rows has sequence 3, the state has 3"), ([-1], "sequence -1"), ([], "a list of"),
                          ([True], "a list of integers")):
        with pytest.raises(InputError, match=message):
            state.copy(rows)


@pytest.mark.parametrize("layout", [replace(LAYOUT, window=100), replace(BYTES, window=100)])
def test_forgetting_moves_the_others_and_gives_memory_back(layout: Layout) -> None:
    state = filled([0, 0, 0], 4000, layout)
    before = [array.copy() for array in arrays(state)]
    assert layout.most_held(4000) == 356 and layout.most_held(70) == 70
    state.advance([700, 354, 355])
    assert state.forgotten == [512, 0, 256] and state.lengths.tolist() == [700, 354, 355]
    parts = [part for buffer in state._buffers for part in buffer.parts]
    for part, was in zip(parts, before, strict=True):
        for row, (length, gone) in enumerate(zip((700, 354, 355), (512, 0, 256), strict=True)):
            start, end = gone // part.tokens, -(-length // part.tokens)
            assert np.array_equal(part.array[row, :, :end - start], was[row, :, start:end])
    assert not parts[0].array[0, 0, 512 // parts[0].tokens].all(), "pages behind are fresh"
    state.advance([900, 354, 356])
    assert state.forgotten == [768, 0, 256]


def test_sizes_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (0, -1, 2**31, 1.5, True, "8", None):
        with pytest.raises(InputError, match="max_tokens must be an integer from 1 to"):
            State(LAYOUT, wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="batch must be an integer from 1 to"):
            State(LAYOUT, 8, wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a state of 2147483647 x 2147483647 tokens"):
        State(LAYOUT, 2**31 - 1, 2**31 - 1)
    monkeypatch.setattr(memory, "available_memory", lambda: 100 << 20)
    with pytest.raises(InputError, match="a state of 1 x 4000000 tokens needs 168 MiB and 100 MiB are left"):
        State(LAYOUT, 4_000_000)


def test_memory_is_taken_when_it_is_written() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    state = State(LAYOUT, 4_000_000)
    assert state.nbytes > 160 << 20 and resident() - before < 8 << 20


def test_one_at_a_time() -> None:
    state = filled([1])
    with state.held():
        for use in (lambda: state.truncate(0), state.copy, lambda: state.held().__enter__()):
            with pytest.raises(InputError, match="in use by another run"):
                use()
    state.truncate(0)
    with pytest.raises(TypeError, match="cannot be pickled: .*keep the tokens"):
        pickle.dumps(state)


def test_a_model_without_a_cache(session: Session) -> None:
    with pytest.raises(Error, match="keeps no keys and values in place"):
        session.new_state(8)
    for state in (State(LAYOUT, 8), 3):
        with pytest.raises(InputError, match="keeps nothing in place; run it without a state"):
            session.run(None, native.feed(1, 2), state=state)  # type: ignore[arg-type]


BATCH, PAST, NEW = ("$", 0), ("$", 1), ("$", 2)
KEPT = ("+", PAST, NEW)


def tensor(name: str, dtype: str, *shape: Any) -> Tensor:
    return Tensor(name, dtype, shape, tuple(map(str, shape)))


DECODER = Model(
    "decoder",
    (tensor("ids", "int64", BATCH, NEW), tensor("mask", "int64", BATCH, KEPT), tensor("places", "int64", BATCH, NEW),
     tensor("k", "float32", BATCH, 2, PAST, 3), tensor("v", "float32", BATCH, 2, PAST, 3)),
    (tensor("k2", "float32", BATCH, 2, KEPT, 3), tensor("v2", "float32", BATCH, 2, KEPT, 3),
     tensor("logits", "float32", BATCH, NEW, 7)),
    ("batch", "past", "new"), cache=Cache(((3, 0), (4, 1)), ("f32", "f32"), (0, 1), 1, 2, False))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that says it is a decoder; its code is another model's, and never run."""
    return native.write(tmp_path_factory.mktemp("decoder") / "decoder.q8c", described=DECODER)


def test_the_cache_comes_back(decoder: Path) -> None:
    with load(decoder) as session:
        assert session.artifact.manifest.model == DECODER
        assert session.new_state(5, batch=2).nbytes == 5 * 2 * (6 + 6) * 4


def _set(*path: Any) -> Callable[[Any], None]:
    def change(cache: Any) -> None:
        *parents, last, value = path
        for step in parents:
            cache = cache[step]
        cache[last] = value
    return change


NONSENSE: dict[str, tuple[Callable[[Any], None], str]] = {
    "a pair of no input": (_set("pairs", 0, [5, 0]), r"cache.pairs.0..0. must be an integer in \[0, 4\]"),
    "a pair of no output": (_set("pairs", 0, [3, 3]), r"cache.pairs.0..1. must be an integer in \[0, 2\]"),
    "one number": (_set("pairs", 0, [3]), "cache.pairs.0. must be two numbers"),
    "no pairs": (_set("pairs", []), "cache.pairs must be at least one pair"),
    "ids that are kept": (_set("pairs", 0, [0, 0]), r"pairs.0. must be float32 \[batch, heads, past, size\]"),
    "kept as logits": (_set("pairs", 0, [3, 2]), r"pairs.0. must be float32 \[batch, heads, past, size\]"),
    "an output twice": (_set("pairs", 1, [4, 0]), "each input and output once"),
    "an input twice": (_set("pairs", 1, [3, 1]), "each input and output once"),
    "tokens of no axis": (_set("tokens", [0, 2]), "tokens must be an input and one of its axes"),
    "tokens that are kept": (_set("tokens", [3, 2]), "with an input of its own"),
    "a mask that is kept": (_set("mask", 4), "with an input of its own"),
    "a mask of no input": (_set("mask", 5), r"cache.mask must be an integer in \[-1, 4\]"),
    "mask and positions the same": (_set("mask", 2), "with an input of its own"),
    "formats of no pair": (_set("formats", ["f32"]), "cache.formats must be for each pair one of f32, int8-keys"),
    "an unknown format": (_set("formats", 1, "int4"), "cache.formats must be for each pair one of"),
    "floats among bytes": (_set("formats", 1, "int8-values"), "cache.formats must be .* f32 for all or none"),
    "a format of no name": (_set("formats", 1, 8), "cache.formats.1. must be a string"),
    "a window of no size": (_set("window", -1), r"cache.window must be an integer in \[0, 2147483647\]"),
    "uniform what": (_set("uniform", 1), "cache.uniform must be true or false"),
    "a further member": (_set("extra", 1), "an object with the members"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_the_manifest(decoder: Path, tmp_path: Path, name: str) -> None:
    change, message = NONSENSE[name]
    data = decoder.read_bytes()
    manifest: Any = manifest_of(data)
    change(manifest["parts"][0]["model"]["cache"])
    with pytest.raises(ArtifactError, match=message):
        load(save(tmp_path, with_manifest(data, strict_json.dumps(manifest))))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_member_of_the_cache_may_be_anything(decoder: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Loading raises nothing but ArtifactError, and a file that loads makes states and plans runs on them."""
    content = decoder.read_bytes()
    manifest: Any = manifest_of(content)
    cache = manifest["parts"][0]["model"]["cache"]
    numbers: st.SearchStrategy[Any] = st.one_of(
        st.integers(-2, 6), st.sampled_from([None, 2**70, 1.5, True, "", [], {}]))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(cache)))
        cache[name] = data.draw(st.one_of(numbers, st.lists(numbers, max_size=3),
                                          st.lists(st.lists(numbers, max_size=3), max_size=3)))
    try:
        session = load(save(tmp_path, with_manifest(content, strict_json.dumps(manifest))))
    except ArtifactError as error:
        assert "\n" not in str(error)
        return
    with session:
        state, keeper = session.new_state(4, batch=2), session._open().runners[0].keeper
        assert keeper is not None
        try:
            keeper.step({"ids": np.zeros((2, 3), np.int64)}, state)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(("path", "value", "message"), [
    (("inputs", 3, "shape"), [["$", 0], 2, 4, 3], "one free length"),
    (("inputs", 3, "shape"), [["$", 0], 2, ["$", 2], 3], "one free length"),
    (("inputs", 3, "shape"), [["$", 0], ["$", 1], ["$", 1], 3], "pairs.0. must be float32"),
    (("inputs", 3, "shape"), [["$", 0], 2, ["$", 1], 4], "pairs.0. must be float32"),
    (("inputs", 3, "dtype"), "float64", "pairs.0. must be float32"),
    (("inputs", 1, "dtype"), "float32", "cache.mask must be an input of bool, .* int64 with two axes"),
    (("inputs", 2, "dtype"), "uint8", "cache.positions must be an input of int32, int64 with two axes"),
    (("inputs", 2, "shape"), [["$", 0]], "text must be 1 strings"),
    (("cache",), [], "cache must be an object")])
def test_a_signature_that_does_not_go_with_the_cache(decoder: Path, tmp_path: Path, path: tuple[Any, ...], value: Any,
                                                     message: str) -> None:
    data = decoder.read_bytes()
    manifest: Any = manifest_of(data)
    _set("parts", 0, "model", *path, value)(manifest)
    with pytest.raises(ArtifactError, match=message):
        load(save(tmp_path, with_manifest(data, strict_json.dumps(manifest))))
