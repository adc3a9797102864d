"""gather and gather_nd: rows picked by indices, every index checked before it is used.

An index out of range is reported in the frame (word 1: 1 + node, word 2: the index) and taken as 0, so nothing outside
the operand is ever read; the run time then raises for the whole run.
"""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.builder import I64, Builder, Value
from q8c.codegen.frame import DETAIL, STATUS
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_memory import load_scalar
from q8c.codegen.loop_space import Space, dense_strides, each_item
from q8c.codegen.movement_copy import copy_row
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
    x, indices = node.input(0), node.input(1)
    axis = attributes(node)["axis"] % x.type.rank
    strides, size = dense_strides(x.shape), x.shape[axis]
    near = tuple(0 if i == axis else s for i, s in enumerate(strides))
    space = Space(indices.shape, (near, dense_strides(indices.shape))).merged()
    m = Movement(node)
    m.sizes.need_space(space)
    m.sizes.need(size, strides[axis])
    itemsize = x.dtype.itemsize
    element = ir.IntType(8 * itemsize)

    def emit(b: Builder) -> None:
        extent, stride = m.sizes.value(b, size), m.sizes.value(b, strides[axis])

        def item(offsets: list[Value]) -> None:
            index = checked(b, load_index(b, indices.dtype, b.arg("p1"), offsets[1]), extent)
            start = b.add(offsets[0], b.mul(index, stride))
            with b.if_(b.icmp(">", extent, 0)):
                found = b.load(element, b.at(b.arg("p0"), b.mul(start, itemsize)))
                b.store(found, b.at(b.arg("p2"), b.mul(offsets[1], itemsize)))

        each_item(b, m.sizes, space, item)

    key = (f"{m.sizes.space_name(space)} of {m.sizes.name(size)} {m.sizes.name(strides[axis])} x{itemsize} "
           f"{indices.dtype}")
    return m.kernel(module, tier, key, emit, reports=True)


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
