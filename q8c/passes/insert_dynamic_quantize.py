"""Make products with quantized weights integer products of quantized rows."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from q8c.errors import OptionError
from q8c.ir.graph import Attr, Graph, Node, Value
from q8c.passes.calibration import Calibration
from q8c.passes.fold_weights import blocks, column_sums
from q8c.passes.manager import Pass, Report
from q8c.passes.quantized_product import MIN_GAIN, zero_point_gain
from q8c.passes.rewrite import PRODUCTS, substitute
from q8c.passes.rules import attr

POLICIES = ("auto", "always", "never")


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
            raise OptionError(f"zero-point {self.zero_point!r} is unknown; expected one of {', '.join(POLICIES)}")

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
        q, row_scale, row_sum, *zero = rows.outputs
        attrs: dict[str, Attr] = blocks(block_of(weight))
        if node.op == "expert_matmul":
            tail = [*zero, column_sums(graph, weight.input(0), block_of(weight))] if zero else [None, None]
            operands = [q, row_scale, row_sum, *weight.inputs, None, None, *tail, None, node.input(2)]
            linear = graph.add("q8_linear", operands, attrs, source=node.source, before=node)
            substitute(graph, node.output, linear.output)
            return
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
        seen = self.calibration.rows(graph, (x for x in block_by_input if x.producer is not None), report)
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
    weight = node.input(1).producer if node.op in PRODUCTS and not node.attrs.get("transpose_b", False) else None
    return weight if weight is not None and weight.op == "dequantize_weight" else None


def block_of(weight: Node | None) -> int:
    """How many steps of depth share a scale of a weight, 0 for all."""
    return int(str(weight.attrs.get("block", 0))) if weight is not None else 0
