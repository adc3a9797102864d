"""gather and gather_nd: rows picked by indices, every index checked before it is used.

An index out of range is reported in the frame (word 1: 1 + node, word 2: the index) and taken as 0, so nothing outside
the operand is ever read; the run time then raises for the whole run.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen.builder import F32, I16, I32, I64, LANES, V16I, Builder, Operand, Value
from q8c.codegen.frame import DETAIL, STATUS
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_memory import lanes_of, load_lanes, load_scalar, scalar_type, store_lanes
from q8c.codegen.loop_space import (
    Space,
    broadcast_strides,
    columns,
    dense_strides,
    each_item,
    each_row,
    rows_of,
)
from q8c.codegen.movement_copy import CHUNK, copy_row
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, product
from q8c.ir.graph import Node
from q8c.ir.ops import attributes
from q8c.ir.types import DType


def gather(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """y[before, index, after] = x[before, indices[index], after]"""
    x, indices = node.input(0), node.input(1)
    axis = attributes(node)["axis"] % x.type.rank
    before, size, row = product(x.shape[:axis]), x.shape[axis], product(x.shape[axis + 1:])
    count = indices.type.size
    space = Space((before, count), ((size * row, 0), (0, 1), (count * row, row))).merged()
    m = Movement(node)
    m.sizes.need_space(space)
    m.sizes.need(size, row)
    itemsize = x.dtype.itemsize

    def emit(b: Builder) -> None:
        extent, length = m.sizes.value(b, size), m.sizes.value(b, row)

        def item(offsets: list[Value]) -> None:
            index = checked(b, load_index(b, indices.dtype, b.arg("p1"), offsets[1]), extent)
            start = b.add(offsets[0], b.mul(index, length))
            with b.if_(b.icmp(">", extent, 0)):
                copy_row(b, itemsize, b.at(b.arg("p0"), b.mul(start, itemsize)),
                         b.at(b.arg("p2"), b.mul(offsets[2], itemsize)), row if isinstance(row, int) else length)

        each_item(b, m.sizes, space, item)

    key = f"{m.sizes.space_name(space)} of {m.sizes.name(size)} {m.sizes.name(row)} x{itemsize} {indices.dtype}"
    return m.kernel(module, tier, key, emit, reports=True)


def gather_nd(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """y[batch, ..., after] = x[batch, indices[batch, ..., 0], indices[batch, ..., 1], ..., after]"""
    x, indices = node.input(0), node.input(1)
    lead, depth = attributes(node)["batch_dims"], int(str(indices.shape[-1]))
    row = product(x.shape[lead + depth:])
    batch, picks = product(x.shape[:lead]), product(indices.shape[lead:-1])
    block = product(x.shape[lead:])
    space = Space((batch, picks), ((block, 0), (picks * depth, depth), (picks * row, row))).merged()
    extents, strides = x.shape[lead:lead + depth], dense_strides(x.shape)[lead:lead + depth]
    m = Movement(node)
    m.sizes.need_space(space)
    m.sizes.need(row, *extents, *strides)
    itemsize = x.dtype.itemsize

    def emit(b: Builder) -> None:
        def item(offsets: list[Value]) -> None:
            start, some = offsets[0], ir.Constant(ir.IntType(1), 1)
            for n, (extent, stride) in enumerate(zip(extents, strides, strict=True)):
                limit = m.sizes.value(b, extent)
                index = checked(b, load_index(b, DType.i64, b.arg("p1"), b.add(offsets[1], n)), limit)
                start = b.add(start, b.mul(index, m.sizes.value(b, stride)))
                some = b.and_(some, b.icmp(">", limit, 0))
            with b.if_(some):
                copy_row(b, itemsize, b.at(b.arg("p0"), b.mul(start, itemsize)),
                         b.at(b.arg("p2"), b.mul(offsets[2], itemsize)),
                         row if isinstance(row, int) else m.sizes.value(b, row))

        each_item(b, m.sizes, space, item)

    dims: list[Dim] = [row, *extents, *strides]
    key = f"{m.sizes.space_name(space)} of {' '.join(map(m.sizes.name, dims))} x{itemsize}"
    return m.kernel(module, tier, key, emit, reports=True)


def gather_elements(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """y[i, j, ...] = x[indices[i, j, ...], j, ...], the index in the place of the axis"""
    x, indices, shape = node.input(0), node.input(1), node.output.shape
    axis = attributes(node)["axis"] % x.type.rank
    strides, size = dense_strides(x.shape), x.shape[axis]
    near = tuple(0 if i == axis else s for i, s in enumerate(strides))
    rows = rows_of(Space(shape, (near, broadcast_strides(indices.shape, len(shape)), dense_strides(shape))), CHUNK)
    m = Movement(node)
    m.sizes.need_rows(rows)
    m.sizes.need(size, strides[axis])

    def emit(b: Builder) -> None:
        picker = _Picker(b, x.dtype, indices.dtype, m.sizes.value(b, size), m.sizes.value(b, strides[axis]),
                         [m.sizes.value(b, step) for step in rows.along])
        each_row(b, m.sizes, rows, picker.vectors if rows.along[1:] == (1, 1) and x.dtype is DType.f32 else picker.row)

    key = f"{m.sizes.rows_name(rows)} of {m.sizes.name(size)} {m.sizes.name(strides[axis])} {x.dtype} {indices.dtype}"
    return m.kernel(module, tier, key, emit, reports=True)


@dataclass(frozen=True)
class _Picker:
    """Rows of picked elements: p0 is picked from, `extent` elements that are `stride` apart for each; p1 are indices.

    `along` are the steps of p0, p1 and the result from one element of a row to the next; offsets are in elements.
    """

    b: Builder
    dtype: DType
    indices: DType
    extent: Value
    stride: Value
    along: Sequence[Value]

    def row(self, offsets: Sequence[Value], count: Operand, start: Operand = 0) -> None:
        """Elements of a row from `start` on, one by one."""
        b, itemsize = self.b, self.dtype.itemsize
        element = ir.IntType(8 * itemsize)
        with b.range(start, count) as col:
            near, at, out = (b.add(offset, b.mul(col, step)) for offset, step in zip(offsets, self.along, strict=False))
            index = checked(b, load_index(b, self.indices, b.arg("p1"), at), self.extent)
            with b.if_(b.icmp(">", self.extent, 0)):
                source = b.add(near, b.mul(index, self.stride))
                found = b.load(element, b.at(b.arg("p0"), b.mul(source, itemsize)))
                b.store(found, b.at(b.arg("p2"), b.mul(out, itemsize)))

    def vectors(self, offsets: Sequence[Value], count: Operand) -> None:
        """16 elements of a row at a time, if their indices are in range and 32 bits reach all they may pick."""
        b = self.b
        base = b.at(b.arg("p0"), offsets[0], F32)
        near = b.mul(b.iota(), b.splat(b.trunc(self.along[0], I32), V16I))
        stride = b.splat(b.trunc(self.stride, I32), V16I)
        wide = lanes_of(scalar_type(self.indices))
        extent = b.splat(b.trunc(self.extent, I32) if self.indices is DType.i32 else self.extent, wide)

        def pick(col: Value, slot: int, part: Operand | None, carried: list[Value]) -> list[Value]:
            index = load_lanes(b, self.indices, b.at(b.arg("p1"), b.mul(b.add(offsets[1], col), self.indices.itemsize)),
                               part)
            found = b.select(b.icmp("<", index, 0), b.add(index, extent), index)
            wrong = b.bitcast(b.ucmp(">=", found, extent), I16)

            def one_by_one() -> list[Value]:
                self.row(offsets, b.add(col, LANES if part is None else part), col)
                return []

            def together() -> list[Value]:
                low = found if self.indices is DType.i32 else b.trunc(found, V16I)
                source = b.at(base, b.mul(col, self.along[0]), F32)
                y = b.gather(source, b.add(b.mul(low, stride), near), LANES if part is None else part)
                store_lanes(b, DType.f32, y, b.at(b.arg("p2"), b.add(offsets[2], col), F32), part)
                return []

            b.if_else(b.icmp("==", wrong, 0), together, one_by_one)
            return carried

        reach = b.add(b.mul(self.extent, self.stride), b.mul(self.along[0], LANES))

        def narrow() -> list[Value]:
            return columns(b, count, 1, [], pick)

        def far() -> list[Value]:
            self.row(offsets, count)
            return []

        b.if_else(b.icmp("<", reach, 2**31), narrow, far)


def load_index(b: Builder, dtype: DType, base: Value, offset: Value) -> Value:
    """Element `offset` of indices, as an i64."""
    index = load_scalar(b, dtype, b.at(base, b.mul(offset, dtype.itemsize)))
    return index if dtype is DType.i64 else b.sext(index, I64)


def checked(b: Builder, index: Value, size: Value) -> Value:
    """The index counted from the front; one outside [-size, size) is reported and becomes 0."""
    found = b.select(b.icmp("<", index, 0), b.add(index, size), index)
    wrong = b.ucmp(">=", found, size)
    report(b, wrong, index)
    return b.select(wrong, ir.Constant(I64, 0), found)


def report(b: Builder, wrong: Value, detail: Value) -> None:
    """Note in the frame that this node failed on an integer, if it is the first that did."""
    with b.if_(wrong, likely=False):
        frame = b.arg("frame")
        status = b.at(frame, STATUS, I64)
        with b.if_(b.icmp("==", b.load(I64, status), 0)):
            b.store(b.add(b.arg("node"), 1), status)
            b.store(detail, b.at(frame, DETAIL, I64))
