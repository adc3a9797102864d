"""Reductions over any set of axes, in an order that depends on the reduced sizes alone.

Where the last axis stays, 4 vectors of its columns are accumulated over the reduced axes in row-major order. Where it
is reduced too, every row adds to 4 accumulators of 16 lanes as in a `loop`, and a fixed tree ends the sum.
"""
from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen import loop_ops
from q8c.codegen.builder import I64, LANES, Builder, Operand, Value, constant
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_fold import combiner, neutral, total
from q8c.codegen.loop_memory import load_lanes, scalar_type, store_lanes, store_scalar, vector_type
from q8c.codegen.loop_space import Sizes, Space, columns, dense_strides, each_item, walk
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, floordiv, product
from q8c.ir.graph import Node
from q8c.ir.ops import attributes
from q8c.ir.types import DType

REDUCE_OPS = tuple(f"reduce_{kind}" for kind in ("sum", "mean", "max", "min", "prod"))
BAND = 4 * LANES
"""Columns accumulated at a time where the last axis stays."""


@dataclass(frozen=True)
class _Plan:
    """`kept` has operands (x, y, first column of a band), `reduced` has (x); `cols` is the extent of the last axis."""

    op: str
    dtype: DType
    inner: DType
    kept: Space
    reduced: Space
    cols: Dim
    by_rows: bool
    count: Dim


def reduce(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of a reduce_* node."""
    m, plan = Movement(node), _plan(node)
    m.sizes.need_space(plan.kept)
    m.sizes.need_space(plan.reduced)
    m.sizes.need(plan.cols, plan.count)
    size = m.sizes
    key = (f"{plan.op} {plan.dtype} {plan.inner} {size.space_name(plan.kept)} / {size.space_name(plan.reduced)} / "
           f"{size.name(plan.cols)} {plan.by_rows} {size.name(plan.count)}")
    return m.kernel(module, tier, key, lambda b: _Emitter(b, plan, m.sizes).emit())


def _plan(node: Node) -> _Plan:
    x = node.input(0)
    attrs = attributes(node)
    shape = x.shape or (1,)
    axes = {a % len(shape) for a in attrs["axes"]}
    kind = node.op[len("reduce_"):]
    strides = dense_strides(shape)
    by_rows = len(shape) - 1 in axes
    kept_axes = [a for a in range(len(shape) - 1) if a not in axes]
    reduced_axes = [a for a in range(len(shape) - 1) if a in axes]
    kept = [shape[a] for a in kept_axes]
    results = [*kept, 1 if by_rows else shape[-1]]
    count = product(shape[a] for a in axes)
    inner, op = _accumulated(x.dtype, kind)
    space = Space(tuple(kept), (tuple(strides[a] for a in kept_axes), dense_strides(results)[:-1])).merged()
    bands = 1 if by_rows else floordiv(shape[-1] + (BAND - 1), BAND)
    own = [(BAND, *space.strides[0]), (BAND, *space.strides[1]), (BAND, *[0] * len(space.extents))]
    reduced = Space(tuple(shape[a] for a in reduced_axes), (tuple(strides[a] for a in reduced_axes),)).merged()
    cols = shape[-1]
    if by_rows and reduced.extents and reduced.strides[0][-1] == cols:  # rows that follow each other are one row
        cols, reduced = cols * reduced.extents[-1], Space(reduced.extents[:-1], (reduced.strides[0][:-1],))
    return _Plan(op, x.dtype, inner, Space((bands, *space.extents), tuple(own)), reduced, cols, by_rows, count)


def _accumulated(dtype: DType, kind: str) -> tuple[DType, str]:
    """The element type sums are kept in, and the reduction; `mean` marks the division at the end."""
    if dtype is DType.bool:
        return DType.u8, "row_min" if kind in ("min", "prod") else "row_max"
    if kind == "mean":
        return (DType.i64 if dtype.is_int else DType.f32 if dtype is DType.f16 else dtype), "mean"
    return DType.f32 if dtype is DType.f16 else dtype, f"row_{kind}"


class _Emitter:
    def __init__(self, b: Builder, plan: _Plan, sizes: Sizes) -> None:
        self.b, self.plan, self.sizes = b, plan, sizes
        self.fold = "row_sum" if plan.op == "mean" else plan.op
        self.vector = vector_type(plan.inner)
        self.slots = [b.scratch(LANES * 8) for _ in range(4)]
        self.cols: Operand = plan.cols if isinstance(plan.cols, int) else sizes.value(b, plan.cols)

    def emit(self) -> None:
        each_item(self.b, self.sizes, self.plan.kept, self._item)

    def _item(self, offsets: list[Value]) -> None:
        b, plan = self.b, self.plan
        for slot in self.slots:
            b.store(neutral(self.fold, plan.inner), slot)
        source = b.at(b.arg("p0"), b.mul(offsets[0], plan.dtype.itemsize))
        target = b.at(b.arg("p1"), b.mul(offsets[1], plan.dtype.itemsize))
        width = self.cols if plan.by_rows else b.imin(b.sub(self.cols, offsets[2]), BAND)
        extents = [self.sizes.value(b, e) for e in plan.reduced.extents]
        strides = [[self.sizes.value(b, s) for s in plan.reduced.strides[0]]]
        steps: Operand = 1
        for extent in extents:
            steps = b.mul(steps, extent)
        steps, = b.coerce(steps)
        walk(b, extents, strides, ir.Constant(I64, 0), steps,
             lambda at: self._take(b.at(source, b.mul(at[0], plan.dtype.itemsize)), width))
        self._finish(target, width)

    def _take(self, row: Value, width: Operand) -> None:
        """Add a row (or band) to the accumulators."""
        b, plan = self.b, self.plan
        combine = combiner(b, self.fold, plan.inner)
        start = [b.load(self.vector, slot) for slot in self.slots]

        def block(col: Value, slot: int, count: Operand | None, sums: list[Value]) -> list[Value]:
            value = load_lanes(b, plan.dtype, b.at(row, b.mul(col, plan.dtype.itemsize)), count)
            value = loop_ops.cast(b, plan.dtype, plan.inner, value)
            if count is not None:
                value = b.select(b.tail_mask(count), value, neutral(self.fold, plan.inner))
            sums = list(sums)
            sums[slot] = combine(sums[slot], value)
            return sums

        for slot, value in zip(self.slots, columns(b, width, 4, start, block), strict=True):
            b.store(value, slot)

    def _finish(self, target: Value, width: Operand) -> None:
        b, plan = self.b, self.plan
        sums = [b.load(self.vector, slot) for slot in self.slots]
        if plan.by_rows:
            value = self._result(total(b, self.fold, plan.inner, sums))
            store_scalar(b, plan.dtype, value, target)
            return

        def block(col: Value, slot: int, count: Operand | None, carried: list[Value]) -> list[Value]:
            address = b.at(target, b.mul(col, plan.dtype.itemsize))
            store_lanes(b, plan.dtype, self._result(sums[slot]), address, count)
            return carried

        columns(b, width, 4, [], block)

    def _result(self, value: Value) -> Value:
        b, plan = self.b, self.plan
        if plan.op == "mean":
            count = self.sizes.value(b, plan.count)
            if plan.inner.is_int:
                value = loop_ops.divide(b, plan.inner, value, self._spread(count, value))
            else:
                one = constant(scalar_type(plan.inner), 1.0)
                inverse = b.ir.fdiv(one, b.ir.sitofp(count, scalar_type(plan.inner)))
                value = b.mul(value, self._spread(inverse, value))
        return loop_ops.cast(b, plan.inner, plan.dtype, value)

    def _spread(self, scalar: Value, value: Value) -> Value:
        return self.b.splat(scalar, value.type) if isinstance(value.type, ir.VectorType) else scalar

