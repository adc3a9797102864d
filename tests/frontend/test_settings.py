"""Inputs that are constants of a value given when a model is compiled."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.helper import make_graph, make_node

from q8c.errors import CompileError, UnsupportedError
from q8c.frontend import import_onnx
from q8c.ir import interpret
from tests.frontend.support import BOOL, F32, I64, model, node, value


def merged() -> onnx.ModelProto:
    """Two models in one, as Optimum merges decoders: `first` reads x, the other also what is kept."""
    first = make_graph([make_node("Neg", ["x"], ["a"])], "first", [], [value("a", F32, None)])
    later = make_graph([make_node("Concat", ["kept", "x"], ["b"], axis=0)], "later", [], [value("b", F32, None)])
    nodes = [node("If", "use_cache", then_branch=later, else_branch=first)]
    return model(nodes, {"x": (F32, ["n", 2]), "kept": (F32, ["past", 2]), "use_cache": (BOOL, [1]),
                         "scale": (F32, [])}, {"y": F32})


def test_one_file_is_both_of_its_branches() -> None:
    x, kept = np.ones((3, 2), np.float32), np.zeros((2, 2), np.float32)
    first = import_onnx(merged(), {"use_cache": False})
    assert [v.name for v in first.inputs] == ["x"]
    assert np.array_equal(interpret(first, {"x": x})[0], -x)
    later = import_onnx(merged(), {"use_cache": True})
    assert [v.name for v in later.inputs] == ["x", "kept"]
    assert interpret(later, {"x": x, "kept": kept})[0].shape == (5, 2)


def test_without_a_value_the_error_says_how_to_choose() -> None:
    with pytest.raises(UnsupportedError, match=r"of input use_cache\).*`--set use_cache=\.\.\.` chooses a branch"):
        import_onnx(merged())


def test_an_unread_input_that_tells_a_size_stays() -> None:
    proto = model([node("Range", "zero rows one", "y")], {"x": (F32, ["n"]), "rows": (I64, [])}, {"y": I64},
                  {"zero": np.array(0), "one": np.array(1)})
    assert [v.name for v in import_onnx(proto, {"rows": 3}).inputs] == []
    sized = model([node("Shape", "x", "y")], {"x": (F32, ["n"]), "rows": (I64, [])}, {"y": I64})
    assert [v.name for v in import_onnx(sized, {"rows": 3}).inputs] == ["x"]


@pytest.mark.parametrize(("name", "given", "problem"), [
    ("nobody", True, "no input 'nobody' to set; its inputs are x, kept, use_cache, scale"),
    ("x", 1, "'x' cannot be set to 1: its shape varies"),
    ("use_cache", 1, "'use_cache' cannot be set to 1: its elements are bool"),
    ("scale", True, "'scale' cannot be set to True: its elements are f32"),
    ("scale", "two", "'scale' cannot be set to 'two': its elements are f32")])
def test_what_cannot_be_set(name: str, given: Any, problem: str) -> None:
    with pytest.raises(CompileError, match=problem):
        import_onnx(merged(), {name: given})


def test_shapes_in_place_of_the_model_s() -> None:
    proto = model([node("Concat", "x z", axis=0)], {"x": (F32, [None, 4]), "z": (F32, ["n", 4])}, {"y": F32})
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    with pytest.raises(CompileError, match=r"the shape of its inputs 'z'; state it .*`--shape z=batch,128` or"):
        import_onnx(proto)
    graph = import_onnx(proto, shapes={"z": ["2*rows", 4], "x": ["rows", 4]})
    types = [str(v.type) for v in (*graph.inputs, *graph.outputs)]
    assert types == ["f32[rows, 4]", "f32[2*rows, 4]", "f32[3*rows, 4]"]
    assert str(import_onnx(proto, shapes={"z": (1, 4), "x": (2, 4)}).outputs[0].type) == "f32[3, 4]"


@pytest.mark.parametrize(("name", "shape", "problem"), [
    ("nobody", [1], "no input 'nobody' to give a shape; its inputs are x, kept, use_cache, scale"),
    ("x", ["n", 2, 1], r"'x' cannot have the shape \['n', 2, 1\]: it has 2 dimensions"),
    ("x", "n,2", "'x' cannot have the shape 'n,2'; expected numbers, and names"),
    ("x", 2, "'x' cannot have the shape 2; expected numbers"), ("x", [-1, 2], r"'x' cannot have the shape \[-1, 2\]"),
    ("x", [True, 2], "expected numbers"), ("x", ["", 2], "expected numbers")])
def test_what_no_shape_can_be(name: str, shape: Any, problem: str) -> None:
    with pytest.raises(CompileError, match=problem):
        import_onnx(merged(), shapes={name: shape})
