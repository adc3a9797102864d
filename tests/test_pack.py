"""Ragged batches: with padding left out, real rows have the bits of each sequence alone, and padding reads zero."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import q8c
from q8c.codegen.targets import TIERS
from q8c.runtime import cpu
from tests import models
from tests.models import Array

HERE = [name for name, needs in cpu.TIERS.items() if cpu.features().issuperset(needs)]
Session = Any


def pooled(folder: Path) -> onnx.ModelProto:
    """The encoder with a sentence embedding: the mean of real rows, normalized."""
    proto = models.bert(folder)
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", ["attention_mask"], "mask_f32", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["mask_f32", "pool_last"], "mask_line", {}),
        ("Mul", [proto.graph.output[0].name, "mask_line"], "kept", {}),
        ("ReduceSum", ["kept", "pool_axis"], "sum", {"keepdims": 0}),
        ("ReduceSum", ["mask_line", "pool_axis"], "count", {"keepdims": 0}),
        ("Max", ["count", "pool_least"], "atleast", {}),
        ("Div", ["sum", "atleast"], "mean", {}), ("ReduceL2", ["mean", "pool_axis"], "norm", {"keepdims": 1}),
        ("Max", ["norm", "pool_least"], "floor", {}), ("Div", ["mean", "floor"], "embedding", {})]
    proto.graph.node.extend(helper.make_node(op, ins, [out], name=out, **attrs) for op, ins, out, attrs in nodes)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in (
        ("pool_axis", np.array([1])), ("pool_last", np.array([2])), ("pool_least", np.array([1e-9], np.float32))))
    proto.graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", models.HIDDEN]))
    return proto


@pytest.fixture(scope="module")
def proto(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return pooled(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["int8", "f32"])
def files(request: pytest.FixtureRequest, proto: onnx.ModelProto,
          tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model packed, for every tier, and as it is."""
    folder, quantize = tmp_path_factory.mktemp(request.param), request.param == "int8"
    return (q8c.compile(proto, folder / "packed.q8c", target="all", numerics="reproducible", quantize=quantize,
                        pack=True),
            q8c.compile(proto, folder / "plain.q8c", numerics="reproducible", quantize=quantize))


def masks(seed: int) -> dict[str, Array]:
    """Masks [6, 40]: padded on the right, on the left, with holes, one with nothing in it."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 41, (6, 1))
    lengths[2] = 0
    return {"right": np.arange(40) < lengths, "left": np.arange(40) >= 40 - lengths, "holes": rng.random((6, 40)) < 0.4}


def feed_of(mask: Array, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"input_ids": rng.integers(0, models.VOCABULARY, mask.shape), "attention_mask": mask.astype(np.int64),
            "token_type_ids": rng.integers(0, 2, mask.shape)}


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", ["right", "left", "holes"])
def test_the_bits_of_each_sequence_alone(files: tuple[Path, Path], kind: str) -> None:
    mask = masks(1)[kind]
    feed = feed_of(mask)
    plain = q8c.load(files[1], threads=1)
    first: list[Array] | None = None
    for tier in HERE:
        for threads in (1, 2, 3):
            with q8c.load(files[0], threads=threads, tier=tier) as session:
                y, embedding = session.run(None, feed)
            assert first is None or (same_bits(y, first[0]) and same_bits(embedding, first[1])), (tier, threads)
            first = [y, embedding]
    assert not y[~mask].any() and not embedding[~mask.any(axis=1)].any()
    for n in np.flatnonzero(mask.any(axis=1)):
        # where the last token is, so that positions are the same; alone there is no padding behind
        length = np.flatnonzero(mask[n])[-1] + 1
        alone = {name: a[n:n + 1, :length] for name, a in feed.items()}
        one, vector = plain.run(None, alone)
        assert same_bits(y[n][mask[n]], one[0][mask[n][:length]])
        if kind == "right":
            assert same_bits(embedding[n], vector[0])


def test_fast_numerics(proto: onnx.ModelProto, tmp_path: Path) -> None:
    """Where attention may round to bfloat16, it rounds packed rows in the same way, and each sequence alone."""
    packed, plain = (q8c.load(q8c.compile(proto, tmp_path / f"{pack}.q8c", pack=pack)) for pack in (True, False))
    mask = masks(4)["right"]
    feed = feed_of(mask)
    padded, vectors = plain.run(None, feed)
    for y, expected in zip(packed.run(None, feed), (padded, vectors), strict=True):
        rows = mask if y.ndim == 3 else mask.any(axis=1)
        assert same_bits(y[rows], expected[rows])
    for n, length in enumerate(mask.sum(axis=1).tolist()):
        one, vector = plain.run(None, {name: a[n:n + 1, :length] for name, a in feed.items()})
        assert same_bits(padded[n, :length], one[0]) and (length == 0 or same_bits(vectors[n], vector[0]))


def test_whatever_is_not_zero_is_a_token(files: tuple[Path, Path]) -> None:
    session = q8c.load(files[0])
    mask = masks(2)["right"]
    feed = feed_of(mask)
    expected = session.run(None, feed)[0]
    feed["attention_mask"] = mask * np.random.default_rng(0).choice([-3, 1, 2, 2**40], mask.shape)
    assert same_bits(session.run(None, feed)[0], expected)


def test_nothing_and_little(files: tuple[Path, Path]) -> None:
    session = q8c.load(files[0], threads=2)
    for batch, seq in ((1, 1), (3, 7), (0, 5), (2, 0)):
        y, embedding = session.run(None, feed_of(np.zeros((batch, seq), bool)))
        assert y.shape[:2] == (batch, seq) and not y.any() and not embedding.any()
    y, _ = session.run(None, feed_of(np.ones((1, 1), bool)))
    assert y.any()


def test_each_count_has_its_plan(files: tuple[Path, Path]) -> None:
    session = q8c.load(files[0])
    for _ in range(2):
        for count in (0, 1, 17, 40, 3):
            mask = np.zeros((2, 40), bool)
            mask[1, :count] = True
            y = session.run(None, feed_of(mask))[0]
            assert (y.any(axis=2) == mask).all()


def test_other_rows_change_nothing(files: tuple[Path, Path]) -> None:
    session = q8c.load(files[0], threads=2)
    mask = masks(3)["right"]
    feed = feed_of(mask)
    y, _ = session.run(None, feed)
    other = feed_of(mask, seed=9)
    for name, a in other.items():
        a[:1] = feed[name][:1]
        a[~mask] = 10**9 if name == "input_ids" else a[~mask]  # padding is not even looked up
    assert same_bits(session.run(None, other)[0][0], y[0])


def test_named_and_declined(proto: onnx.ModelProto, tmp_path: Path) -> None:
    nodes = q8c.load(q8c.compile(proto, tmp_path / "a.q8c", pack="attention_mask")).artifact.manifest.model.nodes
    assert sum(n.op == "packed_attention" for n in nodes) == 2
    with pytest.raises(q8c.CompileError, match="no input 'mask' to take for the padding mask; its inputs are input_id"):
        q8c.compile(proto, tmp_path / "b.q8c", pack="mask")
    with pytest.raises(q8c.CompileError, match="pack must be True, False or the name"):
        q8c.compile(proto, tmp_path / "b.q8c", pack=3)  # type: ignore[arg-type]
    session = q8c.load(q8c.compile(models.mlp(), tmp_path / "mlp.q8c", pack=True))
    assert session.run(None, {"x": np.ones((2, 33), np.float32)})[0].shape == (2, 19)
    notes = session.artifact.manifest.model.notes["declines"]
    assert any("pack-rows" in note and "there is no attention" in note for note in notes)


def test_code_made_anew_from_the_file(files: tuple[Path, Path]) -> None:
    rebuilt = q8c.load(files[0], rebuild=True, tier=HERE[0])
    feed = feed_of(masks(1)["holes"])
    assert same_bits(rebuilt.run(None, feed)[0], q8c.load(files[0]).run(None, feed)[0])


def test_every_tier_is_in_the_file(files: tuple[Path, Path]) -> None:
    assert [i.tier for i in q8c.load(files[0]).artifact.manifest.parts[0].images] == list(TIERS)
