"""Positions that are counted from the length of a cache, for each sequence by its own."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from q8c.ir.dims import Dim, as_symbol
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.nested import names_in
from q8c.ir.ops import OPS
from q8c.passes.affine import affine
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import attr


@dataclass(frozen=True)
class OwnPositions(Pass):
    """Replaces past + i, the position of the new token i, by lengths[b] + i where rotary positions or embeddings of all
    sequences b are computed from it.

    Without a state, and with one that holds sequences of one length, the two are the same numbers. Declined where
    anything else is computed from the length of the cache.
    """

    name: ClassVar[str] = "own-positions"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether there were such positions."""
        held = next((n for n in graph.nodes if n.op == "past_lengths" and not n.attrs.get("unknown")), None)
        if held is None:
            return False
        batch, past = held.input(0).shape[0], as_symbol(held.input(0).shape[2])
        assert past is not None, "keep-cache declines without"
        shared = _shared(graph, batch, past)
        readers = [(node, index) for node in graph.nodes if not shared.issuperset(node.outputs)
                   for index, value in enumerate(node.inputs) if value in shared]
        own = _Own(graph, held, batch, past, shared)
        found: list[tuple[Node, int, Value]] = []
        for node, index in readers:
            value = own.operand(node, index)
            if value is None:
                report.decline(node, "it goes by the length of the cache, which is one for all sequences")
                graph.prune()
                return False
            found.append((node, index, value))
        for node, index, value in found:
            graph.set_inputs(node, [value if i == index else v for i, v in enumerate(node.inputs)])
            report.rewrote(node, "positions are each sequence's own")
        graph.prune()
        return bool(found)


def _shared(graph: Graph, batch: Dim, past: str) -> set[Value]:
    """Values computed from the length of the cache that are the same for all sequences."""
    found: set[Value] = set()
    for node in graph.nodes:
        if batch not in [d for v in node.outputs for d in v.shape] and (
                found & set(node.operands) or past in names_in(node.attrs.values())):
            found.update(node.outputs)
    return found


@dataclass
class _Own:
    """Makes values [batch, ...] of what is `shared`: as it would be if each sequence were alone."""

    graph: Graph
    held: Node
    batch: Dim
    past: str
    shared: set[Value]
    made: dict[Value, Value | None] = field(default_factory=dict)

    def operand(self, node: Node, index: int) -> Value | None:
        """What a node that has the batch as its first axis reads instead of an operand; None if that is not known."""
        value, rank = node.input(index), node.output.type.rank
        if not (OPS[node.op].elementwise or node.op == "broadcast_to" or node.op == "rotary" and index):
            return None
        shape = (1,) * (rank - value.type.rank) + value.shape
        if node.output.shape[0] != self.batch or shape[0] != 1:
            return None
        own = self.of(value)
        return None if own is None else self._shaped(own, (self.batch, *shape[1:]), node)

    def of(self, value: Value) -> Value | None:
        """A shared value with an axis for the batch in front."""
        if value not in self.made:
            node = value.producer
            assert node is not None, "no input or constant is shared"
            self.made[value] = self._positions(value, node) or (self._computed(value, node) if node.operands else None)
        return self.made[value]

    def _positions(self, value: Value, node: Node) -> Value | None:
        """lengths + i if a value is past + i along one axis."""
        found = affine(value)
        if found is None or as_symbol(found.offset) != self.past or [s for s in found.steps if s != 0] != [1]:
            return None
        size = value.shape[found.steps.index(1)]
        counted = self.graph.add("iota", [], {"size": size, "dtype": self.held.output.dtype}, before=node).output
        places = self._shaped(counted, (1, *(size if step else 1 for step in found.steps)), node)
        first = self._shaped(self.held.output, (self.batch, *[1] * value.type.rank), node)
        own = self.graph.add("add", [first, places], source=node.source, name="positions", before=node).output
        if own.dtype is not value.dtype:
            own = self.graph.add("cast", [own], {"to": value.dtype}, before=node).output
        attrs = {"shape": (self.batch, *value.shape)}
        return own if own.shape == attrs["shape"] else self.graph.add("broadcast_to", [own], attrs, before=node).output

    def _computed(self, value: Value, node: Node) -> Value | None:
        """What is computed of each sequence's own operands, by an op that leaves other axes than its own alone."""
        operands = [self.of(v) if v in self.shared else v for v in node.operands]
        attrs, rank = dict(node.attrs), 0
        if node.op in ("reshape", "broadcast_to"):
            attrs["shape"] = (self.batch, *value.shape)
        elif node.op == "transpose":
            attrs["perm"] = (0, *(axis + 1 for axis in attr(node, "perm")))
        elif OPS[node.op].elementwise or node.op == "matmul":
            rank = max(v.type.rank for v in node.operands)  # the batch is in front of all axes
        elif node.op != "gather" or node.input(0) in self.shared or attr(node, "axis") != 0:
            return None
        given: list[Value] = []
        for old, own in zip(node.operands, operands, strict=True):
            if own is None:
                return None
            inside = (1,) * (rank - old.type.rank) + old.shape
            given.append(own if own is old else self._shaped(own, (self.batch, *inside), node))
        return self.graph.add(node.op, given, attrs, source=node.source, name=value.name, before=node).output

    def _shaped(self, value: Value, shape: tuple[Dim, ...], before: Node) -> Value:
        if value.shape == shape:
            return value
        return self.graph.add("reshape", [value], {"shape": shape}, before=before).output
