"""What each format of each product does to a model's outputs, and the fastest choice under a bound."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from q8c.ir import q8
from q8c.ir.graph import Array, Graph, Node, Value
from q8c.ir.interpret import interpret
from q8c.ir.ops.registry import Reference
from q8c.ir.single import single
from q8c.passes.calibration import Feeds, run
from q8c.passes.fold_weights import weight_array, weight_shape
from q8c.passes.quantized_product import quantized_product, rounded_rows, rounded_weight, wants_zero_point

FLOAT = "float"
SPEED = {"q8-channel": 1.0, "q8-block128": 1.04, "q8-block64": 1.07, "q8-block32": 1.13, FLOAT: 4.0}
"""Time of a product in each format, in terms of the first, fastest first."""
SAMPLED_ROWS, SAMPLED_COLS = 64, 256
WORST = 1e3  # instead of an infinite effect, which could not be added or compared


class Search:
    """A float graph, what its products take on the feeds, and its exact outputs.

    `products` are its matmuls with constant weights that may be quantized; those of one tensor form a group.
    """

    def __init__(self, graph: Graph, products: Sequence[Node], feeds: Feeds) -> None:
        self.graph, self.products, self.feeds = graph, list(products), feeds
        self.groups: dict[Value, list[Node]] = {}
        for node in products:
            self.groups.setdefault(node.input(0), []).append(node)
        self.rows = run(graph, self.groups, feeds)
        self.exact = [interpret(graph, feed, instead=single) for feed in feeds]
        self._effects: dict[Value, float] = {}
        self._noises: dict[tuple[Value, str], float] = {}

    def error(self, formats: Mapping[Node, str]) -> float:
        """The relative L2 of the outputs, the largest of any float one, with products quantized as told."""
        references = {node: self.quantized(node, format) for node, format in formats.items() if format != FLOAT}
        results = [interpret(self.graph, feed, instead=lambda n: references.get(n) or single(n)) for feed in self.feeds]
        return max((distance([r[i] for r in results], [r[i] for r in self.exact])
                    for i, v in enumerate(self.graph.outputs) if v.dtype.is_float), default=0.0)

    def quantized(self, node: Node, format: str) -> Reference:
        """What to run for a product to see it quantized."""
        block = q8.block_size(format)
        return quantized_product(block, self.zero_point(node.input(0), block))

    def zero_point(self, x: Value, block: int) -> bool:
        """Whether rows of x are quantized with a zero point: as `insert-dynamic-quantize` decides."""
        return x.producer is not None and wants_zero_point(self.rows[x], block)

    def alone(self, node: Node, format: str) -> float:
        """What the products of the node's input put on the model's error, all others float.

        It is measured for the fastest format; others are taken to lower it as they lower the products' own error.
        """
        x, fastest = node.input(0), next(iter(SPEED))
        if format == FLOAT:
            return 0.0
        if x not in self._effects:
            self._effects[x] = min(self.error(dict.fromkeys(self.groups[x], fastest)), WORST)
        noise = self.noise(x, fastest)
        return self._effects[x] * (math.sqrt(self.noise(x, format) / noise) if noise else 1.0)

    def noise(self, x: Value, format: str) -> float:
        """The mean squared error of the products of x themselves, on samples of rows and columns."""
        if (x, format) not in self._noises:
            block = q8.block_size(format)
            rows = self.rows[x][::max(len(self.rows[x]) // SAMPLED_ROWS, 1)]
            weights = [weight_array(n) for n in self.groups[x]]
            w = np.concatenate([w[:, ::max(w.shape[1] // SAMPLED_COLS, 1)] for w in weights], axis=1)
            difference = rounded_rows(rows, block, self.zero_point(x, block)) @ rounded_weight(w, block) - rows @ w
            self._noises[x, format] = float((difference.astype(np.float64)**2).mean()) if difference.size else 0.0
        return self._noises[x, format]

    def fastest(self, bound: float) -> dict[Node, str]:
        """The formats that are fastest among those whose effects, added as powers, stay under a bound.

        From the fastest format everywhere, the change that takes the most power off the error for its time is made
        until the rest is small enough.
        """
        chosen = dict.fromkeys(self.groups, next(iter(SPEED)))
        power = {(x, f): self.alone(nodes[0], f)**2 for x, nodes in self.groups.items() for f in SPEED}
        time = {x: sum(math.prod(weight_shape(n)) for n in nodes) for x, nodes in self.groups.items()}
        while sum(power[x, f] for x, f in chosen.items()) > bound**2:
            changes = [((power[x, f] - power[x, g]) / (time[x] * (SPEED[g] - SPEED[f])), x, g)
                       for x, f in chosen.items() for g in SPEED if SPEED[g] > SPEED[f]]
            _, x, format = max(changes, key=lambda change: change[0])
            chosen[x] = format
        return {node: chosen[node.input(0)] for node in self.products}


def distance(results: Iterable[Array], exact: Iterable[Array]) -> float:
    """|results - exact| / |exact| over several arrays; infinite where only one side is finite."""
    error = power = 0.0
    for x, r in zip(results, exact, strict=True):
        finite = np.isfinite(r)
        if not np.isfinite(x[finite]).all():
            return math.inf
        error += float(((x - r)[finite].astype(np.float64)**2).sum())
        power += float((r[finite].astype(np.float64)**2).sum())
    return math.sqrt(error / power) if power else (math.inf if error else 0.0)
