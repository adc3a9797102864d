"""Encoders: of text, images and sound."""
from __future__ import annotations

from typing import get_args

from tests.families.family import HEADS, HIDDEN, VOCABULARY, Family, Form, Input, Size

ROWS: tuple[Size, ...] = ("batch", "seq")
TEXT = {"input_ids": Input("ids", ROWS), "attention_mask": Input("mask", ROWS)}
PAIRS = {**TEXT, "token_type_ids": Input("types", ROWS)}
LAYERS = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 2 * HIDDEN}
SMALL = {**LAYERS, "vocab_size": VOCABULARY, "max_position_embeddings": 40}
PATCHES = {**LAYERS, "image_size": 32, "patch_size": 8}
EAGER: tuple[Form, ...] = ("dynamo-eager", "script17-eager")  # transformers has no other attention for some
IMAGE = {"pixel_values": Input("normal", ("batch", 3, 32, 32))}
IMAGES = ({"batch": 2}, {"batch": 1}, {"batch": 5})
SOUND = {"input_values": Input("normal", ("batch", "samples"))}
SOUNDS = ({"batch": 2, "samples": 400}, {"batch": 3, "samples": 250}, {"batch": 1, "samples": 330})

COMPUTED = {"": "its second operand is not constant"}

ENCODERS: dict[str, Family] = {
    "bert": Family("BertModel", SMALL, PAIRS, forms=get_args(Form), compiled=True),
    "roberta": Family("RobertaModel", SMALL, TEXT),
    "distilbert": Family("DistilBertModel", {
        "vocab_size": VOCABULARY, "dim": HIDDEN, "n_layers": 2, "n_heads": HEADS, "hidden_dim": 2 * HIDDEN,
        "max_position_embeddings": 40}, TEXT),
    "mpnet": Family("MPNetModel", SMALL, TEXT, forms=EAGER),
    "albert": Family("AlbertModel", {**SMALL, "embedding_size": 32}, PAIRS),
    "electra": Family("ElectraModel", {**SMALL, "embedding_size": 32}, PAIRS),
    "xlm-roberta": Family("XLMRobertaModel", SMALL, TEXT),
    "modernbert": Family("ModernBertModel", {
        **SMALL, "global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}, TEXT, windows=1, compiled=True),
    "deberta-v3": Family("DebertaV2Model", {
        **SMALL, "relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0,
        }, TEXT, forms=EAGER, compiled=True),
    "fnet": Family("FNetModel", SMALL, {"input_ids": TEXT["input_ids"]}, forms=EAGER[:1], attentions=0,
                   float_products=COMPUTED),
    "layoutlmv3": Family("LayoutLMv3Model", {
        **SMALL, "max_2d_position_embeddings": 64, "coordinate_size": 10, "shape_size": 12, "visual_embed": False,
        "rel_pos_bins": 8, "rel_2d_pos_bins": 8}, {**TEXT, "bbox": Input("boxes", (*ROWS, 4))}, forms=EAGER[1:]),
    "xlnet": Family("XLNetModel", {
        "vocab_size": VOCABULARY, "d_model": HIDDEN, "n_layer": 2, "n_head": HEADS, "d_inner": 2 * HIDDEN,
        "use_mems_eval": False}, PAIRS, forms=EAGER[1:], float_products=COMPUTED),
    "xmod": Family("XmodModel", {**SMALL, "languages": ["en_XX", "de_DE"], "default_language": "en_XX"}, TEXT,
                   forms=EAGER[1:]),
    "nomic-bert": Family("NomicBertModel", SMALL, PAIRS),
    "eurobert": Family("EuroBertModel", {**SMALL, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1,
                                         "eos_token_id": 2}, TEXT),
    # T5's scores have no factor 1 / sqrt(size): the softmax of random ones is nearly a choice.
    "t5-encoder": Family("T5EncoderModel", {
        "vocab_size": VOCABULARY, "d_model": HIDDEN, "d_kv": 32, "d_ff": 2 * HIDDEN, "num_layers": 2,
        "num_heads": HEADS}, TEXT, int8_error=0.08, compiled=True),
    "longt5-encoder": Family("LongT5EncoderModel", {
        "vocab_size": VOCABULARY, "d_model": HIDDEN, "d_kv": 32, "d_ff": 2 * HIDDEN, "num_layers": 2,
        "num_heads": HEADS, "local_radius": 4}, TEXT, forms=EAGER[:1], int8_error=0.08),
    "torch-encoder": Family("TorchEncoder", LAYERS, {
        "inputs_embeds": Input("normal", (*ROWS, HIDDEN)), "attention_mask": TEXT["attention_mask"]},
        forms=("dynamo-sdpa",)),
    "sentence": Family("BertModel", SMALL, PAIRS, ("sentence_embedding",), head="sentence"),
    "sequence-classification": Family("RobertaForSequenceClassification", {**SMALL, "num_labels": 5}, TEXT,
                                      ("logits",)),
    "token-classification": Family("DistilBertForTokenClassification", {
        "vocab_size": VOCABULARY, "dim": HIDDEN, "n_layers": 2, "n_heads": HEADS, "hidden_dim": 2 * HIDDEN,
        "max_position_embeddings": 40, "num_labels": 7}, TEXT, ("logits",)),
    "question-answering": Family("BertForQuestionAnswering", SMALL, PAIRS, ("start_logits", "end_logits"),
                                 sizes=({"batch": 2, "seq": 9}, {"batch": 1, "seq": 24}, {"batch": 3, "seq": 3})),
    "masked-lm": Family("BertForMaskedLM", SMALL, PAIRS, ("logits",)),
    "clip-text": Family("CLIPTextModelWithProjection", {**SMALL, "projection_dim": 48, "eos_token_id": 98},
                        TEXT, ("text_embeds", "last_hidden_state"), causal=2),
    "clip-vision": Family("CLIPVisionModelWithProjection", {**PATCHES, "projection_dim": 48}, IMAGE,
                          ("image_embeds", "last_hidden_state"), sizes=IMAGES),
    "siglip-text": Family("SiglipTextModel", {**SMALL, "projection_size": HIDDEN}, {"input_ids": TEXT["input_ids"]},
                          ("pooler_output", "last_hidden_state")),
    "siglip-vision": Family("SiglipVisionModel", PATCHES, IMAGE, ("pooler_output", "last_hidden_state"),
                            sizes=IMAGES, attentions=3, compiled=True),
    "vit": Family("ViTForImageClassification", {**PATCHES, "num_labels": 10}, IMAGE, ("logits",), sizes=IMAGES),
    "dinov2": Family("Dinov2Model", PATCHES, IMAGE, ("last_hidden_state", "pooler_output"), sizes=IMAGES),
    "dinov2-resized": Family("Dinov2Model", {**PATCHES, "image_size": 56}, IMAGE, sizes=IMAGES),
    "dinov3": Family("DINOv3ViTModel", {**PATCHES, "num_register_tokens": 2}, IMAGE, sizes=IMAGES, compiled=True),
    "beit": Family("BeitModel", {**PATCHES, "vocab_size": VOCABULARY}, IMAGE, sizes=IMAGES),
    "swin": Family("SwinModel", {
        "image_size": 32, "patch_size": 2, "embed_dim": HIDDEN, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 4}, IMAGE, sizes=IMAGES, attentions=4, compiled=True),
    "swinv2": Family("Swinv2Model", {
        "image_size": 32, "patch_size": 2, "embed_dim": HIDDEN, "depths": [1, 2], "num_heads": [2, 4],
        "window_size": 4}, IMAGE, sizes=IMAGES, attentions=3, forms=EAGER[1:]),
    "levit": Family("LevitModel", {
        "image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
        "key_dim": [16, 16, 16], "mlp_ratio": [2, 2, 2], "attention_ratio": [2, 2, 2]},
        {"pixel_values": Input("normal", ("batch", 3, 64, 64))}, sizes=IMAGES, attentions=5, forms=EAGER[1:]),
    "hiera": Family("HieraModel", {
        "embed_dim": 32, "image_size": [64, 64], "patch_size": [7, 7], "depths": [1, 2], "num_heads": [1, 2],
        "query_stride": [2, 2], "masked_unit_size": [4, 4], "num_query_pool": 1,
        "masked_unit_attention": [True, False]}, {"pixel_values": Input("normal", ("batch", 3, 64, 64))},
        sizes=IMAGES, attentions=3, forms=EAGER[:1]),
    "vitdet": Family("VitDetModel", {
        **PATCHES, "window_size": 3, "window_block_indices": [0], "use_relative_position_embeddings": True}, IMAGE,
        sizes=IMAGES, forms=EAGER[1:]),
    "whisper-encoder": Family("WhisperModel", {
        "vocab_size": VOCABULARY, "d_model": HIDDEN, "encoder_layers": 2, "encoder_attention_heads": HEADS,
        "encoder_ffn_dim": 2 * HIDDEN, "decoder_layers": 1, "decoder_attention_heads": HEADS,
        "max_source_positions": 20, "num_mel_bins": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1},
        {"input_features": Input("normal", ("batch", 16, 40))}, head="encoder", sizes=IMAGES),
    "wav2vec2": Family("Wav2Vec2Model", {
        **LAYERS, "vocab_size": VOCABULARY, "conv_dim": [32, 32], "conv_kernel": [10, 3], "conv_stride": [5, 2],
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}, SOUND, sizes=SOUNDS, compiled=True),
    "wav2vec2-padded": Family("Wav2Vec2ForCTC", {
        **LAYERS, "vocab_size": VOCABULARY, "conv_dim": [32, 32], "conv_kernel": [10, 3], "conv_stride": [5, 2],
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "feat_extract_norm": "layer"},
        {**SOUND, "attention_mask": Input("mask", ("batch", "samples"))}, ("logits",), sizes=SOUNDS),
    "hubert": Family("HubertModel", {
        **LAYERS, "vocab_size": VOCABULARY, "conv_dim": [32, 32], "conv_kernel": [10, 3], "conv_stride": [5, 2],
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "feat_extract_norm": "layer",
        "do_stable_layer_norm": True}, SOUND, sizes=SOUNDS),
    "audio-spectrogram": Family("ASTModel", {
        **LAYERS, "patch_size": 8, "max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
        {"input_values": Input("normal", ("batch", 32, 16))}, sizes=IMAGES),
}
