"""lookup: columns of a packed Q8 weight, dequantized, where they lie among those that products read."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen import layout
from q8c.codegen.builder import F32, I16, I32, I64, LANES, Builder, Value, constant
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_memory import lanes_of, load_scalar
from q8c.codegen.loop_space import Space, each_item
from q8c.codegen.movement_gather import checked, load_index
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.errors import CompileError
from q8c.ir.graph import Node
from q8c.ir.ops import attributes
from q8c.ir.q8 import ZERO_POINT, block_count
from q8c.ir.types import DType

LINE = layout.PANEL * layout.GROUP
"""Bytes that hold a group of 4 steps of depth of all columns of a panel."""


def lookup_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """y[i, depth] = scale * (w[depth, indices[i]] - 127), w in panels: a row takes 4 bytes from each line of its panel,
    which lie one after the other. Raises CompileError for a depth that is not a multiple of 16.
    """
    depth, cols = (int(str(d)) for d in node.input(0).shape)
    block, dtype, indices = attributes(node)["block"], node.input(1).dtype, node.input(2)
    if depth % LANES:
        raise CompileError(f"{node}: there is no kernel for a depth of {depth}; expected a multiple of {LANES}")
    space = Space((indices.type.size,), ((1,), (depth,)))
    typ = I16 if dtype is DType.f16 else F32
    m = Movement(node)
    m.sizes.need_space(space)

    def emit(b: Builder) -> None:
        def item(offsets: list[Value]) -> None:
            index = checked(b, load_index(b, indices.dtype, b.arg("p2"), offsets[0]), ir.Constant(I64, cols))
            panel, lane = b.lshr(index, layout.PANEL.bit_length() - 1), b.and_(index, layout.PANEL - 1)
            column = b.at(b.at(b.arg("p0"), b.mul(panel, layout.groups(depth) * LINE)), lane, I32)
            scales = b.at(b.arg("p1"), b.add(b.mul(panel, block_count(depth, block) * layout.PANEL), lane), typ)
            row = b.at(b.arg("p3"), offsets[1], F32)
            with b.range(0, depth // LANES) as step:
                number = b.lshr(step, (block // LANES).bit_length() - 1) if block else constant(I64, 0)
                scale = load_scalar(b, dtype, b.at(scales, b.mul(number, layout.PANEL), typ))
                b.store(_channels(b, b.at(column, b.mul(step, 4 * LINE)), scale),
                        b.at(row, b.mul(step, LANES), F32))

        each_item(b, m.sizes, space, item)

    key = f"{m.sizes.space_name(space)} of {depth} {cols} by {block} {dtype} {indices.dtype}"
    return m.kernel(module, tier, key, emit, reports=True)


def _channels(b: Builder, address: Value, scale: Value) -> Value:
    """16 channels of a column, 4 from each of four lines."""
    words = ir.Constant(ir.VectorType(I32, 4), ir.Undefined)
    for n in range(4):
        words = b.ir.insert_element(words, b.load(I32, b.at(address, n * LINE)), ir.Constant(I32, n))
    steps = b.ir.zext(b.ir.bitcast(words, lanes_of(ir.IntType(8))), lanes_of(I32))
    steps = b.ir.sub(steps, constant(steps.type, ZERO_POINT))
    return b.ir.fmul(b.ir.sitofp(steps, lanes_of(F32)), b.splat(scale, lanes_of(F32)))
