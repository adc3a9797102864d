"""What can watch a run of passes: printing, dumping files, and comparing results after every pass."""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from q8c.errors import CompileError
from q8c.ir import Array, Graph, interpret, print_graph
from q8c.ir.feeds import random_feeds
from q8c.passes.manager import Observer, Step


def print_after(names: Collection[str], write: Callable[[str], object]) -> Observer:
    """Hands the graph's text to `write` after each pass named (`all` names every one that changed something)."""
    def observe(graph: Graph, step: Step) -> None:
        name = step.name.partition("{")[0]
        if name in names or ("all" in names and step.changed):
            write(f"# after {step.name}\n{print_graph(graph)}")
    return observe


def dump_to(folder: Path) -> Observer:
    """Writes numbered files such as `03-fuse-gelu.q8ir` into a folder, one for each step that changed the graph; of a
    second graph, into a folder `2` in that one, and so on."""
    begun = 0

    def observe(graph: Graph, step: Step) -> None:
        nonlocal begun
        begun += step.index == 0
        if step.changed:
            place = folder / str(begun) if begun > 1 else folder
            place.mkdir(parents=True, exist_ok=True)
            name = f"{step.index:02}-{step.name.partition('{')[0]}.q8ir"
            (place / name).write_text(print_graph(graph), encoding="utf-8")
    return observe


def verify_each(feeds: Mapping[str, Array] | None = None, *, tolerance: float = 1e-4) -> Observer:
    """Runs the interpreter after each pass that changed something and compares with the results before it.

    `feeds` defaults to random ones. Raises CompileError that names the pass where an output differs by more than
    `tolerance` times its largest finite element, or in where it is NaN or infinite. After a lossy pass only types and
    shapes are compared, and its results are the new reference.
    """
    return _Comparison(feeds, tolerance)


class _Comparison:
    def __init__(self, feeds: Mapping[str, Array] | None, tolerance: float) -> None:
        self.feeds = feeds
        self.tolerance = tolerance
        self.used: Mapping[str, Array] = {}
        self.reference: list[Array] = []

    def __call__(self, graph: Graph, step: Step) -> None:
        if not step.changed:
            return
        if step.index == 0:
            self.used = random_feeds(graph) if self.feeds is None else self.feeds
        outputs = interpret(graph, self.used)
        if step.index == 0:
            self.reference = outputs
        for name, before, after in zip(graph.output_names, self.reference, outputs, strict=True):
            problem = _difference(before, after, None if step.lossy else self.tolerance)
            if problem:
                raise CompileError(f"pass {step.name} changed output {name!r}: {problem}")
        if step.lossy:
            self.reference = outputs


def _difference(before: Array, after: Array, tolerance: float | None) -> str | None:
    """What is different between two results, if anything that matters is."""
    if before.dtype != after.dtype or before.shape != after.shape:
        return f"expected {before.dtype}{list(before.shape)}, got {after.dtype}{list(after.shape)}"
    if tolerance is None:
        return None
    finite = np.isfinite(before)
    same = np.array_equal(finite, np.isfinite(after))
    if not same or not np.array_equal(before[~finite], after[~finite], equal_nan=before.dtype.kind == "f"):
        return "other elements are NaN or infinite"
    wide = before[finite].astype(np.float64)
    error = np.abs(wide - after[finite].astype(np.float64)).max(initial=0.0)
    limit = tolerance * np.abs(wide).max(initial=0.0)
    return None if error <= limit else f"it differs by up to {error:.3g}, expected at most {limit:.3g}"
