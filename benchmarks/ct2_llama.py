"""CTranslate2's form of a decoder of Llama's architecture, from a GGUF file (its converter wants PyTorch)."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def convert(gguf: Any, output: Path, quantization: str | None) -> None:
    """Write the model of an examples.llama.Gguf to the folder `output`, weights quantized as told or float32."""
    import llama
    from ctranslate2.specs import common_spec, transformer_spec
    built = llama.LlamaBuilder(gguf)
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        built.layers, built.heads, activation=common_spec.Activation.SWISH, pre_norm=True, ffn_glu=True, rms_norm=True,
        rotary_dim=0, rotary_interleave=False, rotary_base=built.base,
        num_heads_kv=None if built.kv_heads == built.heads else built.kv_heads)

    def rows(name: str, heads: int | None = None) -> Any:
        w = gguf.weight(name)
        return w if heads is None else w[llama.halves_first(heads, built.size)]

    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = rows("token_embd")
    decoder.projection.weight = rows("output" if gguf.has_weight("output") else "token_embd")
    decoder.layer_norm.gamma = gguf.weight("output_norm")
    for number, layer in enumerate(decoder.layer):
        scope = f"blk.{number}"
        attention, ffn = layer.self_attention, layer.ffn
        attention.layer_norm.gamma = gguf.weight(f"{scope}.attn_norm")
        attention.linear[0].weight = np.concatenate([
            rows(f"{scope}.attn_q", built.heads), rows(f"{scope}.attn_k", built.kv_heads), rows(f"{scope}.attn_v")])
        attention.linear[1].weight = rows(f"{scope}.attn_output")
        ffn.layer_norm.gamma = gguf.weight(f"{scope}.ffn_norm")
        ffn.linear_0.weight = rows(f"{scope}.ffn_gate")
        ffn.linear_0_noact.weight = rows(f"{scope}.ffn_up")
        ffn.linear_1.weight = rows(f"{scope}.ffn_down")
    spec.config.layer_norm_epsilon = float(built.epsilon)
    names = [str(i) for i in range(decoder.embeddings.weight.shape[0])]
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = names[0]
    spec.register_vocabulary(names)
    spec.validate()
    spec.optimize(quantization=quantization)
    output.mkdir(parents=True, exist_ok=True)
    spec.save(str(output))
