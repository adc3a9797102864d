"""ONNX import: protobuf to Graph, one file per op family under `ops`."""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from q8c.errors import CompileError, Error

if TYPE_CHECKING:
    from q8c.frontend.choices import Parts
    from q8c.frontend.load import Model, Source
    from q8c.frontend.settings import Number, Sizes
    from q8c.ir import Graph

__all__ = ["content_digest", "import_onnx", "import_parts"]


def import_onnx(model: Source, values: Mapping[str, Number] | None = None,
                shapes: Mapping[str, Sizes] | None = None) -> Graph:
    """The graph of an ONNX model: a path (external data beside it), the file's bytes, or a ModelProto.

    Inputs in `values` are constants of that value; neither they nor inputs that nothing reads are inputs then. Those in
    `shapes` have that shape, whatever the model says of it. Shape arithmetic is resolved; sizes that vary are symbols
    named as in the model. float16 and bfloat16 are computed in f32; the graph's inputs and outputs keep float16, and
    float32 stands in for bfloat16.

    Raises UnsupportedError that lists every node q8c cannot compile, an If whose condition is not known among them, or
    CompileError for a model that is wrong.
    """
    from q8c.frontend.importer import import_graph
    from q8c.frontend.settings import drop_unread

    with _loaded(model, values, shapes) as found:
        graph = import_graph(found)
        if values:
            drop_unread(graph)
        return graph


def import_parts(model: Source, values: Mapping[str, Number] | None = None,
                 shapes: Mapping[str, Sizes] | None = None) -> Parts:
    """A graph of the model, as `import_onnx` gives it, for each way its Ifs can go whose conditions only a run knows.

    Raises what `import_onnx` does, but for such an If only where there are too many, and for what a branch of one holds
    only where no way is left.
    """
    from q8c.frontend.choices import explore
    from q8c.frontend.importer import import_graph
    from q8c.frontend.settings import drop_unread

    with _loaded(model, values, shapes) as found:
        parts = explore(lambda decided: import_graph(found, decided))
        for part in parts.parts if values else ():
            drop_unread(part.graph)
        return parts


@contextmanager
def _loaded(model: Source, values: Mapping[str, Number] | None,
            shapes: Mapping[str, Sizes] | None) -> Iterator[Model]:
    """The model read and looked over; whatever it breaks while it is imported is its fault."""
    from q8c.frontend.check import check
    from q8c.frontend.importer import scan
    from q8c.frontend.load import load
    from q8c.frontend.settings import set_inputs, set_shapes

    try:
        loaded = load(model)
        set_shapes(loaded, shapes or {})
        set_inputs(loaded, values or {})
        scan(loaded)
        check(loaded)
        yield loaded
    except Error:
        raise
    except UnicodeDecodeError as error:
        raise CompileError(f"a name in the model is not UTF-8 text: {error.object!r}") from error
    except Exception as error:  # a hostile file may break what a valid one cannot
        raise CompileError(f"the model cannot be imported: {type(error).__name__}: "
                           f"{' '.join(str(error).split())}") from error


def content_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256, in hex, of a model file and of the external data it names. Raises CompileError as importing does."""
    from q8c.frontend.digest import content_digest

    return content_digest(path)
