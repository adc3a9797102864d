"""What fuse-layer-norm and fuse-rms-norm share: x over the root of its mean square, scales and biases."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from q8c.ir import Node, Value
from q8c.passes.rewrite import sole_reader
from q8c.passes.rules import Declined, Rewriter, attr, is_close, orders, producer, uniform, with_constant

_MOST_COLS = 2**24


@dataclass(frozen=True, slots=True)
class Normalized:
    """x / sqrt(mean(x^2, last axis) + epsilon) * scale."""

    x: Value
    epsilon: float
    scale: Value | None


def match_normalized(node: Node) -> Normalized | Declined | None:
    """x / sqrt(m), x * rsqrt(m), x * m^-0.5, with a scale between or not, for m = mean(x^2) + epsilon."""
    for root, square in _roots(node):
        found = mean_square(square)
        if found is None:
            continue
        x, mean, epsilon = found
        others = [v for v in _factors(node, x) if v is not root]
        if x not in others:
            continue
        others.remove(x)
        if len(others) > 1 or (others and others[0].shape != x.shape[-1:]):
            continue
        reason = not_last_axis(mean)
        if epsilon < 0:
            reason = f"epsilon is {epsilon:g}, expected a number >= 0"
        elif not others and not fits_ones(x):
            reason = reason or f"the last axis of {x.type} has no fixed, or a huge size to make a scale of ones for"
        return Declined(reason) if reason else Normalized(x, epsilon, others[0] if others else None)
    return None


def _roots(node: Node) -> Iterator[tuple[Value, Value]]:
    """(a factor of the node that is 1 / sqrt(m), or the divisor sqrt(m); m)."""
    if node.op == "div":
        root = producer(node.input(1), "sqrt", "pow")
        if root is not None and _is_power(root, 0.5):
            yield node.input(1), root.input(0)
        return
    for factor in _factors(node, None):
        square = inverse_root(factor)
        if square is not None:
            yield factor, square


def inverse_root(value: Value) -> Value | None:
    """The m of 1 / sqrt(m), written as rsqrt or as a power."""
    root = producer(value, "rsqrt", "pow")
    return root.input(0) if root is not None and _is_power(root, -0.5) else None


def _is_power(node: Node, exponent: float) -> bool:
    return node.op != "pow" or is_close(uniform(node.input(1)), exponent, node.output.dtype)


def _factors(node: Node, whole: Value | None) -> list[Value]:
    """The factors of a product (of the dividend, and the divisor) at most two levels down; `whole` is not split."""
    found: list[Value] = []
    for value in node.operands:
        inner = producer(value, "mul")
        split = inner is not None and value is not whole and not (node.op == "div" and value is node.input(1))
        found.extend(inner.operands if inner is not None and split else [value])
    return found


def mean_square(value: Value) -> tuple[Value, Node, float] | None:
    """(x, the mean's node, epsilon) if a value is mean(x * x) + epsilon.

    The variance mean(y * y) - mean(y) * mean(y), cut off below 0 or not, is that of the deviation x = y - mean(y).
    """
    epsilon, with_epsilon = 0.0, with_constant(producer(value, "add"))
    if with_epsilon is not None:
        epsilon = float(str(value.dtype.numpy.type(with_epsilon[1])))  # 1e-12 rather than what f32 makes of it
        value = with_epsilon[0]
    positive = producer(value, "relu")
    value = value if positive is None else positive.input(0)
    mean = producer(value, "reduce_mean")
    if mean is not None:
        x = _squared(mean.input(0))
        return None if x is None else (x, mean, epsilon)
    difference = producer(value, "sub")
    mean = None if difference is None else producer(difference.input(0), "reduce_mean")
    center = None if difference is None else _squared(difference.input(1))
    own = None if center is None else producer(center, "reduce_mean")
    if mean is None or own is None or own.attrs != mean.attrs or _squared(mean.input(0)) is not own.input(0):
        return None
    y_and_mean = [own.input(0), own.output]
    deviations = (n.output for n in y_and_mean[0].users if n.op == "sub" and list(n.operands) == y_and_mean)
    return next(((x, mean, epsilon) for x in deviations), None)


def _squared(value: Value) -> Value | None:
    """The x of x * x."""
    product = producer(value, "mul")
    return product.input(0) if product is not None and product.input(0) is product.input(1) else None


def not_last_axis(mean: Node) -> str | None:
    """Why a mean is not the one of a norm, None if it is over the last axis, which it keeps."""
    axes = attr(mean, "axes")
    rank = mean.input(0).type.rank
    if [a % rank for a in axes] != [rank - 1]:
        return f"the mean is over axes {axes} of {mean.input(0).type}, expected the last"
    return None if attr(mean, "keepdims") else "the mean drops its axis"


def fits_ones(x: Value) -> bool:
    """Whether x's last axis has a fixed size that memory has room for, whatever a file says it is."""
    size = x.shape[-1]
    return isinstance(size, int) and size <= _MOST_COLS


def ones(r: Rewriter, x: Value) -> Value:
    """The scale that changes nothing; x's last axis has a fixed size."""
    return r.graph.constant(np.ones(int(str(x.shape[-1])), dtype=x.dtype.numpy), "ones")


def merge_scale(r: Rewriter, node: Node) -> Value | Declined | None:
    """norm(x) * scale -> norm(x, scale), for a norm without one that nobody else reads."""
    for value, scale in orders(node):
        norm = producer(value, "layer_norm", "rms_norm")
        if norm is None or len(norm.inputs) > 2 or uniform(norm.input(1)) != 1 or scale.type.rank != 1:
            continue
        reason = _not_mergeable(r, norm, scale)
        if reason:
            return Declined(reason)
        return r.from_nodes([norm, node]).add(norm.op, norm.input(0), scale, **norm.attrs)
    return None


def merge_bias(r: Rewriter, node: Node) -> Value | Declined | None:
    """layer_norm(x, scale) + bias -> layer_norm(x, scale, bias), for a norm that nobody else reads."""
    for value, bias in orders(node):
        norm = producer(value, "layer_norm")
        if norm is None or len(norm.inputs) > 2 or bias.type.rank != 1:
            continue
        reason = _not_mergeable(r, norm, bias)
        if reason:
            return Declined(reason)
        return r.from_nodes([norm, node]).add("layer_norm", norm.input(0), norm.input(1), bias, **norm.attrs)
    return None


def _not_mergeable(r: Rewriter, norm: Node, vector: Value) -> str | None:
    if vector.shape != norm.input(0).shape[-1:]:
        return f"%{vector.name} is {vector.type}, expected one element per column of {norm.output.type}"
    return None if sole_reader(r.graph, norm.output) else f"%{norm.output.name} is read by others as well"
