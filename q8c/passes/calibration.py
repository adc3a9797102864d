"""What the rows that meet quantized weights look like on real or made-up inputs."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from q8c.errors import Error, InputError
from q8c.ir.feeds import typical_feeds
from q8c.ir.graph import Array, Graph, Value
from q8c.ir.interpret import bind_sizes, interpret, stretched
from q8c.ir.single import single
from q8c.ir.spill import spilled
from q8c.passes.manager import Report

Feeds: TypeAlias = "tuple[Mapping[str, Any], ...]"
MAX_ROWS = 256   # of one value; the search for factors gains nothing from more
MAX_FEEDS = 16   # the model runs on no more, so that compiling does not take as long as the data is large


@dataclass(frozen=True)
class Calibration:
    """Inputs to calibrate on, and the rows seen so far, so that passes that share one run the model once.

    Without feeds the graph runs on inputs made up from its signature (`typical_feeds`): what matters most, the
    channels that are always large, is a property of the weights and shows on random token ids nearly as well as on
    text.
    """

    feeds: Feeds = ()
    seen: dict[Value, Array] = field(default_factory=dict, compare=False, repr=False)
    factors: dict[bytes, Array] | None = field(default=None, compare=False, repr=False)
    """The best factors of channels for products with weights of this digest, where branches of one model are to take
    the same, so that they share weights; None elsewhere."""

    def inputs(self, graph: Graph) -> Feeds:
        """The feeds to run on, at most `MAX_FEEDS`, spread evenly. Raises InputError if none can be made up."""
        count = len(self.feeds)
        used = min(count, MAX_FEEDS)
        return tuple(self.feeds[i * count // used] for i in range(used)) or (typical_feeds(graph),)

    def rows(self, graph: Graph, values: Iterable[Value], report: Report) -> dict[Value, Array]:
        """Rows [n, depth] that node results take, about `MAX_ROWS` of each; rows not finite are left out.

        Empty, with the reason in the report, if the model does not run on made-up inputs. Raises Error if it does not
        run on the feeds given.
        """
        wanted = list(dict.fromkeys(values))
        missing = [v for v in wanted if v not in self.seen]
        if missing:
            try:
                self.seen.update(run(graph, missing, self.inputs(graph)))
            except Error as error:
                if self.feeds:
                    raise
                if missing[0].producer is not None:
                    report.decline(missing[0].producer, f"nothing is calibrated, give inputs to calibrate on: {error}")
                return {}
        return {v: self.seen[v] for v in wanted}


def run(graph: Graph, values: Iterable[Value], feeds: Feeds) -> dict[Value, Array]:
    """The rows that values take when the graph runs on the feeds, in files where they are large: those of all layers
    together are as large as some of the weights."""
    share = max(MAX_ROWS // len(feeds), 1)
    found: dict[Value, Array] = {v: np.empty((0, 0)) for v in values}

    def observe(value: Value, array: Array) -> None:
        if value in found:
            rows = array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
            rows = rows[np.isfinite(rows).all(axis=1)]
            some, earlier = rows[::max(len(rows) // share, 1)], found[value]
            found[value] = spilled(np.concatenate([earlier, some]) if len(earlier) else some.copy())

    for feed in feeds:
        for value in graph.inputs:
            observe(value, np.asarray(feed[value.name]))
        interpret(graph, feed, observe=observe, instead=single)
    return found


def as_feeds(given: object) -> Feeds:
    """What a user gives to calibrate on, as a tuple of feeds. Raises InputError unless it is an iterable of dicts."""
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise InputError("calibrate expected an iterable of feeds, dicts of arrays by input name, got "
                         f"{'one dict; put it into a list' if isinstance(given, Mapping) else type(given).__name__}")
    found = tuple(given)
    if not found:
        raise InputError("calibrate holds no feeds; give at least one, or leave it out for made-up inputs")
    return found


def checked_feeds(graph: Graph, feeds: Feeds) -> Feeds:
    """The feeds as arrays of the inputs' types, each with all inputs and no others.

    Integers of another width are taken if their values fit. Raises InputError that names the feed and the input.
    """
    return tuple(_checked(graph, feed, f"calibration feed {i}") for i, feed in enumerate(feeds))


def _checked(graph: Graph, feed: Any, where: str) -> dict[str, Array]:
    if not isinstance(feed, Mapping):
        raise InputError(f"{where}: expected a dict of arrays by input name, got {type(feed).__name__}")
    names = [v.name for v in graph.inputs]
    for name in feed:
        if name not in names:
            raise InputError(f"{where}: the model has no input {name!r}; expected {', '.join(names)}")
    for name in names:
        if name not in feed:
            raise InputError(f"{where}: input {name!r} is missing")
    arrays = {v.name: _array(v, feed[v.name], where) for v in graph.inputs}
    if not any(a.size for a in arrays.values()):
        raise InputError(f"{where}: all its arrays are empty")
    try:
        arrays = stretched(graph, arrays)
        bind_sizes(graph, arrays)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return arrays


def _array(value: Value, given: Any, where: str) -> Array:
    array = np.asarray(given)
    wanted = value.dtype.numpy
    if array.dtype != wanted:
        integers = array.dtype.kind in "iu" and np.dtype(wanted).kind in "iu"
        if not (integers or array.dtype.newbyteorder("=") == wanted) or not np.array_equal(array.astype(wanted), array):
            raise InputError(f"{where}: input {value.name!r} is {array.dtype}, expected {np.dtype(wanted)}")
        array = array.astype(wanted)
    if array.ndim != value.type.rank:
        raise InputError(f"{where}: input {value.name!r} has the shape {list(array.shape)}, expected {value.type}")
    return np.ascontiguousarray(array)
