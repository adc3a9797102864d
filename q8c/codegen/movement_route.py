"""route: rows sorted by the experts they go to, by counting."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.builder import I64, Builder, Value
from q8c.codegen.kernel import Kernel
from q8c.codegen.movement_gather import checked, load_index
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.ir.graph import Node
from q8c.ir.ops import attributes


def route(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The place behind the last row of each expert so far, which begins as that behind all rows of those before it.

    One piece does all: some nanoseconds a row, beside products that take microseconds.
    """
    ids, experts = node.input(0), int(attributes(node)["experts"])
    count = ids.type.size
    m = Movement(node)
    m.sizes.need(count)

    def emit(b: Builder) -> None:
        def end_of(expert: Value) -> Value:
            return b.at(b.arg("p3"), expert, I64)

        def expert_of(row: Value) -> Value:
            return checked(b, load_index(b, ids.dtype, b.arg("p0"), row), ir.Constant(I64, experts))

        with b.if_(b.icmp("==", b.arg("piece"), 0)):
            rows, zero = m.sizes.value(b, count), ir.Constant(I64, 0)
            with b.range(0, experts) as expert:
                b.store(zero, end_of(expert))
            with b.range(0, rows) as row:
                end = end_of(expert_of(row))
                b.store(b.add(b.load(I64, end), 1), end)

            def begin(expert: Value, carried: list[Value]) -> list[Value]:
                own = b.load(I64, end_of(expert))
                b.store(carried[0], end_of(expert))
                return [b.add(carried[0], own)]

            b.loop(0, experts, 1, [zero], begin)
            with b.range(0, rows) as row:
                end = end_of(expert_of(row))
                place = b.load(I64, end)
                b.store(row, b.at(b.arg("p1"), place, I64))
                b.store(place, b.at(b.arg("p2"), row, I64))
                b.store(b.add(place, 1), end)

    return m.kernel(module, tier, f"{experts} {m.sizes.name(count)} {ids.dtype}", emit, reports=True)
