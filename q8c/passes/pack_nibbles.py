"""Keep weights in 4 bits where these hold them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir import q4
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.spill import release, spilled
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import attr


@dataclass(frozen=True)
class PackNibbles(Pass):
    """Gives q8_linear weights of 4 bits, and offsets if they need some, where no column's (or its block's) numbers are
    farther apart: those of files with 4-bit weights. The results are the same.
    """

    name: ClassVar[str] = "pack-nibbles"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether there was such a weight."""
        done: dict[Value, tuple[Value, Value | None] | None] = {}
        changed = False
        for node in graph.nodes:
            if node.op != "q8_linear" or attr(node, "bits") != 8 or not node.input(3).is_constant:
                continue
            weight = node.input(3)
            if weight not in done:
                done[weight] = None if read_elsewhere(weight) else packed(graph, node)
            found = done[weight]
            if found is not None:
                n, offsets = found
                graph.set_inputs(node, [*[*node.inputs, *[None] * 9][:9], *([] if offsets is None else [offsets])])
                graph.set_inputs(node, [n if v is weight else v for v in node.inputs])
                node.attrs["bits"] = 4
                report.rewrote(node, f"weight {weight.type} in 4 bits")
                changed = True
        graph.prune()
        return changed


def read_elsewhere(weight: Value) -> bool:
    """Whether others read a weight too, which want its 8 bits, or in other blocks."""
    first = weight.users[0]
    return any(n.op != "q8_linear" or attr(n, "block") != attr(first, "block") for n in weight.users)


def packed(graph: Graph, node: Node) -> tuple[Value, Value | None] | None:
    """The weight in 4 bits, and its offsets if it has some; None if it does not fit."""
    weight = node.input(3)
    found = q4.narrow(weight.array(), attr(node, "block"))
    release(weight.array())
    if found is None:
        return None
    n, offsets = found
    return (graph.constant(spilled(n), f"{weight.name}.n"),
            None if offsets is None else graph.constant(offsets, f"{weight.name}.offset"))
