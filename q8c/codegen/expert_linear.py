"""Linear kernels of experts: one kernel after the other, each for the rows and the columns of one expert.

Weights of all experts lie side by side, a whole number of panels each. All experts of a call are one kernel to a run;
in between, threads draw from the queue as from that of so many kernels.
"""
from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from q8c.codegen.builder import F32, I64, PTR, Builder, Value
from q8c.codegen.draw import KERNEL
from q8c.codegen.layout import PANEL
from q8c.codegen.linear_spec import LinearSpec


def each_expert(b: Builder, spec: LinearSpec, inner: ir.Function, fixed: dict[str, int], experts: int) -> None:
    """Call `inner`, the kernel of `spec` for one expert, for each that has rows; parameters are those of `spec`, rows
    strides `fixed`, and `ends`."""
    queue = b.arg("queue")
    number = b.at(queue, KERNEL, I64)

    def call(expert: Value, carried: list[Value]) -> list[Value]:
        first, last = carried[0], b.load(I64, b.at(b.arg("ends"), expert, I64))
        rows = b.sub(last, first)
        with b.if_(b.icmp(">", rows, 0)):
            b.ir.call(inner, _arguments(b, spec, fixed, expert, first, rows))
        b.store(b.add(b.load(I64, number), 1), number)
        return [last]

    b.loop(0, experts, 1, [ir.Constant(I64, 0)], call)


def _arguments(b: Builder, spec: LinearSpec, fixed: dict[str, int], expert: Value, first: Value,
               rows: Value) -> Sequence[Value]:
    """What the kernel of one expert is given."""
    moved = {"a": b.at(b.arg("a"), b.mul(first, spec.lda)), "y": b.at(b.arg("y"), b.mul(first, fixed["ldy"]), F32),
             "w": b.at(b.arg("w"), b.mul(expert, spec.weight_bytes)), "rows": rows}
    for name, count in spec.row_values.items():
        moved[name] = b.at(b.arg(name), b.mul(first, count), F32)
    for name, size in spec.col_values.items():
        moved[name] = b.at(b.arg(name), b.mul(expert, spec.panels * PANEL * size))
    return [moved[n] if n in moved else ir.Constant(I64, fixed[n]) if n in fixed else b.arg(n) for n, _ in spec.params]


def pointers_of(spec: LinearSpec, experts: int) -> list[tuple[str, ir.Type]]:
    """A kernel's pointers in the order of the node's operands and result, `ends` or counts before the result."""
    *operands, y = spec.pointers
    more = [*(["ends"] if experts else []), *(name for name, typ in spec.counts if typ == PTR)]
    return [(name, PTR) for name in (*operands, *more, y)]
