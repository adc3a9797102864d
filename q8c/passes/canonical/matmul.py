"""Rules of matrix products."""
from __future__ import annotations

from q8c.ir import Node, Value
from q8c.ir.dims import Dim, product
from q8c.passes.rules import Rewriter, Rules, attr, producer


def matmul_of_broadcast(r: Rewriter, node: Node) -> Value | None:
    """matmul(broadcast_to(a), b) whose result's batch does not need the broadcast -> matmul(a, b)."""
    for index in (0, 1):
        inner = producer(node.input(index), "broadcast_to")
        if inner is None:
            continue
        small = inner.input(0)
        wide, other = node.input(index).shape, node.input(1 - index).shape
        if small.type.rank < 2 or not r.same_shape(small.shape[-2:], wide[-2:]):
            continue
        if r.same_shape(other[:-2], node.output.shape[:-2]):
            operands = [small, node.input(1)] if index == 0 else [node.input(0), small]
            return r.add("matmul", *operands, **node.attrs)
    return None


def matmul_of_repeated(r: Rewriter, node: Node) -> Value | None:
    """matmul(a[b*h, …], reshape(broadcast_to(c)) of h matrices, b times) -> matmul(a[b, h, …], c), reshaped."""
    for index in (0, 1):
        once = repeated_matrices(r, node.input(index))
        other = node.input(1 - index)
        if once is None or other.type.rank != 3:
            continue
        batch, matrices = once
        apart = r.reshape(other, (batch, matrices.shape[1], *other.shape[1:]))
        y = r.add("matmul", *((matrices, apart) if index == 0 else (apart, matrices)), **node.attrs)
        return r.reshape(y, node.output.shape)
    return None


def repeated_matrices(r: Rewriter, value: Value) -> tuple[Dim, Value] | None:
    """b and [1, h, rows, cols] if a value [b*h, rows, cols], perhaps transposed, is h matrices b times over."""
    turn = producer(value, "transpose") if value.type.rank == 3 else None
    if turn is not None:
        found = repeated_matrices(r, turn.input(0)) if attr(turn, "perm") == (0, 2, 1) else None
        return None if found is None else (found[0], r.add("transpose", found[1], perm=(0, 1, 3, 2)))
    flat = producer(value, "reshape") if value.type.rank == 3 else None
    wide = None if flat is None else producer(flat.input(0), "broadcast_to")
    if wide is None:
        return None
    small, (batch, *rest) = wide.input(0), wide.output.shape
    own = (1,) * (len(rest) + 1 - small.type.rank) + small.shape
    elements, matrix = product(rest), product(value.shape[1:])
    if own[0] != 1 or own[1:] != tuple(rest) or not isinstance(elements, int) or not isinstance(matrix, int):
        return None
    count = elements // max(matrix, 1)
    if count * matrix != elements or count * batch != value.shape[0]:
        return None
    return batch, r.reshape(small, (1, count, *value.shape[1:]))


def matmul_of_depth_zero(r: Rewriter, node: Node) -> Value | None:
    """matmul(x[n, 0], w[0, m]) -> zeros: sums of nothing, and kernels want something to sum."""
    if node.input(0).shape[-1] != 0:
        return None
    return r.broadcast(r.constant(0, node.output.dtype), node.output.shape)


RULES: Rules = {
    "matmul": (matmul_of_depth_zero, matmul_of_broadcast, matmul_of_repeated),
}
