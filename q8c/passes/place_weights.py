"""Constant weights where kernels take them: the second operand of a product, and one matrix for each row."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.ir.dims import floordiv, product
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.types import DType
from q8c.passes.fold_weights import MIN_COLS, MIN_DEPTH, weight_shape
from q8c.passes.manager import Pass, Report
from q8c.passes.route_experts import side_by_side
from q8c.passes.rules import Rewriter, Rules, attr, producer, rewrite


@dataclass(frozen=True)
class PlaceWeights(Pass):
    """Replaces products with a constant that comes first, or is a batch of matrices, such as one for each head or group
    of a convolution, by those whose weights are packed, and may be int8.

    Rows are sorted by the matrix they meet, as those of experts are; rows that all matrices meet have all columns side
    by side. Matrices too small to be int8 stay as they are.
    """

    name: ClassVar[str] = "place-weights"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether there was such a product."""
        return rewrite(graph, RULES, report, explain=True)


def turn_product(r: Rewriter, node: Node) -> Value | None:
    """w @ x, w constant -> (x^T @ w^T)^T"""
    w, x = node.input(0), node.input(1)
    if not is_weight(w) or x.is_constant:
        return None
    rows = x if attr(node, "transpose_b") else swapped(r, x)
    return swapped(r, r.add("matmul", rows, w, transpose_b=True))


def sort_rows(r: Rewriter, node: Node) -> Value | None:
    """x @ w, a constant batch of matrices -> rows of x sorted by matrix, each times the columns of its own"""
    x, w = node.input(0), node.input(1)
    if not is_weight(w):
        return None
    depth, cols = weight_shape(node)
    rank = node.output.type.rank
    groups = {i: size for i, size in enumerate(w.shape[:-2], rank - w.type.rank) if size != 1}
    given = ((1,) * (rank - x.type.rank) + x.shape)[:-1]
    own = all(given[i] == size for i, size in groups.items())
    if not groups or not own and any(given[i] != 1 for i in groups):
        return None
    others = [i for i in range(rank - 1) if i not in groups]
    lead = [given[i] for i in others]
    table = w.array().reshape(-1, *w.array().shape[-2:])
    weights = r.constant(side_by_side(table, not attr(node, "transpose_b")), DType.f32)
    if own:
        order = [*groups, *others, rank - 1]
        y = by_own(r, transposed(r, r.reshape(x, (*given, depth)), order), weights, len(table))
    else:
        order, y = [*others, *groups, rank - 1], r.add("matmul", r.reshape(x, (*lead, depth)), weights)
    shape = [node.output.shape[i] for i in order[:-1]]
    y = r.reshape(y, (*shape, weights.array().shape[1] // len(table)))
    if y.shape[-1] != cols:
        y = r.add("slice", y, starts=(0,) * rank, sizes=(*shape, cols), steps=(1,) * rank)
    return transposed(r, y, [int(i) for i in np.argsort(order)])


def by_own(r: Rewriter, x: Value, weights: Value, groups: int) -> Value:
    """Rows of x, as many for each group and one group's after the other's, each times the columns of its own group."""
    rows = floordiv(product(x.shape[:-1]), groups)
    ends = r.add("sizes", values=tuple(rows * (group + 1) for group in range(groups)))
    return r.add("expert_matmul", r.reshape(x, (rows * groups, x.shape[-1])), weights, ends)


def is_weight(value: Value) -> bool:
    """Whether a value is constant matrices that are large enough to be int8, read as they are or turned."""
    return value.is_constant and value.dtype is DType.f32 and value.type.size != 0 and min(
        value.array().shape[-2:]) >= max(MIN_COLS, MIN_DEPTH)


def swapped(r: Rewriter, x: Value) -> Value:
    """x with its last two axes exchanged."""
    *lead, a, b = range(x.type.rank)
    return transposed(r, x, (*lead, b, a))


def transposed(r: Rewriter, x: Value, perm: Sequence[int]) -> Value:
    """x with its axes in another order, from what was transposed before if it was."""
    before = producer(x, "transpose")
    if before is not None:
        x, perm = before.input(0), [attr(before, "perm")[i] for i in perm]
    return x if list(perm) == sorted(perm) else r.add("transpose", x, perm=tuple(perm))


RULES: Rules = {"matmul": (turn_product, sort_rows)}
