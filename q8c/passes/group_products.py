"""Products with a constant batch of matrices, such as of heads or of a convolution's groups, as those of experts."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.ir.dims import product
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.types import DType
from q8c.passes.fold_weights import MIN_COLS, MIN_DEPTH, weight_shape
from q8c.passes.manager import Pass, Report
from q8c.passes.route_experts import side_by_side
from q8c.passes.rules import Rewriter, attr, producer, rewrite


@dataclass(frozen=True)
class GroupProducts(Pass):
    """Replaces x @ w, where w is a constant matrix for each head or group, by rows sorted by the matrix they meet.

    So each matrix is packed like other weights, and may be int8.
    """

    name: ClassVar[str] = "group-products"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether there was such a product."""
        return rewrite(graph, {"matmul": (group_product,)}, report, explain=True)


def group_product(r: Rewriter, node: Node) -> Value | None:
    """x @ w, a constant batch of matrices -> rows of x sorted by matrix, each times the columns of its own"""
    x, w = node.input(0), node.input(1)
    rank = x.type.rank
    if not w.is_constant or x.dtype is not DType.f32 or w.type.size == 0 or rank < w.type.rank:
        return None
    own = (1,) * (rank - w.type.rank) + w.shape[:-2]
    axes = [i for i, size in enumerate(own) if size != 1]
    depth, cols = weight_shape(node)
    if not axes or any(x.shape[i] != own[i] for i in axes) or cols < MIN_COLS or depth < MIN_DEPTH:
        return None
    order = (*axes, *(i for i in range(rank) if i not in axes))
    table = w.array().reshape(-1, *w.array().shape[-2:])
    groups, moved = len(table), [x.shape[i] for i in order]
    rows = product(moved[len(axes):-1])
    weights = r.constant(side_by_side(table, not attr(node, "transpose_b")), DType.f32)
    ends = r.add("sizes", values=tuple(rows * (group + 1) for group in range(groups)))
    y = r.add("expert_matmul", r.reshape(transposed(r, x, order), (rows * groups, depth)), weights, ends)
    if y.shape[1] != cols:
        y = r.add("slice", y, starts=(0, 0), sizes=(rows * groups, cols), steps=(1, 1))
    return transposed(r, r.reshape(y, (*moved[:-1], cols)), [int(i) for i in np.argsort(order)])


def transposed(r: Rewriter, x: Value, perm: Sequence[int]) -> Value:
    """x with its axes in another order, from what was transposed before if it was."""
    before = producer(x, "transpose")
    if before is not None:
        x, perm = before.input(0), [attr(before, "perm")[i] for i in perm]
    return x if list(perm) == sorted(perm) else r.add("transpose", x, perm=tuple(perm))
