"""Models nobody would call usual: odd names, no nodes, no inputs, other element types, sizes of 0 and 1."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import q8c
from tests.models import Array

RNG = np.random.default_rng(0)
X: Array = RNG.standard_normal((3, 32)).astype(np.float32)
W: Array = RNG.standard_normal((32, 16)).astype(np.float32)
FLOAT = TensorProto.FLOAT
ROWS: list[int | str | None] = ["n", 32]
INT8_L2, F32_L2 = 0.02, 1e-6  # tests/test_compile.py says why
Node = tuple[str, str, str]


def build(nodes: Sequence[Node | onnx.NodeProto], inputs: Mapping[str, Sequence[int | str | None]],
          outputs: Sequence[str], constants: Mapping[str, Array] | None = None, dtype: int = FLOAT,
          name: str = "g") -> onnx.ModelProto:
    """A model of (op, inputs, output) nodes, names of inputs separated by |."""
    made = [helper.make_node(n[0], n[1].split("|"), [n[2]]) if isinstance(n, tuple) else n for n in nodes]
    graph = helper.make_graph(
        made, name, [helper.make_tensor_value_info(n, dtype, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, dtype, inputs.get(n)) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def layer(x: str = "x", w: str = "w", y: str = "y", rows: str | None = "n", **more: Any) -> onnx.ModelProto:
    return build([("MatMul", f"{x}|{w}", y)], {x: [rows, 32]}, [y], {w: W}, **more)


def compare(proto: onnx.ModelProto, feed: Mapping[str, Array], folder: Path, budget: float = INT8_L2) -> None:
    """Compile, run, and compare with ONNX Runtime."""
    session = q8c.load(q8c.compile(proto, folder / "m.q8c"), threads=2)
    peer = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == [i.name for i in peer.get_inputs()]
    assert [(o.name, o.type) for o in session.get_outputs()] == [(o.name, o.type) for o in peer.get_outputs()]
    for y, reference in zip(session.run(None, feed), peer.run(None, dict(feed)), strict=True):
        assert isinstance(reference, np.ndarray)
        assert (y.dtype, y.shape) == (reference.dtype, reference.shape)
        error = np.linalg.norm(y.astype(np.float64) - reference.astype(np.float64))
        assert error <= budget * np.linalg.norm(reference.astype(np.float64))


@pytest.mark.parametrize("name", ["a b/c:0", 'quote"d', "é日本\u3000", "%x", "0", "", "x @ {y} -> z # no"], ids=repr)
def test_names_of_values(name: str, tmp_path: Path) -> None:
    compare(layer(x=f"in{name}", w=f"w{name}", y=f"out{name}"), {f"in{name}": X}, tmp_path)


@pytest.mark.parametrize("name", ["batch size", "lambda", "0", "max", "2*n + 1", "unk__5", "é", 'q"', "a\nb", None])
def test_names_of_sizes(name: str | None, tmp_path: Path) -> None:
    compare(layer(rows=name), {"x": X}, tmp_path)


@pytest.mark.parametrize("name", ["my graph", 'x\n"y" } ; z', "é", "g" * 9000], ids=["space", "llvm", "accent", "long"])
def test_names_of_graphs_and_nodes(name: str, tmp_path: Path) -> None:
    proto = layer(name=name)
    proto.graph.node[0].name = name
    compare(proto, {"x": X}, tmp_path)


def test_a_mask_may_be_one_for_all_and_what_the_model_does_more_with_may_not(tmp_path: Path) -> None:
    proto = build([("Add", "scores|mask", "s"), ("Softmax", "s", "p"), ("ReduceMax", "wide", "top"),
                   ("Mul", "p|top", "q"), ("Add", "q|wide", "y")],
                  {"scores": ["batch", 2, "rows", "cols"], "mask": ["b", 1, "r", "c"], "wide": ["w", 1, 1, 1]}, ["y"])
    session = q8c.load(q8c.compile(proto, tmp_path / "m.q8c", target="avx2"), threads=1)
    peer = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"scores": RNG.standard_normal((3, 2, 4, 5)), "wide": RNG.standard_normal((3, 1, 1, 1))}
    for shape in ((3, 1, 4, 5), (1, 1, 4, 5), (3, 1, 1, 5), (1, 1, 1, 1)):
        masked = {n: a.astype(np.float32) for n, a in (feed | {"mask": RNG.standard_normal(shape)}).items()}
        np.testing.assert_allclose(session.run(None, masked)[0], peer.run(None, masked)[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(q8c.InputError, match="'mask': dimension 3 must be cols, which is 5 .* got 2"):
        session.run(None, masked | {"mask": np.zeros((1, 1, 4, 2), np.float32)})
    with pytest.raises(q8c.InputError, match="'wide': dimension 0 must be batch, which is 3 .* got 1"):
        session.run(None, masked | {"wide": np.zeros((1, 1, 1, 1), np.float32)})


def test_names_a_person_could_not_write_are_refused(tmp_path: Path) -> None:
    for proto, what in ((layer(x="a\nb"), "input"), (layer(y="a\0b"), "output"), (layer(x="x" * 9000), "input")):
        with pytest.raises(q8c.CompileError, match=f"^{what} .* rename it in the model$"):
            q8c.compile(proto, tmp_path / "m.q8c")
    assert not list(tmp_path.iterdir())


def test_more_axes_than_a_file_has_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(q8c.CompileError, match="%x has 100 axes; inputs and outputs have up to 32"):
        q8c.compile(build([("Relu", "x", "y")], {"x": [1] * 100}, ["y"]), tmp_path / "m.q8c")


WHOLE: dict[str, tuple[onnx.ModelProto, dict[str, Array]]] = {
    "output is input": (build([], {"x": ROWS}, ["x"]), {"x": X}),
    "input is also an output": (build([("Relu", "x", "y")], {"x": ROWS}, ["y", "x"]), {"x": X}),
    "two names for one value": (build([("Relu", "x", "y"), ("Identity", "y", "z")], {"x": ROWS}, ["y", "z"]), {"x": X}),
    "output listed twice": (build([("MatMul", "x|w", "y")], {"x": ROWS}, ["y", "x", "y"], {"w": W}), {"x": X}),
    "view of the input": (build([("Flatten", "x", "y")], {"x": ["n", 4, 8]}, ["y"]), {"x": X.reshape(3, 4, 8)}),
    "unused input": (build([("Relu", "x", "y")], {"x": ROWS, "u": ["m"]}, ["y"]), {"x": X, "u": X[0]}),
    "no inputs": (build([("Relu", "w", "y")], {}, ["y"], {"w": W}), {}),
    "neither inputs nor nodes": (build([], {}, ["w"], {"w": W}), {}),
    "constant beside the input": (build([], {"x": ROWS}, ["w", "x"], {"w": W}), {"x": X}),
    "number": (build([("Exp", "x", "y")], {"x": []}, ["y"]), {"x": np.array(0.5, np.float32)}),
    "nothing quantizable": (build([("MatMul", "x|w", "y")], {"x": ["n", 5]}, ["y"], {"w": W[:5, :3]}), {"x": X[:, :5]}),
    "depth of none": (build([("Relu", "x", "r"), ("MatMul", "r|w", "y")], {"x": ["n", 0]}, ["y"], {"w": W[:0]}),
                      {"x": X[:, :0]}),
    "no columns": (build([("MatMul", "x|w", "m"), ("Add", "m|b", "a"), ("Relu", "a", "y")], {"x": ROWS}, ["y"],
                         {"w": W[:, :0].copy(), "b": W[0, :0].copy()}), {"x": X}),
    "depth of one": (build([("MatMul", "x|w", "y")], {"x": ["n", 1]}, ["y"], {"w": W[:1]}), {"x": X[:, :1]}),
    "one column": (build([("MatMul", "x|w", "y")], {"x": ROWS}, ["y"], {"w": W[:, :1]}), {"x": X}),
    "vector times matrix": (build([("MatMul", "x|w", "y")], {"x": [32]}, ["y"], {"w": W}), {"x": X[0]}),
    "matrix times vector": (build([("MatMul", "x|w", "y")], {"x": ROWS}, ["y"], {"w": W[:, 0].copy()}), {"x": X}),
    "constant on the left": (build([("MatMul", "w|x", "y")], {"x": [16, "n"]}, ["y"], {"w": W}),
                             {"x": X.T[:16].copy()}),
    "two inputs": (build([("MatMul", "x|z", "y")], {"x": ["n", "k"], "z": ["k", "m"]}, ["y"]), {"x": X, "z": W}),
    "product with itself": (build([("MatMul", "x|x", "y")], {"x": ["n", "n"]}, ["y"]), {"x": X[:, :3].copy()}),
    "weights of zero": (build([("MatMul", "x|w", "y")], {"x": ROWS}, ["y"], {"w": W * 0}), {"x": X}),
    "zero columns among others": (build([("MatMul", "x|w", "y")], {"x": ROWS}, ["y"],
                                        {"w": np.where(np.arange(16) % 3 > 0, W, 0)}), {"x": X}),
    "rows of no columns": (build([("Softmax", "x", "y")], {"x": ["n", 0]}, ["y"]), {"x": X[:, :0]}),
    "no columns beside an int8 product": (
        build([("Softmax", "z", "s"), ("MatMul", "x|w", "y")], {"x": ROWS, "z": ["n", 0]}, ["y", "s"], {"w": W}),
        {"x": X, "z": X[:, :0]}),
    "eight dimensions": (build([helper.make_node("Transpose", ["x"], ["y"], perm=[7, 6, 5, 4, 3, 2, 1, 0])],
                               {"x": ["a", 2, 1, 3, "b", 1, 2, 2]}, ["y"]),
                         {"x": X[:, :24].reshape(3, 2, 1, 3, 1, 1, 2, 2)}),
    "float16": (build([("MatMul", "x|w", "m"), ("Relu", "m", "y")], {"x": ROWS}, ["y"], {"w": W.astype(np.float16)},
                      TensorProto.FLOAT16), {"x": X.astype(np.float16)}),
    "float64": (build([("Exp", "x", "y")], {"x": ROWS}, ["y"], dtype=TensorProto.DOUBLE), {"x": X.astype(np.float64)}),
    "bool": (build([("Not", "x", "y")], {"x": ["n"]}, ["y"], dtype=TensorProto.BOOL), {"x": X[0] > 0}),
    "uint8 that wraps": (build([("Add", "x|x", "y")], {"x": ["n"]}, ["y"], dtype=TensorProto.UINT8),
                         {"x": np.arange(256, dtype=np.uint8)}),
    "int32": (build([("Mul", "x|x", "y")], {"x": ["n"]}, ["y"], dtype=TensorProto.INT32),
              {"x": np.array([7, -3, 2**30, -2**31], np.int32)}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_models(name: str, tmp_path: Path) -> None:
    compare(*WHOLE[name], tmp_path)


def test_two_nodes_of_one_name(tmp_path: Path) -> None:
    proto = build([("MatMul", "x|w", "a"), ("Relu", "a", "b"), ("MatMul", "b|v", "y")], {"x": ROWS}, ["y"],
                  {"w": W, "v": W.T.copy()})
    for node in proto.graph.node:
        node.name = "same"
    y = q8c.load(q8c.compile(proto, tmp_path / "m.q8c", quantize=False))(x=X)["y"]
    np.testing.assert_allclose(y, np.maximum(X @ W, 0) @ W.T, rtol=1e-4, atol=1e-4)


def test_inputs_of_any_name_by_call_and_by_feed(tmp_path: Path) -> None:
    session = q8c.load(q8c.compile(layer(x="self"), tmp_path / "m.q8c"))
    assert np.array_equal(session(**{"self": X})["y"], session.run(None, {"self": X})[0])


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    broken = W.copy()
    broken[3, 4] = np.nan
    proto = build([("MatMul", "x|w", "y")], {"x": ROWS}, ["y"], {"w": broken})
    with pytest.raises(q8c.CompileError, match="%w: a weight holds NaN or Inf"):
        q8c.compile(proto, tmp_path / "m.q8c")
    y = q8c.load(q8c.compile(proto, tmp_path / "m.q8c", quantize=False))(x=X)["y"]
    assert np.isnan(y[:, 4]).all() and np.isfinite(np.delete(y, 4, axis=1)).all()


@pytest.mark.parametrize("nodes", [
    [("MatMul", "x|w", "y")],
    [("Mul", "x|x", "s"), ("ReduceMean", "s|last", "m"), ("Sqrt", "m", "r"), ("Div", "x|r", "y")]],
    ids=["product", "norm"])
@pytest.mark.parametrize("shape", [[2**40, 32], [32, 2**40, 32], [32, 2**40]], ids=str)
def test_sizes_no_memory_holds_cost_nothing_at_compile_time(nodes: list[Node], shape: list[int],
                                                            tmp_path: Path) -> None:
    proto = build(nodes, {"x": shape}, ["y"], {"w": W, "last": np.array([-1])})
    try:
        session = q8c.load(q8c.compile(proto, tmp_path / "m.q8c"))
    except q8c.CompileError as error:
        assert "pass " not in str(error) and "\n" not in str(error)
    else:
        with pytest.raises(q8c.InputError):
            session.run(None, {"x": X})
