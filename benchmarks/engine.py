"""What an engine is: how it prepares a model, loads it, and runs it."""
from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError, cache_folder, versions
from benchmarks.models import Array, Feed, Model

Run = Callable[[], list[Array]]
Bind = Callable[[Feed], Run]


@dataclass(frozen=True)
class Loaded:
    """A model ready to run: `bind` takes inputs and gives a function that computes the outputs from them, as numpy
    arrays. `facts` are worth telling beside the figures. `nodes`, of q8c, runs what it is given and tells what kernels
    that was, in order: their labels, seconds (busy threads' sum over their number), multiply-adds and bytes.
    `generate`, of the reference, puts so many likeliest tokens behind rows of tokens."""

    bind: Bind
    facts: Mapping[str, Any] = field(default_factory=dict)
    nodes: Callable[[Callable[[], None]], list[dict[str, Any]]] | None = None
    generate: Callable[[Array, int], Array] | None = None


@dataclass(frozen=True)
class Engine:
    """One way to run a model.

    `prepare(model, path)` writes what `load(path, threads)` reads; `suffix` is the end of that path (a folder if
    empty). `packages` are what it needs to be installed, `int8` says whether its weight products are int8. `source`
    tells what else the result depends on: what was made with another source is made again.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    int8: bool
    prepare: Callable[[Model, Path], None]
    load: Callable[[Path, int], Loaded]
    suffix: str = ".onnx"
    source: Callable[[], str] = str

    def missing(self) -> list[str]:
        """The packages it needs that are not installed."""
        return [p for p in self.packages if importlib.util.find_spec(p) is None]

    def prepared(self, model: Model) -> Path:
        """What `load` reads, made now unless an earlier benchmark did. Raises BenchmarkError that says why not."""
        if self.missing():
            raise BenchmarkError(f"{' and '.join(self.missing())} not installed")
        state = model.onnx.stat()
        made_by = "-".join(f"{n}{v}" for n, v in versions(self.packages).items())
        stem = f"{model.name}-{state.st_size:x}-{state.st_mtime_ns:x}-{self.name}-{made_by}"
        path = cache_folder() / "".join(c if c.isalnum() or c in "-_." else "_" for c in stem + self.suffix)
        note, source = path.with_name(f"{path.name}.source"), self.source()
        if not path.exists() or (note.read_text() if note.exists() else "") != source:
            partial = path.with_name(f"{os.getpid()}-{path.name}")
            self.prepare(model, partial)
            for made in sorted(partial.parent.glob(f"{os.getpid()}-{path.stem}*")):  # some write two files
                made.replace(made.with_name(made.name.removeprefix(f"{os.getpid()}-")))
            if source:
                note.write_text(source)
        return path
