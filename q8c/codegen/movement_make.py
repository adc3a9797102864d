"""Kernels that make elements: iota, sizes, and pad (whose rows are part made, part copied)."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen import loop_ops
from q8c.codegen.builder import I64, Builder, Operand, Value
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_memory import store_lanes
from q8c.codegen.loop_space import Rows, Space, columns, dense_strides, each_item, each_row
from q8c.codegen.movement_copy import CHUNK, copy_row, fill_row
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.ir.dims import floordiv
from q8c.ir.graph import Node
from q8c.ir.ops import attributes
from q8c.ir.types import DType


def iota(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """0, 1, 2, ... of the output's element type."""
    m, y = Movement(node), node.output
    cols = y.shape[0]
    rows = Rows(Space((floordiv(cols + (CHUNK - 1), CHUNK),), ((CHUNK,), (CHUNK,))), cols, (1,), CHUNK)
    m.sizes.need_rows(rows)

    def emit(b: Builder) -> None:
        lanes = b.iota(ir.VectorType(I64, 16))

        def row(offsets: list[Value], count: Operand) -> None:
            base = b.at(b.arg("p0"), b.mul(offsets[0], y.dtype.itemsize))

            def block(col: Value, slot: int, part: Operand | None, carried: list[Value]) -> list[Value]:
                number = b.add(lanes, b.splat(b.add(offsets[0], col), lanes.type))
                value = loop_ops.cast(b, DType.i64, y.dtype, number)
                store_lanes(b, y.dtype, value, b.at(base, b.mul(col, y.dtype.itemsize)), part)
                return carried

            columns(b, count, 1, [], block)

        each_row(b, m.sizes, rows, row)

    return m.kernel(module, tier, f"{y.dtype} {m.sizes.rows_name(rows)}", emit)


def sizes(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The given sizes, written by the first piece."""
    m = Movement(node)
    values = attributes(node)["values"]
    m.sizes.need(*values)

    def emit(b: Builder) -> None:
        with b.if_(b.icmp("==", b.arg("piece"), 0)):
            for n, value in enumerate(values):
                b.store(m.sizes.value(b, value), b.at(b.arg("p0"), n, I64))

    return m.kernel(module, tier, " ".join(map(m.sizes.name, values)), emit)


def pad(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """Rows of the output: wholly the value where an outer index is in the padding, else value, operand, value."""
    m, x, y, attrs = Movement(node), node.input(0), node.output, attributes(node)
    itemsize = x.dtype.itemsize
    shape, padded = x.shape or (1,), y.shape or (1,)
    before, after = attrs["before"] or (0,), attrs["after"] or (0,)
    outer = len(shape) - 1
    axes = tuple(tuple(int(i == axis) for i in range(outer)) for axis in range(outer))
    target, source = dense_strides(padded)[:-1], dense_strides(shape)[:-1]
    space = Space(padded[:-1], (target, source, *axes))
    m.sizes.need_space(space)
    dims = (*before, *after, *shape, *source)
    m.sizes.need(*dims)
    element = ir.Constant(ir.IntType(8 * itemsize), _bits(attrs["value"], x.dtype))

    def emit(b: Builder) -> None:
        head, tail, width = (m.sizes.value(b, d) for d in (before[-1], after[-1], shape[-1]))

        def item(offsets: list[Value]) -> None:
            start, inside = offsets[1], ir.Constant(ir.IntType(1), 1)
            for n, index in enumerate(offsets[2:]):
                skip = m.sizes.value(b, before[n])
                inside = b.and_(inside, b.ucmp("<", b.sub(index, skip), m.sizes.value(b, shape[n])))
                start = b.sub(start, b.mul(skip, m.sizes.value(b, source[n])))
            row = b.at(b.arg("p1"), b.mul(offsets[0], itemsize))
            body = b.at(row, b.mul(head, itemsize))

            def some() -> list[Value]:
                fill_row(b, element, row, head)
                copy_row(b, itemsize, b.at(b.arg("p0"), b.mul(start, itemsize)), body, width)
                fill_row(b, element, b.at(body, b.mul(width, itemsize)), tail)
                return []

            def none() -> list[Value]:
                fill_row(b, element, row, b.add(b.add(head, width), tail))
                return []

            b.if_else(inside, some, none)

        each_item(b, m.sizes, space, item)

    key = f"{m.sizes.space_name(space)} {' '.join(map(m.sizes.name, dims))} {x.dtype} {element}"
    return m.kernel(module, tier, key, emit)


def _bits(value: float, dtype: DType) -> int:
    return int.from_bytes(dtype.numpy.type(value).tobytes(), "little")


