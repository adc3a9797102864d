"""The ONNX builder of the example against BERT written down in numpy, on tiny random encoders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import minilm
import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_graph
import onnxruntime
import pytest

from tests.examples.bert_folder import CONFIG, Array, random_weights, write_folder

Feed = dict[str, npt.NDArray[np.int64]]


def activation(name: str, x: Array) -> Array:
    """Hendrycks and Gimpel, 2016: GELU exact (erf) and by tanh."""
    if name == "relu":
        return np.maximum(x, 0)
    half: Array = x * np.float32(0.5)
    if name == "gelu":
        erf: Array = np.vectorize(math.erf, otypes=[np.float32])(x / math.sqrt(2))
        return half * (1 + erf)
    inner: Array = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    tanh: Array = np.tanh(inner)
    return half * (1 + tanh)


def reference(config: dict[str, Any], weights: dict[str, Array], feed: Feed) -> Array:
    """last_hidden_state as BERT is defined (Devlin et al., 2018), one head at a time, masked keys left out."""
    width = config["hidden_size"] // config["num_attention_heads"]

    def linear(x: Array, scope: str) -> Array:
        product: Array = x @ weights[f"{scope}.weight"].T
        return product + weights[f"{scope}.bias"]

    def norm(x: Array, scope: str) -> Array:
        centred: Array = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        normal: Array = centred / np.sqrt(variance + config["layer_norm_eps"])
        return normal * weights[f"{scope}.weight"] + weights[f"{scope}.bias"]

    def attend(x: Array, keep: npt.NDArray[np.bool_], scope: str) -> Array:
        query, key, value = (linear(x, f"{scope}.{part}") for part in ("query", "key", "value"))
        mixed = []
        for head in range(config["num_attention_heads"]):
            part = slice(head * width, (head + 1) * width)
            weight = np.exp(query[:, part] @ key[keep, part].T / math.sqrt(width))
            mixed.append(weight / weight.sum(-1, keepdims=True) @ value[keep, part])
        return np.concatenate(mixed, -1)

    rows = []
    for ids, mask, types in zip(*(feed[name] for name in minilm.INPUTS), strict=True):
        x = weights["embeddings.word_embeddings.weight"][ids]
        x = x + weights["embeddings.token_type_embeddings.weight"][types]
        x = norm(x + weights["embeddings.position_embeddings.weight"][: len(ids)], "embeddings.LayerNorm")
        for layer in range(config["num_hidden_layers"]):
            scope = f"encoder.layer.{layer}"
            update = linear(attend(x, mask.astype(bool), f"{scope}.attention.self"), f"{scope}.attention.output.dense")
            x = norm(x + update, f"{scope}.attention.output.LayerNorm")
            wide = activation(config["hidden_act"], linear(x, f"{scope}.intermediate.dense"))
            x = norm(x + linear(wide, f"{scope}.output.dense"), f"{scope}.output.LayerNorm")
        rows.append(x)
    return np.stack(rows)


def random_feed(batch: int, seq: int) -> Feed:
    rng = np.random.default_rng(batch * 100 + seq)
    lengths = rng.integers(1, seq + 1, size=(batch, 1))
    lengths[0] = seq
    return {
        "input_ids": rng.integers(0, CONFIG["vocab_size"], (batch, seq)),
        "attention_mask": (np.arange(seq) < lengths).astype(np.int64),
        "token_type_ids": rng.integers(0, CONFIG["type_vocab_size"], (batch, seq)),
    }


def run(model: onnx.ModelProto, feed: Feed) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(["last_hidden_state"], feed)[0]
    return result


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_matches_bert(tmp_path: Path, act: str) -> None:
    config = CONFIG | {"hidden_act": act}
    weights = random_weights(config)
    model = minilm.build(write_folder(tmp_path, config, weights))
    for batch, seq in [(1, 1), (3, 7), (2, CONFIG["max_position_embeddings"])]:
        feed = random_feed(batch, seq)
        np.testing.assert_allclose(run(model, feed), reference(config, weights, feed), rtol=0, atol=2e-5)


def test_signature(tmp_path: Path) -> None:
    graph = minilm.build(write_folder(tmp_path, CONFIG, random_weights(CONFIG))).graph
    assert [value.name for value in graph.input] == list(minilm.INPUTS)
    for value in [*graph.input, *graph.output]:
        assert [dim.dim_param for dim in value.type.tensor_type.shape.dim][:2] == ["batch", "seq"]
    assert [value.name for value in graph.output] == ["last_hidden_state"]


@pytest.mark.parametrize("spelling", ["bert.", "0.auto_model.", "tensorflow"])
def test_other_spellings_of_the_names_build_the_same_model(tmp_path: Path, spelling: str) -> None:
    weights = random_weights(CONFIG)
    if spelling == "tensorflow":
        gamma_beta = ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")
        renamed = {name.replace(*gamma_beta[0]).replace(*gamma_beta[1]): array for name, array in weights.items()}
    else:
        head = {"cls.predictions.bias": np.zeros(CONFIG["vocab_size"], np.float32)}
        renamed = {spelling + name: array for name, array in weights.items()} | head
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.mkdir()
    other.mkdir()
    expected = minilm.build(write_folder(plain, CONFIG, weights))
    assert minilm.build(write_folder(other, CONFIG, renamed)) == expected


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_are_widened(tmp_path: Path, dtype: type) -> None:
    weights = random_weights(CONFIG)
    halves: dict[str, npt.NDArray[Any]] = {name: array.astype(dtype) for name, array in weights.items()}
    model = minilm.build(write_folder(tmp_path, CONFIG, halves))
    name = "embeddings.word_embeddings.weight"
    words = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(words), halves[name].astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', expected 'bert'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key', expected 'absolute'"),
        ({"is_decoder": True}, "is_decoder is True, expected False"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu', expected one of gelu,"),
        ({"num_attention_heads": 5}, "cannot divide hidden_size 24 by num_attention_heads 5"),
        ({"num_hidden_layers": 3}, r"no tensor 'encoder.layer.2.attention.self.query.weight'"),
        ({"intermediate_size": 48}, r"'encoder.layer.0.intermediate.dense.weight' has shape \[40, 24\], expected"),
    ],
)
def test_wrong_config_is_one_clear_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write_folder(tmp_path, CONFIG | change, random_weights(CONFIG))
    with pytest.raises(minilm.ModelFolderError, match=message) as caught:
        minilm.build(folder)
    assert "\n" not in str(caught.value)


def test_missing_config_key_is_named(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "hidden_size"}
    with pytest.raises(minilm.ModelFolderError, match="missing 1 required positional argument: 'hidden_size'"):
        minilm.build(write_folder(tmp_path, config, random_weights(CONFIG)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json: No such file"),
        ("config.json", b"{", "config.json: not JSON"),
        ("config.json", b"[]", "config.json: expected a JSON object"),
        ("model.safetensors", None, "model.safetensors: No such file"),
        ("model.safetensors", b"\x08", "model.safetensors: not a safetensors file"),
    ],
)
def test_damaged_folder_is_one_clear_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    folder = write_folder(tmp_path, CONFIG, random_weights(CONFIG))
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(minilm.ModelFolderError, match=message):
        minilm.build(folder)


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, CONFIG, {"wte.weight": np.zeros((4, 4), np.float32)})
    with pytest.raises(minilm.ModelFolderError, match="so this is no BERT encoder"):
        minilm.build(folder)


def test_save_leaves_nothing_half_written(tmp_path: Path) -> None:
    model = minilm.build(write_folder(tmp_path, CONFIG, random_weights(CONFIG)))
    target = tmp_path / "out" / "model.onnx"
    onnx_graph.save(model, target)
    assert onnx.load(target) == model
    assert list(target.parent.iterdir()) == [target]
