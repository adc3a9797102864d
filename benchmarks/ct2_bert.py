"""CTranslate2's form of a BERT encoder, from the weights as Hugging Face keeps them (its converter wants PyTorch)."""
from __future__ import annotations

from pathlib import Path

from benchmarks.common import BenchmarkError


def convert(folder: Path, output: Path, quantization: str | None) -> None:
    """Write the model in `folder` to the folder `output`, weights quantized as told (`int8`) or float32."""
    import minilm
    import numpy as np
    from ctranslate2.specs import common_spec, transformer_spec
    config = minilm.BertConfig.read(folder)
    if config.hidden_act != "gelu":
        raise BenchmarkError(f"the activation {config.hidden_act} is not written out for CTranslate2 here")
    weights = minilm.Weights(folder / "model.safetensors")
    encoder = transformer_spec.TransformerEncoderSpec(
        config.num_hidden_layers, config.num_attention_heads, pre_norm=False,
        activation=common_spec.Activation.GELU, layernorm_embedding=True, num_source_embeddings=2,
        embeddings_merge=common_spec.EmbeddingsMerge.ADD)
    encoder.scale_embeddings = False
    spec = transformer_spec.TransformerEncoderModelSpec(encoder)

    def matrix(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return weights.get(name, None, None)

    def linear(target: object, *scopes: str) -> None:
        """One linear of several with the same input, their outputs one after the other."""
        target.weight = np.concatenate([matrix(f"{s}.weight") for s in scopes])  # type: ignore[attr-defined]
        target.bias = np.concatenate([weights.get(f"{s}.bias", None) for s in scopes])  # type: ignore[attr-defined]

    def norm(target: object, scope: str) -> None:
        target.gamma = weights.get(f"{scope}.weight", None)  # type: ignore[attr-defined]
        target.beta = weights.get(f"{scope}.bias", None)  # type: ignore[attr-defined]

    words = matrix("embeddings.word_embeddings.weight")
    encoder.embeddings[0].weight = words
    encoder.embeddings[1].weight = matrix("embeddings.token_type_embeddings.weight")
    encoder.position_encodings.encodings = matrix("embeddings.position_embeddings.weight")
    norm(encoder.layernorm_embedding, "embeddings.LayerNorm")
    for number, layer in enumerate(encoder.layer):
        scope = f"encoder.layer.{number}"
        linear(layer.self_attention.linear[0], *(f"{scope}.attention.self.{p}" for p in ("query", "key", "value")))
        linear(layer.self_attention.linear[1], f"{scope}.attention.output.dense")
        norm(layer.self_attention.layer_norm, f"{scope}.attention.output.LayerNorm")
        linear(layer.ffn.linear_0, f"{scope}.intermediate.dense")
        linear(layer.ffn.linear_1, f"{scope}.output.dense")
        norm(layer.ffn.layer_norm, f"{scope}.output.LayerNorm")
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.config.unk_token = "0"
    spec.register_vocabulary([str(i) for i in range(len(words))])
    spec.validate()
    spec.optimize(quantization=quantization)
    output.mkdir(parents=True, exist_ok=True)
    spec.save(str(output))
