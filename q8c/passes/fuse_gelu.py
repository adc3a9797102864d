"""GELU from the subgraphs exporters write for it."""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from q8c.ir import DType, Graph, Node, Value
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import Declined, Rewriter, is_close, nodes_between, rewrite, uniform

# A polynomial in the input x and the erf or tanh t: (power of x, power of t) -> coefficient.
Polynomial: TypeAlias = Mapping[tuple[int, int], float]

GELU: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
_ROOT = math.sqrt(2 / math.pi)
ARGUMENTS: dict[str, Polynomial] = {"erf": {(1, 0): math.sqrt(0.5)}, "tanh": {(1, 0): _ROOT, (3, 0): _ROOT * 0.044715}}
APPROXIMATE = {"erf": "none", "tanh": "tanh"}
_DEPTH = 6  # nodes from the result down to erf or tanh, and from there to x, in the longest spelling, and one more
_ARITHMETIC = ("mul", "add", "sub", "div", "pow")


@dataclass(frozen=True)
class FuseGelu(Pass):
    """0.5 * x * (1 + erf(x / sqrt(2))) and its tanh approximation, in any spelling -> gelu(x).

    Spelling means the order and nesting of products and sums and where the constants stand: what is compared is the
    polynomial in x and erf(..). Results may change by rounding only.
    """

    name: ClassVar[str] = "fuse-gelu"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a GELU was found; an erf that is left is declined."""
        changed = rewrite(graph, dict.fromkeys(("mul", "add", "div"), (fuse_gelu,)), report, explain=True)
        for node in graph.nodes:
            if node.op == "erf":
                report.decline(node, "no product 0.5 * x * (1 + erf(x / sqrt(2))) was found around it")
        return changed


def fuse_gelu(r: Rewriter, node: Node) -> Value | Declined | None:
    """0.5 * x * (1 + erf(x / sqrt(2))) or 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) -> gelu(x)."""
    for bend in _bends(node):
        x = _input_of(node, bend)
        if x is not None and x.type == node.output.type:
            return r.from_nodes(nodes_between(node, [x])).add("gelu", x, approximate=APPROXIMATE[bend.op])
    return None


def _bends(root: Node) -> Iterator[Node]:
    """The erf and tanh nodes that a node is made of by arithmetic."""
    for value in _arithmetic_operands(root.output):
        if value.producer is not None and value.producer.op in ARGUMENTS:
            yield value.producer


def _input_of(root: Node, bend: Node) -> Value | None:
    """The x for which the root is GELU(x) with this erf or tanh."""
    above = dict.fromkeys(_arithmetic_operands(root.output))
    for x in _arithmetic_operands(bend.input(0)):
        if x in above and not x.is_constant and x is not bend.output:
            found = _polynomial(root.output, x, bend.output)
            precision = _precision([*above, *_arithmetic_operands(bend.input(0))], x.dtype)
            if found is not None and _same(found, GELU, precision):
                argument = _polynomial(bend.input(0), x, None)
                if argument is not None and _same(argument, ARGUMENTS[bend.op], precision):
                    return x
    return None


def _precision(values: Iterable[Value], dtype: DType) -> DType:
    """The type that constants are written in: float16 where all are such numbers, whatever is computed in."""
    found = [float(c) for v in values if (c := uniform(v)) is not None]
    with np.errstate(over="ignore"):
        return DType.f16 if all(float(np.float16(c)) == c for c in found) else dtype


def _arithmetic_operands(value: Value) -> Iterator[Value]:
    """A value and what it is made of by arithmetic, breadth first, each once."""
    seen = {value: None}
    level = [value]
    for _ in range(_DEPTH):
        yield from level
        below = dict.fromkeys(v for upper in level if upper.producer and upper.producer.op in _ARITHMETIC
                              for v in upper.producer.operands if v not in seen)
        seen.update(below)
        level = list(below)


def _polynomial(value: Value, x: Value, t: Value | None, depth: int = 0) -> Polynomial | None:
    """The value as a polynomial in x and t, None if it is none or is nested deeper than any spelling is."""
    if value is x or value is t:
        return {(1, 0) if value is x else (0, 1): 1.0}
    constant = uniform(value)
    if constant is not None:
        return {(0, 0): float(constant)}
    node = value.producer
    if node is None or node.op not in _ARITHMETIC or depth > _DEPTH:
        return None
    a = _polynomial(node.input(0), x, t, depth + 1)
    b = None if a is None else _polynomial(node.input(1), x, t, depth + 1)
    return None if a is None or b is None else _combine(node.op, a, b)


def _combine(op: str, a: Polynomial, b: Polynomial) -> Polynomial | None:
    if op in ("add", "sub"):
        sign = 1 if op == "add" else -1
        return {p: a.get(p, 0.0) + sign * b.get(p, 0.0) for p in [*a, *b]}
    if op == "mul":
        return _product(a, b)
    constant = b[0, 0] if list(b) == [(0, 0)] else None
    if op == "div" and constant:
        return {p: c / constant for p, c in a.items()}
    if op == "pow" and constant in (1, 2, 3):
        result = a
        for _ in range(int(constant) - 1):
            result = _product(result, a)
        return result
    return None


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    result: dict[tuple[int, int], float] = {}
    for (x1, t1), c1 in a.items():
        for (x2, t2), c2 in b.items():
            power = x1 + x2, t1 + t2
            result[power] = result.get(power, 0.0) + c1 * c2
    return result


def _same(found: Polynomial, wanted: Polynomial, dtype: DType) -> bool:
    return all(is_close(found.get(p, 0.0), wanted.get(p, 0.0), dtype) for p in [*found, *wanted])
