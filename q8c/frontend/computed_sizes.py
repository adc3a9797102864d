"""Shapes that exporters compute from data though they are sizes: how many a mask picks; sizes, but with 1 for -1."""
from __future__ import annotations

from q8c.frontend.tensor import Tensor
from q8c.ir.dims import Dim
from q8c.ir.graph import Node, Value
from q8c.ir.ops import attributes
from q8c.ir.types import DType


def computed_sizes(tensor: Tensor) -> list[Dim] | None:
    """The sizes that a vector computed from data holds, as far as exporters are known to compute them, else None."""
    picked = _picked(tensor)
    return _with_ones(tensor) if picked is None else [picked]


def _with_ones(tensor: Tensor) -> list[Dim] | None:
    """The sizes in Where(sizes == -1, 1, sizes), of which the sizes of tensors are never -1, only numbers are."""
    choice = None if tensor.value is None else _made_by(tensor.value, "where")
    test = None if choice is None else _made_by(choice.input(0), "equal")
    sizes = None if choice is None else _made_by(choice.input(2), "sizes")
    if choice is None or test is None or sizes is None or test.input(0) is not sizes.output:
        return None
    numbers = ((test.input(1), -1), (choice.input(1), 1))
    if any(value.data is None or (value.data != number).any() for value, number in numbers):
        return None
    return [1 if d == -1 else d for d in attributes(sizes)["values"]]


def _made_by(value: Value, op: str) -> Node | None:
    return value.producer if value.producer is not None and value.producer.op == op else None


def _picked(tensor: Tensor) -> Dim | None:
    """The size that a tensor of one element holds if it sums a mask of which a NonZero picks elements, else None."""
    value = tensor.value
    node = None if value is None else _source(value).producer
    if value is None or value.type.size != 1 or node is None or node.op != "reduce_sum":
        return None
    mask = _source(node.input(0))
    stretched = [user.output for user in mask.users if user.op == "broadcast_to"]  # from 1 for no size that works
    picks = [user for value in (mask, *stretched) for user in value.users if user.op == "nonzero"]
    return picks[0].output.shape[-1] if picks and mask.dtype is DType.bool else None


def _source(value: Value) -> Value:
    """What a value was before it got another shape or type."""
    node = value.producer
    return _source(node.input(0)) if node is not None and node.op in ("reshape", "cast") else value
