"""Sizes that are numbers of elements which a NonZero picks, as PyTorch's exporter states the shape of what a mask is
assigned: the sum of the mask."""
from __future__ import annotations

from q8c.frontend.tensor import Tensor
from q8c.ir.dims import Dim
from q8c.ir.graph import Value
from q8c.ir.types import DType


def counted(tensor: Tensor) -> Dim | None:
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
