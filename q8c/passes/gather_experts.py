"""Mixtures of experts whose experts are all computed for all tokens, as what each token's own experts give."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.errors import Error
from q8c.ir.dims import Dim, evaluate, product, symbols
from q8c.ir.graph import Array, Graph, Node, Value
from q8c.ir.interpret import run_node
from q8c.ir.nested import names_in
from q8c.ir.ops import OPS
from q8c.ir.spill import release, spilled
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import sources
from q8c.passes.rules import attr

_TRIALS = ((1, "any"), (5, "any"), (6, "same"))
"""How many tokens a sum is tried on, and whether all of them choose the same experts: then a limit to the tokens of an
expert would show."""
_TOLERANCE = 1e-5
_COPIES = ("reshape", "broadcast_to")


@dataclass(frozen=True)
class Mixture:
    """`total` [..., channels] is, for every token t, the sum over j of scores[t, j] * outputs[ids[t, j]][t], where
    outputs are one value for each of the `experts`, or one that has an axis for them in front."""

    ids: Value
    scores: Value
    experts: int
    outputs: tuple[Value, ...]
    total: Value

    @property
    def stacked(self) -> bool:
        """Whether experts are an axis."""
        return len(self.outputs) < self.experts


@dataclass(frozen=True)
class GatherExperts(Pass):
    """Replaces the sum over all experts, of which each counts where top_k chose it, by that over a token's own experts,
    with their weights gathered from one constant for all.

    Exporters write the sum in many ways (NonZero and ScatterElements, masks, one-hot products), so that none is looked
    for: the graph behind the experts is run on made-up numbers, and taken for that sum if it gives it.
    """

    name: ClassVar[str] = "gather-experts"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether there was such a mixture."""
        changed = False
        for node in [n for n in graph.nodes if n.op == "top_k" and n.output.dtype.is_int]:
            for outputs in _alike(graph, node):
                mixture = _find_mixture(graph, node, outputs)
                if mixture is None:
                    report.decline(node, f"%{outputs[0].name} and its like are not summed up by score alone")
                    continue
                made = _Gathered(graph, mixture).write()
                if made is None:
                    report.decline(node, f"its {mixture.experts} experts are not computed token by token in one way")
                    continue
                report.rewrote(made, f"{mixture.experts} experts, of which a token has {node.output.shape[-1]}")
                graph.prune()
                changed = True
                break
        return changed


def _after(graph: Graph, node: Node) -> set[Value]:
    """Everything computed from what a node computes."""
    found = set(node.outputs)
    for other in graph.nodes:
        if not found.isdisjoint(other.operands):
            found.update(other.outputs)
    return found


def _alike(graph: Graph, chosen: Node) -> Iterator[tuple[Value, ...]]:
    """What may be the experts' outputs: values that do not go by what is chosen, while what reads them does. As many of
    one op and shape as there are experts, each with a row for each token, or one that has them all."""
    ids, after, experts = chosen.output, _after(graph, chosen), chosen.input(0).shape[-1]
    rows = product(ids.shape[:-1])
    if attr(chosen, "axis") not in (-1, ids.type.rank - 1):
        return
    groups: dict[object, dict[Value, None]] = {}
    for node in graph.nodes:
        for value in node.operands if not after.isdisjoint(node.outputs) else ():
            while value not in after and value.producer is not None and value.producer.op in _COPIES:
                value = value.producer.input(0)
            if value in after or value.producer is None or not value.dtype.is_float or not value.type.rank:
                continue
            if product(value.shape) == rows * value.shape[-1]:
                groups.setdefault((value.producer.op, value.shape), {})[value] = None
            elif value.shape[0] == experts and product(value.shape[1:]) == rows * value.shape[-1]:
                groups.setdefault(value, {})[value] = None
    for key, group in groups.items():
        if len(group) == experts or key in group:
            yield tuple(group)


def _find_mixture(graph: Graph, chosen: Node, outputs: tuple[Value, ...]) -> Mixture | None:
    """The sum of what the experts give where they are chosen, the first value that is made of all of them."""
    ids, channels, experts = chosen.output, outputs[0].shape[-1], chosen.input(0).shape[-1]
    if not isinstance(experts, int):
        return None
    rows = product(ids.shape[:-1])
    reached = {value: 1 << n for n, value in enumerate(outputs)}
    after = _after(graph, chosen)
    scores: list[Value] = []
    for node in graph.nodes:
        met = 0
        for value in node.operands:
            met |= reached.get(value, 0)
        for value in node.outputs:
            if value in reached or value not in after and not met:
                continue
            reached[value] = met
            if not met and value.dtype.is_float and product(value.shape) == product(ids.shape):
                scores.append(value)
            if met == (1 << len(outputs)) - 1 and product(value.shape) == rows * channels:
                return next((m for score in reversed(scores)
                             if _is_sum(graph, m := Mixture(ids, score, experts, outputs, value))), None)
    return None


def _is_sum(graph: Graph, mixture: Mixture) -> bool:
    """Whether a mixture's total is what it should be, by what the graph makes of made-up numbers."""
    given = {mixture.ids, mixture.scores, *mixture.outputs}
    needed, waiting = set(given), [mixture.total]
    while waiting:
        value = waiting.pop()
        if value in needed or value.is_constant:
            continue
        if value.producer is None:
            return False  # it goes by something else
        needed.add(value)
        waiting += value.producer.operands
    nodes = [n for n in graph.nodes if not needed.isdisjoint(n.outputs) and given.isdisjoint(n.outputs)]
    try:
        return all(_holds(mixture, nodes, tokens, how == "same") for tokens, how in _TRIALS)
    except Error:
        return False


def _holds(mixture: Mixture, nodes: Sequence[Node], tokens: int, same: bool) -> bool:
    names = [name for d in mixture.ids.shape for name in symbols(d)]
    told = [size for n in nodes for size in (*(v.shape for v in n.outputs), n.attrs.values())]
    sizes = dict.fromkeys([*names, *names_in(told)], 1)
    if names:
        sizes[names[0]] = tokens
    rng = np.random.default_rng(tokens)

    def shape(value: Value) -> tuple[int, ...]:
        return tuple(evaluate(d, sizes) for d in value.shape)

    experts, (*lead, chosen) = mixture.experts, shape(mixture.ids)
    count = int(np.prod(lead))
    ids = np.array([rng.permutation(experts)[:chosen] for _ in range(count)]).reshape(count, chosen)
    ids = np.broadcast_to(ids[:1], ids.shape) if same else ids
    scores = rng.random((count, chosen), np.float32)
    made = rng.standard_normal((experts, count, evaluate(mixture.outputs[0].shape[-1], sizes))).astype(np.float32)
    arrays: dict[Value, Array] = {v: a.reshape(shape(v)) for v, a in zip(
        mixture.outputs, [made] if mixture.stacked else made, strict=True)}
    arrays[mixture.ids] = ids.reshape(shape(mixture.ids)).astype(mixture.ids.dtype.numpy)
    arrays[mixture.scores] = scores.reshape(shape(mixture.scores))
    for node in nodes:
        args = [None if v is None else v.array() if v.is_constant else arrays[v] for v in node.inputs]
        arrays.update(zip(node.outputs, run_node(node, args, sizes), strict=True))
    picked = made[ids, np.arange(count)[:, None]]
    expected = (scores[..., None] * picked).sum(1)
    found = arrays[mixture.total].reshape(expected.shape)
    return bool(np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE))


class _Gathered:
    """Writes a mixture with the weights of each token's experts gathered."""

    def __init__(self, graph: Graph, mixture: Mixture) -> None:
        self.graph, self.mixture = graph, mixture
        self.before = mixture.total.producer
        self.source = sources(n for v in mixture.outputs if (n := v.producer) is not None)
        self.tokens, self.chosen = product(mixture.ids.shape[:-1]), mixture.ids.shape[-1]
        self.rows = self.tokens * self.chosen
        self.ids = self.reshape(mixture.ids, (self.rows,))
        self.made: dict[tuple[Value, ...], Value | None] = {}

    def write(self) -> Node | None:
        """The node of the new total, which the graph reads instead; None if the experts differ in more than weights."""
        total = self.mixture.total
        output = self.of(self.mixture.outputs)
        if output is None:
            self.graph.prune()
            return None
        score = self.reshape(self.mixture.scores, (self.rows, 1))
        weighed = self.reshape(self.add("mul", [output, score]), (self.tokens, self.chosen, output.shape[-1]))
        summed = self.add("reduce_sum", [weighed], axes=(1,), keepdims=False)
        made = self.reshape(summed, total.shape)
        self.graph.replace_uses(total, made)
        return summed.producer

    def of(self, values: tuple[Value, ...]) -> Value | None:
        """What values of the experts, which are alike, are for each token and its experts [rows, channels]."""
        if values not in self.made:
            self.made[values] = self._shared(values) or self._own(values)
        return self.made[values]

    def _shared(self, values: tuple[Value, ...]) -> Value | None:
        """What all experts have: numbers for all tokens, or a row of each."""
        value, stacked = values[0], self.mixture.stacked
        if any(v is not value for v in values):
            return None
        if value.is_constant:
            return value if all(d == 1 for d in value.shape[:-1]) else None
        channels = value.shape[-1] if value.type.rank else 1
        while stacked and value.producer is not None and value.producer.op in _COPIES:
            x = value.producer.input(0)
            if value.producer.op == "broadcast_to" and (value.shape[0] != self.mixture.experts or x.shape != (
                    1, *value.shape[1:])):
                return None
            value = x
        if value.type.rank == 0 or product(value.shape) != self.tokens * channels:
            return None
        apart = self.reshape(value, (self.tokens, 1, channels))
        wide = self.add("broadcast_to", [apart], shape=(self.tokens, self.chosen, channels))
        return self.reshape(wide, (self.rows, channels))

    def _own(self, values: tuple[Value, ...]) -> Value | None:
        """What is computed of their own operands."""
        first = values[0]
        if first.is_constant:
            return self._gathered(values, 1)
        nodes = [v.producer for v in values if v.producer is not None]
        head = nodes[0] if len(nodes) == len(values) else None
        if head is None or len(set(values)) == 1 and not self.mixture.stacked or len(head.outputs) != 1 or any(
                n.op != head.op or n.attrs != head.attrs or len(n.inputs) != len(head.inputs) or None in n.inputs
                or n.output.shape != first.shape for n in nodes):
            return None
        operands = [tuple(n.input(i) for n in nodes) for i in range(len(head.inputs))]
        given = [self.of(each) for each in operands if head.op != "matmul" or each is operands[0]]
        x, rows = given[0] if given else None, self.tokens * (self.mixture.experts if self.mixture.stacked else 1)
        if x is None or None in given or product(first.shape) != rows * first.shape[-1]:
            return None
        if head.op == "matmul":
            return self._product(head, x, operands[1])
        if head.op == "reshape":
            return x if operands[0][0].shape[-1] == first.shape[-1] else None
        if head.op == "slice":
            return self._slice(head, x)
        return self.add(head.op, given, **head.attrs) if OPS[head.op].elementwise else None

    def _product(self, node: Node, x: Value, weights: tuple[Value, ...]) -> Value | None:
        """Rows times the weight of each one's expert."""
        own = self._gathered(weights, 2)
        if own is None:
            return None
        row = self.reshape(x, (self.rows, 1, x.shape[-1]))
        return self.reshape(self.add("matmul", [row, own], **node.attrs), (self.rows, node.output.shape[-1]))

    def _slice(self, node: Node, x: Value) -> Value | None:
        """Some of the channels."""
        starts, sizes, steps = (attr(node, name) for name in ("starts", "sizes", "steps"))
        whole = node.input(0).shape
        if any(starts[:-1]) or sizes[:-1] != whole[:-1] or set(steps[:-1]) - {1}:
            return None
        return self.add("slice", [x], starts=(0, starts[-1]), sizes=(self.rows, sizes[-1]), steps=(1, steps[-1]))

    def _gathered(self, values: tuple[Value, ...], rank: int) -> Value | None:
        """Constants of the experts with the axes behind `rank`, all others being 1: for each row that of its own."""
        shape, lead = values[0].shape[-rank:], values[0].shape[:-rank]
        if self.mixture.stacked:
            lead = lead[1:] if lead[:1] == (self.mixture.experts,) else (0,)
        if any(not v.is_constant or v.type != values[0].type for v in values) or len(shape) < rank or set(lead) - {1}:
            return None
        fixed = tuple(int(str(d)) for d in shape)
        if self.mixture.stacked:
            table = values[0].array().reshape(-1, *fixed)
        else:
            table = spilled(np.stack([v.array().reshape(fixed) for v in values]))
            for value in values:
                release(value.array())
        return self.add("gather", [self.graph.constant(table, f"{values[0].name}_of_all"), self.ids], axis=0)

    def reshape(self, value: Value, shape: tuple[Dim, ...]) -> Value:
        """The same elements in another shape."""
        return value if value.shape == shape else self.add("reshape", [value], shape=shape)

    def add(self, op: str, inputs: Sequence[Value | None], **attrs: object) -> Value:
        """The output of a new node."""
        return self.graph.add(op, list(inputs), attrs, source=self.source, before=self.before).output  # type: ignore[arg-type]
