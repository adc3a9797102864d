"""Give every graph output memory of its own."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.graph import Graph, Value, view_root
from q8c.passes.manager import Pass, Report


@dataclass(frozen=True)
class OwnOutputs(Pass):
    """Replaces an output that is an input, a constant, or shares another output's bytes with a copy of it.

    Kernels write outputs straight into the caller's arrays, so each needs a node that writes it.
    """

    name: ClassVar[str] = "own-outputs"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a copy was inserted."""
        owned: set[Value] = set()
        outputs = list(graph.outputs)
        for index, value in enumerate(outputs):
            root = view_root(value)
            if root.producer is None or root in owned:
                outputs[index] = graph.add("copy", [value]).output
            owned.add(root)
        changed = outputs != list(graph.outputs)
        graph.outputs = outputs
        return changed
