"""Which axes of a value are the sequences and positions of a batch, where each row is computed by itself."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from q8c.ir.dims import Dim, product
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops import OPS
from q8c.passes.rules import attr

Layout: TypeAlias = "tuple[int, int]"
ROWS: Layout = (0, 1)
"""The axes of [batch, seq, ...]."""


@dataclass
class Layouts:
    """Layouts found so far: where the axis of sequences and that of positions are in a value.

    A node keeps rows apart if what it gives for a position of a sequence depends on its operands at that place alone.
    """

    graph: Graph
    batch: Dim
    seq: Dim
    found: dict[Value, Layout] = field(default_factory=dict)

    def after(self, node: Node) -> Layout | None:
        """The layout of a node's results, None if it does not keep rows apart or none of its operands has rows."""
        rule = _RULES.get(node.op, elementwise if OPS[node.op].elementwise else None)
        found = rule(self, node) if rule else None
        if found is None or not all(self.fits(v, found) for v in node.outputs):
            return None
        return found

    def fits(self, value: Value, layout: Layout) -> bool:
        """Whether a value has the sizes of batch and sequence on these axes."""
        return max(layout) < value.type.rank and all(
            self.graph.known_equal(value.shape[axis], size)
            for axis, size in zip(layout, (self.batch, self.seq), strict=True))

    def common(self, values: Iterable[Value], rank: int) -> Layout | None:
        """The one layout of all values that have one, seen in `rank` axes; None if there is none, or more."""
        layouts = {(b + rank - v.type.rank, s + rank - v.type.rank)
                   for v in values if v in self.found for b, s in [self.found[v]]}
        return layouts.pop() if len(layouts) == 1 else None


def aligned(value: Value, axis: int, rank: int) -> Dim:
    """The size of an operand on an axis of the `rank` it broadcasts to, 1 where it has none."""
    own = axis - rank + value.type.rank
    return value.shape[own] if own >= 0 else 1


def elementwise(layouts: Layouts, node: Node) -> Layout | None:
    """Operands broadcast to the result."""
    return layouts.common(node.operands, node.output.type.rank)


def along_last(layouts: Layouts, node: Node) -> Layout | None:
    """Norms, quantization and products with weights: constants, and rows that differ in the last axis at most."""
    layout = layouts.common(node.operands, node.input(0).type.rank)
    if layout is None or layout[1] >= node.input(0).type.rank - 1:
        return None
    return layout if all(v.is_constant or layouts.found.get(v) == layout for v in node.operands) else None


def softmax(layouts: Layouts, node: Node) -> Layout | None:
    """Along an axis of neither sequences nor positions."""
    layout = layouts.found.get(node.input(0))
    return None if layout is None or attr(node, "axis") % node.input(0).type.rank in layout else layout


def reduce(layouts: Layouts, node: Node) -> Layout | None:
    """Over axes of neither sequences nor positions."""
    layout, rank = layouts.found.get(node.input(0)), node.input(0).type.rank
    axes = {axis % rank for axis in attr(node, "axes")}
    if layout is None or axes & set(layout):
        return None
    gone = set() if attr(node, "keepdims") else axes
    batch, seq = (axis - sum(a < axis for a in gone) for axis in layout)
    return batch, seq


def gather(layouts: Layouts, node: Node) -> Layout | None:
    """Rows of a table, picked by what has rows."""
    table = node.input(0)
    if attr(node, "axis") % table.type.rank or table in layouts.found:
        return None
    return layouts.found.get(node.input(1))


def lookup(layouts: Layouts, node: Node) -> Layout | None:
    """Columns of a weight, picked by what has rows."""
    return layouts.found.get(node.input(2))


def transpose(layouts: Layouts, node: Node) -> Layout | None:
    """The axes where they go."""
    layout, perm = layouts.found.get(node.input(0)), list(attr(node, "perm"))
    return None if layout is None else (perm.index(layout[0]), perm.index(layout[1]))


def reshape(layouts: Layouts, node: Node) -> Layout | None:
    """Axes that are left whole."""
    x, y = node.input(0), node.output
    layout = layouts.found.get(x)
    if layout is None:
        return None
    axes = [_same_axis(layouts, x.shape, axis, y.shape) for axis in layout]
    return None if axes[0] is None or axes[1] is None else (axes[0], axes[1])


def _same_axis(layouts: Layouts, before: tuple[Dim, ...], axis: int, after: tuple[Dim, ...]) -> int | None:
    outer = product(before[:axis])
    for n, size in enumerate(after):
        if layouts.graph.known_equal(product(after[:n]), outer) and layouts.graph.known_equal(size, before[axis]):
            return n
    return None


def cut(layouts: Layouts, node: Node) -> Layout | None:
    """A slice that leaves the axes whole."""
    x = node.input(0)
    layout = layouts.found.get(x)
    whole = layout is not None and all(
        attr(node, "starts")[a] == 0 and attr(node, "steps")[a] == 1 and attr(node, "sizes")[a] == x.shape[a]
        for a in layout)
    return layout if whole else None


def concat(layouts: Layouts, node: Node) -> Layout | None:
    """Side by side on another axis."""
    layout = layouts.common(node.operands, node.output.type.rank)
    if layout is None or attr(node, "axis") % node.output.type.rank in layout:
        return None
    return layout if all(v in layouts.found for v in node.operands) else None


_RULES: dict[str, Callable[[Layouts, Node], Layout | None]] = {
    **dict.fromkeys(("layer_norm", "rms_norm", "dynamic_quantize", "matmul", "linear", "q8_matmul", "dequantize",
                     "q8_linear"), along_last),
    **dict.fromkeys(("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod"), reduce),
    "softmax": softmax, "gather": gather, "lookup": lookup, "transpose": transpose, "reshape": reshape, "slice": cut,
    "concat": concat, "broadcast_to": elementwise, "copy": elementwise}
