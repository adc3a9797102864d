"""append: the keys or values of new tokens written behind those that are kept, which stay where they are; kept: a copy
of them."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import llvmlite.ir as ir

from q8c.codegen.builder import F32, I32, I64, PTR, Builder, Value, sizeof
from q8c.codegen.kept_rows import KeptRows
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_space import Space, dense_strides, each_item
from q8c.codegen.movement_copy import Copy, copy_row, emit_copy, fill_row
from q8c.codegen.movement_gather import report
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.errors import CompileError
from q8c.ir.cache import appended
from q8c.ir.dims import Dim, dim_min
from q8c.ir.graph import Node
from q8c.ir.memory import CAPACITY
from q8c.ir.ops import attributes

Write = Callable[[Value, Value, Value], None]
"""Writes a row: from where, for which head of the whole batch, as which of its tokens."""


def append_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of an `append` to lengths: present[batch, head, lengths[batch] + token] = new[batch, token, head].

    Tokens for which there is no room are left out: only padding is, the run time has counted the others, and a length
    that the model computes is negative where it does not fit, which is reported. What is kept is there already, or it
    comes as an array of floats, which is written too; if the append is not in place it is copied first. Raises
    CompileError for an append without lengths.
    """
    if len(node.inputs) < 3:
        raise CompileError(f"{node}: there is no kernel for an append without lengths; run keep-cache")
    if attributes(node)["in_place"]:
        return _place_tokens(module, tier, node)
    return replace(_copy_kept(module, tier, node), then=_place_tokens(module, tier, node))


def kept_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of a `kept`: as many rows of each head as its result has, from a buffer with room for more."""
    shape = node.output.shape
    size = shape[3]
    assert isinstance(size, int), "keep-cache declines others"
    # where a row of the result begins, its head among those of the whole batch, and its token
    space = Space((shape[0] * shape[1], shape[2]), ((shape[2] * size, size), (1, 0), (0, 1)))
    m = Movement(node)
    m.sizes.need_space(space)
    m.sizes.need(CAPACITY)

    def emit(b: Builder) -> None:
        room = m.sizes.value(b, CAPACITY)

        def item(offsets: list[Value]) -> None:
            row, head, token = offsets
            with b.if_(b.icmp("<", token, room)):  # there need not be room for tokens that are all padding
                source = b.mul(b.add(b.mul(head, room), token), size)
                copy_row(b, sizeof(F32), b.at(b.arg("p0"), source, F32), b.at(b.arg("p1"), row, F32), size)

        each_item(b, m.sizes, space, item)

    return m.kernel(module, tier, f"{m.sizes.space_name(space)} of {size} in {m.sizes.name(CAPACITY)}", emit)


def _place_tokens(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """New tokens to their places in a buffer, 0 behind floats if the result is all of it; in place also what is kept,
    if it comes as an array."""
    attrs, new, tokens, rows = attributes(node), node.input(1), appended(node), node.output.shape[2]
    in_place, capacity = attrs["in_place"], CAPACITY if attrs["in_place"] else rows
    heads, size, format = attrs["kv_heads"], attrs["head_size"], attrs["format"]
    # operands: where a row of `new` begins, its batch item, its token, and its head among those of the whole batch
    space = Space((new.shape[0], tokens, heads), (_strides(node, size), (1, 0, 0), (0, 1, 0), (heads, 0, 1)))
    past = node.input(0).type
    held = Space(past.shape[:3], (dense_strides(past.shape)[:3], (1, 0, 0), (0, 0, 1), (heads, 1, 0)))
    m = Movement(node)
    m.sizes.need_space(space)
    m.sizes.need(capacity, rows)
    if in_place:
        m.sizes.need_space(held)

    def emit(b: Builder) -> None:
        room, last = m.sizes.value(b, capacity), b.sub(m.sizes.value(b, tokens), 1)
        whole = b.icmp("==", room, m.sizes.value(b, rows))
        write = _writer(b, format, size, room)
        source = b.at(b.arg("p1"), attrs["offset"], F32)

        def length(batch: Value) -> Value:
            return b.load(I64, b.at(b.arg("p2"), batch, I64))

        def item(offsets: list[Value]) -> None:
            row, batch, token, head = offsets
            report(b, b.icmp("<", length(batch), 0), length(batch))
            place = b.add(b.imax(length(batch), 0), token)
            with b.if_(b.icmp("<", place, room)):
                write(b.at(source, row, F32), head, place)
                if format == "f32":
                    with b.if_(b.and_(whole, b.icmp("==", token, last))):
                        behind = b.at(b.arg("p3"), b.mul(b.add(b.add(b.mul(head, room), place), 1), size), F32)
                        fill_row(b, ir.Constant(I32, 0), behind, b.mul(b.sub(b.sub(room, place), 1), size))

        def kept(offsets: list[Value]) -> None:
            row, batch, token, head = offsets
            end = b.select(b.icmp("<", last, 0), room, length(batch))  # without new tokens nothing is filled up
            with b.if_(b.icmp("<", token, end)):
                write(b.at(b.arg("p0"), row, F32), head, token)

        each_item(b, m.sizes, space, item)
        if in_place:
            with b.if_(b.icmp("!=", b.arg("p0"), ir.Constant(PTR, None))):
                each_item(b, m.sizes, held, kept)

    key = f"{m.sizes.space_name(space)} at {attrs['offset']} of {size} as {format} in {m.sizes.name(capacity)} " \
          f"{m.sizes.name(rows)}{f' from {m.sizes.space_name(held)}' if in_place else ''}"
    return m.kernel(module, tier, key, emit, reports=True)


def _copy_kept(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """What is kept, and whatever lies behind it, at the beginning of the result."""
    past, present = node.input(0).shape, node.output.shape
    rows = dim_min(past[2], present[2]) * past[3]
    m, space = Movement(node), Space((past[0] * past[1], rows), ((past[2] * past[3], 1), (present[2] * past[3], 1)))
    copy = Copy(0, 3, sizeof(F32), space)
    copy.need(m.sizes)
    return m.kernel(module, tier, copy.key(m.sizes), lambda b: emit_copy(b, copy, m.sizes), reports=True)


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
