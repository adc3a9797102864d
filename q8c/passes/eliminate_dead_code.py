"""Removes what no output needs."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir import Graph
from q8c.passes.manager import Pass, Report


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Removes nodes and constants that no output of the graph needs."""

    name: ClassVar[str] = "eliminate-dead-code"

    def run(self, graph: Graph, report: Report) -> bool:
        """Prune the graph; whether anything went."""
        return graph.prune()
