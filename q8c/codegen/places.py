"""Where every value of a final graph lives when the compiled code runs."""
from __future__ import annotations

from dataclasses import dataclass

from q8c.errors import CompileError
from q8c.ir.graph import Graph, Node, Value, view_root


@dataclass(frozen=True)
class Place:
    """Storage of a value: the n-th `input` or `output` of a run, its `lengths` or `counts`, an arena `slot`, or a
    `constant` (by name)."""

    kind: str
    index: int = 0
    name: str = ""


def find_places(graph: Graph) -> dict[Value, Place]:
    """The place of every value.

    A node's result that is a graph output (itself or through reshapes) is written straight into the caller's array.
    Raises CompileError for a value the memory plan gave no slot, and for an output that no node writes.
    """
    places: dict[Value, Place] = {v: Place("input", i) for i, v in enumerate(graph.inputs)}
    places.update({v: Place("constant", name=n) for n, v in graph.constants.items()})
    for index, value in enumerate(graph.outputs):
        root = view_root(value)
        if root in places:
            raise CompileError(f"output {graph.output_names[index]!r} has no memory of its own; run own-outputs first")
        places[root] = Place("output", index)
    for node in graph.nodes:
        for value in node.outputs:
            _place(node, value, places)
    return places


def _place(node: Node, value: Value, places: dict[Value, Place]) -> None:
    if value in places:
        return
    if node.op == "reshape":
        places[value] = places[view_root(value)]
    elif node.op == "past_lengths":
        places[value] = Place("lengths")
    elif node.op == "new_counts":
        places[value] = Place("counts")
    elif value.slot is None:
        raise CompileError(f"{node}: {value!r} has no arena slot; run plan-memory last")
    else:
        places[value] = Place("slot", value.slot)
