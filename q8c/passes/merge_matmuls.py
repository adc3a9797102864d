"""One wide product in place of several that read the same input."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.ir.graph import Array, Graph, Node, Value
from q8c.ir.spill import assembled, release
from q8c.ir.types import DType
from q8c.passes.fold_weights import weight_array
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import is_product, other_operand, sole_reader, sources, substitute, vector
from q8c.passes.rules import attr

ON_THE_WAY = ("rotary", "append", "concat", "reshape", "transpose")
ACTIVATIONS = ("silu", "gelu", "sigmoid", "relu", "tanh")
OFFSETS = {"attention": ("offsets", (0, 1, 2)), "rotary": ("offset", (0,)), "append": ("offset", (1,))}
"""Ops that read channels of a wider tensor from an offset on: the attribute that says so, and for which operands."""


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

    Only where what reads the results can read a part of a wider tensor: one attention, and rotary and append before it,
    at an offset, or a gate (silu(a) * b and the like), which becomes one loop that reads its columns where they lie.
    Anywhere else they would have to be copied apart again, which costs more than a wider product gains.
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
                target = next_attention(found.result) if reads_parts(graph, found.result) else only_gate(
                    graph, found.result)
                if target is not None:
                    families.setdefault((node.input(0), target), []).append(found)
        for (x, _), branches in families.items():
            if len(branches) > 1:
                report.rewrote(merge(graph, x, branches), f"{len(branches)} products of %{x.name}")
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


def reads_parts(graph: Graph, value: Value) -> bool:
    """Whether all that reads a value can read it as a part of a wider one."""
    if value.type.rank != 3 or value.dtype is not DType.f32 or not value.users or graph.is_output(value):
        return False
    return all(node.op in OFFSETS and all(i in OFFSETS[node.op][1] for i, v in enumerate(node.inputs) if v is value)
               for node in value.users)


def next_attention(value: Value) -> Node | None:
    """The first attention that a value goes into, rotated, appended or moved."""
    waiting = list(value.users)
    while waiting:
        node = waiting.pop(0)
        if node.op == "attention":
            return node
        if node.op in ON_THE_WAY:
            waiting.extend(node.output.users)
    return None


def only_gate(graph: Graph, value: Value) -> Node | None:
    """The product of two activations, element by element, that a value goes into alone; None if there is none."""
    node = sole_reader(graph, value)
    while node is not None and node.op in ACTIVATIONS:
        node = sole_reader(graph, node.output)
    if node is None or node.op != "mul" or any(v.type != value.type for v in node.operands):
        return None
    return node


def merge(graph: Graph, x: Value, branches: Sequence[Branch]) -> Node:
    """Write the wide product and let what read the results read its parts; returns the product."""
    first = branches[0].product
    weights = [weight_array(b.product) for b in branches]
    merged = assembled(len(weights[0]), lambda rows: np.concatenate([w[rows] for w in weights], axis=1))
    weight = graph.constant(merged, f"{first.input(1).name}.merged")
    for w in weights:
        release(w)
    origin = sources(node for b in branches for node in (b.product, b.add) if node is not None)
    product = graph.add("matmul", [x, weight], name="merged", source=origin, before=first)
    result = product.output
    if any(b.add for b in branches):
        bias = graph.constant(np.concatenate([b.bias() for b in branches]), f"{weight.name}.bias")
        result = graph.add("add", [result, bias], name="merged", source=origin, before=first).output
    start = 0
    for b in branches:
        for node in list(dict.fromkeys(b.result.users)):
            if node.op in OFFSETS:
                read_part(graph, node, b.result, result, start)
        if b.result.users:
            lead = result.type.rank - 1
            part = graph.add("slice", [result], {"starts": (0,) * lead + (start,), "sizes": b.result.shape,
                                                 "steps": (1,) * (lead + 1)}, before=first).output
            substitute(graph, b.result, part)
        start += b.cols
    return product


def read_part(graph: Graph, node: Node, old: Value, new: Value, start: int) -> None:
    """Let a node read `new` from channel `start` on where it read `old`."""
    name, _ = OFFSETS[node.op]
    moved = [start if v is old else 0 for v in node.inputs]
    if node.op == "attention":
        node.attrs[name] = tuple(a + b for a, b in zip(attr(node, name), moved, strict=False))
    else:
        node.attrs[name] = attr(node, name) + sum(moved)
    graph.set_inputs(node, [new if v is old else v for v in node.inputs])
