"""How much a node has to compute and to move, whoever computes it: what its time is measured against."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from q8c.ir.dims import Dim, dim_max, dim_min, floordiv, product
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.memory import kept_in_bytes, row_bytes
from q8c.ir.ops.fused import value_size
from q8c.ir.ops.registry import attributes

_GATHERED = {"gather": 1, "gather_nd": 1, "gather_elements": 1, "slice": 1, "lookup": 2, "last_token": 1}
"""How many operands a node reads only a part of."""
NO_CODE = frozenset({"reshape", "past_lengths", "new_counts"})
"""Ops that compute nothing: their results lie where an operand does, or come with the run."""


@dataclass(frozen=True)
class Work:
    """The multiply-adds of a node's matrix products and the bytes it must at least read and write.

    `kind` says which unit can do them: `int8` for products of quantized rows, `f32` for those with float weights,
    `attention` for products of two run-time operands, empty where there are none. `weight_bytes` is the part of
    `bytes` that are constants.
    """

    kind: str = ""
    macs: Dim = 0
    bytes: Dim = 0
    weight_bytes: Dim = 0


def work_of(node: Node) -> Work:
    """The work of a node at any level of the IR."""
    if node.op in NO_CODE:
        return Work()
    read = list(dict.fromkeys(node.operands))
    if node.op == "append" and node.attrs.get("in_place"):
        rows = product(node.output.shape[:-1]) - product(node.input(0).shape[:-1])
        return Work(bytes=rows * (row_bytes(node.input(0)) + row_bytes(node.output)))
    gathered = read[:_GATHERED.get(node.op, 0)]
    written = _sum([v.type.nbytes for v in node.outputs])
    data = [v for v in read if v not in gathered]
    moved = _sum([_lying(node, v) for v in data]) + written + (written if gathered else 0)
    weights = _sum([_lying(node, v) for v in data if v.is_constant])
    kind, macs = _products(node)
    experts, rows = _experts(node), node.output.shape[0] if node.output.shape else 1
    if experts:  # as many at most as there are rows
        moved, weights = moved - weights, floordiv(weights * dim_min(rows, experts), experts)
        moved = moved + weights
    return Work(kind, macs, moved, weights)


def _experts(node: Node) -> int:
    """Of how many experts a product's weight has the columns; 0 if it is no mixture's."""
    ends = {"q8_linear": 10, "linear": 4, "expert_matmul": 2}.get(node.op, 0)
    return int(str(node.input(ends).shape[0])) if ends and _present(node, ends) else 0


def _lying(node: Node, value: Value) -> Dim:
    """Bytes that an operand of a node takes where it is read."""
    if node.attrs.get("bits") == 4 and value is node.input(3):
        return floordiv(value.type.nbytes, 2)
    return product(value.shape[:-1]) * row_bytes(value) if kept_in_bytes(value) else value.type.nbytes


def label(node: Node) -> str:
    """What nodes computed by one kernel have in common, such as `q8_linear 384x1536` or `loop add layer_norm 384`."""
    if node.op in ("q8_linear", "linear"):
        weight = node.input(3 if node.op == "q8_linear" else 1)
        parts = [a for a in (node.attrs.get("activation"), ) if a and a != "none"]
        parts += ["gate"] if node.attrs.get("gated") else []
        parts += [f"of {_experts(node)} experts"] if _experts(node) else []
        parts += ["residual"] if _present(node, 6 if node.op == "q8_linear" else 3) else []
        return " ".join([node.op, "x".join(map(str, weight.shape)), *map(str, parts)])
    if node.op in ("attention", "packed_attention"):
        own = node.attrs.get("value_size")
        return f"{node.op} {node.attrs['heads']}x{node.attrs['head_size']}{f' to {own}' if own else ''}"
    if node.body is not None:
        ops = list(dict.fromkeys(n.op for n in node.body.nodes))
        shape = node.output.shape
        return " ".join([node.op, *ops, *([str(shape[-1])] if shape else [])])
    return node.op


@dataclass(frozen=True)
class Total:
    """A model's matrix products: multiply-adds with weights and between run-time operands, and the bytes of the weights
    at one byte an element."""

    weight_macs: Dim
    attention_macs: Dim
    weight_bytes: Dim


def total_work(graph: Graph) -> Total:
    """The products of a whole graph, at any level of the IR."""
    weights = [n for n in graph.nodes if _products(n)[0] in ("int8", "f32")]
    others = [n for n in graph.nodes if _products(n)[0] == "attention"]
    elements = [v.type.size for v in dict.fromkeys(_weight(n) for n in weights)]
    return Total(_sum([_products(n)[1] for n in weights]), _sum([_products(n)[1] for n in others]), _sum(elements))


def _products(node: Node) -> tuple[str, Dim]:
    counter = _COUNTERS.get(node.op)
    return counter(node) if counter else ("", 0)


def _q8(node: Node) -> tuple[str, Dim]:
    return "int8", node.input(0).type.size * floordiv(_weight(node).shape[-1], _experts(node) or 1)


def _linear(node: Node) -> tuple[str, Dim]:
    return "f32", node.input(0).type.size * floordiv(_weight(node).shape[-1], _experts(node) or 1)


def _matmul(node: Node) -> tuple[str, Dim]:
    kind = "f32" if any(v.is_constant for v in node.operands) else "attention"
    return kind, node.output.type.size * node.input(0).shape[-1]


def _conv(node: Node) -> tuple[str, Dim]:
    return "f32", node.output.type.size * product(node.input(1).shape[1:])


def _attention(node: Node) -> tuple[str, Dim]:
    batch, queries = node.output.shape[:2]
    keys = node.input(1).shape[-2]
    seen: Dim = queries * keys
    attrs = attributes(node)
    if attrs["window"]:
        seen = queries * dim_min(keys, attrs["window"] if attrs["causal"] else 2 * attrs["window"] - 1)
    elif attrs["causal"]:  # query i sees keys up to i + (keys - queries)
        seen = seen - floordiv(queries * (queries + (-1)), 2)
    return "attention", product([batch, attrs["heads"], attrs["head_size"] + value_size(attrs), seen])


def _packed_attention(node: Node) -> tuple[str, Dim]:
    """Taken for sequences of equal length; what it is follows from their lengths, and is never less."""
    tokens, batch = node.output.shape[1], node.input(3).shape[0] - 1
    seen = floordiv(tokens * tokens, dim_max(batch, 1))
    attrs = attributes(node)
    seen = floordiv(seen, 2) if attrs["causal"] else seen
    return "attention", product([attrs["heads"], attrs["head_size"] + value_size(attrs), seen])


def _weight(node: Node) -> Value:
    if node.op == "matmul":
        return next(v for v in reversed(list(node.operands)) if v.is_constant)
    return node.input({"q8_linear": 3, "q8_matmul": 1, "linear": 1, "expert_matmul": 1, "conv": 1}[node.op])


def _present(node: Node, operand: int) -> bool:
    return len(node.inputs) > operand and node.inputs[operand] is not None


def _sum(sizes: list[Dim]) -> Dim:
    total: Dim = 0
    for size in sizes:
        total = size + total
    return total


_COUNTERS: dict[str, Callable[[Node], tuple[str, Dim]]] = {
    "q8_linear": _q8, "q8_matmul": _q8, "linear": _linear, "expert_matmul": _linear, "matmul": _matmul, "conv": _conv,
    "attention": _attention, "packed_attention": _packed_attention}
