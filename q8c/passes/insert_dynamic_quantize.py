"""Make products with quantized weights integer products of quantized rows."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.graph import Graph, Node, Value
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import substitute


@dataclass(frozen=True)
class InsertDynamicQuantize(Pass):
    """Replaces matmul(x, dequantize_weight(u, s)) by dequantize(q8_matmul(q, u), row_scale, s).

    q, row_scale and the row sums come from one dynamic_quantize(x) that all products of x share.
    """

    name: ClassVar[str] = "insert-dynamic-quantize"
    lossy: ClassVar[bool] = True

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a product was replaced."""
        rows: dict[Value, Node] = {}
        changed = False
        for node in list(graph.nodes):
            if node.op == "dynamic_quantize":
                rows.setdefault(node.input(0), node)
            weight = node.input(1).producer if node.op == "matmul" else None
            if weight is None or weight.op != "dequantize_weight" or node.attrs.get("transpose_b", False):
                continue
            x = node.input(0)
            if x not in rows:
                rows[x] = graph.add("dynamic_quantize", [x], name=f"{x.name}.q", before=node)
            q, row_scale, _ = rows[x].outputs
            acc = graph.add("q8_matmul", [q, weight.input(0)], name=f"{node.output.name}.acc", source=node.source,
                            before=node)
            y = graph.add("dequantize", [acc.output, row_scale, weight.input(1)], source=node.source, before=node)
            substitute(graph, node.output, y.output)
            report.rewrote(y, f"rows of %{x.name} quantized as they come")
            changed = True
        graph.prune()
        return changed
