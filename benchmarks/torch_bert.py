"""A BERT encoder in PyTorch, from the weights as Hugging Face keeps them, for where PyTorch is installed."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def load(folder: Path, threads: int, int8: bool) -> Callable[[dict[str, Any]], Callable[[], list[Any]]]:
    """What binds inputs to the model; `int8` makes its linears dynamically quantized ones."""
    import minilm
    import torch
    torch.set_num_threads(threads)
    model = encoder(folder)
    if int8:
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    def bind(feed: dict[str, Any]) -> Callable[[], list[Any]]:
        tensors = [torch.from_numpy(feed[name]) for name in minilm.INPUTS]

        def run() -> list[Any]:
            with torch.inference_mode():
                return [model(*tensors).numpy()]

        return run

    return bind


def encoder(folder: Path) -> Any:
    """The model, in fp32; called with ids, mask and types [batch, seq] it gives the last hidden state."""
    import minilm
    import torch
    from torch import nn
    config = minilm.BertConfig.read(folder)
    weights = minilm.Weights(folder / "model.safetensors")
    heads = config.num_attention_heads

    def linear(*scopes: str) -> Any:
        rows = [torch.from_numpy(weights.get(f"{s}.weight", None, None).copy()) for s in scopes]
        made = nn.Linear(rows[0].shape[1], sum(len(r) for r in rows))
        made.weight.data = torch.cat(rows)
        made.bias.data = torch.cat([torch.from_numpy(weights.get(f"{s}.bias", None).copy()) for s in scopes])
        return made

    def norm(scope: str) -> Any:
        made = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        made.weight.data = torch.from_numpy(weights.get(f"{scope}.weight", None).copy())
        made.bias.data = torch.from_numpy(weights.get(f"{scope}.bias", None).copy())
        return made

    class Layer(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self, scope: str) -> None:
            super().__init__()
            attention = f"{scope}.attention"
            self.qkv = linear(*(f"{attention}.self.{p}" for p in ("query", "key", "value")))
            self.mixed, self.first = linear(f"{attention}.output.dense"), norm(f"{attention}.output.LayerNorm")
            self.wide, self.narrow = linear(f"{scope}.intermediate.dense"), linear(f"{scope}.output.dense")
            self.second = norm(f"{scope}.output.LayerNorm")

        def forward(self, x: Any, mask: Any) -> Any:
            batch, seq, hidden = x.shape
            q, k, v = self.qkv(x).view(batch, seq, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = self.first(x + self.mixed(mixed.transpose(1, 2).reshape(batch, seq, hidden)))
            return self.second(x + self.narrow(nn.functional.gelu(self.wide(x))))

    class Encoder(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.tables = [torch.from_numpy(weights.get(f"embeddings.{t}_embeddings.weight", None, None).copy())
                           for t in ("word", "position", "token_type")]
            self.norm = norm("embeddings.LayerNorm")
            self.layers = nn.ModuleList([Layer(f"encoder.layer.{i}") for i in range(config.num_hidden_layers)])

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            words, positions, kinds = self.tables
            x = self.norm(words[ids] + positions[:ids.shape[1]] + kinds[types])
            bias = torch.where(mask[:, None, None, :] != 0, 0.0, torch.finfo(torch.float32).min)
            for layer in self.layers:
                x = layer(x, bias)
            return x

    return Encoder().eval()
