"""Convolutions and pooling against ONNX's reference, with sizes that vary where they may."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from q8c.ir import interpret
from q8c.passes.manager import run_passes
from q8c.passes.pipeline import Options, pipeline
from tests.frontend.support import BOOL, F32, I64, compare, load, model, node, normal

CONVOLUTIONS: dict[str, tuple[int, tuple[int, ...], dict[str, Any]]] = {
    "padding": (1, (3,), {"pads": [1, 2]}), "strides": (2, (3, 2), {"strides": [2, 1], "pads": [0, 1, 1, 0]}),
    "dilations": (2, (2, 3), {"dilations": [2, 1]}), "groups": (1, (3,), {"group": 3, "pads": [1, 1]}),
    "each channel": (2, (3, 3), {"group": 6, "pads": [1, 1, 1, 1]}), "same": (1, (4,), {"auto_pad": "SAME_UPPER"}),
    "same, strides": (1, (4,), {"auto_pad": "SAME_LOWER", "strides": [3]}), "valid": (1, (2,), {"auto_pad": "VALID"}),
    "padded patches": (1, (3,), {"strides": [3], "pads": [1, 1]}), "patches": (2, (2, 3), {"strides": [2, 3]}),
    "whole steps": (1, (4,), {"strides": [2], "pads": [0, 1], "group": 2}),
    "whole steps of rows": (2, (4, 4), {"strides": [2, 2], "pads": [1, 2, 1, 0]})}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("varies", [True, False])
def test_convolutions(name: str, varies: bool) -> None:
    rank, kernel, attrs = CONVOLUTIONS[name]
    group = attrs.get("group", 1)
    shape = [8, 9][:rank]
    declared = ["n", 6, *(f"d{i}" if varies else d for i, d in enumerate(shape))]
    proto = model([node("Conv", "x w b", **attrs)], {"x": (F32, declared)}, {"y": F32},
                  {"w": normal(12 if group == 3 else 6, 6 // group, *kernel), "b": normal(12 if group == 3 else 6)})
    feeds = [{"x": normal(2, 6, *(d + more for d in shape))} for more in ((0, 3) if varies else (0,))]
    compare(proto, *feeds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attrs", [
    {}, {"strides": [2], "pads": [1, 0]}, {"strides": [3], "output_padding": [1]}, {"dilations": [2]}, {"group": 2},
    {"strides": [2], "output_shape": [12]}, {"strides": [2], "auto_pad": "SAME_LOWER"}])
def test_transposed_convolutions(attrs: dict[str, Any]) -> None:
    proto = model([node("ConvTranspose", "x w b", **attrs)], {"x": (F32, ["n", 4, 5])}, {"y": F32},
                  {"w": normal(4, 3, 3), "b": normal(3 * attrs.get("group", 1))})
    compare(proto, {"x": normal(2, 4, 5)}, rtol=1e-4, atol=1e-5, runtime=True)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("attrs", [
    {"kernel_shape": [2, 3]}, {"kernel_shape": [3, 3], "pads": [1, 1, 0, 1], "strides": [2, 2]},
    {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}])
def test_pooling_of_an_image_whose_size_varies(op: str, attrs: dict[str, Any]) -> None:
    proto = model([node(op, "x", **attrs)], {"x": (F32, ["n", 2, "h", "w"])}, {"y": F32})
    compare(proto, {"x": normal(1, 2, 6, 7)}, {"x": normal(2, 2, 5, 4)}, runtime=True)


def test_places_of_the_largest_elements() -> None:
    proto = model([node("MaxPool", "x", "y i", kernel_shape=[2, 2], strides=[2, 1], pads=[1, 0, 0, 1])],
                  {"x": (F32, ["n", 2, "h", "w"])}, {"y": F32, "i": I64})
    compare(proto, {"x": normal(2, 2, 5, 4)}, runtime=True)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("place", ["half_pixel", "align_corners", "pytorch_half_pixel"])
def test_images_and_position_embeddings_of_sizes_that_vary(mode: str, place: str) -> None:
    """To the size of another input, and by a scale."""
    attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": place}
    proto = model([node("Shape", "like", "two", start=2, end=4), node("Shape", "x", "first", start=0, end=2),
                   node("Concat", "first two", "sizes", axis=0), node("Resize", "x - - sizes", "y", **attrs),
                   node("Resize", "x - scales", "z", **attrs)],
                  {"x": (F32, ["n", 3, "h", "w"]), "like": (F32, ["n", 1, "a", "b"])}, {"y": F32, "z": F32},
                  {"scales": np.array([1, 1, 1.5, 0.5], F32)})
    compare(proto, *({"x": normal(2, 3, *old), "like": normal(2, 1, *new)}
                     for old, new in (((4, 4), (4, 4)), ((4, 5), (7, 3)), ((3, 6), (2, 9)))), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("antialias", [0, 1])
def test_an_image_of_no_rows(antialias: int) -> None:
    proto = model([node("Resize", "x - - sizes", mode="linear", antialias=antialias)], {"x": (F32, [1, 1, 4, 4])},
                  {"y": F32}, {"sizes": np.array([1, 1, 0, 2])})
    assert interpret(load(proto), {"x": normal(1, 1, 4, 4)})[0].shape == (1, 1, 0, 2)


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
@pytest.mark.parametrize("varies", [True, False])
def test_padding_by_the_operands_own_elements(mode: str, varies: bool) -> None:
    proto = model([node("Pad", "x p", mode=mode)], {"x": (F32, ["n", "m"] if varies else [3, 5])}, {"y": F32},
                  {"p": np.array([1, 2, 2, 3])})
    compare(proto, {"x": normal(3, 5)}, runtime=True)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_of_an_axis_whose_size_varies(largest: int) -> None:
    proto = model([node("TopK", "x k", "y i", axis=0, largest=largest)], {"x": (F32, ["n", "m"])},
                  {"y": F32, "i": I64}, {"k": np.array([2])})
    compare(proto, {"x": normal(5, 3)}, {"x": normal(2, 1)}, runtime=True)


@pytest.mark.parametrize("largest", [0, 1])
def test_nan_is_larger_than_every_number_to_top_k(largest: int) -> None:
    proto = model([node("TopK", "x k", "y i", largest=largest)], {"x": (F32, ["n"])}, {"y": F32, "i": I64},
                  {"k": np.array([3])})
    compare(proto, {"x": np.array([1, np.nan, np.inf, -np.inf], F32)})


@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_scatter_elements(reduction: str) -> None:
    proto = model([node("ScatterElements", "x i u", axis=1, reduction=reduction)],
                  {"x": (F32, ["n", 4]), "i": (I64, ["n", "m"]), "u": (F32, ["n", "m"])}, {"y": F32})
    places = np.array([[0, -1, 2], [3, 1, 0]])
    compare(proto, {"x": normal(2, 4), "i": places, "u": normal(2, 3, seed=1)}, runtime=True)


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_scatter_truth_values(reduction: str) -> None:
    proto = model([node("ScatterND", "x i u", "nd", reduction=reduction),
                   node("ScatterElements", "x j u", "elements", reduction=reduction)],
                  {"x": (BOOL, ["n"]), "i": (I64, ["m", 1]), "j": (I64, ["m"]), "u": (BOOL, ["m"])},
                  {"nd": BOOL, "elements": BOOL})
    places = np.arange(4)
    compare(proto, {"x": places > 1, "i": places[:, np.newaxis], "j": places, "u": places % 2 > 0})


def test_the_windows_of_a_convolution_times_its_kernel_are_an_int8_product() -> None:
    proto = model([node("Conv", "x w b", pads=[1, 1], strides=[2])], {"x": (F32, ["n", 64, "t"])}, {"y": F32},
                  {"w": normal(96, 64, 3), "b": normal(96)})
    graph = load(proto)
    run_passes(graph, pipeline(Options()))
    linear, = (n for n in graph.nodes if n.op == "q8_linear")
    assert linear.inputs[5] is not None and linear.output.shape[-1] == 96  # the bias is in it
    assert [n.op for n in graph.nodes[graph.nodes.index(linear) + 1:]] == ["transpose"]


@pytest.mark.parametrize(("group", "kernel", "strides", "ops"), [
    (4, 3, 1, {"conv": 1}), (64, 3, 1, {"conv": 1}), (2, 1, 1, {"q8_linear": 2}), (4, 1, 1, {"q8_linear": 4}),
    (1, 3, 1, {"q8_linear": 1}), (8, 1, 1, {"conv": 1}), (64, 3, 2, {})])
def test_groups_are_float_where_windows_overlap_and_products_elsewhere(
        group: int, kernel: int, strides: int, ops: dict[str, int]) -> None:
    proto = model([node("Conv", "x w b", group=group, strides=[strides])], {"x": (F32, ["n", 64, "d"])}, {"y": F32},
                  {"w": normal(64, 64 // group, kernel), "b": normal(64)})
    graph = load(proto)
    feed = {"x": normal(2, 64, 9)}
    before = interpret(graph, feed)[0]
    run_passes(graph, pipeline(Options()))
    found = [n.op for n in graph.nodes]
    assert {op: found.count(op) for op in ("conv", "q8_linear") if op in found} == ops
    assert np.linalg.norm(interpret(graph, feed)[0] - before) < 0.03 * np.linalg.norm(before)
