"""What is known of a value's elements without running the model."""
from __future__ import annotations

import math

import numpy as np

from q8c.ir.graph import Value
from q8c.passes.rules import uniform

_BOUNDS = {"softmax": 0.0, "sigmoid": 0.0, "exp": 0.0, "relu": 0.0, "abs": 0.0, "sqrt": 0.0, "softplus": 0.0,
           "erf": -1.0, "tanh": -1.0, "sin": -1.0, "cos": -1.0}
_KEEPS = ("reshape", "transpose", "slice", "broadcast_to", "gather")


def lower_bound(value: Value, depth: int = 8) -> float:
    """A number that no element of a float value is below (NaN aside), -inf if none is known.

    `depth` is how many nodes back to look.
    """
    if value.is_constant:
        return float(value.array().min(initial=math.inf))
    node = value.producer
    if node is None or depth == 0:
        return -math.inf
    if node.op in _BOUNDS:
        return _BOUNDS[node.op]
    if node.op in _KEEPS:
        return lower_bound(node.input(0), depth - 1)
    if node.op == "where":
        return min(lower_bound(v, depth - 1) for v in (node.input(1), node.input(2)))
    if node.op not in ("add", "mul", "div", "max", "min"):
        return -math.inf
    a, b = (lower_bound(v, depth - 1) for v in node.operands)
    if node.op in ("mul", "div"):
        return 0.0 if min(a, b) >= 0 else -math.inf
    return {"add": a + b, "max": max(a, b), "min": min(a, b)}[node.op]


def zeros_and_ones(value: Value, depth: int = 8) -> bool:
    """Whether all elements of a value are known to be 0 or 1. `depth`: as above."""
    if value.is_constant:
        data = value.array()
        return bool(np.logical_or(data == 0, data == 1).all())
    node = value.producer
    if value.dtype.name == "bool" or node is None or depth == 0:
        return value.dtype.name == "bool"
    if node.op in (*_KEEPS, "cast"):
        return zeros_and_ones(node.input(0), depth - 1)
    if node.op == "sub":
        return uniform(node.input(0)) == 1 and zeros_and_ones(node.input(1), depth - 1)
    return node.op == "mul" and all(zeros_and_ones(v, depth - 1) for v in node.operands)
