"""Build an ONNX model from a BERT encoder in Hugging Face form (config.json + model.safetensors), without PyTorch.

    python examples/minilm.py FOLDER minilm.onnx

Any BERT encoder will do: all-MiniLM-L6-v2, bert-base-uncased, bge-small, ... The model has int64 inputs `input_ids`,
`attention_mask` and `token_type_ids`, each [batch, seq], and the float32 output `last_hidden_state`
[batch, seq, hidden]; batch and seq are free, seq up to the length of the position table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors
from onnx import TensorProto
from onnx_graph import GraphBuilder, save, tensor

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Hugging Face's name of an activation -> ONNX op and attributes.
ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "gelu": ("Gelu", {"approximate": "none"}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}

# The package's own type hints leave this one out.
_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize

Array = npt.NDArray[np.float32]


class ModelFolderError(Exception):
    """The folder is not a BERT encoder this builder knows; the message says what was expected and what was found."""


@dataclass(frozen=True)
class BertConfig:
    """The part of a BERT config.json that shapes the graph, under config.json's own names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12

    @classmethod
    def read(cls, folder: Path) -> BertConfig:
        """The config of `folder`; raises ModelFolderError for what is not an encoder of BERT's architecture."""
        path = folder / "config.json"
        raw = _read_json(path)
        for key, wanted in (("model_type", "bert"), ("position_embedding_type", "absolute"), ("is_decoder", False)):
            if raw.get(key, wanted) != wanted:
                raise ModelFolderError(f"{path}: {key} is {raw[key]!r}, expected {wanted!r}")
        try:
            config = cls(**{key: raw[key] for key in cls.__dataclass_fields__ if key in raw})
        except TypeError as error:
            raise ModelFolderError(f"{path}: {str(error).partition(' ')[2]}") from None
        if config.hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ModelFolderError(f"{path}: hidden_act is {config.hidden_act!r}, expected one of {known}")
        if config.hidden_size % config.num_attention_heads:
            sizes = f"hidden_size {config.hidden_size} by num_attention_heads {config.num_attention_heads}"
            raise ModelFolderError(f"{path}: cannot divide {sizes}")
        return config


class Weights:
    """The tensors of a model.safetensors as float32 arrays, under BERT's names without any prefix such as `bert.`."""

    def __init__(self, path: Path) -> None:
        try:
            entries = _deserialize(path.read_bytes())
        except OSError as error:
            raise ModelFolderError(f"{path}: {error.strerror}") from None
        except safetensors.SafetensorError as error:
            raise ModelFolderError(f"{path}: not a safetensors file ({error})") from None
        anchor = "embeddings.word_embeddings.weight"
        prefix = next((name[: -len(anchor)] for name, _ in entries if name.endswith(anchor)), None)
        if prefix is None:
            raise ModelFolderError(f"{path}: no tensor {anchor!r}, so this is no BERT encoder")
        self._path = path
        self._entries = {_modern(name[len(prefix) :]): entry for name, entry in entries if name.startswith(prefix)}

    def get(self, name: str, *shape: int | None) -> Array:
        """The tensor `name`; raises ModelFolderError if it is missing or not of `shape` (None: any size)."""
        entry = self._entries.get(name)
        if entry is None:
            raise ModelFolderError(f"{self._path}: no tensor {name!r}")
        found = tuple(entry["shape"])
        if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
            wanted = [size if size is not None else "any" for size in shape]
            raise ModelFolderError(f"{self._path}: {name!r} has shape {list(found)}, expected {wanted}")
        return _to_float32(entry, name).reshape(found)


class BertBuilder(GraphBuilder):
    """One encoder."""

    def __init__(self, config: BertConfig, weights: Weights) -> None:
        super().__init__()
        self.config = config
        self.weights = weights

    def linear(self, x: str, scope: str, rows: int, cols: int) -> str:
        """x @ weight.T + bias; PyTorch keeps a linear's weight as [out, in] = [rows, cols]."""
        weight = self.constant(f"{scope}.weight", self.weights.get(f"{scope}.weight", rows, cols).T)
        bias = self.constant(f"{scope}.bias", self.weights.get(f"{scope}.bias", rows))
        return self.node("Add", [self.node("MatMul", [x, weight], f"{scope}.matmul"), bias], scope)

    def layer_norm(self, x: str, scope: str) -> str:
        hidden = self.config.hidden_size
        scale = self.constant(f"{scope}.weight", self.weights.get(f"{scope}.weight", hidden))
        shift = self.constant(f"{scope}.bias", self.weights.get(f"{scope}.bias", hidden))
        return self.node("LayerNormalization", [x, scale, shift], scope, axis=-1, epsilon=self.config.layer_norm_eps)

    def embeddings(self) -> str:
        """Sum of the word, type and position rows, normalized: [batch, seq, hidden]."""
        hidden = self.config.hidden_size
        tables = {
            kind: self.constant(
                f"embeddings.{kind}_embeddings.weight",
                self.weights.get(f"embeddings.{kind}_embeddings.weight", None, hidden),
            )
            for kind in ("word", "token_type", "position")
        }
        words = self.node("Gather", [tables["word"], "input_ids"], "embeddings.word")
        types = self.node("Gather", [tables["token_type"], "token_type_ids"], "embeddings.token_type")
        length = self.node("Shape", ["input_ids"], "seq", start=1, end=2)
        zero = self.ints(0)
        positions = self.node("Slice", [tables["position"], zero, length, zero], "embeddings.position")
        summed = self.node("Add", [self.node("Add", [words, types], "embeddings.sum"), positions], "embeddings.sum_all")
        return self.layer_norm(summed, "embeddings.LayerNorm")

    def mask_bias(self) -> str:
        """[batch, 1, 1, seq]: 0 where attention_mask is 1, the lowest float32 where it is 0."""
        mask = self.node("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)
        hidden = self.node("Sub", [self.scalar("one", 1.0), mask], "mask.hidden")
        lowest = self.scalar("lowest", float(np.finfo(np.float32).min))
        bias = self.node("Mul", [hidden, lowest], "mask.scaled")
        return self.node("Unsqueeze", [bias, self.ints(1, 2)], "mask.bias")

    def attention(self, x: str, mask: str, scope: str) -> str:
        hidden, heads = self.config.hidden_size, self.config.num_attention_heads
        split = self.ints(0, 0, heads, hidden // heads)
        permutations = {"query": (0, 2, 1, 3), "key": (0, 2, 3, 1), "value": (0, 2, 1, 3)}
        parts = {}
        for part, permutation in permutations.items():
            flat = self.linear(x, f"{scope}.self.{part}", hidden, hidden)
            by_head = self.node("Reshape", [flat, split], f"{flat}.heads")
            parts[part] = self.node("Transpose", [by_head], f"{flat}.transposed", perm=permutation)
        scores = self.node("MatMul", [parts["query"], parts["key"]], f"{scope}.scores")
        scale = self.scalar("scale", (hidden // heads) ** -0.5)
        scores = self.node("Mul", [scores, scale], f"{scope}.scores_scaled")
        scores = self.node("Add", [scores, mask], f"{scope}.scores_masked")
        probabilities = self.node("Softmax", [scores], f"{scope}.probabilities", axis=-1)
        mixed = self.node("MatMul", [probabilities, parts["value"]], f"{scope}.mixed")
        mixed = self.node("Transpose", [mixed], f"{scope}.mixed_transposed", perm=(0, 2, 1, 3))
        joined = self.node("Reshape", [mixed, self.ints(0, 0, hidden)], f"{scope}.joined")
        return self.residual(self.linear(joined, f"{scope}.output.dense", hidden, hidden), x, f"{scope}.output")

    def residual(self, update: str, x: str, scope: str) -> str:
        return self.layer_norm(self.node("Add", [update, x], f"{scope}.residual"), f"{scope}.LayerNorm")

    def layer(self, x: str, mask: str, scope: str) -> str:
        x = self.attention(x, mask, f"{scope}.attention")
        hidden, intermediate = self.config.hidden_size, self.config.intermediate_size
        wide = self.linear(x, f"{scope}.intermediate.dense", intermediate, hidden)
        op, attributes = ACTIVATIONS[self.config.hidden_act]
        wide = self.node(op, [wide], f"{scope}.activation", **attributes)
        return self.residual(self.linear(wide, f"{scope}.output.dense", hidden, intermediate), x, f"{scope}.output")

    def model(self) -> onnx.ModelProto:
        x, mask = self.embeddings(), self.mask_bias()
        for index in range(self.config.num_hidden_layers):
            x = self.layer(x, mask, f"encoder.layer.{index}")
        self.node("Identity", [x], "last_hidden_state")
        tokens = ["batch", "seq"]
        return self.proto("bert_encoder", [tensor(name, TensorProto.INT64, tokens) for name in INPUTS],
                          [tensor("last_hidden_state", TensorProto.FLOAT, [*tokens, self.config.hidden_size])])


def build(folder: Path) -> onnx.ModelProto:
    """The ONNX model of the BERT encoder in `folder`, checked; raises ModelFolderError if `folder` holds none."""
    model = BertBuilder(BertConfig.read(folder), Weights(folder / "model.safetensors")).model()
    onnx.checker.check_model(model, full_check=True)
    return model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFolderError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ModelFolderError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path}: expected a JSON object")
    return content


def _modern(name: str) -> str:
    """Checkpoints that came from TensorFlow call a norm's weight and bias gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _to_float32(entry: dict[str, Any], name: str) -> Array:
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (np.frombuffer(entry["data"], "<u2").astype(np.uint32) << 16).view(np.float32)
    if entry["dtype"] not in DTYPES:
        known = ", ".join([*DTYPES, "BF16"])
        raise ModelFolderError(f"tensor {name!r} has type {entry['dtype']}, expected one of {known}")
    return np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog="example: python examples/minilm.py ~/models/bge-small-en-v1.5 bge-small.onnx",
    )
    parser.add_argument("folder", type=Path, help="holds config.json and model.safetensors")
    parser.add_argument("output", type=Path, help="the .onnx file to write")
    args = parser.parse_args()
    try:
        model = build(args.folder)
        save(model, args.output)
    except (ModelFolderError, OSError) as error:
        print(f"minilm.py: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {len(model.graph.node)} nodes, {model.ByteSize() / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
