"""Put everything between the heavy kernels into loops that make one pass over rows each."""
from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from q8c.ir.dims import Dim
from q8c.ir.graph import Graph, Node
from q8c.passes.loop_body import make_loop
from q8c.passes.loopable import join_spaces, row_space, takes_rows
from q8c.passes.manager import Pass, Report

MAX_NODES = 48  # a longer body spills registers and takes long to compile; a chain beyond it goes on in a next loop


@dataclass(eq=False)
class Group:
    """Nodes that become one loop. It is closed once a node outside has read from it."""

    space: tuple[Dim, ...]
    nodes: list[Node] = field(default_factory=list)
    closed: bool = False


@dataclass(frozen=True)
class FuseLoops(Pass):
    """Replaces elementwise ops, norms, softmax, row reductions and dynamic_quantize by loops.

    Each node goes into exactly one loop, so nothing is computed twice. Nodes share a loop if one reads the other,
    their rows and row lengths are the same (or one has a single element per row), and no node that stays outside
    stands between them. Columns cut from a wider value are read where they lie.
    """

    name: ClassVar[str] = "fuse-loops"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a loop was made."""
        graph.prune()
        if not any(takes_rows(n) for n in graph.nodes):
            return False
        order = loopable_first(graph)
        groups = group_nodes(graph, order)
        position = {node: i for i, node in enumerate(order)}
        last = {group.nodes[-1]: sorted(group.nodes, key=position.__getitem__) for group in groups.values()}
        graph.nodes = []
        for node in order:
            if node not in groups:
                graph.nodes.append(node)
            elif node in last:
                loop = make_loop(graph, last[node])
                graph.nodes.append(loop)
                report.rewrote(loop, " + ".join(n.op for n in last[node]))
        register_uses(graph)
        graph.prune()
        return True


def loopable_first(graph: Graph) -> list[Node]:
    """The nodes in an order in which one that a loop can take comes as soon as its operands are there.

    So a loop's nodes stand together, as far as dependences let them; the others keep their order.
    """
    waiting: dict[Node, int] = {}
    index = {node: i for i, node in enumerate(graph.nodes)}
    ready: list[tuple[bool, int]] = []

    def push(node: Node) -> None:
        heapq.heappush(ready, (not takes_rows(node), index[node]))

    for node in graph.nodes:
        waiting[node] = len({v.producer for v in node.operands if v.producer is not None})
        if not waiting[node]:
            push(node)
    order: list[Node] = []
    while ready:
        node = graph.nodes[heapq.heappop(ready)[1]]
        order.append(node)
        for reader in dict.fromkeys(u for v in node.outputs for u in v.users):
            waiting[reader] -= 1
            if not waiting[reader]:
                push(reader)
    return order


def group_nodes(graph: Graph, order: Iterable[Node]) -> dict[Node, Group]:
    """The loop each node goes into, for the nodes that go into one.

    A loop stands where its last node stood. That is legal because a group only grows while no node outside has read
    from it: all it reads is computed before that place, and all that read it come after.
    """
    groups: dict[Node, Group] = {}
    for node in order:
        read = dict.fromkeys(groups[v.producer] for v in node.operands if v.producer in groups)
        own = Group(row_space(node), [node]) if takes_rows(node) else None
        for group in read:
            if own is None or not absorb(graph, own, group):
                group.closed = True
        if own is not None:
            groups.update(dict.fromkeys(own.nodes, own))
    return groups


def absorb(graph: Graph, own: Group, group: Group) -> bool:
    """Take an earlier group's nodes into `own`, if both may be one loop."""
    space = join_spaces(graph, own.space, group.space)
    if space is None or group.closed or len(own.nodes) + len(group.nodes) > MAX_NODES:
        return False
    own.space = space
    own.nodes = group.nodes + own.nodes
    return True


def register_uses(graph: Graph) -> None:
    """Note anew who reads what, after nodes were replaced wholesale."""
    for value in graph.values():
        value.users.clear()
    for node in graph.nodes:
        for value in node.operands:
            value.users.append(node)
