"""Made-up inputs for a graph: what passes are compared and models calibrated on when nobody gives real ones."""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from q8c.errors import InputError
from q8c.ir.dims import as_symbol, evaluate, symbols
from q8c.ir.graph import Array, Graph, Value
from q8c.ir.interpret import bind_sizes

_SIZES = (2, 5, 3, 7, 4, 6)
_BATCH, _LENGTH, _SIDE = 4, 32, 128
_TRIED = (_LENGTH, 16, 8, 4, 1, 48, 64, 128, 224, 256, 512, 1024, 4096, 16384)
"""What a size is tried as where those wished do not fit."""
_AMPLE = 16
"""How many times the least size that fits is used where that is more than usual: samples of sound make one row in
hundreds."""
_MOST_AMPLE = 2**20  # elements of an input
_MOST_BYTES = 2**30  # of one value; no model is so wide that a small batch needs more, but a file may say it is
_INDEX_KEEPING = {"reshape", "cast", "broadcast_to", "transpose", "slice", "copy"}
Make = Callable[[Value, tuple[int, ...], np.random.Generator], Array]


def random_feeds(graph: Graph, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
    """One array per input, by name, the same for the same seed, to compare two graphs on.

    Floats are standard normal. Integers are 0 or 1, which are valid token ids, token types and mask elements alike.
    Sizes that are not given are small and differ where the graph's assumptions allow it. Raises InputError if no
    sizes are found that do.
    """
    free = [name for name in graph.symbols() if name not in (sizes or {})]
    first = {name: _SIZES[i % len(_SIZES)] for i, name in enumerate(free)}
    return _first_fit(graph, _candidates(graph, first, sizes or {}), seed, _random)


def typical_feeds(graph: Graph, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
    """One array per input, by name, the same for the same seed, as like real use as the signature tells.

    Integers that pick rows of a table are drawn from the whole table, other integers (masks) are 1, floats are
    standard normal. A size that is the first of an integer input counts sequences, of which there are 4, others are
    32 long, and those only float inputs have (a cache's past) are 0. Where all inputs are floats, they are one image of
    128 x 128 (rank 4), 4 sequences of 32, or 128 rows. Where these do not fit, others are tried. Raises InputError if
    no sizes are found that fit.
    """
    tables = {value: table_size(value) for value in graph.inputs}

    def make(value: Value, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        if value.dtype.is_float:
            return rng.standard_normal(shape).astype(value.dtype.numpy)
        bound = tables[value]
        return (np.ones(shape) if bound is None else rng.integers(0, bound, shape)).astype(value.dtype.numpy)

    free = [name for name in graph.symbols() if name not in (sizes or {})]
    first = _usual_sizes(graph, free)
    return _first_fit(graph, _candidates(graph, first, sizes or {}), seed, make)


def table_size(value: Value) -> int | None:
    """Rows of the smallest table of fixed size that an integer value picks rows of, None if it picks none."""
    found: list[int] = []
    seen, waiting = {value}, [value]
    while waiting:
        current = waiting.pop()
        for node in current.users:
            if node.op == "gather" and node.inputs[1] is current:
                size = node.input(0).shape[int(str(node.attrs.get("axis", 0)))]
                found += [size] if isinstance(size, int) else []
            elif node.op == "lookup" and node.inputs[2] is current:
                found.append(int(str(node.input(0).shape[1])))
            elif node.op in _INDEX_KEEPING or node.op in ("loop", "gather"):
                waiting += [v for v in node.outputs if v not in seen and not v.dtype.is_float]
                seen.update(node.outputs)
    return min(found, default=None)


def _usual_sizes(graph: Graph, free: Iterable[str]) -> dict[str, int]:
    """Sizes of a small batch, for symbols by the inputs they are sizes of."""
    integers = [v for v in graph.inputs if not v.dtype.is_float]
    rows = [v for v in integers or graph.inputs if v.shape]
    rank = max((v.type.rank for v in rows), default=0)
    batch = {as_symbol(v.shape[0]) for v in rows}
    lengths = {as_symbol(d) for v in rows for d in v.shape[1:]}
    first, length = _BATCH, _LENGTH
    if not integers:
        first = 1 if rank > 3 else _BATCH if rank == 3 else _BATCH * _LENGTH
        length = _SIDE if rank > 3 else _LENGTH
    return {n: first if n in batch else length if n in lengths else 0 for n in free}


def _candidates(graph: Graph, first: Mapping[str, int], fixed: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Sizes to try: those wished first, one of them changed, all the same, two of them changed; `fixed` ones stay."""
    yield {**first, **fixed}
    yield from _changed(graph, first, fixed, 1)
    yield from ({**dict.fromkeys(first, n), **fixed} for n in _TRIED)
    yield from _changed(graph, first, fixed, 2)


def _changed(graph: Graph, first: Mapping[str, int], fixed: Mapping[str, int], count: int) -> Iterator[dict[str, int]]:
    """Sizes of which `count` are not those wished first, as far as the graph's assumptions allow them."""
    for names in itertools.combinations(first, count):
        for values in itertools.product(_TRIED, repeat=count):
            least = {**first, **dict(zip(names, values, strict=True)), **fixed}
            ample = {n: least[n] * _AMPLE if n in names and least[n] > _LENGTH else least[n] for n in least}
            small = all(_elements(v, ample) <= _MOST_AMPLE for v in graph.inputs)
            yield from (sizes for sizes in ([ample, least] if small else [least]) if _allowed(graph, sizes))


def _allowed(graph: Graph, sizes: Mapping[str, int]) -> bool:
    known = [(a, b) for a, b in graph.assumptions if symbols(a) | symbols(b) <= sizes.keys()]
    try:
        return all(evaluate(a, sizes) == evaluate(b, sizes) for a, b in known)
    except ZeroDivisionError:
        return False


def _elements(value: Value, sizes: Mapping[str, int]) -> int:
    return math.prod(evaluate(d, sizes) for d in value.shape)


def _first_fit(graph: Graph, candidates: Iterable[Mapping[str, int]], seed: int, make: Make) -> dict[str, Array]:
    """The feeds of the first sizes that the graph's inputs and assumptions accept."""
    problem: Exception | None = None
    for sizes in candidates:
        rng = np.random.default_rng(seed)
        try:
            _check_memory(graph.inputs, sizes)
            feeds = {v.name: make(v, tuple(evaluate(d, sizes) for d in v.shape), rng) for v in graph.inputs}
            _check_memory((v for n in graph.nodes for v in n.outputs), bind_sizes(graph, feeds))
        except (InputError, ValueError, ZeroDivisionError) as error:
            problem = error
            continue
        return feeds
    raise InputError(f"no sizes were found that fit graph {graph.name} ({problem}); state sizes that do")


def _check_memory(values: Iterable[Value], sizes: Mapping[str, int]) -> None:
    """Raise InputError if a value would be too large to compute on the side."""
    for value in values:
        if _elements(value, sizes) * value.dtype.itemsize > _MOST_BYTES:
            shape = [evaluate(d, sizes) for d in value.shape]
            raise InputError(f"%{value.name} would be {value.dtype}{shape}, too large for made-up inputs")


def _random(value: Value, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if value.dtype.is_float:
        return rng.standard_normal(shape).astype(value.dtype.numpy)
    return rng.integers(0, 2, shape).astype(value.dtype.numpy)
