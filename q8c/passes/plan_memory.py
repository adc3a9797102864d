"""Give every value between kernels a slot of the arena; values that are never alive together share one."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from q8c.ir.dims import Dim, dim_max, evaluate, symbols
from q8c.ir.graph import Graph, Value, view_root
from q8c.ir.memory import stored_bytes
from q8c.ir.work import NO_CODE
from q8c.passes.manager import Pass, Report

TYPICAL_SIZE = 64  # what free sizes are taken to be when two slots are compared; any choice is right, only not as small


@dataclass
class Slot:
    """An arena slot: its size so far, what that is at typical sizes, and whether no live value holds it."""

    size: Dim = 0
    bytes: int = 0
    free: bool = True


@dataclass
class Arena:
    """The slots given out so far."""

    typical: dict[str, int]
    slots: list[Slot] = field(default_factory=list)

    def take(self, size: Dim) -> int:
        """The free slot that grows least when it holds `size` bytes, then the one that wastes least, or a new one."""
        wanted = evaluate(size, self.typical)
        choices = [(max(wanted - s.bytes, 0), max(s.bytes - wanted, 0), s.size != size, i)
                   for i, s in enumerate(self.slots) if s.free]
        if not choices:
            self.slots.append(Slot())
        index = min(choices)[-1] if choices else len(self.slots) - 1
        slot = self.slots[index]
        slot.size = dim_max(slot.size, size)
        slot.bytes = evaluate(slot.size, self.typical)
        slot.free = False
        return index


@dataclass(frozen=True)
class PlanMemory(Pass):
    """Sets `slot` of every node's result that is not written straight into an output of the graph.

    A value lives from the node that writes it to the last node, in order, that reads it or a reshape of it. A reshape
    has the slot of what it views; inputs, constants and their views have none, nor have lengths, which come with a run.
    Nothing in the arena is computed in place: a node's results never share a slot with its operands.
    """

    name: ClassVar[str] = "plan-memory"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a slot changed."""
        before = [v.slot for v in graph.values()]
        assign(graph)
        return before != [v.slot for v in graph.values()]


def assign(graph: Graph) -> None:
    """Plan all slots anew."""
    written = {view_root(v) for v in graph.outputs}
    ends = last_reads(graph)
    arena = Arena({name: TYPICAL_SIZE for v in graph.values() for d in v.shape for name in symbols(d)})
    dying: dict[int, list[Value]] = {}
    for index, node in enumerate(graph.nodes):
        for value in node.outputs:
            root = view_root(value)
            value.slot = root.slot
            if root is value and root not in written and node.op not in NO_CODE:
                value.slot = arena.take(stored_bytes(value))
                dying.setdefault(ends.get(value, index), []).append(value)
            elif root in written:
                value.slot = None
        for value in dying.pop(index, ()):
            assert value.slot is not None
            arena.slots[value.slot].free = True


def last_reads(graph: Graph) -> dict[Value, int]:
    """The index of the last node that reads each value or a view of it; values nobody reads are not in it."""
    ends: dict[Value, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.op != "reshape":
            for value in node.operands:
                ends[view_root(value)] = index
    return ends
