"""Writing ONNX by hand: what the builders of the examples share."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

OPSET = 20  # the first with Gelu
IR_VERSION = 9  # the one of opset 20


class GraphBuilder:
    """Collects nodes and initializers; every method that adds a value returns its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """A node of that name; so is its result called."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """An initializer, in place of any of that name."""
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def scalar(self, name: str, value: float) -> str:
        """A float32 number."""
        return self.constant(name, np.float32(value).reshape(()))

    def ints(self, *values: int) -> str:
        """Integers, each list once."""
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def proto(self, name: str, inputs: Sequence[onnx.ValueInfoProto],
              outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """All that was collected, as the model `name`."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.initializers.values()))
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="q8c-example")


def tensor(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """An input or output of that element type (a `TensorProto` number); free sizes by name."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path`, in one step so that nobody sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(model.SerializeToString())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
