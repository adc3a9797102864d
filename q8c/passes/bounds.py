"""What is known of a value's least element without running the model."""
from __future__ import annotations

import math

from q8c.ir.graph import Value

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
    if node.op not in ("add", "mul", "div", "max", "min"):
        return -math.inf
    a, b = (lower_bound(v, depth - 1) for v in node.operands)
    if node.op in ("mul", "div"):
        return 0.0 if min(a, b) >= 0 else -math.inf
    return {"add": a + b, "max": max(a, b), "min": min(a, b)}[node.op]
