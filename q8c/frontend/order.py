"""The nodes a model's outputs need, in an order they can be computed in."""
from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from q8c.errors import CompileError
from q8c.frontend.registry import describe

if TYPE_CHECKING:
    import onnx


def ordered(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[int]:
    """The places of the nodes that the values named `outputs` are computed by, each behind those it reads from.

    Nodes that nothing needs are left out, whatever they are; the others stay as they stand where they can. Raises
    CompileError for nodes that wait for each other.
    """
    makers: dict[str, list[int]] = {}
    for number, node in enumerate(nodes):
        for name in filter(None, node.output):
            makers.setdefault(name, []).append(number)  # twice is wrong, which is told when a model is checked
    before: dict[int, set[int]] = {}
    todo = [maker for name in outputs for maker in makers.get(name, ())]
    while todo:
        number = todo.pop()
        if number not in before:
            before[number] = {maker for name in reads(nodes[number]) for maker in makers.get(name, ())}
            todo.extend(before[number])
    found = _sorted(before)
    stuck = before.keys() - set(found)
    if stuck:
        raise CompileError(f"{describe(nodes[min(stuck)])}: it reads what is computed from its own result, or from "
                           "that of nodes that wait for each other; expected a graph without a cycle")
    return found


def _sorted(before: dict[int, set[int]]) -> list[int]:
    """Numbers, each behind those that are `before` it, the smallest that can be next always first; without those that
    wait for each other."""
    after: dict[int, list[int]] = {number: [] for number in before}
    for number, others in before.items():
        for other in others:
            after[other].append(number)
    waiting = {number: len(others) for number, others in before.items()}
    ready = sorted(number for number, count in waiting.items() if not count)
    found = []
    while ready:
        number = heapq.heappop(ready)
        found.append(number)
        for other in after[number]:
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(ready, other)
    return found


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names a node reads, those of the graph around it that its subgraphs read among them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {v.name for v in (*graph.input, *graph.initializer)}
            own.update(s.values.name for s in graph.sparse_initializer)
            own.update(name for inner in graph.node for name in inner.output)
            read = {v.name for v in graph.output}.union(*map(reads, graph.node))
            yield from read - own
