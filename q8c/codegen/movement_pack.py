"""packing and unpack: where the tokens of a batch are, and rows put back to where they came from."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.builder import I64, Builder, Value, constant
from q8c.codegen.core import is_float
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_memory import load_scalar
from q8c.codegen.loop_space import Space, each_item
from q8c.codegen.movement_copy import copy_row, fill_row
from q8c.codegen.movement_gather import report
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.ir.dims import product
from q8c.ir.graph import Node
from q8c.ir.ops import attributes


def packing(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """Rows, positions, places and starts of the elements of a mask that are not 0, by the first piece alone.

    The sizes of its results come from a count taken before the run. A mask that changed since is reported, and
    results are such that nothing is read or written outside of where it may be.
    """
    m, mask = Movement(node), node.input(0)
    (batch, seq), tokens = mask.shape, attributes(node)["tokens"]
    m.sizes.need(batch, seq, tokens)

    def emit(b: Builder) -> None:
        with b.if_(b.icmp("==", b.arg("piece"), 0)):
            _pack(b, node, *(m.sizes.value(b, d) for d in (batch, seq, tokens)))

    key = f"{mask.dtype} {' '.join(map(m.sizes.name, (batch, seq, tokens)))}"
    return m.kernel(module, tier, key, emit, reports=True)


def _pack(b: Builder, node: Node, batch: Value, seq: Value, tokens: Value) -> None:
    mask, itemsize = node.input(0).dtype, node.input(0).dtype.itemsize
    rows, positions, places, starts = (b.arg(f"p{n}") for n in range(1, 5))

    def position(row: Value, at: Value, found: Value) -> Value:
        element = load_scalar(b, mask, b.at(b.arg("p0"), b.mul(row, itemsize)))
        there = b.ir.fcmp_unordered("!=", element, constant(element.type, 0)) if is_float(element.type) else \
            b.ucmp("!=", element, 0)
        taken = b.and_(there, b.icmp("<", found, tokens))
        b.store(b.select(taken, found, -1), b.at(places, row, I64))
        with b.if_(taken):
            b.store(row, b.at(rows, found, I64))
            b.store(at, b.at(positions, found, I64))
        return b.add(found, b.zext(there, I64))

    def sequence(index: Value, found: list[Value]) -> list[Value]:
        b.store(b.imin(found[0], tokens), b.at(starts, index, I64))
        first = b.mul(index, seq)
        return b.loop(0, seq, 1, found, lambda at, inner: [position(b.add(first, at), at, inner[0])])

    found, = b.loop(0, batch, 1, [constant(I64, 0)], sequence)
    b.store(b.imin(found, tokens), b.at(starts, batch, I64))
    with b.range(found, tokens) as rest:
        for result in (rows, positions):
            b.store(constant(I64, 0), b.at(result, rest, I64))
    report(b, b.icmp("!=", found, tokens), found)


def unpack(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """y[batch, seq, ...] = x[0, places[batch, seq], ...], zeros where the place is negative."""
    x, places = node.input(0), node.input(1)
    row = product(x.shape[2:])
    space = Space((places.type.size,), ((1,), (row,)))
    m = Movement(node)
    m.sizes.need_space(space)
    m.sizes.need(row)
    itemsize = x.dtype.itemsize
    zero = ir.Constant(ir.IntType(8 * itemsize), 0)

    def emit(b: Builder) -> None:
        length = row if isinstance(row, int) else m.sizes.value(b, row)

        def item(offsets: list[Value]) -> None:
            place = b.load(I64, b.at(b.arg("p1"), offsets[0], I64))
            target = b.at(b.arg("p2"), b.mul(offsets[1], itemsize))

            def token() -> list[Value]:
                start = b.mul(b.mul(place, length), itemsize)
                copy_row(b, itemsize, b.at(b.arg("p0"), start), target, length)
                return []

            def padding() -> list[Value]:
                fill_row(b, zero, target, length)
                return []

            b.if_else(b.icmp(">=", place, 0), token, padding)

        each_item(b, m.sizes, space, item)

    return m.kernel(module, tier, f"{m.sizes.space_name(space)} of {m.sizes.name(row)} x{itemsize}", emit)
