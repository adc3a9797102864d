"""Brings a graph into the form the other passes look for: no needless node, one spelling for one meaning."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir import Graph
from q8c.passes.canonical import elementwise, indexing, matmul, movement
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import Rules, rewrite

_FAMILIES = (elementwise.RULES, movement.RULES, matmul.RULES, indexing.RULES)
RULES: Rules = {op: tuple(rule for rules in _FAMILIES for rule in rules.get(op, ()))
                for op in sorted({op for rules in _FAMILIES for op in rules})}


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Applies the local rules in `canonical/`, none of which changes a result (see there for the sign of zero)."""

    name: ClassVar[str] = "canonicalize"

    def run(self, graph: Graph, report: Report) -> bool:
        """Rewrite until no rule fits; whether anything changed."""
        return rewrite(graph, RULES, report)
