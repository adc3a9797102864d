"""One kernel for a product with a constant weight and what is done to its result in registers."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.ir.graph import Attr, Graph, Node, Value
from q8c.ir.spill import spilled
from q8c.passes.fold_weights import blocks, column_sums, weight_array
from q8c.passes.loopable import takes_rows
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import is_product, other_operand, sole_reader, sources, substitute, vector

# GELU inside the product's epilogue spilled registers and gained nothing, and whatever reads a linear's result next is
# mostly a pass over rows that activates for free; relu is one instruction and saves that pass where there is none.
EPILOGUE_ACTIVATIONS = ("relu",)


@dataclass
class Epilogue:
    """A product and the nodes after it that are fused into it so far."""

    nodes: list[Node]
    result: Value
    bias: Value | None = None
    activation: str = "none"
    residual: Value | None = None

    def extend(self, node: Node) -> None:
        """Fuse one more node."""
        self.nodes.append(node)
        self.result = node.output


@dataclass(frozen=True)
class FuseLinear(Pass):
    """Replaces dequantize(q8_matmul(q, w)), + bias, activation, + residual by q8_linear; float matmuls by linear."""

    name: ClassVar[str] = "fuse-linear"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a kernel was made."""
        changed = False
        for node in list(graph.nodes):
            if is_quantized(node) or is_product(node):
                fuse(graph, node, report)
                changed = True
            elif node.op == "expert_matmul":
                x, w, ends = node.operands
                linear = graph.add("linear", [x, w, None, None, ends], source=node.source, before=node)
                substitute(graph, node.output, linear.output)
                changed = True
        graph.prune()
        return changed


def is_quantized(node: Node) -> bool:
    """Whether a node is the dequantize of a product of R8 rows and a constant weight."""
    if node.op != "dequantize" or not node.input(2).is_constant:
        return False
    product = node.input(0).producer
    rows = product.input(0).producer if product is not None and product.op == "q8_matmul" else None
    return (product is not None and rows is not None and rows.op == "dynamic_quantize"
            and product.input(1).is_constant and node.input(1) is rows.outputs[1]
            and list(product.operands)[2:] == rows.outputs[3:])


def fuse(graph: Graph, product: Node, report: Report) -> None:
    """Replace a product and the epilogue found behind it by one node, put where the last of them stands."""
    found = find_epilogue(graph, product)
    last = found.nodes[-1]
    tail: list[Value | None] = [found.bias, found.residual]
    while tail and tail[-1] is None:
        tail.pop()
    attrs: dict[str, Attr] = {} if found.activation == "none" else {"activation": found.activation}
    origin = sources(found.nodes)
    if product.op == "dequantize":
        matmul = product.input(0).producer
        rows = matmul.input(0).producer if matmul is not None else None
        assert matmul is not None and rows is not None
        block = int(str(matmul.attrs.get("block", 0)))
        q, row_scale, row_sum, *zero = rows.outputs
        if zero:
            tail = [found.bias, found.residual, *zero, column_sums(graph, matmul.input(1), block)]
        attrs.update(blocks(block))
        inputs = [q, row_scale, row_sum, matmul.input(1), product.input(2), *tail]
        node = graph.add("q8_linear", inputs, attrs, source=origin, before=last)
    else:
        node = graph.add("linear", [product.input(0), plain_weight(graph, product), *tail], attrs, source=origin,
                         before=last)
    node.output.type = found.result.type  # the op may name an equal size differently
    substitute(graph, found.result, node.output)
    report.rewrote(node, " + ".join(n.op for n in found.nodes))


def plain_weight(graph: Graph, product: Node) -> Value:
    """A float product's weight as a constant [depth, cols]."""
    w = product.input(1)
    if w.type.rank == 2 and not product.attrs.get("transpose_b", False):
        return w
    return graph.constant(spilled(np.ascontiguousarray(weight_array(product))), w.name)


def find_epilogue(graph: Graph, product: Node) -> Epilogue:
    """The bias, activation and residual behind a product, as far as nobody else reads what is between."""
    found = Epilogue([product], product.output)
    reader = sole_reader(graph, found.result)
    if reader is not None and reader.op == "add" and reader.output.type == found.result.type:
        other = other_operand(reader, found.result)
        if vector(other, int(str(found.result.shape[-1]))):
            found.bias = bias_vector(graph, other, found.result)
            found.extend(reader)
            reader = sole_reader(graph, found.result)
    if reader is not None and reader.op in EPILOGUE_ACTIVATIONS:
        found.activation = reader.op
        found.extend(reader)
        reader = sole_reader(graph, found.result)
    if reader is not None and residual_pays(graph, reader, found.result):
        found.residual = other_operand(reader, found.result)
        found.extend(reader)
    return found


def bias_vector(graph: Graph, bias: Value, result: Value) -> Value:
    """A bias as the constant f32[cols]."""
    if bias.shape == result.shape[-1:]:
        return bias
    data = np.broadcast_to(bias.array().reshape(-1), [int(str(result.shape[-1]))])
    return graph.constant(np.ascontiguousarray(data), bias.name)


def residual_pays(graph: Graph, add: Node, value: Value) -> bool:
    """Whether to add a residual in the epilogue.

    If one pass over rows is all that reads the sum (the norm behind it, say), that pass can add as well and nothing
    is saved. If the sum is read more than once or by no such pass, adding in registers saves writing and reading the
    product. Two products added to each other: the later one takes the add.
    """
    if add.op != "add" or add.output.type != value.type:
        return False
    other = other_operand(add, value)
    if other is value or other.is_constant or not same_shape(graph, other, value) or is_later(graph, other, value):
        return False
    reader = sole_reader(graph, add.output)
    return reader is None or not takes_rows(reader)


def same_shape(graph: Graph, a: Value, b: Value) -> bool:
    """Whether two values are known to have one shape."""
    return a.type.rank == b.type.rank and all(
        graph.known_equal(x, y) for x, y in zip(a.shape, b.shape, strict=True))


def is_later(graph: Graph, a: Value, b: Value) -> bool:
    """Whether `a` is the end of another product that comes after b and can take the add itself."""
    if a.producer is None or b.producer is None or sole_reader(graph, a) is None or not ends_product(a):
        return False
    return graph.nodes.index(a.producer) > graph.nodes.index(b.producer)


def ends_product(value: Value) -> bool:
    """Whether a value is a product with a constant weight, with at most a bias and an activation behind it."""
    node = value.producer
    while node is not None and node.op in ("add", *EPILOGUE_ACTIVATIONS):
        constant = [v.is_constant for v in node.operands]
        if node.op == "add" and True not in constant:
            return False
        node = node.input(constant.index(False)).producer if False in constant else None
    return node is not None and (node.op in ("linear", "q8_linear") or is_quantized(node) or is_product(node))
