"""Keep weights in 4 bits where these hold them."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

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
        made: dict[tuple[Value, ...], list[Value | None] | None] = {}
        changed = False
        for node in graph.nodes:
            if node.op != "q8_linear" or attr(node, "bits") != 8 or not node.input(3).is_constant:
                continue
            weight = node.input(3)
            if any(reader.op != "q8_linear" for reader in weight.users):
                if narrowed(node) is not None:
                    report.decline(node, f"%{weight.name} is a table too, which is read in 8 bits")
                continue
            operands: list[Value | None] = [*node.inputs, *[None] * 11][:11]
            key = (weight, *(v for v in (operands[4], operands[8]) if v is not None))
            if key not in made:
                made[key] = packed(graph, node, operands)
            found = made[key]
            if found is not None:
                operands[3], operands[4], operands[8], operands[9] = found
                while operands[-1] is None:
                    operands.pop()
                graph.set_inputs(node, operands)
                node.attrs["bits"] = 4
                report.rewrote(node, f"weight {weight.type} in 4 bits")
                changed = True
        graph.prune()
        return changed


def packed(graph: Graph, node: Node, operands: Sequence[Value | None]) -> list[Value | None] | None:
    """The weight in 4 bits, its scales, its sums and its offsets if there are any; None if it does not fit."""
    weight, scale, sums = node.input(3), node.input(4), operands[8]
    found = narrowed(node)
    if found is None:
        return None
    offsets = None if found.offsets is None else graph.constant(found.offsets, f"{weight.name}.offset")
    if found.sign is not None:
        scale = graph.constant(np.asarray(scale.array() * found.sign.astype(scale.dtype.numpy)), scale.name)
        sums = None if sums is None else graph.constant(np.asarray(sums.array() * found.sign), sums.name)
    return [graph.constant(spilled(found.numbers), f"{weight.name}.n"), scale, sums, offsets]


def narrowed(node: Node) -> q4.Narrow | None:
    """The weight of a q8_linear in 4 bits, None if it does not fit."""
    weight = node.input(3).array()
    found = q4.narrow(weight, attr(node, "block"))
    release(weight)
    return found
