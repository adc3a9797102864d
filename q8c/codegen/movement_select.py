"""scatter_nd and top_k: places told by indices, and indices told by elements.

Updates may hit one place twice and are made in their order, so one piece makes all of them.
"""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen import loop_ops
from q8c.codegen.builder import I64, Builder, Operand, Value
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_memory import load_lanes, load_scalar, round_f16, store_lanes
from q8c.codegen.loop_space import Space, columns, dense_strides, each_item, walk
from q8c.codegen.movement_copy import copy_row
from q8c.codegen.movement_gather import checked
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.movement_scan import better
from q8c.codegen.targets import Tier
from q8c.ir.dims import product
from q8c.ir.graph import Node
from q8c.ir.ops import attributes
from q8c.ir.types import DType


def scatter_nd(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """y = x; y[indices[i, 0], indices[i, 1], ...] = combine(that, updates[i]) for ascending i"""
    x, indices = node.input(0), node.input(1)
    dtype, itemsize, reduction = x.dtype, x.dtype.itemsize, str(attributes(node)["reduction"])
    depth, count = int(str(indices.shape[-1])), product(indices.shape[:-1])
    extents, strides = x.shape[:depth], dense_strides(x.shape)[:depth]
    row, total = product(x.shape[depth:]), x.type.size
    m = Movement(node)
    m.sizes.need(row, total, count, *extents, *strides)

    def emit(b: Builder) -> None:
        width = row if isinstance(row, int) else m.sizes.value(b, row)

        def update(offsets: list[Value]) -> None:
            start, some = ir.Constant(I64, 0), ir.Constant(ir.IntType(1), 1)
            for n, (extent, stride) in enumerate(zip(extents, strides, strict=True)):
                limit = m.sizes.value(b, extent)
                index = b.load(I64, b.at(b.arg("p1"), b.add(offsets[0], n), I64))
                start = b.add(start, b.mul(checked(b, index, limit), m.sizes.value(b, stride)))
                some = b.and_(some, b.icmp(">", limit, 0))
            source = b.at(b.arg("p2"), b.mul(offsets[1], itemsize))
            target = b.at(b.arg("p3"), b.mul(start, itemsize))
            with b.if_(some):
                if reduction == "none":
                    copy_row(b, itemsize, source, target, width)
                else:
                    _combine_row(b, dtype, reduction, source, target, width)

        with b.if_(b.icmp("==", b.arg("piece"), 0)):
            copy_row(b, itemsize, b.arg("p0"), b.arg("p3"), m.sizes.value(b, total))
            steps = [[ir.Constant(I64, depth)], [m.sizes.value(b, row)]]
            stop = m.sizes.value(b, count)
            walk(b, [stop], steps, ir.Constant(I64, 0), stop, update)

    dims = (row, total, count, *extents, *strides)
    return m.kernel(module, tier, f"{' '.join(map(m.sizes.name, dims))} {dtype} {reduction}", emit, reports=True)


def _combine_row(b: Builder, dtype: DType, reduction: str, source: Value, target: Value, count: Operand) -> None:
    def block(col: Value, slot: int, part: Operand | None, carried: list[Value]) -> list[Value]:
        at = b.mul(col, dtype.itemsize)
        old, new = (load_lanes(b, dtype, b.at(p, at), part) for p in (target, source))
        if reduction in ("max", "min"):
            value = loop_ops.extreme(b, ">" if reduction == "max" else "<", dtype, old, new)
        else:
            value = b.add(old, new) if reduction == "add" else b.mul(old, new)
        store_lanes(b, dtype, round_f16(b, value) if dtype is DType.f16 else value, b.at(target, at), part)
        return carried

    columns(b, count, 1, [], block)


def top_k(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The indices so far in order, each next element put where it belongs: quick where k is small or few get in."""
    x, attrs = node.input(0), attributes(node)
    axis, k, dtype = attrs["axis"] % x.type.rank, attrs["k"], x.dtype
    before, size, after = product(x.shape[:axis]), x.shape[axis], product(x.shape[axis + 1:])
    space = Space((before, after), ((size * after, 1), (k * after, 1))).merged()
    m = Movement(node)
    m.sizes.need_space(space)
    m.sizes.need(size, after, k)
    largest = attrs["largest"]

    def emit(b: Builder) -> None:
        length, step, most = (m.sizes.value(b, d) for d in (size, after, k))

        def item(offsets: list[Value]) -> None:
            source = b.at(b.arg("p0"), b.mul(offsets[0], dtype.itemsize))
            target = b.at(b.arg("p1"), offsets[1], I64)

            def element(index: Value) -> Value:
                return load_scalar(b, dtype, b.at(source, b.mul(b.mul(index, step), dtype.itemsize)))

            def kept(place: Value) -> Value:
                return b.at(target, b.mul(place, step), I64)

            with b.range(0, length) as index, b.if_(b.icmp(">", most, 0)):
                value = element(index)
                full = b.icmp(">=", index, most)

                def loses(place: Value) -> Value:
                    """Whether the one kept at the place before this has to make room."""
                    inside = b.icmp(">", place, 0)
                    held = b.load(I64, kept(b.select(inside, b.sub(place, 1), 0)))
                    other = element(b.select(inside, held, 0))
                    return b.and_(inside, better(b, ">", dtype, *((value, other) if largest else (other, value))))

                count = b.select(full, most, index)
                with b.if_(b.or_(b.xor(full, 1), loses(count))):
                    def move(state: list[Value]) -> list[Value]:
                        place = b.sub(state[0], 1)
                        b.store(b.load(I64, kept(place)), kept(state[0]))
                        return [place]

                    last = b.select(full, b.sub(most, 1), index)
                    place, = b.while_([last], lambda state: loses(state[0]), move)
                    b.store(index, kept(place))

        each_item(b, m.sizes, space, item)

    key = f"{m.sizes.space_name(space)} {' '.join(map(m.sizes.name, (size, after, k)))} {dtype} {largest}"
    return m.kernel(module, tier, key, emit)
