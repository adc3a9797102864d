"""Tiny random BERT encoders in Hugging Face form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Array = npt.NDArray[np.float32]
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 50,
    "type_vocab_size": 2,
    "max_position_embeddings": 16,
}


def random_weights(config: dict[str, Any]) -> dict[str, Array]:
    """Tensors of a BERT encoder with the names Hugging Face gives them, large enough that no term is lost in noise."""
    rng = np.random.default_rng(7)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
    }
    linears = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        scope = f"encoder.layer.{layer}"
        for name, (rows, cols) in linears.items():
            shapes[f"{scope}.{name}.weight"] = (rows, cols)
            shapes[f"{scope}.{name}.bias"] = (rows,)
        norms += [f"{scope}.attention.output.LayerNorm", f"{scope}.output.LayerNorm"]
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (hidden,)
    return {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, npt.NDArray[Any]]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder
