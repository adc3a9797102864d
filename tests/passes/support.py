"""What pass tests share: text before, text after, and equal results in the interpreter."""
from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from q8c.ir import Array, Graph, clone, interpret, parse_graph, print_graph
from q8c.ir.feeds import random_feeds
from q8c.passes.manager import Pass, Report, run_passes


def check(passes: Pass | Sequence[Pass], before: str, after: str | None, *,
          constants: Mapping[str, Array] | None = None, feeds: Mapping[str, Array] | None = None,
          sizes: Mapping[str, int] | None = None, tolerance: float = 0.0) -> Report:
    """Run passes on the text `before` and expect the text `after` (None: nothing changes); return the report.

    Names of values, spacing, the order of constants and constants that nobody reads do not matter; sources matter only
    if `after` states any. Constants written as references get random data unless given; those of `after` have the data
    that the constants of the same name have before. Results before and after must agree to `tolerance`
    (relative to the largest element; 0: the same bits, NaN for NaN) on the feeds given or on random ones.
    """
    graph = parse(before, constants)
    reference = clone(graph)
    report = run_passes(graph, [passes] if isinstance(passes, Pass) else passes)
    changed = any(step.changed for step in report.steps)
    expected = reference if after is None else parse(after, dict(reference_data(reference)) | dict(constants or {}))
    sources = after is not None and ' from "' in after
    assert normal_text(graph, sources) == normal_text(expected, sources), f"got:\n{print_graph(graph)}"
    assert graph.output_names == reference.output_names, "the names of outputs are the user's"
    assert changed == (print_graph(graph) != print_graph(reference)), f"run returned {changed}"
    assert not any(item.run(graph, Report()) for item in ([passes] if isinstance(passes, Pass) else [])), \
        "a second run changes the graph again"
    compare(reference, graph, feeds or random_feeds(reference, sizes=sizes), tolerance)
    return report


def parse(text: str, constants: Mapping[str, Array] | None = None, seed: int = 0) -> Graph:
    """The graph a text describes, with random data for constants that are not given."""
    graph = parse_graph(textwrap.dedent(text))
    rng = np.random.default_rng(seed)
    for value in graph.constants.values():
        if value.data is None:
            shape = [d for d in value.shape if isinstance(d, int)]
            data = rng.standard_normal(shape) if value.dtype.is_float else rng.integers(0, 2, shape)
            data = (constants or {}).get(value.name, data)
            value.data = data.astype(value.dtype.numpy).reshape(shape)
    return graph


def reference_data(graph: Graph) -> dict[str, Array]:
    """The data of a graph's constants by name."""
    return {name: value.array() for name, value in graph.constants.items()}


def compare(before: Graph, after: Graph, feeds: Mapping[str, Array], tolerance: float = 0.0) -> None:
    """Assert that two graphs give the same outputs (see `check` for the tolerance)."""
    for x, y in zip(interpret(before, feeds), interpret(after, feeds), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if tolerance == 0:
            np.testing.assert_array_equal(x, y)
        else:
            scale = np.abs(x[np.isfinite(x)]).max(initial=0.0)
            np.testing.assert_allclose(y, x, rtol=0, atol=tolerance * scale)


def normal_text(graph: Graph, sources: bool = False) -> str:
    """The graph's text with values renamed in order of use, so that names and the order of constants say nothing."""
    graph = clone(graph)
    _rename(graph, sources)
    return print_graph(graph)


def _rename(graph: Graph, sources: bool) -> None:
    used = [v for n in graph.nodes for v in n.operands if v.is_constant] + [v for v in graph.outputs if v.is_constant]
    order = list(dict.fromkeys(used))
    for i, value in enumerate(order):
        value.name = f"c{i}"
    graph.constants = {v.name: v for v in order}
    graph.output_names = [f"o{i}" for i in range(len(graph.outputs))]
    for i, value in enumerate(v for node in graph.nodes for v in node.outputs):
        value.name = f"v{i}"
    for node in graph.nodes:
        node.attrs = dict(sorted(node.attrs.items()))
        if not sources:
            node.source = ()
        if node.body is not None:
            for i, value in enumerate(node.body.inputs):
                value.name = f"p{i}"
            _rename(node.body, sources)

