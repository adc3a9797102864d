"""Random inputs for a graph: what passes and compiled models are compared on when nobody gives real ones."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from q8c.errors import InputError
from q8c.ir.dims import evaluate
from q8c.ir.graph import Array, Graph, Value
from q8c.ir.interpret import bind_sizes

_SIZES = (2, 5, 3, 7, 4, 6)


def random_feeds(graph: Graph, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
    """One array per input, by name, the same for the same seed.

    Floats are standard normal. Integers are 0 or 1, which are valid token ids, token types and mask elements alike.
    Sizes that are not given are small and differ where the graph's assumptions allow it. Raises InputError if no
    sizes are found that do.
    """
    for chosen in _candidates(graph, sizes or {}):
        rng = np.random.default_rng(seed)
        try:
            feeds = {v.name: _random(v, chosen, rng) for v in graph.inputs}
            bind_sizes(graph, feeds)
        except (InputError, ValueError) as error:
            problem = error
            continue
        return feeds
    raise InputError(f"no sizes were found that fit graph {graph.name} ({problem}); give them")


def _candidates(graph: Graph, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    free = [name for name in graph.symbols() if name not in sizes]
    yield {**{name: _SIZES[i % len(_SIZES)] for i, name in enumerate(free)}, **sizes}
    for size in (4, 1, 8, 16):
        yield {**dict.fromkeys(free, size), **sizes}


def _random(value: Value, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    shape = tuple(evaluate(d, sizes) for d in value.shape)
    if value.dtype.is_float:
        return rng.standard_normal(shape).astype(value.dtype.numpy)
    return rng.integers(0, 2, shape).astype(value.dtype.numpy)
