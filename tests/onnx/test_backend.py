"""The backend as its users meet it: inputs that shapes follow from, and what must never end the process."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from q8c import onnx_backend
from q8c.errors import InputError, UnsupportedError
from tests.frontend.support import F32, I64, model, node, normal

I32 = np.int32


def test_inputs_in_order_by_name_or_alone() -> None:
    rep = onnx_backend.prepare(model([node("Sub", "a b")], {"a": (F32, ["n"]), "b": (F32, ["n"])}, {"y": F32}))
    a, b = normal(3), normal(3, seed=1)
    for inputs in ([a, b], (a, b), {"b": b, "a": a}):
        np.testing.assert_array_equal(rep.run(inputs)[0], a - b)
    alone, = onnx_backend.run_model(model([node("Neg", "a")], {"a": (F32, ["n"])}, {"y": F32}), a)
    np.testing.assert_array_equal(alone, -a)
    with pytest.raises(InputError, match="1 inputs were given, expected 2"):
        rep.run([a])


def test_only_the_cpu() -> None:
    assert onnx_backend.supports_device("CPU") and not onnx_backend.supports_device("CUDA:0")
    with pytest.raises(UnsupportedError, match="CUDA"):
        onnx_backend.prepare(model([node("Neg", "a")], {"a": (F32, ["n"])}, {"y": F32}), "CUDA")


def test_elements_that_shapes_follow_from_are_compiled_for() -> None:
    proto = model([node("Neg", "x", "z"), node("Reshape", "z shape", "r"), node("ReduceSum", "r axes", "y")],
                  {"x": (F32, [6]), "shape": (I64, [2]), "axes": (I64, [1])}, {"y": F32}, opset=13)
    rep, x = onnx_backend.prepare(proto), normal(6)
    for shape, axis in (([2, 3], 0), ([3, -1], 1), ([2, 3], 0)):
        feed = {"x": x, "shape": np.array(shape), "axes": np.array([axis])}
        expected, = ReferenceEvaluator(proto).run(None, feed)
        np.testing.assert_allclose(rep.run(feed)[0], np.asarray(expected, F32), rtol=1e-6)
    assert len(rep._sessions) == 2


def test_the_error_names_the_inputs_that_would_have_to_be_constants() -> None:
    from q8c.frontend import import_onnx

    proto = model([node("Add", "s t", "shape"), node("Reshape", "x shape")],
                  {"x": (F32, [6]), "s": (I64, [2]), "t": (I64, [2])}, {"y": F32})
    with pytest.raises(UnsupportedError, match=r"of input s, t") as caught:
        import_onnx(proto)
    assert caught.value.inputs == {"s", "t"}


SMALLEST = np.iinfo(I32).min


@pytest.mark.parametrize(("op", "attrs"), [("Div", {}), ("Mod", {}), ("Mod", {"fmod": 1})])
@pytest.mark.parametrize("constant", [True, False])
def test_division_by_zero_and_of_the_smallest_integer(op: str, attrs: dict[str, Any], constant: bool) -> None:
    x = np.array([7, -7, SMALLEST, SMALLEST, 0], I32)
    y = np.array([0, 2, -1, 0, 0], I32)
    inputs = {"x": (I32, [5]), **({} if constant else {"z": (I32, [5])})}
    proto = model([node(op, "x z", **attrs)], inputs, {"y": I32}, {"z": y} if constant else None)
    found, = onnx_backend.run_model(proto, [x] if constant else [x, y])
    assert found[1] == {"Div": -3, "Mod": -1 if attrs else 1}[op]  # the others are any number, but there is one


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_operands_without_elements(shape: tuple[int, int]) -> None:
    nodes = [node("ReduceSum", "x", "a", keepdims=0), node("CumSum", "x one", "b"), node("Transpose", "x", "c"),
             node("Concat", "x x", "d", axis=0), node("Softmax", "x", "e"), node("MatMul", "c x", "f"),
             node("GatherElements", "x none", "g"), node("ScatterND", "x places updates", "h")]
    proto = model(nodes, {"x": (F32, ["n", "m"]), "none": (I64, [0, "m"])}, dict.fromkeys("abcdefgh", F32),
                  {"one": np.array(1), "places": np.zeros((0, 2), np.int64), "updates": np.zeros(0, F32)}, opset=18)
    x = np.zeros(shape, F32)
    found = onnx_backend.run_model(proto, {"x": x, "none": np.zeros((0, shape[1]), np.int64)})
    expected = [x.sum(), x, x.T, np.zeros((2 * shape[0], shape[1])), x, np.zeros((shape[1], shape[1])),
                np.zeros((0, shape[1])), x]
    for y, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(y, wanted)


def test_scalars() -> None:
    proto = model([node("Add", "a b", "c"), node("ReduceMax", "c", "d", keepdims=0), node("Unsqueeze", "d at", "y")],
                  {"a": (F32, []), "b": (F32, [])}, {"y": F32}, {"at": np.array([0])}, opset=18)
    np.testing.assert_array_equal(onnx_backend.run_model(proto, [np.float32(2), np.float32(3)])[0], [5])


def loop(count: str, body_inputs: list[str]) -> onnx.ModelProto:
    """x doubled in each step, and x of each step in a row."""
    F = onnx.TensorProto.FLOAT
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "s"], ["t"]), helper.make_node("Identity", ["going"], ["on"]),
         helper.make_node("Identity", ["s"], ["row"])], "body",
        [helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
         helper.make_tensor_value_info("going", onnx.TensorProto.BOOL, []),
         helper.make_tensor_value_info("s", F, ["n"])],
        [helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
         helper.make_tensor_value_info("t", F, ["n"]), helper.make_tensor_value_info("row", F, ["n"])])
    inputs: dict[str, Any] = {"x": (F32, ["n"]), **{name: (I64, []) for name in body_inputs}}
    return model([node("Loop", f"{count} - x", "y rows", body=body)], inputs, {"y": F32, "rows": F32},
                 {} if body_inputs else {count: np.array(3)})


@pytest.mark.parametrize("inputs", [[], ["count"]])
def test_loops_are_written_out(inputs: list[str]) -> None:
    x = normal(4)
    y, rows = onnx_backend.run_model(loop("count", inputs), [x, *[np.array(3)] * len(inputs)])
    np.testing.assert_array_equal(y, 8 * x)
    np.testing.assert_array_equal(rows, [x, 2 * x, 4 * x])
