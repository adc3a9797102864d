"""The benchmark of accuracy: a decoder built as SmolLM2's is, the tables, the picture."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import q8c
from benchmarks import accuracy, smollm2
from benchmarks.accuracy import Row
from q8c.accuracy import error
from tests.models import Array, onnxruntime_outputs

FACTS: dict[str, Any] = {
    "block_count": 2, "attention.head_count": 4, "attention.head_count_kv": 2, "embedding_length": 32,
    "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0}
SHAPES = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (48, 32),
          "ffn_up": (48, 32), "ffn_down": (32, 48), "token_embd": (60, 32)}


class TinyGguf(smollm2.Gguf):
    """Random weights of a small decoder."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)
        self._weights: dict[str, Array] = {}

    def fact(self, name: str) -> Any:
        return FACTS[name.removeprefix("llama.")]

    def weight(self, name: str) -> Array:
        shape = SHAPES.get(name.rpartition(".")[2])
        if name not in self._weights:
            self._weights[name] = (self._rng.normal(0, 0.3, shape) if shape else np.ones(32)).astype(np.float32)
        return self._weights[name]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smollm2") / "tiny.onnx"
    smollm2.Builder(TinyGguf()).save(path)
    return path


def test_later_tokens_do_not_reach_earlier_ones_and_places_matter(decoder: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 60, (2, 12))
    changed, swapped = ids.copy(), ids.copy()
    changed[:, 8] = (ids[:, 8] + 1) % 60
    swapped[:, [1, 5]] = ids[:, [5, 1]]
    feeds = [{"input_ids": i, "attention_mask": np.ones_like(i)} for i in (ids, changed, swapped)]
    y, z, s = onnxruntime_outputs(onnx.load(decoder), *feeds)
    assert y.shape == (2, 12, 60)
    np.testing.assert_allclose(y[:, :8], z[:, :8], rtol=0, atol=1e-5)
    assert np.abs(y[:, 8:] - z[:, 8:]).max() > 0.1 and np.abs(y[:, 11] - s[:, 11]).max() > 1e-3


def test_it_compiles_with_its_attention_fused(decoder: Path, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 60, (2, 17))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    [exact] = onnxruntime_outputs(onnx.load(decoder), feed)
    session = q8c.load(q8c.compile(decoder, tmp_path / "f32.q8c", quantize=False, numerics="reproducible"))
    assert [n.op for n in session.artifact.manifest.model.nodes].count("attention") == 2
    assert error(session(**feed)["logits"], exact).relative_l2 < 1e-5


def test_rows_kept_in_pairs_become_halves() -> None:
    assert smollm2.halves_first(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


ROWS = [Row(f"q8c {f}", "q8c", {"cosine": 0.999, "relative_l2": e}, s)
        for f, e, s in (("q8-channel", 0.036, 0.004), ("q8-block32", 0.016, 0.009))]
ROWS.append(Row("OpenVINO int8", "OpenVINO", {"cosine": 0.99, "relative_l2": 0.05}, 0.02))


def test_tables() -> None:
    lines = accuracy.encoder_table(ROWS).splitlines()
    assert len(lines) == 4 and lines[1].split() == ["q8c", "q8-channel", "0.99900", "0.0360", "4.00"]
    figures = {"kl": 0.00143, "top1": 0.977, "nll": 3.25, "reference_nll": 3.24}
    assert accuracy.decoder_table([Row("q8c", "q8c", figures)]).splitlines()[1].split() == [
        "q8c", "0.00143", "97.7%", "3.2500", "3.2400"]


def test_the_picture_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        accuracy.plot(ROWS, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_engines_run_in_turn() -> None:
    order: list[str] = []
    medians = accuracy.interleaved([lambda: order.append("a"), lambda: order.append("b")], 3)
    assert order == ["a", "b"] * 5 and len(medians) == 2
