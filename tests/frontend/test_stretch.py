"""Axes of inputs that may be given as 1: those the model only broadcasts, whatever it asks of shapes besides."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from q8c.errors import InputError
from q8c.ir import interpret
from q8c.passes.calibration import checked_feeds
from tests.frontend.support import F32, I64, load, model, node, normal

Nodes = Sequence[onnx.NodeProto]
CONSTANTS = {"one": np.array([1]), "last": np.array([-1]), "axes": np.array([1, 2]), "table": normal(8, 4)}
HEADS = {"h": (F32, ["batch", "heads", "rows", "cols"]), "m": (F32, ["b", 1, "q", "k"])}
IDS = {"ids": (I64, ["batch", "seq"]), "mask": (I64, ["batch", "seq"]), "places": (I64, ["batch", "seq"])}
PAIR = {"x": (F32, ["a", 4]), "z": (F32, ["b", 4])}
EMBEDDED = [node("Gather", "table ids", "e"), node("Gather", "table places", "p"), node("Add", "e p", "sum"),
            node("Shape", "ids", "shape"), node("Concat", "shape two two", "apart", axis=0),
            node("Reshape", "sum apart", "heads")]
MASKED = [node("Unsqueeze", "mask axes", "wide"), node("Cast", "wide", "bias", to=onnx.TensorProto.FLOAT),
          node("MatMul", "heads back", "scores"), node("Add", "scores bias", "y")]


def stretches(nodes: Nodes, inputs: Mapping[str, Any], outputs: Sequence[str] = ("y",),
              **constants: Any) -> dict[str, tuple[int, ...]]:
    proto = model(nodes, inputs, dict.fromkeys(outputs, F32), {**CONSTANTS, **constants})
    return {value.name: axes for value, axes in load(proto).stretches.items()}


@pytest.mark.parametrize(("nodes", "inputs", "expected"), [
    ([node("Add", "h m", "s"), node("Softmax", "s")], HEADS, {"h": (0, 2, 3), "m": (0, 2, 3)}),
    ([node("Softmax", "m", "s"), node("Add", "h s")], HEADS, {"h": (0, 2, 3), "m": (0, 2)}),
    ([node("Transpose", "m", "s", perm=[0, 1, 3, 2]), node("MatMul", "h s")], HEADS, {"h": (0,), "m": (0,)}),
    ([node("Shape", "m", "s"), node("Expand", "h s")], HEADS, {"h": (0, 2, 3), "m": (0, 2, 3)}),
    ([node("Concat", "h m", axis=1)], HEADS, {}),
    ([node("Add", "h m", "s"), node("ReduceMax", "s", keepdims=0)], HEADS, {"h": (0, 2, 3), "m": (0, 2, 3)}),
    ([node("ReduceMax", "m", "s"), node("Add", "h s")], HEADS, {}),
    ([node("Add", "x z", "s"), node("Reshape", "s last")], PAIR, {}),
    ([node("Add", "x z", "s"), node("Shape", "x", "n"), node("Reshape", "s n")], PAIR, {}),
    ([node("Add", "x z", "s"), node("Shape", "z", "n", end=1), node("Expand", "n one", "t"),
      node("Cast", "t", "f", to=onnx.TensorProto.FLOAT), node("Mul", "s f")], PAIR, {"x": (0,)}),
])
def test_what_is_only_broadcast(nodes: Nodes, inputs: Mapping[str, Any], expected: dict[str, tuple[int, ...]]) -> None:
    assert stretches(nodes, inputs) == expected


def test_masks_and_places_of_tokens_may_have_one_row() -> None:
    """The ids say how heads are split, and so have all rows, as they come first."""
    found = stretches([*EMBEDDED, *MASKED], IDS, two=np.array([2]), back=normal(2, 3),
                      axes=np.array([2, 3]))
    assert found == {"mask": (0, 1), "places": (0, 1)}


def test_an_input_may_be_stretched_to_a_fixed_size() -> None:
    nodes = [node("Add", "x table", "y")]
    assert stretches(nodes, {"x": (F32, ["a", "b"])}) == {"x": (0, 1)}
    assert stretches([node("Mul", "x table", "s"), node("Sub", "s x", "y")], {"x": (F32, ["a", "b"])}) == {"x": (0, 1)}
    assert stretches([*nodes, node("Relu", "x", "z")], {"x": (F32, ["a", "b"])}, ["y", "z"]) == {}


def test_of_inputs_that_an_output_has_the_axis_of_not_all_are_one() -> None:
    """Both are 1 where the size is, unless another input tells that: x + z is 1 row then, and q8c would give w's."""
    inputs = {**PAIR, "w": (F32, ["c", 4])}
    one = [node("Add", "x z", "y1")]
    assert stretches(one, PAIR, ["y1"]) == {"x": (0,), "z": (0,)}
    assert stretches([*one, node("Add", "y1 w", "y2")], inputs, ["y2"]) == {"x": (0,), "z": (0,), "w": (0,)}
    assert stretches([*one, node("Add", "y1 w", "y2")], inputs, ["y1", "y2"]) == {"z": (0,), "w": (0,)}


def test_what_is_given_as_one_is_stretched_for_the_interpreter_and_for_calibration() -> None:
    graph = load(model([node("Concat", "x k", "all", axis=0), node("Add", "all z")], {
        "x": (F32, ["a", 4]), "k": (F32, ["past", 4]), "z": (F32, ["past + a", "b"])}, {"y": F32}, CONSTANTS))
    feed = {"x": normal(3, 4), "k": normal(2, 4, seed=1)}
    for shape in ((1, 1), (5, 1), (1, 4), (5, 4)):
        z = normal(*shape)
        y = interpret(graph, {**feed, "z": z})[0]
        assert np.array_equal(y, np.concatenate([feed["x"], feed["k"]]) + z)
        assert [a.shape for a in checked_feeds(graph, ({**feed, "z": z},))[0].values()] == [(3, 4), (2, 4), (5, 4)]
    with pytest.raises(InputError, match=r"expected f32\[.*, got \[3, 4\]"):
        interpret(graph, {**feed, "z": normal(3, 4)})
