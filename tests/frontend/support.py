"""Small ONNX models, imported and compared with ONNX's reference evaluator."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import DTypeLike, NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from q8c.frontend import import_onnx
from q8c.ir import Graph, constant_data, interpret, parse_graph, print_graph, verify

Array = NDArray[Any]
Shape = Sequence["int | str | None"]
F32, I64, BOOL = np.float32, np.int64, np.bool_


def value(name: str, dtype: DTypeLike, shape: Shape | None) -> onnx.ValueInfoProto:
    """A declared value; a name or None is a size that varies."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def model(nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, tuple[DTypeLike, Shape]],
          outputs: Mapping[str, DTypeLike], constants: Mapping[str, Array] | None = None, opset: int = 20,
          **extra: Any) -> onnx.ModelProto:
    """A model of those nodes; outputs are declared without shapes."""
    graph = helper.make_graph(
        list(nodes), "g", [value(n, t, s) for n, (t, s) in inputs.items()],
        [value(n, t, None) for n, t in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()])
    imports = [helper.make_opsetid("", opset), *extra.pop("opset_imports", [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 20 else 10, **extra)


def node(op: str, inputs: str, outputs: str = "y", **attrs: Any) -> onnx.NodeProto:
    """A node; names are separated by spaces, `-` stands for an operand left out."""
    names = ["" if n == "-" else n for n in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attrs)


def load(proto: onnx.ModelProto) -> Graph:
    """The verified graph; its text must read back to the same text."""
    graph = import_onnx(proto)
    verify(graph)
    text = print_graph(graph)
    assert print_graph(parse_graph(text, constant_data(graph))) == text
    return graph


def text(proto: onnx.ModelProto) -> str:
    """The imported graph as text without its source names."""
    lines = print_graph(load(proto)).splitlines()
    return "\n".join(line.split(" from ")[0] for line in lines)


def compare(proto: onnx.ModelProto, *feeds: Mapping[str, Array], rtol: float = 1e-5, atol: float = 1e-6,
            runtime: bool = False) -> Graph:
    """Import once, run with every feed, and compare types, shapes and elements.

    The other side is ONNX's reference evaluator, or ONNX Runtime (`runtime`) where the former is known to be wrong.
    """
    graph = load(proto)
    other = onnxruntime.InferenceSession(proto.SerializeToString()) if runtime else ReferenceEvaluator(proto)
    for feed in feeds:
        expected = other.run(None, dict(feed))
        for name, want, got in zip(graph.output_names, expected, interpret(graph, feed), strict=True):
            want = np.asarray(want)
            assert (got.dtype, got.shape) == (want.dtype, want.shape), name
            np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=name)
    return graph


def normal(*shape: int, seed: int = 0) -> Array:
    """Gaussian f32 elements."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(*shape: int, low: int = -5, high: int = 6, dtype: DTypeLike = np.int64, seed: int = 0) -> Array:
    """Uniform integers in [low, high)."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)
