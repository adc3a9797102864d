"""Where every value of a final graph lives when the compiled code runs."""
from __future__ import annotations

from dataclasses import dataclass

from q8c.errors import CompileError
from q8c.ir.graph import Graph, Node, Value


@dataclass(frozen=True)
class Place:
    """Storage of a value: the n-th `input` or `output` of a run, an arena `slot`, or a `constant` (by name)."""

    kind: str
    index: int = 0
    name: str = ""


@dataclass(frozen=True)
class Copy:
    """A graph output that no kernel can write in place: an input, a constant, a view of one, or a second name."""

    value: Value
    output: int


def view_root(value: Value) -> Value:
    """The value whose bytes this one is: a reshape moves nothing."""
    while value.producer is not None and value.producer.op == "reshape":
        value = value.producer.input(0)
    return value


def find_places(graph: Graph) -> tuple[dict[Value, Place], list[Copy]]:
    """The place of every value, and the outputs that must be copied at the end of a run.

    A node's result that is a graph output (itself or through reshapes) is written straight into the caller's array.
    Raises CompileError for a value the memory plan gave no slot.
    """
    places: dict[Value, Place] = {v: Place("input", i) for i, v in enumerate(graph.inputs)}
    places.update({v: Place("constant", name=n) for n, v in graph.constants.items()})
    copies: list[Copy] = []
    for index, value in enumerate(graph.outputs):
        root = view_root(value)
        if root in places:
            copies.append(Copy(value, index))
        else:
            places[root] = Place("output", index)
    for node in graph.nodes:
        for value in node.outputs:
            _place(node, value, places)
    return places, copies


def _place(node: Node, value: Value, places: dict[Value, Place]) -> None:
    if value in places:
        return
    if node.op == "reshape":
        places[value] = places[view_root(value)]
    elif value.slot is None:
        raise CompileError(f"{node}: {value!r} has no arena slot; run plan-memory last")
    else:
        places[value] = Place("slot", value.slot)
