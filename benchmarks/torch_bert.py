"""A BERT encoder in PyTorch, from the weights as Hugging Face keeps them, for where PyTorch is installed."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import minilm
import torch
from torch import nn


def load(folder: Path, threads: int, int8: bool) -> Callable[[dict[str, Any]], Callable[[], list[Any]]]:
    """What binds inputs to the model; `int8` makes its linears dynamically quantized ones."""
    torch.set_num_threads(threads)
    model = Encoder(minilm.BertConfig.read(folder), minilm.Weights(folder / "model.safetensors")).eval()
    if int8:
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)

    def bind(feed: dict[str, Any]) -> Callable[[], list[Any]]:
        tensors = [torch.from_numpy(feed[name]) for name in minilm.INPUTS]

        def run() -> list[Any]:
            with torch.inference_mode():
                return [model(*tensors).numpy()]

        return run

    return bind


class Encoder(nn.Module):  # type: ignore[misc, unused-ignore]
    """The model, in fp32; called with ids, mask and types [batch, seq] it gives the last hidden state."""

    def __init__(self, config: minilm.BertConfig, weights: minilm.Weights) -> None:
        super().__init__()
        self.tables = [_tensor(weights, f"embeddings.{part}_embeddings.weight")
                       for part in ("word", "position", "token_type")]
        self.norm = _norm(config, weights, "embeddings.LayerNorm")
        self.layers = nn.ModuleList([Layer(config, weights, f"encoder.layer.{i}")
                                     for i in range(config.num_hidden_layers)])

    def forward(self, ids: Any, mask: Any, types: Any) -> Any:
        words, positions, kinds = self.tables
        x = self.norm(words[ids] + positions[:ids.shape[1]] + kinds[types])
        bias = torch.where(mask[:, None, None, :] != 0, 0.0, torch.finfo(torch.float32).min)
        for layer in self.layers:
            x = layer(x, bias)
        return x


class Layer(nn.Module):  # type: ignore[misc, unused-ignore]
    """Attention, with one product for queries, keys and values, and the MLP, a norm behind each."""

    def __init__(self, config: minilm.BertConfig, weights: minilm.Weights, scope: str) -> None:
        super().__init__()
        attention, self.heads = f"{scope}.attention", config.num_attention_heads
        self.qkv = _linear(weights, *(f"{attention}.self.{part}" for part in ("query", "key", "value")))
        self.mixed = _linear(weights, f"{attention}.output.dense")
        self.first = _norm(config, weights, f"{attention}.output.LayerNorm")
        self.wide = _linear(weights, f"{scope}.intermediate.dense")
        self.narrow = _linear(weights, f"{scope}.output.dense")
        self.second = _norm(config, weights, f"{scope}.output.LayerNorm")

    def forward(self, x: Any, mask: Any) -> Any:
        batch, seq, hidden = x.shape
        q, k, v = self.qkv(x).view(batch, seq, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.first(x + self.mixed(mixed.transpose(1, 2).reshape(batch, seq, hidden)))
        return self.second(x + self.narrow(nn.functional.gelu(self.wide(x))))


def _tensor(weights: minilm.Weights, name: str) -> Any:
    rank = 1 if name.endswith(("bias", "LayerNorm.weight")) else 2
    return torch.from_numpy(weights.get(name, *[None] * rank).copy())


def _linear(weights: minilm.Weights, *scopes: str) -> Any:
    """Products of the same rows as one."""
    weight, bias = (torch.cat([_tensor(weights, f"{s}.{part}") for s in scopes]) for part in ("weight", "bias"))
    made = nn.Linear(weight.shape[1], len(weight))
    made.weight.data, made.bias.data = weight, bias
    return made


def _norm(config: minilm.BertConfig, weights: minilm.Weights, scope: str) -> Any:
    made = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    made.weight.data, made.bias.data = _tensor(weights, f"{scope}.weight"), _tensor(weights, f"{scope}.bias")
    return made
