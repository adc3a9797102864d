"""Building the loop node that stands for a group of nodes."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from q8c.ir.dims import Dim
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops import OPS
from q8c.passes.rewrite import is_uniform, sources


@dataclass
class Body:
    """A loop's body under construction: `inner` and `scalars` map the graph's values to the body's."""

    graph: Graph
    operands: list[Value] = field(default_factory=list)
    inner: dict[Value, Value] = field(default_factory=dict)
    scalars: dict[Value, Value] = field(default_factory=dict)

    def read(self, node: Node, value: Value) -> Value:
        """The body's value for an operand of one of its nodes; scalars are constants of the body."""
        if value.is_constant and becomes_scalar(node, value):
            if value not in self.scalars:
                scalar = value.array().reshape(-1)[:1].reshape(())
                self.scalars[value] = self.graph.constant(scalar, value.name)
            return self.scalars[value]
        if value not in self.inner:
            self.inner[value] = self.graph.add_input(value.name, value.type)
            self.operands.append(value)
        return self.inner[value]

    def append(self, node: Node) -> None:
        """Copy a node into the body."""
        inputs = [None if v is None else self.read(node, v) for v in node.inputs]
        copy = Node(node.op, inputs, [], dict(node.attrs))
        for value in node.outputs:
            self.inner[value] = Value(self.graph.fresh_name(value.name), value.type, producer=copy)
            copy.outputs.append(self.inner[value])
        self.graph.insert(copy)


def make_loop(graph: Graph, nodes: Sequence[Node]) -> Node:
    """A loop that computes what `nodes` (in a legal order) compute; it takes over their outputs that others read.

    Neither the graph's list of nodes nor its uses are touched.
    """
    body = Body(Graph("body"))
    body.graph.assumptions = graph.assumptions
    for node in nodes:
        body.append(node)
    members = set(nodes)
    outputs = [v for n in nodes for v in n.outputs if graph.is_output(v) or not members.issuperset(v.users)]
    for value in outputs:
        body.graph.add_output(body.inner[value])
    loop = Node("loop", list(body.operands), outputs, {}, sources(nodes), body.graph)
    for value in outputs:
        value.producer = loop
    return loop


def becomes_scalar(node: Node, value: Value) -> bool:
    """Whether a constant is uniform, and a scalar in its place leaves the shape of the node's result as it is."""
    if not OPS[node.op].elementwise or not is_uniform(value.array()):
        return False
    others = [v.shape for v in node.operands if v is not value]
    return not value.shape or broadcast(others) == node.output.shape


def broadcast(shapes: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """The broadcast of shapes that are known to fit, the first size that is not 1 on each axis."""
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return tuple(next((d for d in sizes if d != 1), 1) for sizes in zip(*padded, strict=True))
