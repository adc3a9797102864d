"""Encoders: of text, images and sound."""
from __future__ import annotations

from tests.families.family import HEADS, HIDDEN, VOCABULARY, Family, Input, Size

ROWS: tuple[Size, ...] = ("batch", "seq")
TEXT = {"input_ids": Input("ids", ROWS), "attention_mask": Input("mask", ROWS)}
PAIRS = {**TEXT, "token_type_ids": Input("types", ROWS)}
SMALL = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": HEADS,
         "intermediate_size": 2 * HIDDEN, "max_position_embeddings": 40}

ENCODERS: dict[str, Family] = {
    "bert": Family("BertModel", SMALL, PAIRS, forms=("dynamo-sdpa", "script14-sdpa", "script17-eager")),
}
