"""ONNX files without their random weights, which are made again from a seed: kilobytes in place of megabytes."""
from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

GRAPHS = Path(__file__).parent / "graphs"
_FEWEST = 64         # smaller tensors are kept
_DISTINCT = 0.9      # of the elements of random weights differ from each other; masks and tables of rotations repeat
_MARK = "normal "    # then mean and standard deviation, where a tensor says what it is for


def path_of(name: str, form: str) -> Path:
    """Where a family's file of one form is kept."""
    return GRAPHS / f"{name}-{form}.onnx.xz"


def write(proto: onnx.ModelProto, path: Path) -> None:
    """Write a model without its random weights, and without what exporters note for people."""
    lean = onnx.ModelProto()
    lean.CopyFrom(proto)
    for tensor in _tensors(lean):
        _strip(tensor)
    for graph in _graphs(lean):
        del graph.value_info[:]
        for noted in (*graph.node, *graph.input, *graph.output, *graph.initializer):
            del noted.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
    del lean.metadata_props[:]
    del lean.graph.metadata_props[:]
    path.write_bytes(lzma.compress(lean.SerializeToString(deterministic=True), preset=9 | lzma.PRESET_EXTREME))


def read(path: Path) -> onnx.ModelProto:
    """A model as it was written, with random weights of the mean and deviation that it had."""
    proto = onnx.load_from_string(lzma.decompress(path.read_bytes()))
    for tensor in _tensors(proto):
        if tensor.doc_string.startswith(_MARK):
            mean, deviation = map(float, tensor.doc_string[len(_MARK):].split())
            rng = np.random.default_rng(zlib.crc32(tensor.name.encode()))
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            elements = (mean + deviation * rng.standard_normal(tuple(tensor.dims))).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(elements, tensor.name))
    return proto


def _strip(tensor: TensorProto) -> None:
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16) or np.prod(tensor.dims) < _FEWEST:
        return
    elements = numpy_helper.to_array(tensor)
    if np.unique(elements).size < _DISTINCT * elements.size:
        return
    mark = f"{_MARK}{elements.mean(dtype=np.float64):.2g} {elements.std(dtype=np.float64):.2g}"
    tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, doc_string=mark))


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        yield graph
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]


def _tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph in _graphs(proto):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    if not attribute.t.name:
                        attribute.t.name = node.output[0]
                    yield attribute.t
