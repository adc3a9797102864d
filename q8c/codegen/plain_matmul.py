"""Batched matrix products of element types without a kernel of their own: right for all, tuned for none."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen import loop_ops
from q8c.codegen.builder import LANES, Builder, Operand, Value
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_memory import load_lanes, load_scalar, store_lanes, vector_type
from q8c.codegen.loop_space import Space, dense_strides, each_item
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.errors import CompileError
from q8c.ir.dims import Dim, floordiv
from q8c.ir.graph import Node
from q8c.ir.ops import attributes
from q8c.ir.types import DType


def plain_matmul(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """y = a b, 16 columns at a time, the depth in ascending order. Integers wrap; floats are fused multiply-adds.

    Raises CompileError for a transposed right operand, f16 and bool.
    """
    a, b, y = node.input(0), node.input(1), node.output
    if attributes(node)["transpose_b"] or a.dtype in (DType.f16, DType.bool):
        raise CompileError(f"{node}: no kernel for {a.type} by {b.type}; expected f32")
    batch, rows, cols, depth = y.shape[:-2], y.shape[-2], y.shape[-1], a.shape[-1]
    bands = floordiv(cols + LANES - 1, LANES)
    lead = dense_strides(y.shape)[:-2]
    space = Space((*batch, rows, bands), (
        (*_along(a.shape, batch), depth, 0), (*_along(b.shape, batch), 0, LANES), (*lead, cols, LANES),
        (*[0] * len(batch), 0, LANES)))
    m, dtype = Movement(node), a.dtype
    m.sizes.need_space(space)
    m.sizes.need(cols, depth)

    def emit(e: Builder) -> None:
        width, steps = m.sizes.value(e, cols), m.sizes.value(e, depth)

        def item(offsets: list[Value]) -> None:
            left, right, target = (e.at(e.arg(p), e.mul(o, dtype.itemsize))
                                   for p, o in zip(("p0", "p1", "p2"), offsets, strict=False))
            count = e.imin(e.sub(width, offsets[3]), LANES)
            store_lanes(e, dtype, _sum(e, dtype, left, right, width, steps, count), target, count)

        each_item(e, m.sizes, space, item)

    return m.kernel(module, tier, f"{m.sizes.space_name(space)} {m.sizes.name(cols)} {m.sizes.name(depth)} {dtype}",
                    emit)


def _sum(e: Builder, dtype: DType, left: Value, right: Value, width: Value, depth: Value, count: Operand) -> Value:
    typ = vector_type(dtype)

    def step(k: Value, state: list[Value]) -> list[Value]:
        x = e.splat(load_scalar(e, dtype, e.at(left, e.mul(k, dtype.itemsize))), typ)
        y = load_lanes(e, dtype, e.at(right, e.mul(e.mul(k, width), dtype.itemsize)), count)
        return [e.fma(x, y, state[0]) if dtype.is_float else e.add(state[0], e.mul(x, y))]

    total: Value = e.loop(0, depth, 1, [loop_ops.number(0, dtype, typ)], step)[0]
    return total


def _along(shape: tuple[Dim, ...], batch: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The strides along the batch axes, 0 where the operand is repeated."""
    own = dense_strides(shape)[:-2]
    strides = tuple(0 if d == 1 and n != 1 else s for d, s, n in
                    zip(shape[:-2], own, batch[len(batch) - len(own):], strict=True))
    return (0,) * (len(batch) - len(own)) + strides
