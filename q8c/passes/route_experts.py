"""Mixtures of experts whose weights are gathered for every row, as products of the rows that each expert has."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from q8c.ir.dims import Dim, product
from q8c.ir.graph import Array, Graph, Node, Value, view_root
from q8c.ir.ops import OPS
from q8c.ir.spill import release, spilled
from q8c.ir.types import DType
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import Rewriter, attr, producer, rewrite

PANEL = 16
"""Each expert's columns are filled up with zeros to a multiple of this: kernels take so many at a time."""
_DEEPEST = 40
"""Ops between two products of an expert that are followed: more than any model has."""


@dataclass(frozen=True)
class RouteExperts(Pass):
    """Replaces w[id[i]] @ x[i], for every row i, by the product of each expert's weight and the rows that go to it.

    Rows are sorted by expert in front of the first product and put back behind the last. Gathered weights are a matrix
    for every row, of floats; here they are constants, each read once for all its rows.
    """

    name: ClassVar[str] = "route-experts"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether there was such a product."""
        return rewrite(graph, {"matmul": (Routes().route_product,)}, report, explain=True)


@dataclass(frozen=True)
class Route:
    """Rows sorted by the experts' numbers `ids` [rows]: which row stands at each place, where each went, and where the
    rows of each expert end."""

    ids: Value
    order: Value
    place: Value
    ends: Value


@dataclass
class Routes:
    """The routes of a graph, by the numbers they go by and of how many experts."""

    found: dict[tuple[Value, int], Route] = field(default_factory=dict)

    def route_product(self, r: Rewriter, node: Node) -> Value | None:
        """w[id[i]] @ x[i] for rows i -> rows sorted by expert, each times the weight of its own, and put back"""
        product = find_product(node.output)
        picked = None if product is None else find_picked(product[0])
        if product is None or picked is None:
            return None
        (weights, x, transposed), (table, ids) = product, picked
        rows, experts, cols = ids.type.size, table.shape[0], table.shape[2 if transposed else 1]
        if not isinstance(experts, int) or table.type.size == 0 or not r.graph.known_equal(x.shape[0], rows):
            return None
        r.from_nodes([n for n in (weights.producer, node) if n is not None])
        route = self.of(r, ids, experts)
        w = side_by_side(table.array(), transposed)
        given = Sorted(r, route).of(r.reshape(x, (rows, w.shape[0])))
        y = r.add("expert_matmul", given, r.constant(w, DType.f32), route.ends)
        if y.shape[1] != cols:
            y = r.add("slice", y, starts=(0, 0), sizes=(rows, cols), steps=(1, 1))
        return r.reshape(r.add("gather", y, route.place, axis=0), node.output.shape)

    def of(self, r: Rewriter, ids: Value, experts: int) -> Route:
        """The route by some numbers, in whatever shape they are."""
        key = view_root(ids), experts
        if key not in self.found:
            flat = r.reshape(ids, (ids.type.size,))
            node = r.graph.add("route", [flat], {"experts": experts}, source=r.source)
            self.found[key] = Route(flat, *node.outputs)
        return self.found[key]


def find_product(value: Value) -> tuple[Value, Value, bool] | None:
    """(weights, x, transposed) if a value is w[id] [rows, cols, depth] @ x [rows, depth, 1], or x [rows, 1, depth] @
    w[id] [rows, depth, cols] (transposed)."""
    node = producer(value, "matmul")
    if node is None or value.type.rank != 3:
        return None
    a, b, turned = node.input(0), node.input(1), attr(node, "transpose_b")
    if find_picked(a) is not None and b.shape[1 if turned else 2] == 1:
        return a, b, False
    return (b, a, not turned) if find_picked(b) is not None and a.shape[1] == 1 else None


def find_picked(value: Value) -> tuple[Value, Value] | None:
    """(table, ids) if a value is constant[ids] for ids [rows]."""
    node = producer(value, "gather", "gather_nd")
    if node is None or not node.input(0).is_constant or node.input(0).type.rank < 2:
        return None
    table, ids = node.input(0), node.input(1)
    if node.op == "gather":
        return (table, ids) if attr(node, "axis") == 0 and ids.type.rank == 1 else None
    column = producer(ids, "reshape")
    if attr(node, "batch_dims") or ids.type.rank != 2 or ids.shape[1] != 1:
        return None
    return table, ids if column is None else column.input(0)


def side_by_side(table: Array, transposed: bool) -> Array:
    """Weights [experts, cols, depth] as [depth, experts * cols]; `transposed` ones are [experts, depth, cols]."""
    turned = table if transposed else table.transpose(0, 2, 1)
    missing = -turned.shape[2] % PANEL
    if missing:
        turned = np.pad(turned, [(0, 0), (0, 0), (0, missing)])
    both = np.ascontiguousarray(turned.transpose(1, 0, 2)).reshape(turned.shape[1], -1)
    release(table)
    return spilled(both)


@dataclass
class Sorted:
    """Values [rows, ...] in the order of a route.

    What is computed row by row from what was just put back (a product of the same route) is computed in that order;
    of anything else the rows are gathered.
    """

    r: Rewriter
    route: Route
    made: dict[Value, Value | None] = field(default_factory=dict)

    def of(self, value: Value) -> Value:
        """A value in that order."""
        return self._followed(value, 0) or self._gathered(value)

    def _followed(self, value: Value, depth: int) -> Value | None:
        """A value that follows, row by row, from one that was put back; None if it does not."""
        if value not in self.made:
            self.made[value] = None if value.producer is None or depth > _DEEPEST else self._by_row(
                value.producer, depth + 1)
        return self.made[value]

    def _by_row(self, node: Node, depth: int) -> Value | None:
        if node.op == "gather" and node.input(1) is self.route.place:
            return node.input(0)
        if not self._leaves_rows(node):
            return None
        given = {v: self._followed(v, depth) for v in node.operands if node.op == "reshape" or self._has_rows(v, node)}
        if not any(given.values()):
            return None
        inputs = [v if v not in given else given[v] or self._gathered(v) for v in node.operands]
        return self.r.graph.add(node.op, inputs, node.attrs, source=node.source).output

    def _has_rows(self, value: Value, node: Node) -> bool:
        return value.type.rank == node.output.type.rank and self._is_all(value.shape[0])

    def _is_all(self, size: Dim) -> bool:
        return self.r.graph.known_equal(size, self.route.ids.shape[0])

    def _leaves_rows(self, node: Node) -> bool:
        """Whether each row of a node's result follows from the same row of its operands, and what all rows share."""
        rank, operands = node.output.type.rank, list(node.operands)
        if not rank or not self._is_all(node.output.shape[0]):
            return False
        if OPS[node.op].elementwise:
            return all(self._has_rows(v, node) or v.type.rank < rank or v.shape[0] == 1 for v in operands)
        if node.op == "concat":
            return bool(attr(node, "axis") % rank) and all(self._has_rows(v, node) for v in operands)
        if node.op == "slice":
            return bool(attr(node, "starts")[0] == 0 and attr(node, "steps")[0] == 1) and self._has_rows(
                operands[0], node)
        return node.op == "reshape" and operands[0].type.rank > 0 and self._is_all(operands[0].shape[0])

    def _gathered(self, value: Value) -> Value:
        """The rows of a value in order, read where they are repeated or picked from if they are."""
        picked = find_picked(value)
        if picked is not None and view_root(picked[1]) is view_root(self.route.ids):
            ids = self.r.add("gather", self.route.ids, self.route.order, axis=0)
            return self.r.add("gather", picked[0], ids, axis=0)
        repeated = self._repeated(value)
        if repeated is None:
            return self.r.add("gather", value, self.route.order, axis=0)
        x, times = repeated
        token = self.r.add("div", self.route.order, self.r.constant(times, DType.i64))
        return self.r.add("gather", x, token, axis=0)

    def _repeated(self, value: Value) -> tuple[Value, int] | None:
        """(x, n) if a value is the rows of x, each n times: a token's for each of its experts."""
        wide = producer(view_root(value), "broadcast_to")
        if wide is None:
            return None
        x, shape, tail = wide.input(0), wide.output.shape, value.shape[1:]
        narrow = (1,) * (len(shape) - x.type.rank) + x.shape
        stretched = [i for i, (a, b) in enumerate(zip(narrow, shape, strict=True)) if a != b]
        times = shape[stretched[0]] if len(stretched) == 1 else None
        if not isinstance(times, int):
            return None
        tokens = product(shape[:stretched[0]])
        if not self._is_all(tokens * times) or not self.r.graph.known_equal(
                product(shape[stretched[0] + 1:]), product(tail)):
            return None
        return self.r.reshape(x, (tokens, *tail)), times
