"""What the rows that meet quantized weights look like on real or made-up inputs."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from q8c.ir.feeds import typical_feeds
from q8c.ir.graph import Array, Graph, Value
from q8c.ir.interpret import interpret
from q8c.ir.single import single

Feeds: TypeAlias = "tuple[Mapping[str, Any], ...]"
MAX_ROWS = 256   # of one value; the search for factors gains nothing from more
MAX_FEEDS = 32   # the model runs on no more, so that compiling does not take as long as the data is large


@dataclass(frozen=True)
class Calibration:
    """Inputs to calibrate on, and the rows seen so far, so that passes that share one run the model once.

    Without feeds the graph runs on inputs made up from its signature (`typical_feeds`): what matters most, the
    channels that are always large, is a property of the weights and shows on random token ids nearly as well as on
    text.
    """

    feeds: Feeds = ()
    seen: dict[Value, Array] = field(default_factory=dict, compare=False, repr=False)

    def rows(self, graph: Graph, values: Iterable[Value]) -> dict[Value, Array]:
        """Rows [n, depth] that each of the values takes, about `MAX_ROWS` of them; rows not finite are left out."""
        wanted = list(dict.fromkeys(values))
        missing = [v for v in wanted if v not in self.seen]
        if missing:
            self.seen.update(run(graph, missing, self.feeds or (typical_feeds(graph),)))
        return {v: self.seen[v] for v in wanted}


def run(graph: Graph, values: Iterable[Value], feeds: Feeds) -> dict[Value, Array]:
    """The rows that node results take when the graph runs on the feeds, or on `MAX_FEEDS` spread evenly over them."""
    feeds = tuple(feeds[i * len(feeds) // min(len(feeds), MAX_FEEDS)] for i in range(min(len(feeds), MAX_FEEDS)))
    share = max(MAX_ROWS // len(feeds), 1)
    found: dict[Value, list[Array]] = {v: [] for v in values}

    def observe(value: Value, array: Array) -> None:
        if value in found:
            rows = array.reshape(-1, array.shape[-1])
            rows = rows[np.isfinite(rows).all(axis=1)]
            found[value].append(rows[::max(len(rows) // share, 1)].copy())

    for feed in feeds:
        interpret(graph, feed, observe=observe, instead=single)
    return {v: np.concatenate(parts) for v, parts in found.items()}
