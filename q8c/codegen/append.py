"""append: the keys or values of new tokens written behind those that are kept, which stay where they are."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.builder import F32, I64, Builder, Value, sizeof
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_space import Space, dense_strides, each_item
from q8c.codegen.movement_copy import copy_row
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.errors import CompileError
from q8c.ir.dims import Dim
from q8c.ir.graph import Node
from q8c.ir.memory import CAPACITY
from q8c.ir.ops import attributes


def append_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of an `append` in place: present[batch, head, lengths[batch] + token] = new[batch, token, head].

    Tokens for which the buffer has no room are left out: only padding is, the run time has counted the others. Raises
    CompileError for an append that is not in place.
    """
    attrs, new = attributes(node), node.input(1)
    if not attrs["in_place"] or len(node.inputs) < 3:
        raise CompileError(f"{node}: there is no kernel for an append that is not in place; run keep-cache")
    heads, size = attrs["kv_heads"], attrs["head_size"]
    # operands: where a row of `new` begins, its batch item, its token, and its head among those of the whole batch
    space = Space((new.shape[0], new.shape[-2 if new.type.rank == 4 else 1], heads),
                  (_strides(node, size), (1, 0, 0), (0, 1, 0), (heads, 0, 1)))
    m = Movement(node)
    m.sizes.need_space(space)
    m.sizes.need(CAPACITY)

    def emit(b: Builder) -> None:
        capacity = m.sizes.value(b, CAPACITY)
        source = b.at(b.arg("p1"), attrs["offset"], F32)

        def item(offsets: list[Value]) -> None:
            row, batch, token, head = offsets
            place = b.add(b.load(I64, b.at(b.arg("p2"), batch, I64)), token)
            with b.if_(b.icmp("<", place, capacity)):
                target = b.mul(b.add(b.mul(head, capacity), place), size)
                copy_row(b, sizeof(F32), b.at(source, row, F32), b.at(b.arg("p3"), target, F32), size)

        each_item(b, m.sizes, space, item)

    return m.kernel(module, tier, f"{m.sizes.space_name(space)} at {attrs['offset']} of {size}", emit)



def _strides(node: Node, size: int) -> tuple[Dim, Dim, Dim]:
    """Elements from one batch item, token and head of the new rows to the next."""
    new = node.input(1)
    dense = dense_strides(new.shape)
    return (dense[0], dense[2], dense[1]) if new.type.rank == 4 else (dense[0], dense[1], size)
