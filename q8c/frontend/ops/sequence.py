"""Sequences and optional values, which are taken apart here: how many tensors one holds must be known."""
from __future__ import annotations

import numpy as np

from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, TensorList, constant
from q8c.ir.dims import Dim


@importer("SequenceEmpty", "SequenceConstruct")
def construct(c: Call) -> TensorList:
    """The operands in order."""
    return TensorList(tuple(c.every() if c.inputs else ()))


@importer("SequenceAt")
def at(c: Call) -> Tensor:
    """The tensor at a place."""
    held = c.sequence(0).tensors
    return held[_place(c, 1, len(held), len(held))]


@importer("SequenceInsert")
def insert(c: Call) -> TensorList:
    """A tensor more, before the one at a place or behind all."""
    held = list(c.sequence(0).tensors)
    held.insert(_place(c, 2, len(held), len(held) + 1, len(held)), c.input(1))
    return TensorList(tuple(held))


@importer("SequenceErase")
def erase(c: Call) -> TensorList:
    """All but the tensor at a place, the last if none is named."""
    held = list(c.sequence(0).tensors)
    del held[_place(c, 1, len(held), len(held), -1)]
    return TensorList(tuple(held))


@importer("SequenceLength")
def length(c: Call) -> Tensor:
    """How many tensors there are."""
    return constant(np.array(len(c.sequence(0).tensors), dtype=np.int64))


@importer("ConcatFromSequence")
def concat(c: Call) -> Tensor:
    """The tensors one after the other along an axis, or along a new one."""
    held = c.sequence(0).tensors
    if not held:
        c.unsupported("it joins an empty sequence")
    new = c.attr_int("new_axis", 0)
    axis = c.axis(c.attr_int("axis"), held[0].rank + new)
    parts = [c.builder.reshape(t, (*t.shape[:axis], 1, *t.shape[axis:])) for t in held] if new else held
    return parts[0] if len(parts) == 1 else c.emit("concat", *parts, axis=axis)


@importer("SplitToSequence")
def split(c: Call) -> TensorList:
    """Parts of an axis: of given sizes, of one size but for the last, or single elements."""
    x = c.input(0)
    axis = c.axis(c.attr_int("axis", 0), x.rank)
    whole = x.shape[axis]
    sizes = c.sizes(1, "the split") if c.has(1) else [1]
    if not c.has(1) or c.input(1).rank == 0:
        each, = sizes
        if not isinstance(each, int) or not isinstance(whole, int) or each < 1:
            c.unsupported(f"it splits {whole} elements into parts of {each}; the number of parts must be known")
        sizes = [min(each, whole - start) for start in range(0, whole, each)]
    total: Dim = 0
    parts = []
    for size in sizes:
        parts.append(c.builder.slice_axis(x, axis, total, size))
        total = total + size
    c.builder.same(total, whole)
    if not c.has(1) and not c.attr_int("keepdims", 1):
        parts = [c.builder.reshape(t, (*x.shape[:axis], *x.shape[axis + 1:])) for t in parts]
    return TensorList(tuple(parts))


@importer("Optional", "OptionalGetElement")
def optional(c: Call) -> Tensor | TensorList:
    """The operand itself: what may be absent is known to be there."""
    if not c.inputs:
        c.unsupported("it is of an optional value that is absent")
    return c.sequence(0) if 0 in c.lists else c.input(0)


@importer("OptionalHasElement")
def has_element(c: Call) -> Tensor:
    """Whether there is an operand."""
    return constant(np.array(0 in c.lists or c.has(0)))


def _place(c: Call, index: int, count: int, end: int, default: int = 0) -> int:
    """A place before `end`, which an operand may say, in a sequence of `count` tensors; below zero from its end."""
    place, = c.numbers(index, "the place in a sequence") if c.has(index) else [default]
    if not -count <= place < end:
        c.fail(f"there is no place {place} in a sequence of {count} tensors")
    return place % count if place < 0 else place
