"""RMS norm from the subgraphs exporters write for it."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir import Graph, Node, Value
from q8c.passes.manager import Pass, Report
from q8c.passes.norm import Normalized, match_normalized, merge_scale, ones
from q8c.passes.rules import Declined, Rewriter, nodes_between, rewrite


@dataclass(frozen=True)
class FuseRmsNorm(Pass):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis -> rms_norm(x, scale).

    The scale may be missing and the root may be a reciprocal, a power or rsqrt. Results may change by rounding only.
    """

    name: ClassVar[str] = "fuse-rms-norm"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether an RMS norm was found."""
        return rewrite(graph, {"div": (fuse_normalized,), "mul": (fuse_normalized, merge_scale)}, report, explain=True)


def fuse_normalized(r: Rewriter, node: Node) -> Value | Declined | None:
    """x / sqrt(mean(x^2) + epsilon) -> rms_norm(x)."""
    found = match_normalized(node)
    if not isinstance(found, Normalized):
        return found
    scale = ones(r, found.x) if found.scale is None else found.scale
    nodes = nodes_between(node, [found.x, scale])
    return r.from_nodes(nodes).add("rms_norm", found.x, scale, epsilon=found.epsilon)
