"""Ops that move elements: Transpose, Concat, Split, Slice, Gather and their like, CumSum."""
from __future__ import annotations

from typing import cast

from q8c.frontend.extent import ceil_div, slice_extent
from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor
from q8c.ir.dims import Dim, dim_min, floordiv
from q8c.ir.types import DType


@importer("Transpose")
def transpose(c: Call) -> Tensor:
    """The axes in another order, reversed if none is given."""
    x = c.input(0)
    perm = c.attr_ints("perm")
    return c.builder.transpose(x, list(reversed(range(x.rank))) if perm is None else perm)


@importer("Concat")
def concat(c: Call) -> Tensor:
    """The operands one after the other along an axis."""
    xs = c.every()
    axis = c.axis(c.attr_int("axis"), xs[0].rank)
    return xs[0] if len(xs) == 1 else c.emit("concat", *xs, axis=axis)


@importer("Split")
def split(c: Call) -> list[Tensor]:
    """Parts of an axis, of given or equal sizes."""
    x = c.input(0)
    axis = c.axis(c.attr_int("axis", 0), x.rank)
    sizes: list[Dim] | None = c.sizes(1, "the split") if c.has(1) else None
    attribute = c.attr_ints("split")
    if sizes is None and attribute is not None:
        sizes = list(attribute)
    if sizes is None:
        count = c.attr_int("num_outputs", c.outputs)
        if count != c.outputs:
            c.fail(f"{count} parts for {c.outputs} outputs")
        starts, sizes = _equal_parts(c, x.shape[axis], count)
    else:
        starts = [sum(sizes[:i], start=cast(Dim, 0)) for i in range(len(sizes))]
        c.builder.same(sum(sizes, start=cast(Dim, 0)), x.shape[axis])
    if len(sizes) != c.outputs:
        c.fail(f"{len(sizes)} parts for {c.outputs} outputs")
    return [c.builder.slice_axis(x, axis, start, size) for start, size in zip(starts, sizes, strict=True)]


def _equal_parts(c: Call, size: Dim, count: int) -> tuple[list[Dim], list[Dim]]:
    """Where parts of an equal size begin and the sizes; since opset 18 the last ones are smaller where they have to."""
    if c.opset < 18:
        if isinstance(size, int) and size % count:
            c.fail(f"{size} does not split into {count} equal parts")
        each = floordiv(size, count)
        c.builder.same(each * count, size)
        return [each * i for i in range(count)], [each] * count
    each = ceil_div(size, count)
    ends = [*(each if i == 1 else dim_min(each * i, size) for i in range(1, count)), size]
    starts = [0, *ends[:-1]]
    return starts, [end - start for start, end in zip(starts, ends, strict=True)]


@importer("Slice")
def old_slice(c: Call) -> Tensor:
    """Slice of opset 1, with attributes."""
    starts, ends = c.attr_ints("starts"), c.attr_ints("ends")
    if starts is None or ends is None:
        c.fail("starts or ends are missing")
    return _slice(c, list(starts), list(ends), c.attr_ints("axes"), [1] * len(starts))


@importer("Slice", since=10)
def new_slice(c: Call) -> Tensor:
    """start:end:step on some axes, as numpy slices, ends beyond the axis cut off."""
    starts, ends = c.sizes(1, "starts"), c.sizes(2, "ends")
    axes = c.numbers(3, "axes") if c.has(3) else None
    steps = c.numbers(4, "steps") if c.has(4) else [1] * len(starts)
    return _slice(c, starts, ends, axes, steps)


def _slice(c: Call, starts: list[Dim], ends: list[Dim], given: list[int] | None, steps: list[int]) -> Tensor:
    x = c.input(0)
    axes = [c.axis(a, x.rank) for a in (range(len(starts)) if given is None else given)]
    if not len(starts) == len(ends) == len(axes) == len(steps) or len(set(axes)) < len(axes) or 0 in steps:
        c.fail(f"starts, ends, axes {axes} and steps {steps} do not fit together")
    firsts: list[Dim] = [0] * x.rank
    sizes, strides = list(x.shape), [1] * x.rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        firsts[axis], sizes[axis] = slice_extent(x.shape[axis], start, end, step)
        strides[axis] = step
        if sizes[axis] == 0:
            firsts[axis] = 0
    return c.builder.slice(x, firsts, sizes, strides)


@importer("Gather")
def gather(c: Call) -> Tensor:
    """Whole slices along an axis by index."""
    x = c.input(0)
    return c.emit("gather", x, as_index(c, c.input(1)), axis=c.axis(c.attr_int("axis", 0), x.rank))


def as_index(c: Call, x: Tensor) -> Tensor:
    """A tensor of indices, which must be integers of 32 or 64 bits."""
    if x.dtype not in (DType.i32, DType.i64):
        c.fail(f"expected i32 or i64 indices, got {x.type}")
    return x


@importer("GatherElements")
def gather_elements(c: Call) -> Tensor:
    """One element along an axis for each index."""
    x = c.input(0)
    return c.emit("gather_elements", x, as_index(c, c.input(1)), axis=c.axis(c.attr_int("axis", 0), x.rank))


@importer("GatherND")
def gather_nd(c: Call) -> Tensor:
    """Elements or slices by index tuples."""
    return c.emit("gather_nd", c.input(0), as_index(c, c.input(1)), batch_dims=c.attr_int("batch_dims", 0))


@importer("ReverseSequence", since=10)
def reverse_sequence(c: Call) -> Tensor:
    """The first elements along the time axis turned around, as many of them as each batch's length says."""
    x, lengths = c.input(0), c.builder.cast(c.input(1), DType.i64)
    batch, time = c.axis(c.attr_int("batch_axis", 1), x.rank), c.axis(c.attr_int("time_axis", 0), x.rank)
    if {batch, time} != {0, 1} or lengths.rank != 1:
        c.fail(f"batch axis {batch}, time axis {time} and lengths {lengths.type}; expected the first two axes")
    steps = c.emit("iota", size=x.shape[time], dtype=DType.i64)
    steps = c.builder.reshape(steps, (x.shape[0], 1) if time == 0 else (1, x.shape[1]))
    lengths = c.builder.reshape(lengths, (x.shape[0], 1) if batch == 0 else (1, x.shape[1]))
    turned = c.emit("sub", c.emit("sub", lengths, c.scalar(1, lengths)), steps)
    places = c.emit("where", c.emit("less", steps, lengths), turned, steps)
    wide = c.builder.broadcast(c.builder.reshape(places, (*x.shape[:2], *[1] * (x.rank - 2))), x.shape)
    return c.emit("gather_elements", x, wide, axis=time)


@importer("CumProd", since=26)
@importer("CumSum")
def cumulate(c: Call) -> Tensor:
    """Running sums or products along an axis."""
    x = c.input(0)
    axes = c.numbers(1, "the axis")
    if len(axes) != 1:
        c.fail(f"{len(axes)} axes, expected 1")
    return c.emit(c.op.lower(), x, axis=c.axis(axes[0], x.rank), exclusive=bool(c.attr_int("exclusive", 0)),
                  reverse=bool(c.attr_int("reverse", 0)))
