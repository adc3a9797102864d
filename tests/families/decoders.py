"""Decoders: language models with what they keep of earlier tokens, and the decoders of encoder-decoders."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.families.encoders import COMPUTED, EAGER, LAYERS, SMALL, TEXT
from tests.families.family import HEADS, HIDDEN, VOCABULARY, Family, Form, Input

SIZE = HIDDEN // HEADS
NEXT = {"input_ids": Input("ids", ("batch", "seq")), "attention_mask": Input("mask", ("batch", "total"))}
PLACED = {**NEXT, "position_ids": Input("positions", ("batch", "seq"))}
STEPS = ({"batch": 2, "seq": 5, "past": 3, "total": 8}, {"batch": 3, "seq": 11, "past": 0, "total": 11},
         {"batch": 1, "seq": 1, "past": 9, "total": 10})
SMALL_KV = {**SMALL, "num_key_value_heads": 1, "head_dim": SIZE, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": 0}
EXPERTS = {**SMALL_KV, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
SCRIPT: tuple[Form, ...] = ("script17-sdpa",)
DYNAMO: tuple[Form, ...] = ("dynamo-sdpa",)
ROTARY = {"rotary": 4, "append": 4}


def pasts(heads: int, size: int | Mapping[str, int] = SIZE, part: str = "", length: str = "past") -> dict[str, Input]:
    """The inputs of two layers' keys and values, whose sizes may differ."""
    sizes = size if isinstance(size, Mapping) else {"key": size, "value": size}
    return {f"past_key_values.{n}.{part}{what}": Input("normal", ("batch", heads, length, own))
            for n in range(2) for what, own in sizes.items()}


def outputs(*parts: str) -> tuple[str, ...]:
    """Logits and what is kept."""
    return ("logits", *(f"present.{n}.{part}{what}" for part in parts for n in range(2) for what in ("key", "value")))


def decoder(model: str, config: Mapping[str, Any], forms: tuple[Form, ...], heads: int = 1,
            size: int | Mapping[str, int] = SIZE, positions: bool = True, **more: Any) -> Family:
    """A language model that is given keys and values of earlier tokens, by heads of a size."""
    given = PLACED if positions else NEXT
    more.setdefault("causal", 2)
    more.setdefault("kernels", ROTARY)
    return Family(model, config, {**given, **pasts(heads, size)}, outputs(""), "decoder", forms, STEPS, **more)


TWO = {"d_model": HIDDEN, "vocab_size": VOCABULARY, "encoder_layers": 1, "decoder_layers": 2,
       "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "encoder_ffn_dim": 2 * HIDDEN,
       "decoder_ffn_dim": 2 * HIDDEN}
BART = {**TWO, "max_position_embeddings": 40}
T5 = {"vocab_size": VOCABULARY, "d_model": HIDDEN, "d_kv": SIZE, "d_ff": 2 * HIDDEN, "num_layers": 2,
      "num_heads": HEADS}
WHISPER = {**TWO, "num_mel_bins": 16, "max_source_positions": 24, "max_target_positions": 40, "pad_token_id": 0,
           "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
ASKED = {"input_ids": Input("ids", ("batch", "seq")), "encoder_attention_mask": Input("mask", ("batch", "read"))}
FIRST = {**ASKED, "encoder_hidden_states": Input("normal", ("batch", "read", HIDDEN))}
LATER = {**ASKED, **pasts(HEADS, part="decoder."), **pasts(HEADS, part="encoder.", length="read")}
STARTS = ({"batch": 2, "seq": 5, "read": 7}, {"batch": 3, "seq": 1, "read": 12}, {"batch": 1, "seq": 9, "read": 3})
GOES_ON = ({"batch": 2, "seq": 5, "past": 3, "read": 7}, {"batch": 3, "seq": 2, "past": 6, "read": 12},
           {"batch": 1, "seq": 1, "past": 9, "read": 4})


def heard(given: Mapping[str, Input]) -> dict[str, Input]:
    """Inputs of a decoder of sound, whose encoder has no padding."""
    return {name: one for name, one in given.items() if name != "encoder_attention_mask"}


def first(model: str, config: Mapping[str, Any], forms: tuple[Form, ...], inputs: Mapping[str, Input] = FIRST,
          **more: Any) -> Family:
    """The decoder of an encoder-decoder that starts."""
    return Family(model, config, inputs, outputs("decoder.", "encoder."), "decoder-of-two", forms, STARTS,
                  attentions=4, **more)


def later(model: str, config: Mapping[str, Any], forms: tuple[Form, ...], inputs: Mapping[str, Input] = LATER,
          **more: Any) -> Family:
    """The decoder of an encoder-decoder that goes on."""
    return Family(model, config, inputs, outputs("decoder."), "decoder-of-two", forms, GOES_ON, attentions=4,
                  kernels={"append": 4}, **more)


DECODERS: dict[str, Family] = {
    "gpt2": decoder("GPT2LMHeadModel", {
        "vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": 2, "n_head": HEADS, "n_positions": 40},
        SCRIPT, HEADS, kernels={"append": 4}, compiled=True),
    "gpt-neox": decoder("GPTNeoXForCausalLM", SMALL, SCRIPT, HEADS),
    "opt": decoder("OPTForCausalLM", {
        **SMALL, "ffn_dim": 2 * HIDDEN, "word_embed_proj_dim": HIDDEN}, DYNAMO, HEADS, kernels={"append": 4}),
    "llama": decoder("LlamaForCausalLM", SMALL_KV, ("dynamo23-sdpa", *DYNAMO, *SCRIPT), compiled=True),
    "llama-no-cache": Family("LlamaForCausalLM", SMALL_KV, TEXT, ("logits",), "decoder", DYNAMO, causal=2,
                             kernels={"rotary": 4}),
    "mistral": decoder("MistralForCausalLM", {**SMALL_KV, "sliding_window": 6}, SCRIPT, windows=2),
    "qwen3": decoder("Qwen3ForCausalLM", {**SMALL_KV, "head_dim": 24}, SCRIPT, size=24),
    "gemma2": decoder("Gemma2ForCausalLM", {**SMALL_KV, "sliding_window": 6}, EAGER[:1], windows=1),
    "gemma3": decoder("Gemma3ForCausalLM", {
        **SMALL_KV, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}, DYNAMO, windows=1),
    "codegen": decoder("CodeGenForCausalLM", {
        "vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 40},
        EAGER[1:], 4, 16),
    "phi": decoder("PhiForCausalLM", SMALL, SCRIPT, HEADS),
    "falcon": decoder("FalconForCausalLM", {
        **LAYERS, "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}, SCRIPT),
    "mpt": decoder("MptForCausalLM", {
        "vocab_size": VOCABULARY, "d_model": HIDDEN, "n_heads": HEADS, "n_layers": 2, "max_seq_len": 40},
        EAGER[1:], HEADS, positions=False, causal=0, kernels={"append": 4}),
    "bloom": decoder("BloomForCausalLM", {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": 2, "n_head": HEADS}, EAGER[1:], HEADS,
        positions=False, causal=0, kernels={"append": 4}),
    "mixtral": decoder("MixtralForCausalLM", {**EXPERTS, "num_local_experts": 4}, (*SCRIPT, *DYNAMO)),
    "qwen3-moe": decoder("Qwen3MoeForCausalLM", {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 48}, SCRIPT),
    # what is kept are rows from which keys and values of all heads are computed, and the part of keys that is rotated
    "deepseek-v3": decoder("DeepseekV3ForCausalLM", {
        **{n: v for n, v in EXPERTS.items() if n != "head_dim"}, "num_key_value_heads": HEADS, "q_lora_rank": 32,
        "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 4,
        "n_group": 1, "topk_group": 1, "moe_intermediate_size": 48, "first_k_dense_replace": 1}, (*DYNAMO, *SCRIPT),
        size={"key": 32, "value": 16}, kernels={"scatter_nd": 1, "append": 4, "kept": 4}, compiled=True),
    "gpt-oss": decoder("GptOssForCausalLM", {
        **EXPERTS, "num_local_experts": 4, "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"]}, EAGER[:1], causal=2, windows=1,
        kernels={"rotary": 4, "append": 4}, float_products=COMPUTED),
    "trocr": Family("TrOCRForCausalLM", {
        "vocab_size": VOCABULARY, "d_model": HIDDEN, "decoder_layers": 2, "decoder_attention_heads": HEADS,
        "decoder_ffn_dim": 2 * HIDDEN, "cross_attention_hidden_size": 48, "max_position_embeddings": 40,
        "use_cache": False}, {"input_ids": Input("ids", ("batch", "seq")),
                              "encoder_hidden_states": Input("normal", ("batch", "read", 48))},
        ("logits",), sizes=STARTS, forms=EAGER[:1], attentions=4, causal=2),
    "xglm": decoder("XGLMForCausalLM", {
        "vocab_size": VOCABULARY, "d_model": HIDDEN, "ffn_dim": 2 * HIDDEN, "num_layers": 2, "attention_heads": HEADS,
        "max_position_embeddings": 40}, EAGER[1:], HEADS, kernels={"append": 4}),
    "t5-first": first("T5ForConditionalGeneration", T5, SCRIPT),
    "t5-later": later("T5ForConditionalGeneration", T5, DYNAMO),
    "bart-first": first("BartForConditionalGeneration", BART, DYNAMO, causal=2),
    "bart-later": later("BartForConditionalGeneration", BART, SCRIPT, causal=2, compiled=True),
    "marian-later": later("MarianMTModel", {**BART, "pad_token_id": 98, "decoder_start_token_id": 98}, DYNAMO,
                          causal=2),
    "whisper-first": first("WhisperForConditionalGeneration", WHISPER, SCRIPT, heard(FIRST), causal=2),
    "whisper-later": later("WhisperForConditionalGeneration", WHISPER, DYNAMO, heard(LATER), causal=2),
}
