"""Reads, checks and flattens an ONNX model: weights aside, model-local functions inlined."""
from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from q8c.errors import CompileError
from q8c.frontend.functions import all_nodes, inline_functions
from q8c.frontend.order import ordered, reads
from q8c.frontend.registry import MICROSOFT
from q8c.frontend.weights import is_known, sparse_to_array, to_array
from q8c.frontend.wire import NotProtobuf, Split, TooLarge, split
from q8c.ir.graph import Array

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("q8c.frontend")
Source: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | onnx.ModelProto"


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
        self._dense: dict[str, tuple[onnx.TensorProto, memoryview | None]] = {}
        self._sparse: dict[str, onnx.SparseTensorProto] = {}
        self._arrays: dict[str, Array] = {}

    def add(self, graph: onnx.GraphProto, raw: Sequence[memoryview | None] = ()) -> None:
        """Take the initializers of a graph; `raw` has the data of those whose own was split off.

        Raises CompileError for a name that is there already.
        """
        for dense, data in zip_longest(graph.initializer, raw):
            self._claim(dense.name)
            self._dense[dense.name] = dense, data
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
            if name in self._sparse:
                self._arrays[name] = sparse_to_array(self._sparse[name], self._folder)
            else:
                tensor, raw = self._dense[name]
                self._arrays[name] = to_array(tensor, self._folder, raw, four_bits=True)
        return self._arrays[name]

    def elem_type(self, name: str) -> int | None:
        """ONNX's number of an initializer's element type, None if there is no such initializer."""
        return self._dense[name][0].data_type if name in self._dense else None

    def tensor(self, data: onnx.TensorProto) -> Array:
        """The elements of a tensor attribute, whose external data lies where the initializers' does."""
        return to_array(data, self._folder)

    def sparse(self, data: onnx.SparseTensorProto) -> Array:
        """The elements of a sparse tensor attribute."""
        return sparse_to_array(data, self._folder)

    def signatures(self) -> Iterator[tuple[str, int, list[int]]]:
        """Name, element type and shape of every initializer."""
        for name, (dense, _) in self._dense.items():
            yield name, dense.data_type, list(dense.dims)
        for name, sparse in self._sparse.items():
            yield name, sparse.values.data_type, list(sparse.dims)


def load(model: Source) -> Model:
    """A model from a path, from bytes or from a ModelProto, which is left as it is."""
    import onnx

    folder: Path | None = None
    raw: Sequence[memoryview | None] = ()
    if isinstance(model, onnx.ModelProto):
        proto = model
    elif isinstance(model, (bytes, bytearray, memoryview)):
        proto, raw = parse(memoryview(model).toreadonly(), "the given bytes")
    elif isinstance(model, (str, os.PathLike)):
        path = Path(model)
        folder = path.parent
        proto, raw = parse(memoryview(map_file(path)), repr(str(path)))
    else:
        raise CompileError(f"expected a path, bytes or a ModelProto, got {type(model).__name__}")
    weights = Weights(folder)
    weights.add(proto.graph, raw)
    skeleton = inline_functions(_skeleton(proto))
    _arrange(skeleton.graph)
    return Model(skeleton, weights, opsets(skeleton.opset_import))


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file, mapped. Raises CompileError if it cannot be read."""
    try:
        if not path.is_file():
            raise CompileError(f"cannot read the model {str(path)!r}: there is no such file")
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise CompileError(f"{str(path)!r}: not an ONNX model, the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CompileError(f"cannot read the model {str(path)!r}: {reason}") from error


def parse(data: memoryview, where: str) -> tuple[onnx.ModelProto, Sequence[memoryview | None]]:
    """A model without the large data of its initializers, and that data, from the bytes of a file.

    Raises CompileError if they are not a model, or one that protobuf cannot read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        parts: Split = split(data)
        proto.ParseFromString(parts.model)
    except TooLarge as error:
        raise CompileError(f"{where}: more than 2 GB without the data of its initializers, which is the most that "
                           "protobuf reads; store large constants as initializers") from error
    except (NotProtobuf, DecodeError, ValueError, RuntimeError) as error:
        raise CompileError(f"{where}: not an ONNX model, or a truncated one") from error
    if not proto.HasField("graph") or not proto.ir_version or len(parts.raw) != len(proto.graph.initializer):
        raise CompileError(f"{where}: not an ONNX model (no graph in {len(data)} bytes)")
    return proto, parts.raw


def opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """The opset version of each domain. Raises CompileError for a domain with two versions."""
    found: dict[str, int] = {}
    for entry in imports:
        if found.setdefault(entry.domain, entry.version) != entry.version:
            raise CompileError(f"the model imports two opset versions of the domain {entry.domain or 'ai.onnx'!r}: "
                               f"{found[entry.domain]} and {entry.version}")
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
    _resolve_alias(copy)
    if all(entry.domain != MICROSOFT for entry in copy.opset_import):  # ONNX Runtime knows its own ops unasked
        copy.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    return copy


def _arrange(graph: onnx.GraphProto) -> None:
    """Leave what the outputs need: sorted nodes, as ONNX's checker and the importer expect, and inputs, besides those
    that nothing reads of a known rank and type."""
    outputs = [v.name for v in graph.output]
    places = ordered(graph.node, outputs)
    if places != list(range(len(graph.node))):
        kept = type(graph)(node=[graph.node[i] for i in places])
        del graph.node[:]
        graph.node.extend(kept.node)
    read = set(outputs).union(*map(reads, graph.node))
    left_out = [v for v in graph.input if v.name not in read and not _can_be_fed(v)]
    for info in left_out:
        log.warning("input %r is left out: nothing reads it, and q8c does not know its rank or type", info.name)
        graph.input.remove(info)


def _can_be_fed(info: onnx.ValueInfoProto) -> bool:
    tensor = info.type.tensor_type
    return tensor.HasField("shape") and is_known(tensor.elem_type)


def _resolve_alias(model: onnx.ModelProto) -> None:
    """Write the default domain as ONNX's own tools expect it. Raises CompileError for an op that is not text."""
    for entry in (*model.opset_import, *(e for f in model.functions for e in f.opset_import), *model.functions):
        if entry.domain == "ai.onnx":
            entry.domain = ""
    for nodes in (model.graph.node, *(f.node for f in model.functions)):
        for node in all_nodes(nodes):
            if not isinstance(node.op_type, str) or not isinstance(node.domain, str):  # protobuf gives bytes then
                raise CompileError(f"the op {node.op_type!r} of the domain {node.domain!r} is not UTF-8 text")
            if node.domain == "ai.onnx":
                node.domain = ""
