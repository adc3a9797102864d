"""Products of the same rows with many weights, of which each row keeps one, as a product with that one."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from q8c.ir.graph import Graph, Node, Value
from q8c.ir.spill import release, spilled
from q8c.ir.types import DType
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import Rewriter, attr, producer, rewrite


@dataclass(frozen=True)
class ChooseWeights(Pass):
    """Replaces where(c, x @ a, where(d, x @ b, x @ e)), for conditions of whole rows, by x[i] @ w[n[i]], for w all the
    weights and n the number of the one that a row keeps.

    So products of groups are written where rows are sorted by expert and each group has a weight of its own.
    """

    name: ClassVar[str] = "choose-weights"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether there were such products."""
        return rewrite(graph, {"where": (_Chosen().choose,)}, report, explain=True)


@dataclass
class _Chosen:
    """The numbers that rows go by, by the conditions they were made of: several products share them."""

    made: dict[object, Value] = field(default_factory=dict)

    def choose(self, r: Rewriter, node: Node) -> Value | None:
        """where(c, x @ a, where(d, x @ b, x @ e)) -> x[i] @ w[n[i]]"""
        if any(u.op == "where" and self._way(r, u) is not None for u in node.output.users):
            return None  # the outermost has them all
        ways: list[tuple[Value, bool]] = []
        products: list[Node] = []
        while (way := self._way(r, node)) is not None:
            condition, product, rest, holds = way
            ways.append((condition, holds))
            products.append(product)
            last = producer(rest, "matmul")
            if last is not None:
                products.append(last)
                break
            if rest.producer is None or rest.producer.op != "where":
                return None
            node = rest.producer
        if not ways or len(products) != len(ways) + 1 or not _alike(products):
            return None
        x, weights = products[0].input(0), [p.input(1) for p in products]
        (rows, depth), cols = x.shape, products[0].output.shape[1]
        table = spilled(np.stack([w.array() for w in weights]))
        for weight in weights:
            release(weight.array())
        ids = r.reshape(self._numbers(r, ways), (rows,))
        own = r.add("gather", r.constant(table, DType.f32), ids, axis=0)
        return r.reshape(r.add("matmul", r.reshape(x, (rows, 1, depth)), own, **products[0].attrs), (rows, cols))

    def _way(self, r: Rewriter, node: Node) -> tuple[Value, Node, Value, bool] | None:
        """(condition, product, rest, whether it is for rows where the condition holds)"""
        condition, shape = node.input(0), node.output.shape
        if len(shape) != 2 or condition.shape != (shape[0], 1):
            return None
        for product, rest, holds in ((node.input(1), node.input(2), True), (node.input(2), node.input(1), False)):
            made = producer(product, "matmul")
            if made is not None and product.users == [node] and not r.graph.is_output(product):
                return condition, made, rest, holds
        return None

    def _numbers(self, r: Rewriter, ways: list[tuple[Value, bool]]) -> Value:
        """Which product each row keeps [rows, 1], those behind the last condition being the last."""
        key = tuple(ways)
        if key not in self.made:
            number = r.constant(len(ways), DType.i64)
            for n, (condition, holds) in reversed(list(enumerate(ways))):
                own = r.constant(n, DType.i64)
                number = r.add("where", condition, *((own, number) if holds else (number, own)))
            self.made[key] = number
        return self.made[key]


def _alike(products: list[Node]) -> bool:
    """Whether products are of the same rows with constants of one shape."""
    first = products[0]
    return first.input(0).type.rank == 2 and first.input(0).dtype is DType.f32 and all(
        p.input(0) is first.input(0) and p.input(1).is_constant and p.input(1).type == first.input(1).type
        and p.input(1).type.rank == 2 and attr(p, "transpose_b") == attr(first, "transpose_b") for p in products)
