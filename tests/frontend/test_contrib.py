"""Ops of ONNX Runtime's optimizer, compared with ONNX Runtime."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import helper

from q8c.errors import UnsupportedError
from q8c.frontend import import_onnx
from q8c.ir import interpret
from tests.frontend.support import F32, Array, Shape, compare, integers, model, node, normal

DOMAIN = "com.microsoft"
B, S, P, HEADS, SIZE = 2, 5, 3, 4, 16
WIDTH = HEADS * SIZE
ROWS: Shape = ["batch", "seq", WIDTH]
I32 = np.int32
WEIGHTS = {"w": normal(WIDTH, 3 * WIDTH, seed=1) * F32(0.3), "b": normal(3 * WIDTH, seed=2)}
X = normal(B, S, WIDTH)
PAST: Shape = [2, "batch", HEADS, "past", SIZE]


def check(op: str, inputs: str, outputs: str, feeds: Mapping[str, tuple[Array, Shape]],
          constants: Mapping[str, Array] | None = None, **attrs: Any) -> None:
    """A model of one node, its output types f32, against ONNX Runtime."""
    proto = model([node(op, inputs, outputs, domain=DOMAIN, **attrs)],
                  {n: (a.dtype, s) for n, (a, s) in feeds.items()}, dict.fromkeys(outputs.split(), F32), constants,
                  opset_imports=[helper.make_opsetid(DOMAIN, 1)])
    compare(proto, {n: a for n, (a, _) in feeds.items()}, runtime=True, rtol=1e-4, atol=2e-5)


MASKS: dict[str, tuple[Array, Shape]] = {
    "lengths": (np.array([5, 3], I32), ["batch"]),
    "ranges": (np.array([5, 4, 1, 0], I32), ["2 * batch"]),
    "keys": (np.array([[1, 1, 1, 0, 0], [1] * 5], I32), ["batch", "seq"]),
    "scores": (integers(B, S, S, low=0, high=2, dtype=I32) | np.eye(S, dtype=I32), ["batch", "seq", "seq"]),
}


@pytest.mark.parametrize("form", [f for f in MASKS if f != "ranges"])
def test_attention_takes_masks_in_several_forms(form: str) -> None:
    check("Attention", "x w b mask", "y", {"x": (X, ROWS), "mask": MASKS[form]}, WEIGHTS, num_heads=HEADS)


def test_attention_takes_ranges_of_keys() -> None:
    check("Attention", "x w b mask", "y", {"x": (X, [B, "seq", WIDTH]), "mask": (MASKS["ranges"][0], [2 * B])}, WEIGHTS,
          num_heads=HEADS)


def test_attention_is_causal_behind_a_past() -> None:
    past = normal(2, B, HEADS, P, SIZE, seed=3)
    check("Attention", "x w b - past", "y present", {"x": (X, ROWS), "past": (past, PAST)}, WEIGHTS, num_heads=HEADS,
          unidirectional=1, scale=0.2)


def test_attention_with_a_bias_of_scores_and_parts_of_several_widths() -> None:
    w = {"w": normal(WIDTH, 2 * WIDTH + 16, seed=4), "b": normal(2 * WIDTH + 16, seed=5)}
    bias: tuple[Array, Shape] = (normal(1, HEADS, S, S), [1, HEADS, "seq", "seq"])
    check("Attention", "x w b - - bias", "y", {"x": (X, ROWS), "bias": bias}, w,
          num_heads=HEADS, qkv_hidden_sizes=[WIDTH, WIDTH, 16])


@pytest.mark.parametrize("form", ["keys", "scores"])
def test_multi_head_attention(form: str) -> None:
    feeds = {n: (normal(B, S, WIDTH, seed=i), ROWS) for i, n in enumerate("qkv")}
    check("MultiHeadAttention", "q k v b mask", "y", {**feeds, "mask": MASKS[form]}, {"b": WEIGHTS["b"]},
          num_heads=HEADS, mask_filter_value=-1e9)


def test_multi_head_attention_continues_a_past() -> None:
    feeds: dict[str, tuple[Array, Shape]] = {n: (normal(B, S, WIDTH, seed=i), ROWS) for i, n in enumerate("qkv")}
    shape: Shape = ["batch", HEADS, "past", SIZE]
    feeds |= {n: (normal(B, HEADS, P, SIZE, seed=i), shape) for i, n in enumerate(("pk", "pv"), 7)}
    check("MultiHeadAttention", "q k v - - - pk pv", "y key value", feeds, num_heads=HEADS, unidirectional=1)


def test_lengths_behind_which_packed_sequences_begin() -> None:
    feeds: dict[str, tuple[Array, Shape]] = {n: (normal(B, S, WIDTH, seed=i), [B, "seq", WIDTH])
                                             for i, n in enumerate("qkv")}
    mask: tuple[Array, Shape] = (np.array([5, 3, 0, 5, 10, 0, 5, 10], I32), [3 * B + 2])
    check("MultiHeadAttention", "q k v b mask", "y", {**feeds, "mask": mask}, {"b": WEIGHTS["b"]}, num_heads=HEADS)


def test_multi_head_attention_gives_its_scores() -> None:
    feeds: dict[str, tuple[Array, Shape]] = {n: (normal(B, S, WIDTH, seed=i), ROWS) for i, n in enumerate("qkv")}
    check("MultiHeadAttention", "q k v b mask", "y k2 v2 scores", {**feeds, "mask": MASKS["keys"]},
          {"b": WEIGHTS["b"]}, num_heads=HEADS)


@pytest.mark.parametrize("packed", ["q k v", "k v"])
def test_packed_operands_are_as_those_apart(packed: str) -> None:
    """ONNX Runtime has no such kernel on CPUs."""
    names, count = "q k v".split(), len(packed.split())
    parts = {n: normal(B, S, HEADS, SIZE, seed=i) for i, n in enumerate(names)}
    rows = {n: a.reshape(B, S, WIDTH) for n, a in parts.items()}
    together = np.stack([parts[n] for n in packed.split()], axis=3)
    apart = "q k v b" if count == 3 else "q k v"
    feeds = {"qkv": together} if count == 3 else {"q": rows["q"], "kv": together}
    one, other = (interpret(import_onnx(model(
        [node("MultiHeadAttention", operands, domain=DOMAIN, num_heads=HEADS)],
        {n: (F32, [*("batch", "seq"), *a.shape[2:]]) for n, a in fed.items()}, {"y": F32}, {"b": WEIGHTS["b"]},
        opset_imports=[helper.make_opsetid(DOMAIN, 1)])), fed)[0]
        for operands, fed in ((apart, rows), ("qkv - - b" if count == 3 else "q kv", feeds)))
    np.testing.assert_allclose(other, one, atol=1e-6)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("ids", ["each", "first"])
def test_rotary_embedding(interleaved: int, ids: str) -> None:
    table = normal(20, SIZE // 2, seed=9)
    positions: tuple[Array, Shape] = (integers(B, S, low=0, high=20), ["batch", "seq"])
    if ids == "first":
        positions = (np.array([4]), [1])
    check("RotaryEmbedding", "x positions cos sin", "y", {"x": (X, ROWS), "positions": positions},
          {"cos": np.cos(table), "sin": np.sin(table)}, interleaved=interleaved)


def test_rotary_embedding_of_part_of_each_head() -> None:
    table = normal(20, 2, seed=9)
    check("RotaryEmbedding", "x positions cos sin", "y",
          {"x": (normal(B, HEADS, S, SIZE), ["batch", HEADS, "seq", SIZE]), "positions": (np.array([0]), [1])},
          {"cos": np.cos(table), "sin": np.sin(table)}, rotary_embedding_dim=4, num_heads=HEADS)


def test_embeddings_and_their_norm() -> None:
    tables = {"words": normal(11, 16), "places": normal(S, 16, seed=1), "kinds": normal(2, 16, seed=2),
              "scale": normal(16, seed=3), "shift": normal(16, seed=4)}
    shape: Shape = ["batch", "seq"]
    feeds: dict[str, tuple[Array, Shape]] = {
        "ids": (integers(B, S, low=0, high=11, dtype=I32), shape),
        "segments": (integers(B, S, low=0, high=2, dtype=I32), shape), "mask": MASKS["keys"]}
    proto = model([node("EmbedLayerNormalization", "ids segments words places kinds scale shift mask", "y lengths",
                        domain=DOMAIN, epsilon=1e-6)], {n: (a.dtype, s) for n, (a, s) in feeds.items()},
                  {"y": F32, "lengths": I32}, tables, opset_imports=[helper.make_opsetid(DOMAIN, 1)])
    compare(proto, {n: a for n, (a, _) in feeds.items()}, runtime=True, atol=1e-5)


def test_what_attention_does_not_do_is_told() -> None:
    proto = model([node("Attention", "x w b", domain=DOMAIN, num_heads=HEADS, do_rotary=1)], {"x": (F32, ROWS)},
                  {"y": F32}, WEIGHTS, opset_imports=[helper.make_opsetid(DOMAIN, 1)])
    with pytest.raises(UnsupportedError, match="do_rotary"):
        import_onnx(proto)


PARAMETERS = {"LeakyRelu": [0.1], "HardSigmoid": [0.3, 0.4], "Elu": [0.5], "ThresholdedRelu": [0.5]}


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid", "Softplus", "Softsign", *PARAMETERS])
def test_products_with_an_activation(activation: str) -> None:
    given = dict(zip(("activation_alpha", "activation_beta"), PARAMETERS.get(activation, []), strict=False))
    check("FusedGemm", "a b c", "y", {"a": (normal(5, 8), ["rows", 8])}, {"b": normal(6, 8), "c": normal(6)},
          activation=activation, transB=1, alpha=0.5, beta=2.0, **given)


@pytest.mark.parametrize(("activation", "given"), [
    ("Relu", []), ("LeakyRelu", [0.1]), ("Clip", [-0.5, 0.5]), ("HardSigmoid", [0.3, 0.4]), ("HardSwish", [])])
def test_convolutions_with_an_activation_and_a_residual(activation: str, given: list[float]) -> None:
    attrs = {"activation_params": given} if given else {}
    check("FusedConv", "x w b z", "y", {"x": (normal(2, 3, 8, 8), ["n", 3, 8, 8]),
                                        "z": (normal(2, 4, 4, 4, seed=1), ["n", 4, 4, 4])},
          {"w": normal(4, 3, 3, 3), "b": normal(4)}, activation=activation, pads=[1, 1, 1, 1], strides=[2, 2], **attrs)


@pytest.mark.parametrize("first", ["", "A", "B", "AB"])
@pytest.mark.parametrize("last", ["", "A", "B", "AB"])
def test_products_of_operands_that_lie_otherwise(first: str, last: str) -> None:
    """The axis of rows or depth comes first of all (`first`), or last (`last`)."""
    feeds: dict[str, tuple[Array, Shape]] = {}
    for name, (rows, cols) in {"A": (5, 8), "B": (8, 6)}.items():
        if name in last:
            rows, cols = cols, rows
        sizes = (rows, 2, 3, cols) if name in first else (2, 3, rows, cols)
        feeds[name] = (normal(*sizes, seed=cols), ["batch" if d == 2 else d for d in sizes])
    attrs: dict[str, Any] = {f"trans{n}": 1 for n in last} | {f"transBatch{n}": 1 for n in first}
    check("FusedMatMul", "A B", "y", feeds, alpha=0.5, **attrs)
