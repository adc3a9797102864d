"""Tiny ONNX models around one kernel each."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import cache_folder
from benchmarks.models import Array, Feed, Model

LINEARS = ((384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768))
"""Depth by columns of the linears of MiniLM and BERT-base."""
FEW = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
MANY = (128, 512)


@dataclass(frozen=True)
class Case:
    """One model, the sizes of its free dimension `rows`, the ops whose kernels are of interest, the peers to race."""

    group: str
    name: str
    model: Model
    rows: Sequence[int]
    inputs: Mapping[str, tuple[int, ...]]
    ops: Sequence[str]
    peers: Sequence[str] = field(default=())

    def feed(self, rows: int) -> Feed:
        """Standard normal inputs; a size of 0 stands for the rows."""
        rng = np.random.default_rng(rows)
        return {name: rng.standard_normal([n or rows for n in shape]).astype(np.float32)
                for name, shape in self.inputs.items()}

    def wants(self, node: Mapping[str, Any]) -> bool:
        """Whether a kernel of the compiled model is one this case is about."""
        return node["op"] in self.ops


def linears() -> Iterator[Case]:
    """int8 linears: quantize, multiply, add the bias."""
    for depth, cols in LINEARS:
        yield _linear("linear", depth, cols, MANY)


def gemvs() -> Iterator[Case]:
    """Linears of few rows, with weights that caches hold and with weights too large for the inner ones."""
    yield _linear("gemv", 768, 3072, FEW)
    yield _linear("gemv", 4096, 4096, FEW[:8])


def attentions() -> Iterator[Case]:
    """Attention as exporters spell it, of the heads of MiniLM and BERT-base."""
    for heads, size in ((12, 32), (12, 64)):
        yield _attention(heads, size)


def rows() -> Iterator[Case]:
    """Row kernels, each before a product that wants its rows quantized; softmax alone."""
    yield _rows("quantize", [], 768)
    yield _rows("layer norm, quantize", ["LayerNormalization"], 768)
    yield _rows("add, layer norm, quantize", ["Add", "LayerNormalization"], 768)
    yield _rows("gelu, quantize", ["Gelu"], 3072)
    yield _softmax(512)


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "linear": linears, "gemv": gemvs, "attention": attentions, "rows": rows}
_Node = tuple[str, list[str], str, dict[str, Any]]
_INT8_PEERS = ("ort-matmulinteger", "ort-int8", "ov-int8", "ov-int8-weights", "ort-fp32", "ov")
_PEERS = ("ort-fp32", "ov")


def _linear(group: str, depth: int, cols: int, counts: Sequence[int]) -> Case:
    constants = {"w": _normal(depth, cols) / np.float32(depth ** 0.5), "b": _normal(cols)}
    nodes: list[_Node] = [("MatMul", ["x", "w"], "xw", {}), ("Add", ["xw", "b"], "y", {})]
    model = _model(f"linear-{depth}x{cols}", {"x": ["rows", depth]}, ["rows", cols], nodes, constants)
    return Case(group, f"{depth}x{cols}", model, counts, {"x": (0, depth)}, ("q8_linear", "loop"), _INT8_PEERS)


def _attention(heads: int, size: int) -> Case:
    hidden = heads * size
    constants = {
        "scale": np.array(size ** -0.5, np.float32), "heads": np.array([0, 0, heads, size]),
        "join": np.array([0, 0, hidden])}
    nodes: list[_Node] = []
    for name, perm in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
        nodes += [("Reshape", [name, "heads"], f"{name}r", {}), ("Transpose", [f"{name}r"], f"{name}t", {"perm": perm})]
    nodes += [("MatMul", ["qt", "kt"], "s", {}), ("Mul", ["s", "scale"], "ss", {}),
              ("Softmax", ["ss"], "p", {"axis": -1}), ("MatMul", ["p", "vt"], "o", {}),
              ("Transpose", ["o"], "ot", {"perm": (0, 2, 1, 3)}), ("Reshape", ["ot", "join"], "y", {})]
    shape: list[int | str] = [1, "rows", hidden]
    model = _model(f"attention-{heads}x{size}", dict.fromkeys("qkv", shape), shape, nodes, constants)
    inputs = dict.fromkeys("qkv", (1, 0, hidden))
    return Case("attention", f"{heads} heads of {size}", model, (16, 64, 128, 256, 512), inputs, ("attention",), _PEERS)


def _rows(name: str, ops: Sequence[str], cols: int) -> Case:
    constants = {"w": _normal(cols, 16), "gamma": _normal(cols), "beta": _normal(cols)}
    nodes: list[_Node] = []
    x, inputs = "x", {"x": (0, cols)}
    for op in ops:
        extra = {"LayerNormalization": ["gamma", "beta"], "Add": ["r"]}.get(op, [])
        inputs |= {"r": (0, cols)} if op == "Add" else {}
        nodes.append((op, [x, *extra], op.lower(), {"axis": -1} if op == "LayerNormalization" else {}))
        x = op.lower()
    used = {n for _, operands, _, _ in nodes for n in operands}
    nodes.append(("MatMul", [x, "w"], "y", {}))
    kept = {n: a for n, a in constants.items() if n == "w" or n in used}
    model = _model(f"rows-{name.replace(', ', '-').replace(' ', '-')}-{cols}",
                   {n: ["rows", cols] for n in inputs}, ["rows", 16], nodes, kept)
    return Case("rows", f"{name} {cols}", model, (16, 128, 1024), inputs, ("loop",))


def _softmax(cols: int) -> Case:
    nodes: list[_Node] = [("Softmax", ["x"], "y", {"axis": -1})]
    model = _model(f"softmax-{cols}", {"x": ["rows", cols]}, ["rows", cols], nodes, {})
    return Case("rows", f"softmax {cols}", model, (16, 128, 1024), {"x": (0, cols)}, ("loop",), _PEERS)


def _normal(*shape: int) -> Array:
    return np.random.default_rng(list(shape)).standard_normal(shape, np.float32)


def _model(name: str, inputs: Mapping[str, Sequence[int | str]], output: Sequence[int | str],
           nodes: Sequence[_Node], constants: Mapping[str, Array]) -> Model:
    """An ONNX file of these nodes, the last of which gives y."""
    from onnx import TensorProto, helper, numpy_helper
    graph = helper.make_graph(
        [helper.make_node(op, operands, [result], name=result, **attrs) for op, operands, result, attrs in nodes], name,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(shape)) for n, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(output))],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    path: Path = cache_folder() / f"{name}.onnx"
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)
    return Model(name, path, None, (), True)
