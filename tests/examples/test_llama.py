"""Decoders built from GGUF files of Llama's architecture."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import llama
import numpy as np
import onnx
import pytest

import q8c
from q8c.accuracy import error
from tests.examples.tiny_llama import TOKENS, TinyGguf
from tests.models import Array, onnxruntime_outputs

IDS = np.random.default_rng(0).integers(0, TOKENS, (2, 12))


@pytest.fixture(scope="module")
def decoder() -> onnx.ModelProto:
    return llama.build(TinyGguf())


def first(model: onnx.ModelProto, ids: Array) -> dict[str, Array]:
    return llama.first_feed(ids, [(i.name, [d.dim_value for d in i.type.tensor_type.shape.dim])
                                  for i in model.graph.input])


def test_later_tokens_do_not_reach_earlier_ones_and_places_matter(decoder: onnx.ModelProto) -> None:
    changed, swapped = IDS.copy(), IDS.copy()
    changed[:, 8] = (IDS[:, 8] + 1) % TOKENS
    swapped[:, [1, 5]] = IDS[:, [5, 1]]
    y, z, s = onnxruntime_outputs(decoder, *(first(decoder, ids) for ids in (IDS, changed, swapped)))
    assert y.shape == (2, 12, TOKENS)
    np.testing.assert_allclose(y[:, :8], z[:, :8], rtol=0, atol=1e-5)
    assert np.abs(y[:, 8:] - z[:, 8:]).max() > 0.1 and np.abs(y[:, 11] - s[:, 11]).max() > 1e-3


def test_a_token_after_its_past_is_the_token_in_the_whole(decoder: onnx.ModelProto, tmp_path: Path) -> None:
    [whole] = onnxruntime_outputs(decoder, first(decoder, IDS))
    session = q8c.load(q8c.compile(decoder, tmp_path / "f32.q8c", quantize=False, numerics="reproducible"))
    assert [n.op for n in session.artifact.manifest.model.nodes].count("attention") == 2
    assert error(session(**first(decoder, IDS))["logits"], whole).relative_l2 < 1e-5
    before = session(**first(decoder, IDS[:, :7]))
    feed = {"input_ids": IDS[:, 7:], "attention_mask": np.ones_like(IDS),
            "position_ids": np.tile(np.arange(7, 12), (2, 1)),
            **{name.replace("present", "past_key_values"): x for name, x in before.items() if name != "logits"}}
    assert error(session(**feed)["logits"], whole[:, 7:]).relative_l2 < 1e-5


def test_padding_on_the_left_changes_nothing(decoder: onnx.ModelProto) -> None:
    feed = first(decoder, IDS)
    padded = first(decoder, np.pad(IDS, ((0, 0), (3, 0))))
    padded["attention_mask"][:, :3] = 0
    padded["position_ids"] = np.maximum(padded["position_ids"] - 3, 0)
    y, z = onnxruntime_outputs(decoder, feed, padded)
    np.testing.assert_allclose(z[:, 3:], y, rtol=0, atol=1e-5)


def test_rows_kept_in_pairs_become_halves() -> None:
    assert llama.halves_first(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("facts, message", [
    ({"general.architecture": "mamba"}, "the architecture is 'mamba', expected 'llama'"),
    ({"llama.rope.scaling.type": "yarn"}, "scaled rotations"),
    ({"llama.rope.dimension_count": 4}, "a part of each head"),
    ({"llama.block_count": None}, "no field 'llama.block_count'")])
def test_what_is_not_built_is_told(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(llama.GgufError, match=message):
        llama.build(TinyGguf(**facts))


def test_a_file_that_is_no_gguf_is_told(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"GGUX" + bytes(64))
    with pytest.raises(llama.GgufError, match="weights.gguf"):
        llama.Gguf(path)
    with pytest.raises(llama.GgufError, match="No such file"):
        llama.Gguf(tmp_path / "none.gguf")
