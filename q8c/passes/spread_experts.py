"""Mixtures of experts whose weights are gathered for every token, as products with all experts' weights."""
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
from q8c.passes.rules import Declined, Rewriter, Rules, attr, nodes_between, orders, producer, rewrite

_DEEPEST = 1 << 15
"""Depth of a product with several experts at a time: exact sums of int8 products are bounded by 66,000 steps."""


@dataclass(frozen=True)
class SpreadExperts(Pass):
    """Replaces the sum over k of score[t, k] * (w2[id[t, k]] @ f(w1[id[t, k]] @ x[t])) by products with all experts'
    weights: w2 @ (score by expert * f(w1 @ x)), where experts that a token did not choose count as 0.

    Gathered weights are a matrix for every token, of floats; all of them together are two products with constants.
    """

    name: ClassVar[str] = "spread-experts"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a mixture was found."""
        return rewrite(graph, RULES, report, explain=True)


@dataclass(frozen=True)
class Mixture:
    """What is known of a mixture: the experts' indices [tokens * chosen] as they are gathered by, and the sizes."""

    ids: Value
    tokens: Dim
    chosen: int
    experts: int


def spread_experts(r: Rewriter, node: Node) -> Value | Declined | None:
    """sum of score * (w2[id] @ f(w1[id] @ x)) over chosen experts -> w2 @ (score by expert * f(w1 @ x)) over all."""
    split = producer(node.input(0), "reshape")
    if split is None or tuple(attr(node, "axes")) != (1,) or node.input(0).type.rank != 3:
        return None
    tokens, chosen, _ = node.input(0).shape
    scaled, scores = split.input(0), None
    times = producer(scaled, "mul")
    if times is not None:
        scaled, scores = next(((a, b) for a, b in orders(times) if find_last(a) is not None), (scaled, None))
    last = find_last(scaled)
    if last is None or not isinstance(chosen, int) or (times is not None) != (scores is not None):
        return None
    weights, hidden, transposed, bias = last
    picked = find_picked(weights)
    assert picked is not None
    table, ids = picked
    experts = table.shape[0]
    if not isinstance(experts, int) or not r.graph.known_equal(ids.type.size, tokens * chosen) or (
            scores is not None and not r.graph.known_equal(scores.type.size, ids.type.size)):
        return None
    mixture = Mixture(ids, tokens, chosen, experts)
    spread = Spread(r, mixture).of(hidden)
    if spread is None:
        return Declined("what its experts compute is not understood")
    r.from_nodes(nodes_between(node, [ids, hidden, *([] if scores is None else [scores])]))
    by_expert = score_by_expert(r, mixture, scores)
    total = weighted(r, mixture, spread, by_expert, flat(table.array(), transposed, 1))
    if bias is not None:
        total = r.add("add", total, r.add("matmul", by_expert, bias))
    return r.reshape(total, node.output.shape)


def find_last(value: Value) -> tuple[Value, Value, bool, Value | None] | None:
    """(weights, x, transposed, bias) of the last product of experts, x [rows, depth] as it lies in it."""
    bias = None
    add = producer(value, "add")
    if add is not None:
        for a, b in orders(add):
            picked = find_picked(b)
            if picked is not None and picked[0].type.rank == 2:
                value, bias = a, picked[0]
    node = producer(value, "reshape")
    found = None if node is None else find_product(node.input(0))
    return None if found is None else (*found, bias)


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


def flat(table: Array, transposed: bool, axis: int) -> Array:
    """The weights of all experts side by side along an axis of [depth, cols]; `transposed` ones lie so already."""
    turned = table if transposed else table.transpose(0, 2, 1)
    both = turned.transpose(1, 0, 2).reshape(turned.shape[1], -1) if axis == 0 else turned.reshape(-1, turned.shape[2])
    release(table)
    return spilled(np.ascontiguousarray(both))


@dataclass
class Spread:
    """What values [tokens * chosen, ...] are for every token and expert: [tokens or 1, experts or 1, ...], such that
    the row for a token and an expert it chose is the value's. None for those that are no such."""

    r: Rewriter
    mixture: Mixture
    made: dict[Value, Value | None] = field(default_factory=dict)

    def of(self, value: Value) -> Value | None:
        """A value spread."""
        if value not in self.made:
            before = self.r.source
            self.r.from_nodes([] if value.producer is None else [value.producer])
            self.made[value] = self._make(value)
            self.r.source = before
        return self.made[value]

    def _make(self, value: Value) -> Value | None:
        picked, node = find_picked(value), value.producer
        if picked is not None:
            return self.r.reshape(picked[0], (1, *picked[0].shape)) if self._same_ids(picked[1]) else None
        if node is None:
            return None
        found = find_product(value)
        if found is not None:
            return self._product(found, value)
        tokens = self._tokens(node)
        if tokens is not None:
            return tokens
        return self._moved(node) if node.op in ("reshape", "slice", "concat") or OPS[node.op].elementwise else None

    def _same_ids(self, ids: Value) -> bool:
        """Whether indices are those of the mixture, maybe in another shape."""
        return view_root(ids) is view_root(self.mixture.ids)

    def _tokens(self, node: Node) -> Value | None:
        """Rows of tokens, each repeated for the experts it chose, as [tokens, 1, ...]."""
        wide = producer(node.input(0), "broadcast_to") if node.op == "reshape" else None
        if wide is None:
            return None
        x, shape, tail = wide.input(0), wide.output.shape, node.output.shape[1:]
        narrow = (1,) * (len(shape) - x.type.rank) + x.shape
        stretched = [i for i, (a, b) in enumerate(zip(narrow, shape, strict=True)) if a != b]
        if len(stretched) != 1 or shape[stretched[0]] != self.mixture.chosen:
            return None
        known, at = self.r.graph.known_equal, stretched[0]
        same = known(product(shape[:at]), self.mixture.tokens) and known(product(shape[at + 1:]), product(tail))
        return self.r.reshape(x, (self.mixture.tokens, 1, *tail)) if same else None

    def _product(self, found: tuple[Value, Value, bool], value: Value) -> Value | None:
        """The product of every token with every expert's weights, [tokens, experts, ...]."""
        weights, x, transposed = found
        picked, rows = find_picked(weights), self.of(x)
        if picked is None or rows is None or rows.shape[1] != 1 or not self._same_ids(picked[1]):
            return None
        table = flat(picked[0].array(), transposed, 0)
        assert value.producer is not None
        self.r.from_nodes([value.producer])
        y = self.r.add("matmul", self.r.reshape(rows, (self.mixture.tokens, table.shape[0])),
                       self.r.constant(table, DType.f32))
        return self.r.reshape(y, (self.mixture.tokens, self.mixture.experts, *value.shape[1:]))

    def _moved(self, node: Node) -> Value | None:
        """A node that leaves rows apart."""
        rank, given = node.output.type.rank, []
        for value in node.operands:
            alone = value.is_constant and (value.type.rank < rank or value.shape[0] == 1)
            x = value if alone else self.of(value) if value.type.rank else None
            if x is None:
                return None
            given.append(x)
        lead = next((v.shape[:2] for v in given if v.type.rank > rank), None)
        if node.op == "reshape":
            lead = given[0].shape[:2]
            return self.r.reshape(given[0], (*lead, *node.output.shape[1:]))
        if lead is None:
            return None
        attrs = dict(node.attrs)
        if node.op == "slice":
            if node.output.shape[0] != node.input(0).shape[0]:
                return None
            attrs = {"starts": (0, *attr(node, "starts")), "sizes": (*lead, *attr(node, "sizes")[1:]),
                     "steps": (1, *attr(node, "steps"))}
        if node.op == "concat":
            axis = attr(node, "axis") % rank
            if not axis or any(v.type.rank != rank + 1 or v.shape[:2] != lead for v in given):
                return None
            attrs = {"axis": axis + 1}
        return self.r.add(node.op, *given, **attrs)


def score_by_expert(r: Rewriter, mixture: Mixture, scores: Value | None) -> Value:
    """What each token gives each expert, [tokens, experts]: the sum of its scores where it chose the expert, else 0."""
    shape = (mixture.tokens, mixture.chosen, 1)
    numbers = r.reshape(r.constant(np.arange(mixture.experts), mixture.ids.dtype), (1, 1, mixture.experts))
    chosen = r.add("equal", r.reshape(mixture.ids, shape), numbers)
    given = r.constant(1.0, DType.f32) if scores is None else r.reshape(scores, shape)
    each = r.add("where", chosen, given, r.constant(0.0, DType.f32))
    return r.add("reduce_sum", each, axes=(1,), keepdims=False)


def weighted(r: Rewriter, mixture: Mixture, spread: Value, by_expert: Value, table: Array) -> Value:
    """The last product [tokens, cols] of all experts' hidden rows [tokens, experts, depth, ...], weighted."""
    depth = len(table) // mixture.experts
    hidden = r.reshape(spread, (mixture.tokens, mixture.experts, depth))
    score = r.reshape(by_expert, (mixture.tokens, mixture.experts, 1))
    zero = r.constant(0.0, DType.f32)
    kept = r.add("where", r.add("equal", score, zero), zero, r.add("mul", hidden, score))
    step = max(_DEEPEST // depth, 1)
    total: Value | None = None
    for first in range(0, mixture.experts, step):
        count = min(step, mixture.experts - first)
        part = kept if count == mixture.experts else r.add(
            "slice", kept, starts=(0, first, 0), sizes=(mixture.tokens, count, depth), steps=(1, 1, 1))
        y = r.add("matmul", r.reshape(part, (mixture.tokens, count * depth)),
                  r.constant(table[first * depth:(first + count) * depth], DType.f32))
        total = y if total is None else r.add("add", total, y)
    assert total is not None
    return total


RULES: Rules = {"reduce_sum": (spread_experts,)}
