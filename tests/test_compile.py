"""Whole models, from ONNX to arrays: against ONNX Runtime, and the same bits whatever else a run holds."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import q8c
from q8c.accuracy import error
from q8c.codegen.targets import TIERS
from q8c.rebuild import compare
from q8c.runtime import cpu
from tests import models
from tests.models import HIDDEN, VOCABULARY, Array

Session = Any
Feed = Mapping[str, Array]
HERE = [name for name, needs in cpu.TIERS.items() if cpu.features().issuperset(needs)]
SHAPES = [(1, 1), (1, 7), (2, 3), (3, 17), (8, 40), (5, 33)]

F32_L2 = 1e-6
"""Relative L2 error of the float kernels: rounding alone, some 2**-24 for each of a few operations in a row."""
INT8_L2 = 0.02
"""Of int8 ones. The largest element of a row is some 4 times its RMS behind an activation, 2.5 times elsewhere and in
weights, so rounding to 1/127 of it has a relative RMS of 4 / 127 / sqrt(12) = 0.9 %, or 0.6 %: 1.1 % for a product of
both, and up to three in a row add to what is compared here."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def bert(folder: Path) -> onnx.ModelProto:
    return models.bert(folder)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> onnx.ModelProto:
    return models.encoder(folder)


@pytest.fixture(scope="module")
def bert_int8(folder: Path, bert: onnx.ModelProto) -> Path:
    return q8c.compile(bert, folder / "bert-int8.q8c", target="all", numerics="reproducible")


@pytest.fixture(scope="module")
def bert_f32(folder: Path, bert: onnx.ModelProto) -> Path:
    return q8c.compile(bert, folder / "bert-f32.q8c", target="all", quantize=False, numerics="reproducible")


@pytest.fixture(scope="module")
def encoder_int8(folder: Path, encoder: onnx.ModelProto) -> Path:
    return q8c.compile(encoder, folder / "encoder-int8.q8c")


@pytest.fixture(scope="module")
def encoder_f32(folder: Path, encoder: onnx.ModelProto) -> Path:
    return q8c.compile(encoder, folder / "encoder-f32.q8c", quantize=False)


@pytest.fixture(params=["encoder_int8", "encoder_f32"])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """The encoder on rows of floats, int8 and float."""
    with q8c.load(request.getfixturevalue(request.param), threads=2) as loaded:
        yield loaded


def real(feed: Feed, y: Array) -> Array:
    """The rows of real tokens."""
    rows: Array = y[feed["attention_mask"] == 1]
    return rows


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("name", "budget"), [("bert_f32", F32_L2), ("bert_int8", INT8_L2)])
def test_one_file_serves_all_shapes_on_every_tier(name: str, budget: float, bert: onnx.ModelProto,
                                                   request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    feeds = [models.bert_feed(batch, seq, seed=batch * seq) for batch, seq in SHAPES]
    expected = models.onnxruntime_outputs(bert, *feeds)
    first = [q8c.load(path, threads=1, tier=HERE[0]).run(None, feed)[0] for feed in feeds]
    for feed, y, reference in zip(feeds, first, expected, strict=True):
        assert error(real(feed, y), real(feed, reference)).relative_l2 <= budget
    for tier in HERE:
        for threads in (1, 2):
            with q8c.load(path, threads=threads, tier=tier) as session:
                assert session.tier == tier
                for feed, y in zip(feeds, first, strict=True):
                    assert same_bits(session.run(None, feed)[0], y), (tier, threads)


def test_fast_numerics_cost_little_and_are_in_the_file(bert: onnx.ModelProto, bert_int8: Path, folder: Path) -> None:
    path = q8c.compile(bert, folder / "bert-fast.q8c", target="all")
    feed = models.bert_feed(3, 33)
    for tier in HERE:
        with q8c.load(path, threads=1, tier=tier) as fast, q8c.load(bert_int8, threads=1, tier=tier) as exact:
            extras = fast.artifact.image(tier).features
            assert extras == TIERS[tier].with_extras(*TIERS[tier].fast_extras).extras
            y, reference = fast.run(None, feed)[0], exact.run(None, feed)[0]
            assert error(y, reference).relative_l2 <= INT8_L2
            assert not same_bits(y, reference)
    assert all(compare(path).values())


def test_a_model_kept_float_has_no_fast_numerics(bert: onnx.ModelProto, bert_f32: Path, folder: Path) -> None:
    path = q8c.compile(bert, folder / "bert-f32-fast.q8c", target="all", quantize=False)
    assert not any(i.features for i in q8c.load(path).artifact.manifest.parts[0].images)
    assert all(compare(path).values())
    feed = models.bert_feed(2, 9)
    assert same_bits(q8c.load(path).run(None, feed)[0], q8c.load(bert_f32).run(None, feed)[0])


def test_the_file_has_every_tier(bert_int8: Path) -> None:
    assert [i.tier for i in q8c.load(bert_int8).artifact.manifest.parts[0].images] == list(TIERS)
    assert set(HERE) == {t for t in TIERS if cpu.features().issuperset(cpu.TIERS[t])}


@pytest.mark.parametrize("activation", ["Gelu", "Relu", "Tanh", "Sigmoid"])
@pytest.mark.parametrize("quantize", [True, False])
def test_layers_of_odd_sizes(activation: str, quantize: bool, tmp_path: Path) -> None:
    proto = models.mlp((33, 70, 19), activation)
    session = q8c.load(q8c.compile(proto, tmp_path / "mlp.q8c", quantize=quantize), threads=2)
    assert any(n.op == "q8_linear" for n in session.artifact.manifest.model.nodes) == quantize
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((rows, 33)).astype(np.float32)} for rows in (1, 2, 5, 13, 64, 131)]
    y, expected = (np.concatenate(parts) for parts in (
        [session.run(None, feed)[0] for feed in feeds], models.onnxruntime_outputs(proto, *feeds)))
    assert error(y, expected).relative_l2 <= (INT8_L2 if quantize else F32_L2)


def test_alone_and_among_rows_thirty_times_as_large(session: Session) -> None:
    alone = models.encoder_feed(1, 19, seed=1)
    crowd = models.encoder_feed(5, 19, seed=2)
    crowd["x"] *= 30
    crowd["x"][3] = alone["x"][0]
    assert same_bits(session(**crowd)["y"][3], session(**alone)["y"][0])


def test_with_and_without_padding(session: Session) -> None:
    short, padded = models.encoder_feed(2, 9, seed=3), models.encoder_feed(2, 31, seed=4)
    padded["x"][:, :9] = short["x"]
    padded["attention_mask"][:, 9:] = 0
    assert same_bits(session(**padded)["y"][:, :9], session(**short)["y"])


def test_the_same_run_twice(session: Session) -> None:
    feed = models.encoder_feed(3, 21)
    assert same_bits(session(**feed)["y"], session(**feed)["y"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_sequence_and_is_not_lost(session: Session, bad: float) -> None:
    feed = models.encoder_feed(3, 10)
    clean = session(**feed)["y"]
    feed["x"][1, 4, 7] = bad
    y = session(**feed)["y"]
    assert same_bits(y[[0, 2]], clean[[0, 2]])
    assert not np.isfinite(y[1]).any()


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0)])
def test_batches_of_nothing(session: Session, shape: tuple[int, int]) -> None:
    assert session(**models.encoder_feed(*shape))["y"].shape == (*shape, HIDDEN)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e12])
def test_rows_near_the_ends_of_the_range(encoder_int8: Path, scale: float) -> None:
    feed = models.encoder_feed(2, 6)
    feed["x"] *= np.float32(scale)
    assert np.isfinite(q8c.load(encoder_int8)(**feed)["y"]).all()


def test_ids_outside_of_the_table_are_refused_and_nothing_breaks(bert_int8: Path) -> None:
    session = q8c.load(bert_int8, threads=2)
    feed = models.bert_feed(4, 30)
    clean = session(**feed)["last_hidden_state"]
    for wrong in (VOCABULARY, -VOCABULARY - 1, 2**40, -2**63, 2**63 - 1):
        broken = {name: a.copy() for name, a in feed.items()}
        broken["input_ids"][2, 3] = wrong
        with pytest.raises(q8c.InputError, match=rf"'embeddings.word' \(gather\): index {wrong} is out of range "
                           rf"\[-{VOCABULARY}, {VOCABULARY}\)"):
            session.run(None, broken)
        assert same_bits(session(**feed)["last_hidden_state"], clean)


def test_ids_may_count_from_the_end(bert: onnx.ModelProto, bert_int8: Path) -> None:
    session = q8c.load(bert_int8)
    feed = models.bert_feed(2, 8)
    turned = feed | {"input_ids": feed["input_ids"] - VOCABULARY}
    assert same_bits(session.run(None, turned)[0], session.run(None, feed)[0])


def test_a_sequence_longer_than_the_position_table(bert_int8: Path) -> None:
    with pytest.raises(q8c.InputError, match="seq"):
        q8c.load(bert_int8).run(None, models.bert_feed(1, 41))


def test_all_tiers_give_the_same_graph_and_weights(bert_int8: Path, bert: onnx.ModelProto, tmp_path: Path) -> None:
    path = q8c.compile(bert, tmp_path / "one.q8c", target="avx2", numerics="reproducible")
    one = q8c.load(path, tier="avx2").artifact
    every = q8c.load(bert_int8).artifact
    assert one.ir() == every.ir()
    assert one.read(one.manifest.weights) == every.read(every.manifest.weights)
    assert one.read(one.image("avx2").section) == every.read(every.image("avx2").section)
