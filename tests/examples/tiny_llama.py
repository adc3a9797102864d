"""A decoder of Llama's architecture small enough for tests, as the builder reads one from a GGUF file."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import llama
import numpy as np

from tests.models import Array

CONTROL = ("<|im_start|>", "<|im_end|>")
WORDS = (*CONTROL, "?", "system", "user", "assistant", *(f"w{n}" for n in range(54)))
TOKENS = len(WORDS)
FACTS: dict[str, Any] = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2, "llama.embedding_length": 32,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0,
    "tokenizer.chat_template": "... <|im_start|> ..."}
SHAPES = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (48, 32),
          "ffn_up": (48, 32), "ffn_down": (32, 48), "token_embd": (TOKENS, 32)}


class TinyGguf(llama.Gguf):
    """Random weights; `facts` replace those of `FACTS`."""

    def __init__(self, **facts: Any) -> None:
        self._facts = FACTS | facts
        self._rng = np.random.default_rng(1)
        self._weights: dict[str, Array] = {}
        self.path = Path(__file__)

    def fact(self, name: str, default: Any = None) -> Any:
        value = self._facts.get(name, default)
        if value is None:
            raise llama.GgufError(f"no field {name!r}")
        return value

    def tokenizer(self) -> Any:
        from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
        made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="?"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        made.add_special_tokens([AddedToken(word, special=True) for word in CONTROL])
        return made

    def has_weight(self, name: str) -> bool:
        return name != "output"

    def weight(self, name: str) -> Array:
        shape = SHAPES.get(name.rpartition(".")[2])
        if name not in self._weights:
            self._weights[name] = (self._rng.normal(0, 0.3, shape) if shape else np.ones(32)).astype(np.float32)
        return self._weights[name]
