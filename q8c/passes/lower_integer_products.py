"""Integer products as float products that are exact."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.dims import Dim, floordiv
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.types import DType
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import Rewriter, rewrite

EXACT_DEPTH = 256  # 255 * 255 * 256 < 2**24: float32 holds every partial sum of so many products


@dataclass(frozen=True)
class LowerIntegerProducts(Pass):
    """Replaces matmul_integer(a, b) by int32 sums of float products over `EXACT_DEPTH` steps of depth each.

    Behind the passes that quantize: these products are exact and must stay so.
    """

    name: ClassVar[str] = "lower-integer-products"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether there was an integer product."""
        return rewrite(graph, {"matmul_integer": (lower,)}, report)


def lower(r: Rewriter, node: Node) -> Value:
    """matmul_integer(a, b, a_zero, b_zero) -> sum over parts of cast(matmul(a - a_zero, b - b_zero))."""
    a, b, a_zero, b_zero = (*node.inputs, None, None)[:4]
    assert a is not None and b is not None
    left, right = difference(r, a, a_zero), difference(r, b, b_zero)
    depth = left.shape[-1]
    if isinstance(depth, int) and depth <= EXACT_DEPTH:
        return r.add("cast", r.add("matmul", left, right), to=DType.i32)
    parts = floordiv(depth + (EXACT_DEPTH - 1), EXACT_DEPTH)
    left, right = padded(r, left, -1, parts), padded(r, right, -2, parts)
    *batch, rows, _ = left.shape
    left = r.add("reshape", left, shape=(*batch, rows, parts, EXACT_DEPTH))
    perm = (*range(len(batch)), len(batch) + 1, len(batch), len(batch) + 2)
    left = r.add("transpose", left, perm=perm)
    right = r.add("reshape", right, shape=(*right.shape[:-2], parts, EXACT_DEPTH, right.shape[-1]))
    sums = r.add("cast", r.add("matmul", left, right), to=DType.i32)
    return r.add("reduce_sum", sums, axes=(len(sums.shape) - 3,), keepdims=False)


def difference(r: Rewriter, x: Value, zero: Value | None) -> Value:
    """x - zero as floats."""
    wide = r.add("cast", x, to=DType.f32)
    return wide if zero is None else r.add("sub", wide, r.add("cast", zero, to=DType.f32))


def padded(r: Rewriter, x: Value, axis: int, parts: Dim) -> Value:
    """x with zeros behind the depth, to a whole number of parts."""
    after: list[Dim] = [0] * x.type.rank
    after[axis] = parts * EXACT_DEPTH - x.shape[axis]
    return x if after[axis] == 0 else r.add("pad", x, before=(0,) * x.type.rank, after=tuple(after))
