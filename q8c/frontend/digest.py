"""A digest of all that a model's import depends on."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from q8c.frontend.functions import all_nodes
from q8c.frontend.load import map_file, parse
from q8c.frontend.weights import inside

if TYPE_CHECKING:
    import onnx

_CHUNK = 2**22  # bytes


def content_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256, in hex, of a model file and of the external data it names. Raises CompileError as importing does."""
    data = map_file(Path(path))
    digest = hashlib.sha256(data)
    if data.find(b"location") >= 0:  # the key of external data, so most files need not be parsed
        model, _ = parse(memoryview(data), repr(str(path)))
        for location in sorted({e.value for t in _tensors(model) for e in t.external_data if e.key == "location"}):
            digest.update(location.encode() + b"\0" + _file_digest(inside(Path(path).parent, location, str(path))))
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _initializers(model.graph)
    for nodes in (model.graph.node, *(f.node for f in model.functions)):
        for node in all_nodes(nodes):
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                for graph in (attribute.g, *attribute.graphs):
                    yield from _initializers(graph)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
