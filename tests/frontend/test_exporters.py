"""The subgraphs exporters write around attention, small: nothing but the mask itself is left of them."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from q8c.passes.manager import run_passes
from q8c.passes.pipeline import Options, pipeline
from tests.frontend.support import F32, I64, compare, integers, model, node, normal

LOWEST = np.array(np.finfo(np.float32).min)
END = np.iinfo(np.int64).max


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


CONSTANTS: dict[str, Any] = {
    "zero_s": np.array(0), "one_s": np.array(1), "d0": ints(0), "d1": ints(1), "d2": ints(2), "d3": ints(3),
    "d4": ints(4), "dm1": ints(-1), "dm2": ints(-2), "least": ints(-END - 1), "most_": ints(END), "d01": ints(0, 1),
    "d12": ints(1, 2), "zero": np.array(0, F32), "lowest": LOWEST, "true": np.array(True), "scale": np.array(0.5, F32)}


def attention_of_the_new_exporter() -> list[onnx.NodeProto]:
    """Scaled dot products as torch.onnx's dynamo exporter writes them, from `h` [batch, seq, 8] and `keep`."""
    nodes = [node("Shape", "h", "bs", start=0, end=2), node("Concat", "bs dm1 d4", "heads", axis=0)]
    for name in "qkv":
        nodes += [node("MatMul", f"h w{name}", f"{name}1"), node("Add", f"{name}1 b{name}", f"{name}2"),
                  node("Reshape", f"{name}2 heads", f"{name}3", allowzero=1),
                  node("Transpose", f"{name}3", f"{name}4", perm=[0, 2, 1, 3])]
    return nodes + [
        node("Shape", "k4", "ks", start=0), node("Slice", "ks dm1 most_", "k_last"),
        node("Slice", "ks dm2 dm1", "k_seq"), node("Slice", "ks least dm2", "k_lead"),
        node("Concat", "dm1 k_seq k_last", "k_flat", axis=0), node("Reshape", "k4 k_flat", "k5"),
        node("Transpose", "k5", "k6", perm=[0, 2, 1]), node("Concat", "k_lead k_last k_seq", "k_back", axis=0),
        node("Reshape", "k6 k_back", "k7"), node("Mul", "q4 scale", "q5"), node("Mul", "k7 scale", "k8"),
        node("Where", "keep zero lowest", "bias"), node("MatMul", "q5 k8", "scores"),
        node("Add", "scores bias", "masked"), node("Softmax", "masked", "p", axis=-1), node("IsNaN", "p", "nan"),
        node("Where", "nan zero p", "p1"), node("MatMul", "p1 v4", "o"),
        node("Transpose", "o", "o1", perm=[0, 2, 1, 3]), node("Concat", "bs dm1", "joined", axis=0),
        node("Reshape", "o1 joined", "y", allowzero=1)]


def mask_by_gather_nd(causal: bool) -> list[onnx.NodeProto]:
    """`keep` from the mask [batch, seq], looked up element by element as the dynamo exporter writes it."""
    test = "LessOrEqual" if causal else "GreaterOrEqual"
    return [
        node("Cast", "mask", "m", to=TensorProto.BOOL), node("Shape", "mask", "n0", start=0, end=1),
        node("Shape", "mask", "n1", start=1, end=2), node("Squeeze", "n0", "batch"), node("Squeeze", "n1", "seq"),
        node("Range", "zero_s batch one_s", "rows"), node("Range", "zero_s seq one_s", "cols"),
        node("Unsqueeze", "rows d12", "rows3"), node("Unsqueeze", "rows3 d3", "rows4"),
        node("Unsqueeze", "cols d01", "cols3"), node("Unsqueeze", "cols3 d3", "queries"),
        node("Unsqueeze", "cols3 d2", "keys"),
        node(test, "keys queries" if causal else "queries zero_s", "seen"), node("And", "true seen", "seen1"),
        node("Max", "rows4 keys", "most"), node("Shape", "most", "target", start=0),
        node("Expand", "rows4 target", "i"), node("Unsqueeze", "i dm1", "i1"), node("Expand", "keys target", "j"),
        node("Unsqueeze", "j dm1", "j1"), node("Concat", "i1 j1", "places", axis=-1),
        node("GatherND", "m places", "found", batch_dims=0), node("And", "seen1 found", "keep")]


def mask_by_gather() -> list[onnx.NodeProto]:
    """`keep` as the older exporter writes it: the mask flattened, indices computed, guards around Expand."""
    ones = numpy_helper.from_array(ints(1))
    return [
        node("Cast", "mask", "m", to=TensorProto.BOOL), node("Shape", "mask", "s"), node("Gather", "s zero_s", "batch"),
        node("Gather", "s one_s", "seq"), node("Cast", "batch", "batch1", to=TensorProto.INT64),
        node("Range", "zero_s batch1 one_s", "rows"), node("Range", "zero_s seq one_s", "cols"),
        node("Unsqueeze", "rows d1", "rows2"), node("Unsqueeze", "rows2 d2", "rows3"),
        node("Unsqueeze", "rows3 d3", "rows4"), node("Unsqueeze", "cols d01", "cols3"),
        node("Unsqueeze", "cols3 d2", "keys"), node("Flatten", "m", "flat", axis=2), node("Gather", "s d1", "width"),
        node("Mul", "rows4 width", "offsets"), node("Add", "keys offsets", "places"),
        node("Gather", "flat places", "found", axis=0), node("Shape", "places", "shape"),
        node("Reshape", "found dm1", "found1"), node("Concat", "shape", "shape1", axis=0),
        node("Reshape", "found1 shape1", "found2"), node("Unsqueeze", "batch d0", "b1"),
        node("Unsqueeze", "seq d0", "n1"), node("Concat", "b1 dm1 n1 n1", "target", axis=0),
        node("Shape", "target", "rank"), node("ConstantOfShape", "rank", "ones", value=ones),
        node("Mul", "ones dm1", "minuses"), node("Equal", "target minuses", "open"),
        node("Where", "open ones target", "target1"), node("Expand", "found2 target1", "keep")]


@pytest.mark.parametrize("mask", ["gather_nd", "gather_nd causal", "gather"])
def test_encoder_layer(mask: str) -> None:
    start = [node("Shape", "ids", "len", start=1, end=2), node("Slice", "positions d0 len d1 d1", "at"),
             node("Gather", "words ids", "e0"), node("Gather", "places_table at", "e1"), node("Add", "e0 e1", "h")]
    body = mask_by_gather() if mask == "gather" else mask_by_gather_nd("causal" in mask)
    attention = attention_of_the_new_exporter()
    weights = {f"w{n}": normal(8, 8, seed=i) for i, n in enumerate("qkv")}
    biases = {f"b{n}": normal(8, seed=i) for i, n in enumerate("qkv")}
    proto = model([*start, *body, *attention], {"ids": (I64, ["batch", "seq"]), "mask": (I64, ["batch", "seq"])},
                  {"y": F32}, {**CONSTANTS, **weights, **biases, "positions": np.arange(16)[None],
                               "words": normal(20, 8), "places_table": normal(16, 8)})
    feeds = []
    for batch, seq in ((1, 1), (2, 5), (3, 16)):
        keep = np.ones((batch, seq), np.int64)
        keep[0, seq - seq // 3:] = 0
        feeds.append({"ids": integers(batch, seq, low=0, high=20), "mask": keep})
    graph = compare(proto, *feeds, atol=1e-5)
    assert [f"{a} == {b}" for a, b in graph.assumptions] == ["seq == min(16, seq)", "max(1, seq) == seq"]
    assert str(graph.outputs[0].type) == "f32[batch, seq, 8]"
    moved = {"reshape", "transpose", "gather", "slice", "broadcast_to", "concat", "gather_nd", "iota", "cast", "where"}
    assert {n.op for n in graph.nodes} <= moved | {"matmul", "add", "mul", "softmax", "is_nan", "and", "greater_equal",
                                                   "less_equal", "sizes"}
    assert sum(n.op == "sizes" for n in graph.nodes) <= 1  # the row offsets of the flattened mask are data


def test_decoder_cache_gives_its_length_to_the_mask() -> None:
    nodes = [node("Concat", "past k", "present", axis=2), node("Shape", "present", "total", start=2, end=3),
             node("Shape", "past", "before", start=2, end=3), node("Squeeze", "total", "n"),
             node("Squeeze", "before", "first"), node("Range", "zero_s n one_s", "keys"),
             node("Range", "first n one_s", "queries"),
             node("Unsqueeze", "queries d1", "queries1"), node("LessOrEqual", "keys queries1", "seen"),
             node("Unsqueeze", "mask d1", "mask1"), node("Cast", "mask1", "mask2", to=TensorProto.BOOL),
             node("And", "seen mask2", "keep"), node("Where", "keep zero lowest", "bias"),
             node("Transpose", "present", "kt", perm=[0, 1, 3, 2]), node("MatMul", "q kt", "scores"),
             node("Unsqueeze", "bias d1", "bias1"), node("Add", "scores bias1", "masked"),
             node("Softmax", "masked", "p", axis=-1), node("MatMul", "p present")]
    cache: Any = (F32, ["batch", 2, "past", 4])
    step: Any = (F32, ["batch", 2, "seq", 4])
    proto = model(nodes, {"q": step, "k": step, "past": cache, "mask": (I64, ["batch", "total"])},
                  {"y": F32, "present": F32}, CONSTANTS)
    feeds = [{"q": normal(2, 2, seq, 4), "k": normal(2, 2, seq, 4), "past": normal(2, 2, past, 4),
              "mask": np.ones((2, past + seq), np.int64)} for past, seq in ((0, 3), (5, 1), (2, 2))]
    graph = compare(proto, *feeds, atol=1e-5)
    assert [str(v.type) for v in graph.inputs] == [
        "f32[batch, 2, seq, 4]", "f32[batch, 2, seq, 4]", "f32[batch, 2, past, 4]", "i64[batch, past + seq]"]
    assert str(graph.outputs[1].type) == "f32[batch, 2, past + seq, 4]" and not graph.assumptions
    assert [str(n.output.type) for n in graph.nodes if n.op == "sizes"] == ["i64[1]"]  # the first query's position


def test_patches_of_an_image_with_a_class_token() -> None:
    nodes = [node("Conv", "image kernel bias", "c", strides=[4, 4], kernel_shape=[4, 4]), node("Shape", "c", "s"),
             node("Slice", "s d0 d2", "lead"), node("Concat", "lead dm1", "flat", axis=0),
             node("Reshape", "c flat", "f"),
             node("Transpose", "f", "t", perm=[0, 2, 1]), node("Shape", "image", "batch", start=0, end=1),
             node("Concat", "batch dm1 dm1", "wide", axis=0), node("Expand", "token wide1", "token1"),
             node("Where", "open d1 wide", "wide1"), node("Equal", "wide dm1", "open"),
             node("Concat", "token1 t", "rows", axis=1), node("Add", "rows places")]
    order = [0, 1, 2, 3, 4, 5, 6, 7, 10, 9, 8, 11, 12]
    proto = model([nodes[i] for i in order], {"image": (F32, ["batch", 3, 8, 12])}, {"y": F32},
                  {**CONSTANTS, "kernel": normal(5, 3, 4, 4), "bias": normal(5), "token": normal(1, 1, 5),
                   "places": normal(1, 7, 5)})
    graph = compare(proto, {"image": normal(2, 3, 8, 12)}, {"image": normal(1, 3, 8, 12)}, atol=1e-5, rtol=1e-4)
    assert str(graph.outputs[0].type) == "f32[batch, 7, 5]" and not graph.assumptions


def test_heads_by_einsum_as_keras_writes_them() -> None:
    """Weights and biases have an axis for heads, and scores name the keys before the queries."""
    heads = [part for n in "qkv" for part in (
        node("Einsum", f"x w{n}", f"{n}0", equation="abc,cde->abde"), node("Add", f"{n}0 b{n}", n))]
    proto = model([*heads, node("Einsum", "k q", "scores", equation="aecd,abcd->acbe"),
                   node("Softmax", "scores", "p", axis=-1), node("Einsum", "p v", "c", equation="acbe,aecd->abcd"),
                   node("Einsum", "c wo", "y", equation="abcd,cde->abe")],
                  {"x": (F32, ["batch", "seq", 8])}, {"y": F32},
                  {**{f"w{n}": normal(8, 2, 4, seed=i) for i, n in enumerate("qkv")}, "wo": normal(2, 4, 8),
                   **{f"b{n}": normal(2, 4, seed=i) for i, n in enumerate("qkv")}})
    graph = compare(proto, {"x": normal(2, 5, 8)}, {"x": normal(1, 1, 8)}, atol=1e-5)
    run_passes(graph, pipeline(Options(quantize=False)))
    assert [n.op for n in graph.nodes] == ["linear", "attention", "linear"]
