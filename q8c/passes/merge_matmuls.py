"""One wide product in place of several that read the same input."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.ir.graph import Array, Graph, Node, Value
from q8c.ir.types import DType
from q8c.passes.fold_weights import weight_array
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import is_product, other_operand, sole_reader, sources, vector
from q8c.passes.rules import attr

MOVABLE = 3  # the operands of attention that may be a part of a wider tensor: q, k, v


@dataclass(frozen=True)
class Branch:
    """A product with a constant weight, its bias if it has one, and its result."""

    product: Node
    add: Node | None
    result: Value

    @property
    def cols(self) -> int:
        """Columns of its weight."""
        return int(str(self.result.shape[-1]))

    def bias(self) -> Array:
        """Its bias, zeros if it has none."""
        if self.add is None:
            return np.zeros(self.cols, np.float32)
        bias = other_operand(self.add, self.product.output).array()
        return np.broadcast_to(bias.reshape(-1), [self.cols])


@dataclass(frozen=True)
class MergeMatmuls(Pass):
    """Replaces matmul(x, w1) + b1, matmul(x, w2) + b2, … by one matmul with the columns of all, side by side.

    Only where all results go into one attention, which then reads its operands at offsets: anywhere else the columns
    would have to be copied apart again, which costs more than a wider product gains.
    """

    name: ClassVar[str] = "merge-matmuls"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether products were merged."""
        families: dict[tuple[Value, Node], list[Branch]] = {}
        readers: dict[Value, list[Branch]] = {}
        for node in graph.nodes:
            if is_product(node):
                found = branch(graph, node)
                readers.setdefault(node.input(0), []).append(found)
                attention = only_attention(graph, found.result)
                if attention is not None:
                    families.setdefault((node.input(0), attention), []).append(found)
        for (x, attention), branches in families.items():
            if len(branches) > 1:
                product = merge(graph, x, attention, branches)
                report.rewrote(product, f"{len(branches)} products of %{x.name}")
        merged = {b.product for branches in families.values() if len(branches) > 1 for b in branches}
        for branches in readers.values():
            for left in branches if len(branches) > 1 else ():
                if left.product not in merged:
                    report.decline(left.product, "others share its input, but its result is read as a whole")
        graph.prune()
        return bool(merged)


def branch(graph: Graph, product: Node) -> Branch:
    """A product with the bias behind it."""
    add = sole_reader(graph, product.output)
    if add is not None and add.op == "add" and add.output.type == product.output.type \
            and vector(other_operand(add, product.output), int(str(product.output.shape[-1]))):
        return Branch(product, add, add.output)
    return Branch(product, None, product.output)


def only_attention(graph: Graph, value: Value) -> Node | None:
    """The attention that is all that reads a value, as q, k or v and not as mask; else None."""
    nodes = set(value.users)
    node = nodes.pop() if len(nodes) == 1 and not graph.is_output(value) else None
    if node is None or node.op != "attention" or value.dtype is not DType.f32:
        return None
    return node if value.type.rank == 3 and value not in node.inputs[MOVABLE:] else None


def merge(graph: Graph, x: Value, attention: Node, branches: Sequence[Branch]) -> Node:
    """Write the wide product and let the attention read its parts; returns the product."""
    first = branches[0].product
    weight = graph.constant(np.concatenate([weight_array(b.product) for b in branches], axis=1),
                            f"{first.input(1).name}.merged")
    origin = sources(node for b in branches for node in (b.product, b.add) if node is not None)
    product = graph.add("matmul", [x, weight], name="merged", source=origin, before=first)
    result = product.output
    if any(b.add for b in branches):
        bias = graph.constant(np.concatenate([b.bias() for b in branches]), f"{weight.name}.bias")
        result = graph.add("add", [result, bias], name="merged", source=origin, before=first).output
    starts = dict(zip((b.result for b in branches), np.cumsum([0, *(b.cols for b in branches)]).tolist(),
                      strict=False))
    operands = list(attention.inputs)
    offsets = list(attr(attention, "offsets"))
    for i, value in enumerate(operands[:MOVABLE]):
        if value in starts:
            operands[i] = result
            offsets[i] += starts[value]
    graph.set_inputs(attention, operands)
    attention.attrs["offsets"] = tuple(offsets)
    return product
