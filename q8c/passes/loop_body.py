"""Building the loop node that stands for a group of nodes."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from q8c.ir.dims import Dim
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops import OPS
from q8c.passes.rewrite import is_uniform, sources
from q8c.passes.rules import attr


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
        if value not in self.inner and is_part(value):  # read where it lies
            cut = value.producer
            assert cut is not None
            self.copy(cut, [self.parameter(cut.input(0))])
        return self.parameter(value)

    def parameter(self, value: Value) -> Value:
        """The body's value for one of the graph's, a parameter if it is none yet."""
        if value not in self.inner:
            self.inner[value] = self.graph.add_input(value.name, value.type)
            self.operands.append(value)
        return self.inner[value]

    def append(self, node: Node) -> None:
        """Copy a node into the body."""
        self.copy(node, [None if v is None else self.read(node, v) for v in node.inputs])

    def copy(self, node: Node, inputs: Sequence[Value | None]) -> None:
        """Copy a node, given the body's values it reads."""
        copy = Node(node.op, list(inputs), [], dict(node.attrs))
        for value in node.outputs:
            self.inner[value] = Value(self.graph.fresh_name(value.name), value.type, producer=copy)
            copy.outputs.append(self.inner[value])
        self.graph.insert(copy)


def is_part(value: Value) -> bool:
    """Whether a value is some columns, one beside the other, of all rows of another that is computed."""
    node = value.producer
    if node is None or node.op != "slice" or node.input(0).is_constant or value.type.rank < 2:
        return False
    lead = node.input(0).shape[:-1]
    return (attr(node, "starts")[:-1] == (0,) * len(lead) and attr(node, "sizes")[:-1] == lead
            and set(attr(node, "steps")) == {1} and isinstance(value.shape[-1], int) and value.shape[-1] > 1)


def make_loop(graph: Graph, nodes: Sequence[Node]) -> Node:
    """A loop that computes what `nodes` (in a legal order) compute; it takes over their outputs that others read.

    Columns cut from a wider value are read where they lie. Neither the graph's list of nodes nor its uses are touched.
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
