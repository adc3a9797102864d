"""Rules about elementwise ops. All are exact but for the sign of zero in `x + 0`."""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from q8c.ir import DType, Node, Value
from q8c.ir.dims import Dim
from q8c.ir.ops import OPS
from q8c.passes.rules import Rewriter, Rule, Rules, attr, orders, producer, uniform
from q8c.passes.share_common import COMMUTATIVE

MIRRORED = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal",
            **{op: op for op in COMMUTATIVE}}
_MANTISSA = {DType.f16: 11, DType.f32: 24, DType.f64: 53}


def compute_before_broadcast(r: Rewriter, node: Node) -> Value | None:
    """f(broadcast_to(a), b) -> f(a, b), broadcast only if the result needs it."""
    small = [v.producer.input(0) if v.producer and v.producer.op == "broadcast_to" else v for v in node.operands]
    if small == list(node.operands):
        return None
    return r.broadcast(r.add(node.op, *small, **node.attrs), node.output.shape)


def shrink_constant(r: Rewriter, node: Node) -> Value | None:
    """f(x, constant) -> the constant as a scalar if its elements are equal, else without leading axes of size 1."""
    operands = list(node.operands)
    for index, value in enumerate(operands):
        if value.data is None or value.type.rank == 0:
            continue
        rest = broadcast_shape([v.shape for i, v in enumerate(operands) if i != index])
        if len(rest) != node.output.type.rank:
            continue
        same = uniform(value) if r.same_shape(rest, node.output.shape) else None
        if same is not None:
            data = value.data.reshape(-1)[0]
        elif value.shape[0] == 1:
            kept = next((i for i, d in enumerate(value.shape) if d != 1), value.type.rank)
            data = value.data.reshape(value.data.shape[kept:])
        else:
            continue
        operands[index] = r.graph.constant(data, value.name, type=value.type.with_shape(data.shape))
        return r.add(node.op, *operands, **node.attrs)
    return None


def broadcast_shape(shapes: Sequence[Sequence[Dim]]) -> list[Dim]:
    """The broadcast of shapes that are known to fit."""
    rank = max(map(len, shapes), default=0)
    sizes = [[s[i] for s in shapes if len(s) >= -i and s[i] != 1] for i in range(-rank, 0)]
    return [found[0] if found else 1 for found in sizes]


def constant_to_the_right(r: Rewriter, node: Node) -> Value | None:
    """f(constant, x) -> f(x, constant) for commutative ops and comparisons."""
    a, b = node.input(0), node.input(1)
    return r.add(MIRRORED[node.op], b, a) if a.is_constant and not b.is_constant else None


def add_before_split(r: Rewriter, node: Node) -> Value | None:
    """reshape(x) + constant, the channels split and a number for each of them -> reshape(x + constant)."""
    split, bias = producer(node.input(0), "reshape"), node.input(1)
    if split is None or bias.data is None:
        return None
    x, shape = split.input(0), split.output.shape
    if node.output.shape != shape or bias.shape[-2:] != shape[-2:] or (bias.data.size,) != x.shape[-1:]:
        return None
    return r.reshape(r.add("add", x, r.graph.constant(bias.data.reshape(-1), bias.name)), shape)


def neutral(element: float | bool) -> Rule:
    """A rule that drops an op whose right operand changes nothing."""
    def drop_neutral(r: Rewriter, node: Node) -> Value | None:
        """f(x, neutral element) -> x."""
        return r.broadcast(node.input(0), node.output.shape) if uniform(node.input(1)) == element else None
    return drop_neutral


def absorbing(element: bool) -> Rule:
    """A rule for `and` with false and `or` with true."""
    def absorb(r: Rewriter, node: Node) -> Value | None:
        """f(x, absorbing element) -> the element."""
        if uniform(node.input(1)) is not element:
            return None
        return r.broadcast(r.constant(element, DType.bool), node.output.shape)
    return absorb


def same_operands(r: Rewriter, node: Node) -> Value | None:
    """and(x, x), or(x, x), min(x, x), max(x, x) -> x."""
    return node.input(0) if node.input(0) is node.input(1) else None


def divide_by_power_of_two(r: Rewriter, node: Node) -> Value | None:
    """x / 2^n -> x * 2^-n, which rounds the same."""
    c = uniform(node.input(1))
    dtype = node.output.dtype
    if not isinstance(c, float) or not math.isfinite(c) or abs(math.frexp(c)[0]) != 0.5:
        return None
    inverse = dtype.numpy.type(1 / c)
    if abs(inverse) < np.finfo(dtype.value).smallest_normal or not np.isfinite(inverse):
        return None
    return r.add("mul", node.input(0), r.constant(1 / c, dtype))


def reciprocal(r: Rewriter, node: Node) -> Value | None:
    """1 / x -> reciprocal(x)."""
    if uniform(node.input(0)) != 1 or not node.output.dtype.is_float:
        return None
    return r.broadcast(r.add("reciprocal", node.input(1)), node.output.shape)


def reciprocal_root(r: Rewriter, node: Node) -> Value | None:
    """reciprocal(sqrt(x)) -> rsqrt(x)."""
    root = producer(node.input(0), "sqrt")
    return r.add("rsqrt", root.input(0)) if root else None


def small_power(r: Rewriter, node: Node) -> Value | None:
    """x^1 -> x, x^2 -> x * x, x^-1 -> reciprocal(x), which round once as the power does."""
    x, exponent = node.input(0), uniform(node.input(1))
    if not x.dtype.is_float:
        return None
    if exponent == 2:
        return r.broadcast(r.add("mul", x, x), node.output.shape)
    if exponent == -1:
        return r.broadcast(r.add("reciprocal", x), node.output.shape)
    return r.broadcast(x, node.output.shape) if exponent == 1 else None


def relu(r: Rewriter, node: Node) -> Value | None:
    """max(x, 0) -> relu(x)."""
    if uniform(node.input(1)) != 0:
        return None
    return r.broadcast(r.add("relu", node.input(0)), node.output.shape)


def silu(r: Rewriter, node: Node) -> Value | None:
    """x * sigmoid(x) -> silu(x)."""
    for x, gate in orders(node):
        inner = producer(gate, "sigmoid")
        if inner is not None and inner.input(0) is x:
            return r.add("silu", x)
    return None


def undo_twice(r: Rewriter, node: Node) -> Value | None:
    """not(not(x)) -> x, neg(neg(x)) -> x."""
    inner = producer(node.input(0), node.op)
    return inner.input(0) if inner else None


def negated_comparison(r: Rewriter, node: Node) -> Value | None:
    """not(a < b) -> a >= b and the like, for integers (NaN makes it wrong for floats)."""
    opposite = {"less": "greater_equal", "greater_equal": "less", "greater": "less_equal", "less_equal": "greater"}
    inner = producer(node.input(0), *opposite)
    if inner is None or inner.input(0).dtype.is_float:
        return None
    return r.add(opposite[inner.op], inner.input(0), inner.input(1))


def choose(r: Rewriter, node: Node) -> Value | None:
    """where(true, a, b) -> a; where(false, a, b) -> b; where(c, a, a) -> a."""
    a, b = node.input(1), node.input(2)
    condition = uniform(node.input(0))
    if condition is not None or a is b:
        return r.broadcast(b if condition is False else a, node.output.shape)
    return None


def choose_negated(r: Rewriter, node: Node) -> Value | None:
    """where(not(c), a, b) -> where(c, b, a)."""
    inner = producer(node.input(0), "not")
    return r.add("where", inner.input(0), node.input(2), node.input(1)) if inner else None


def drop_cast(r: Rewriter, node: Node) -> Value | None:
    """cast(x) to the type x has -> x."""
    return node.input(0) if node.input(0).dtype is node.output.dtype else None


def merge_casts(r: Rewriter, node: Node) -> Value | None:
    """cast(cast(x)) -> cast(x), where the first loses nothing that the second keeps."""
    inner = producer(node.input(0), "cast")
    if inner is None:
        return None
    start, middle, end = inner.input(0).dtype, inner.output.dtype, attr(node, "to")
    if end is DType.bool:
        fine = start.is_int and middle.is_float or keeps_values(start, middle)
    else:
        # a float out of range saturates where an integer wraps, so int -> float -> int is not int -> int
        fine = keeps_values(start, middle) and (start is end or not (start.is_int and middle.is_float and end.is_int))
    return r.add("cast", inner.input(0), to=end) if fine else None


def keeps_values(a: DType, b: DType) -> bool:
    """Whether b holds every value of a."""
    if a is b or a is DType.bool:
        return True
    if a.is_int and b.is_float:
        return a.itemsize * 8 - (a.name[0] == "i") <= _MANTISSA[b]
    return a.is_float == b.is_float and b is not DType.bool and bool(np.can_cast(a.numpy, b.numpy, "safe"))


_BY_OP: dict[str, tuple[Rule, ...]] = {
    "add": (neutral(0), add_before_split), "sub": (neutral(0),), "mul": (neutral(1), silu), "pow": (small_power,),
    "div": (neutral(1), divide_by_power_of_two, reciprocal), "reciprocal": (reciprocal_root,),
    "max": (same_operands, relu), "min": (same_operands,), "neg": (undo_twice,),
    "and": (neutral(True), absorbing(False), same_operands), "or": (neutral(False), absorbing(True), same_operands),
    "xor": (neutral(False),), "not": (undo_twice, negated_comparison), "where": (choose, choose_negated),
    "cast": (drop_cast, merge_casts),
}
RULES: Rules = {
    op: (compute_before_broadcast, shrink_constant, *((constant_to_the_right,) if op in MIRRORED else ()),
         *_BY_OP.get(op, ()))
    for op, definition in OPS.items() if definition.elementwise}
