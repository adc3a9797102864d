"""Local rewriting: rules by op, applied front to back in time linear in the nodes, and what rules match with.

A rule gets one node and returns the value to read instead of the node's output, `Declined` with a reason, or None
where the node is not of the rule's shape. It writes new nodes with the `Rewriter`; they are visited in turn. The
first line of a rule's docstring states the rewrite and is what `q8c explain` shows.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from q8c.errors import CompileError
from q8c.ir import Array, DType, Graph, Node, Value
from q8c.ir.dims import Dim
from q8c.ir.ops import attributes
from q8c.passes.manager import Report
from q8c.passes.rewrite import sources

# How far a constant may be from the one a pattern wants: exporters write sqrt(2) with six digits and up.
CONSTANT_TOLERANCE = {DType.f16: 2e-3, DType.f32: 5e-6, DType.f64: 5e-6}


@dataclass(frozen=True, slots=True)
class Declined:
    """A rule found what it looks for but leaves it alone, and why."""

    reason: str


Rule: TypeAlias = "Callable[[Rewriter, Node], Value | Declined | None]"
Rules: TypeAlias = "Mapping[str, Sequence[Rule]]"


class Rewriter:
    """What a rule writes with: new nodes stand before the visited one and carry its source, or that of `from_nodes`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.source: tuple[str, ...] = ()

    def add(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """The output of a new node."""
        return self.graph.add(op, inputs, attrs, source=self.source).output

    def from_nodes(self, nodes: Iterable[Node]) -> Rewriter:
        """Itself, and from now on the new nodes of this rule stand for these nodes."""
        self.source = sources(nodes)
        return self

    def constant(self, data: Array | float | int | bool, dtype: DType) -> Value:
        """A new constant."""
        return self.graph.constant(np.asarray(data, dtype=dtype.numpy))

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        """x reshaped, x itself where it has the shape."""
        return x if x.shape == tuple(shape) else self.add("reshape", x, shape=tuple(shape))

    def broadcast(self, x: Value, shape: Sequence[Dim]) -> Value:
        """x broadcast, x itself where it has the shape."""
        return x if x.shape == tuple(shape) else self.add("broadcast_to", x, shape=tuple(shape))

    def same_shape(self, a: Sequence[Dim], b: Sequence[Dim]) -> bool:
        """Whether two shapes are equal as far as is known."""
        return len(a) == len(b) and all(self.graph.known_equal(x, y) for x, y in zip(a, b, strict=True))


def rewrite(graph: Graph, rules: Rules, report: Report, *, explain: bool = False) -> bool:
    """Apply rules until none fits any more; return whether anything changed. `explain` notes each rewrite.

    The nodes are visited once in order, and nodes that rules write are visited right after. Raises CompileError if
    rules undo each other.
    """
    return _Walk(graph, rules, report, explain).run()


class _Walk:
    """While it runs, `graph.nodes` holds the nodes already visited, so that new ones are appended, not inserted."""

    def __init__(self, graph: Graph, rules: Rules, report: Report, explain: bool) -> None:
        self.graph = graph
        self.rules = rules
        self.report = report
        self.explain = explain
        self.rewriter = Rewriter(graph)
        self.todo: deque[Node] = deque(graph.nodes)
        self.dead: set[Node] = set()
        self.budget = 100 * len(graph.nodes) + 1000

    def run(self) -> bool:
        changed = False
        self.graph.nodes = []
        try:
            while self.todo:
                node = self.todo.popleft()
                if self.is_unread(node):
                    self.unlink(node)
                    changed = True
                elif self.visit(node):
                    changed = True
                else:
                    self.graph.nodes.append(node)
        finally:
            self.graph.nodes += self.todo
        self.graph.nodes = [n for n in self.graph.nodes if n not in self.dead]
        return changed

    def visit(self, node: Node) -> bool:
        """Replace the node if a rule does."""
        for rule in self.rules.get(node.op, ()):
            self.rewriter.source = node.source
            visited = len(self.graph.nodes)
            found = rule(self.rewriter, node)
            new = self.graph.nodes[visited:]
            del self.graph.nodes[visited:]
            if isinstance(found, Value):
                self.replace(node, found, new, rule)
                return True
            for extra in reversed(new):
                if extra not in self.dead:
                    self.unlink(extra)
            if found is not None:
                self.report.decline(node, found.reason)
        return False

    def replace(self, node: Node, value: Value, new: Sequence[Node], rule: Rule) -> None:
        self.budget -= 1
        if self.budget < 0:
            raise CompileError(f"{node}: rules undo each other, the last was {rule.__name__}; please report the model")
        old = node.output
        if value.dtype is not old.dtype or not self.rewriter.same_shape(value.shape, old.shape):
            raise CompileError(f"{node}: {rule.__name__} gave {value.type} for {old.type}; please report the model")
        if value.producer in new:
            value.name, old.name = old.name, value.name
        if self.explain and value.producer is not None:
            self.report.rewrote(value.producer, (rule.__doc__ or rule.__name__).split("\n")[0])
        self.todo.extendleft(reversed(new))
        self.graph.replace_uses(old, value)
        self.unlink(node)

    def is_unread(self, node: Node) -> bool:
        return not any(v.users or self.graph.is_output(v) for v in node.outputs)

    def unlink(self, node: Node) -> None:
        """Take a node nobody reads out of the uses, and what only it read with it."""
        stack = [node]
        while stack:
            node = stack.pop()
            self.dead.add(node)
            for value in node.operands:
                value.users.remove(node)
                producer = value.producer
                if producer is not None and producer not in self.dead and self.is_unread(producer):
                    stack.append(producer)


def producer(value: Value | None, *ops: str) -> Node | None:
    """The node that makes the value if it is one of `ops`, else None."""
    node = None if value is None else value.producer
    return node if node is not None and node.op in ops else None


def attr(node: Node, name: str) -> Any:
    """An attribute's value, its default where it is not given."""
    return attributes(node)[name]


def uniform(value: Value | None) -> Any:
    """The one element all of a constant's are equal to (as a Python number), else None."""
    if value is None or value.data is None or value.data.size == 0:
        return None
    flat = value.data.reshape(-1)
    first = flat[0]
    if flat.size > 1 and (flat[-1] != first or not (flat == first).all()):
        return None
    return first.item()


def is_close(found: Any, wanted: float, dtype: DType) -> bool:
    """Whether a constant is the one a pattern wants, within `CONSTANT_TOLERANCE` of its type."""
    return found is not None and abs(found - wanted) <= CONSTANT_TOLERANCE.get(dtype, 0.0) * abs(wanted)


def orders(node: Node) -> Iterator[tuple[Value, Value]]:
    """The two operands of a commutative node in both orders."""
    a, b = node.input(0), node.input(1)
    yield a, b
    yield b, a


def with_constant(node: Node | None) -> tuple[Value, Any] | None:
    """(x, c) if a commutative node combines x with a uniform constant c, else None."""
    if node is not None:
        for a, b in orders(node):
            c = uniform(b)
            if c is not None:
                return a, c
    return None


def nodes_between(root: Node, leaves: Iterable[Value]) -> list[Node]:
    """The nodes that compute `root` from `leaves`, root last; for the sources of what replaces them."""
    stops = set(leaves)
    found: dict[Node, None] = {root: None}
    stack = [root]
    while stack:
        for value in stack.pop().operands:
            node = value.producer
            if node is not None and value not in stops and node not in found:
                found[node] = None
                stack.append(node)
    return list(found)[::-1]
