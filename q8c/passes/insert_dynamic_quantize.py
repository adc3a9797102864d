"""Make products with quantized weights integer products of quantized rows."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from q8c.errors import CompileError
from q8c.ir.graph import Array, Attr, Graph, Node, Value
from q8c.passes.calibration import Calibration
from q8c.passes.fold_weights import blocks
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import substitute
from q8c.passes.rules import attr

POLICIES = ("auto", "always", "never")
# A zero point costs two instructions per register of results and two per register of quantized elements, some 3 % of a
# layer; it must take this share off the rows' mean squared rounding error to be worth it.
MIN_GAIN = 0.2


@dataclass(frozen=True)
class InsertDynamicQuantize(Pass):
    """Replaces matmul(x, dequantize_weight(u, s)) by dequantize(q8_matmul(q, u), row_scale, s).

    q, row_scale and the row sums come from one dynamic_quantize(x) that all products of x share. `zero_point` says
    whether rows have one: `auto` looks at the rows x takes on the calibration inputs.
    """

    name: ClassVar[str] = "insert-dynamic-quantize"
    lossy: ClassVar[bool] = True
    zero_point: str = "auto"
    calibration: Calibration = field(default_factory=Calibration, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.zero_point not in POLICIES:
            raise CompileError(f"zero-point {self.zero_point!r} is unknown; expected one of {', '.join(POLICIES)}")

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a product was replaced."""
        products = [n for n in graph.nodes if weight_of(n) is not None]
        asymmetric = self.with_zero_point(graph, products, report)
        rows: dict[tuple[Value, int, bool], Node] = {}
        for node in list(graph.nodes):
            if node.op == "dynamic_quantize":
                rows.setdefault((node.input(0), attr(node, "block"), attr(node, "zero_point")), node)
            weight = weight_of(node)
            if weight is None:
                continue
            x = node.input(0)
            key = (x, block_of(weight), x in asymmetric)
            if key not in rows:
                attrs = blocks(key[1]) | ({"zero_point": True} if key[2] else {})
                rows[key] = graph.add("dynamic_quantize", [x], attrs, name=f"{x.name}.q", before=node)
            self.replace(graph, node, weight, rows[key])
            report.rewrote(node, f"rows of %{x.name} quantized as they come"
                                 f"{', with a zero point' if x in asymmetric else ''}")
        graph.prune()
        return bool(products)

    def replace(self, graph: Graph, node: Node, weight: Node, rows: Node) -> None:
        """Write the integer product of quantized rows in place of a float one."""
        q, row_scale, _, *zero = rows.outputs
        attrs: dict[str, Attr] = blocks(block_of(weight))
        acc = graph.add("q8_matmul", [q, weight.input(0), *zero], attrs, name=f"{node.output.name}.acc",
                        source=node.source, before=node)
        y = graph.add("dequantize", [acc.output, row_scale, weight.input(1)], attrs, source=node.source, before=node)
        substitute(graph, node.output, y.output)

    def with_zero_point(self, graph: Graph, products: Iterable[Node], report: Report) -> set[Value]:
        """The inputs of products whose rows get a zero point."""
        block_by_input = {n.input(0): block_of(n.input(1).producer) for n in products}
        if self.zero_point == "never":
            return set()
        if self.zero_point == "always":
            return set(block_by_input)
        seen = self.calibration.rows(graph, (x for x in block_by_input if x.producer is not None))
        chosen: set[Value] = set()
        for x, rows in seen.items():
            gain = zero_point_gain(rows, block_by_input[x])
            if gain >= MIN_GAIN:
                chosen.add(x)
            elif x.producer is not None:
                report.decline(x.producer, f"a zero point takes {gain:.0%} off the rows' squared error, "
                                           f"{MIN_GAIN:.0%} would pay")
        return chosen


def weight_of(node: Node) -> Node | None:
    """The dequantize_weight a float product reads its weight from, or None if the node is no such product."""
    weight = node.input(1).producer if node.op == "matmul" and not node.attrs.get("transpose_b", False) else None
    return weight if weight is not None and weight.op == "dequantize_weight" else None


def block_of(weight: Node | None) -> int:
    """How many steps of depth share a scale of a weight, 0 for all."""
    return int(str(weight.attrs.get("block", 0))) if weight is not None else 0


def zero_point_gain(rows: Array, block: int) -> float:
    """The share of the mean squared rounding error of rows that a zero point takes away.

    The error of rounding to steps of `scale` is scale^2 / 12 on average, so the scales tell.
    """
    if not rows.size:
        return 0.0
    starts = np.arange(0, rows.shape[1], block or rows.shape[1])
    high = np.maximum.reduceat(rows, starts, axis=1).clip(0, None).astype(np.float64)
    low = np.minimum.reduceat(rows, starts, axis=1).clip(None, 0).astype(np.float64)
    symmetric, asymmetric = np.maximum(high, -low), (high - low) / 2
    return float(1 - (asymmetric**2).sum() / max((symmetric**2).sum(), 1e-300))
