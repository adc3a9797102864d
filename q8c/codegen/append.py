"""append: the keys or values of new tokens written behind those that are kept, which stay where they are."""
from __future__ import annotations

from collections.abc import Callable

import llvmlite.ir as ir

from q8c.codegen.builder import F32, I64, PTR, Builder, Value, sizeof
from q8c.codegen.kept_rows import KeptRows
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

Write = Callable[[Value, Value, Value], None]
"""Writes a row: from where, for which head of the whole batch, as which of its tokens."""


def append_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of an `append` in place: present[batch, head, lengths[batch] + token] = new[batch, token, head].

    Tokens for which the buffer has no room are left out: only padding is, the run time has counted the others. Where
    rows are kept in 8 bits, what is kept may come as an array of floats, which is written too. Raises CompileError for
    an append that is not in place.
    """
    attrs, new = attributes(node), node.input(1)
    if not attrs["in_place"] or len(node.inputs) < 3:
        raise CompileError(f"{node}: there is no kernel for an append that is not in place; run keep-cache")
    heads, size, format = attrs["kv_heads"], attrs["head_size"], attrs["format"]
    # operands: where a row of `new` begins, its batch item, its token, and its head among those of the whole batch
    space = Space((new.shape[0], new.shape[-2 if new.type.rank == 4 else 1], heads),
                  (_strides(node, size), (1, 0, 0), (0, 1, 0), (heads, 0, 1)))
    past = node.input(0).type
    held = Space(past.shape[:3], (dense_strides(past.shape)[:3], (1, 0, 0), (0, 0, 1), (heads, 1, 0)))
    m = Movement(node)
    m.sizes.need_space(space)
    m.sizes.need(CAPACITY)
    if format != "f32":
        m.sizes.need_space(held)

    def emit(b: Builder) -> None:
        capacity = m.sizes.value(b, CAPACITY)
        write = _writer(b, format, size, capacity)
        source = b.at(b.arg("p1"), attrs["offset"], F32)

        def length(batch: Value) -> Value:
            return b.load(I64, b.at(b.arg("p2"), batch, I64))

        def item(offsets: list[Value]) -> None:
            row, batch, token, head = offsets
            place = b.add(length(batch), token)
            with b.if_(b.icmp("<", place, capacity)):
                write(b.at(source, row, F32), head, place)

        def kept(offsets: list[Value]) -> None:
            row, batch, token, head = offsets
            with b.if_(b.icmp("<", token, length(batch))):
                write(b.at(b.arg("p0"), row, F32), head, token)

        each_item(b, m.sizes, space, item)
        if format != "f32":
            with b.if_(b.icmp("!=", b.arg("p0"), ir.Constant(PTR, None))):
                each_item(b, m.sizes, held, kept)

    return m.kernel(module, tier, f"{m.sizes.space_name(space)} at {attrs['offset']} of {size} as {format}", emit)


def _writer(b: Builder, format: str, size: int, capacity: Value) -> Write:
    if format != "f32":
        return KeptRows(b, b.arg("p3"), size, capacity, keys=format == "int8-keys").write

    def copy(source: Value, head: Value, token: Value) -> None:
        target = b.mul(b.add(b.mul(head, capacity), token), size)
        copy_row(b, sizeof(F32), source, b.at(b.arg("p3"), target, F32), size)

    return copy


def _strides(node: Node, size: int) -> tuple[Dim, Dim, Dim]:
    """Elements from one batch item, token and head of the new rows to the next."""
    new = node.input(1)
    dense = dense_strides(new.shape)
    return (dense[0], dense[2], dense[1]) if new.type.rank == 4 else (dense[0], dense[1], size)
