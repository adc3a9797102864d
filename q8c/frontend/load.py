"""Reads, checks and flattens an ONNX model: weights aside, model-local functions inlined."""
from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from q8c.errors import CompileError
from q8c.frontend.functions import inline_functions
from q8c.frontend.weights import sparse_to_array, to_array
from q8c.ir.graph import Array

if TYPE_CHECKING:
    import onnx



@dataclass
class Model:
    """An ONNX model whose graph holds no initializers; `weights` has them, read when asked for."""

    proto: onnx.ModelProto
    weights: Weights
    opsets: dict[str, int]

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The graph inputs that are fed; older models list initializers among the inputs."""
        return [v for v in self.proto.graph.input if v.name not in self.weights]


class Weights:
    """The initializers by name, converted when first read."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._dense: dict[str, onnx.TensorProto] = {}
        self._sparse: dict[str, onnx.SparseTensorProto] = {}
        self._arrays: dict[str, Array] = {}

    def add(self, graph: onnx.GraphProto) -> None:
        """Take the initializers of a graph. Raises CompileError for a name that is there already."""
        for dense in graph.initializer:
            self._claim(dense.name)
            self._dense[dense.name] = dense
        for sparse in graph.sparse_initializer:
            self._claim(sparse.values.name)
            self._sparse[sparse.values.name] = sparse

    def beside(self) -> Weights:
        """No initializers, with external data in the same folder."""
        return Weights(self._folder)

    def _claim(self, name: str) -> None:
        if not name:
            raise CompileError("an initializer has no name")
        if name in self:
            raise CompileError(f"initializer {name!r} is there twice")

    def __contains__(self, name: str) -> bool:
        return name in self._dense or name in self._sparse

    def __iter__(self) -> Iterator[str]:
        yield from self._dense
        yield from self._sparse

    def array(self, name: str) -> Array:
        """The elements of an initializer."""
        if name not in self._arrays:
            self._arrays[name] = (to_array(self._dense[name], self._folder) if name in self._dense
                                  else sparse_to_array(self._sparse[name], self._folder))
        return self._arrays[name]

    def tensor(self, data: onnx.TensorProto) -> Array:
        """The elements of a tensor attribute, whose external data lies where the initializers' does."""
        return to_array(data, self._folder)

    def sparse(self, data: onnx.SparseTensorProto) -> Array:
        """The elements of a sparse tensor attribute."""
        return sparse_to_array(data, self._folder)

    def signatures(self) -> Iterator[tuple[str, int, list[int]]]:
        """Name, element type and shape of every initializer."""
        for name, dense in self._dense.items():
            yield name, dense.data_type, list(dense.dims)
        for name, sparse in self._sparse.items():
            yield name, sparse.values.data_type, list(sparse.dims)


def load(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Model:
    """A model from a path, from bytes or from a ModelProto, which is left as it is."""
    import onnx

    folder: Path | None = None
    if isinstance(model, onnx.ModelProto):
        proto = model
    elif isinstance(model, (bytes, bytearray, memoryview)):
        proto = parse(bytes(model), "the given bytes")
    elif isinstance(model, (str, os.PathLike)):
        path = Path(model)
        folder = path.parent
        proto = parse(read(path), str(path))
    else:
        raise CompileError(f"expected a path, bytes or a ModelProto, got {type(model).__name__}")
    weights = Weights(folder)
    weights.add(proto.graph)
    return Model(inline_functions(_skeleton(proto)), weights, opsets(proto.opset_import))


def read(path: Path) -> bytes:
    """The bytes of a file. Raises CompileError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CompileError(f"cannot read the model {str(path)!r}: {error.strerror or error}") from error


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """A model from a file's bytes. Raises CompileError if they are not one."""
    import onnx
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise CompileError(f"{where}: not an ONNX model, or a truncated one") from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise CompileError(f"{where}: not an ONNX model (no graph in {len(data)} bytes)")
    return proto


def opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """The opset version of each domain. Raises CompileError for a domain with two versions."""
    found: dict[str, int] = {}
    for entry in imports:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if found.setdefault(domain, entry.version) != entry.version:
            raise CompileError(f"the model imports two opset versions of the domain {domain or 'ai.onnx'!r}: "
                               f"{found[domain]} and {entry.version}")
    return found


def _skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without initializers, small enough to check and inline whatever the size of the weights."""
    import onnx

    copy = onnx.ModelProto()
    copy.ir_version = proto.ir_version
    copy.opset_import.extend(proto.opset_import)
    copy.functions.extend(proto.functions)
    graph = copy.graph
    graph.name = proto.graph.name
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    return copy
