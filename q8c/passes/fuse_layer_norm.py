"""Layer norm from the subgraphs exporters write for it."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir import Graph, Node, Value
from q8c.passes.manager import Pass, Report
from q8c.passes.norm import (
    Normalized,
    fits_ones,
    inverse_root,
    match_normalized,
    mean_square,
    merge_bias,
    merge_scale,
    not_last_axis,
    ones,
)
from q8c.passes.rules import Declined, Rewriter, nodes_between, orders, producer, rewrite, with_constant


@dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias over the last axis -> layer_norm.

    Scale and bias may be missing, the root may be a reciprocal, a power or rsqrt, and Keras' x * s + (bias - mean * s)
    is known too. Results may change by rounding only.
    """

    name: ClassVar[str] = "fuse-layer-norm"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a layer norm was found; a deviation over a root that is left is declined."""
        changed = rewrite(graph, {"div": (fuse_normalized,), "mul": (fuse_normalized, merge_scale),
                                  "add": (fuse_folded, merge_bias)}, report, explain=True)
        for node in graph.nodes:
            reason = _near_miss(node)
            if reason and not isinstance(match_normalized(node), Declined):
                report.decline(node, reason)
        return changed


def fuse_normalized(r: Rewriter, node: Node) -> Value | Declined | None:
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) -> layer_norm(x)."""
    found = match_normalized(node)
    if not isinstance(found, Normalized):
        return found
    x = centered(found.x)
    if not isinstance(x, Value):
        return x
    scale = ones(r, x) if found.scale is None else found.scale
    return r.from_nodes(nodes_between(node, [x, scale])).add("layer_norm", x, scale, epsilon=found.epsilon)


def centered(value: Value) -> Value | Declined | None:
    """The x of x - mean(x) over the last axis."""
    sub = producer(value, "sub")
    mean = None if sub is None else producer(sub.input(1), "reduce_mean")
    if sub is None or mean is None or mean.input(0) is not sub.input(0):
        return None
    reason = not_last_axis(mean)
    return Declined(reason) if reason else sub.input(0)


def fuse_folded(r: Rewriter, node: Node) -> Value | Declined | None:
    """x * s + (bias - mean(x) * s) for s = rsqrt(variance(x) + epsilon) * scale -> layer_norm(x, scale, bias)."""
    for product, shift in orders(node):
        scaled, rest = producer(product, "mul"), producer(shift, "sub")
        moved = None if rest is None else producer(rest.input(1), "mul")
        if scaled is None or rest is None or moved is None:
            continue
        for x, s in orders(scaled):
            means = [v for v, other in orders(moved) if other is s]
            mean = producer(means[0], "reduce_mean") if means else None
            variance = None if mean is None or mean.input(0) is not x else _variance_under(s, x)
            if variance is None:
                continue
            scale, epsilon = variance
            bias = rest.input(0)
            if bias.shape != x.shape[-1:] or (scale.shape != x.shape[-1:] if scale else not fits_ones(x)):
                return Declined(f"scale and bias are not vectors of the last axis of {x.type}")
            scale = ones(r, x) if scale is None else scale
            nodes = nodes_between(node, [x, scale, bias])
            return r.from_nodes(nodes).add("layer_norm", x, scale, bias, epsilon=epsilon)
    return None


def _variance_under(s: Value, x: Value) -> tuple[Value | None, float] | None:
    """(scale, epsilon) if s is rsqrt(variance(x) + epsilon), times a scale or not."""
    product = producer(s, "mul")
    for root, scale in [(s, None)] if product is None else list(orders(product)):
        square = inverse_root(root)
        found = None if square is None else mean_square(square)
        if found is not None and centered(found[0]) is x and not_last_axis(found[1]) is None:
            return scale, found[2]
    return None


def _near_miss(node: Node) -> str | None:
    """Why a node that divides a deviation by a root is no layer norm."""
    if node.op == "div" and isinstance(centered(node.input(0)), Value):
        outside = with_constant(producer(node.input(1), "add"))
        if outside is not None and producer(outside[0], "sqrt"):
            return "epsilon is added to the standard deviation, expected inside the root"
        return "the deviation is not divided by sqrt(mean(deviation^2) + epsilon)"
    return None
