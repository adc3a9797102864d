"""Rules about ops that move elements."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from q8c.ir import Node, Value
from q8c.ir.dims import Dim, nonnegative
from q8c.ir.piecewise import shortened
from q8c.passes.rules import Rewriter, Rules, attr, producer

_COPIED = 16  # operands of a concatenation that each that reads it may hold a copy of
REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin")


def drop_same_shape(r: Rewriter, node: Node) -> Value | None:
    """Reshape or broadcast to the shape x has -> x."""
    x = node.input(0)
    return x if r.same_shape(x.shape, node.output.shape) else None


def merge_reshapes(r: Rewriter, node: Node) -> Value | None:
    """reshape(reshape(x)) -> reshape(x)."""
    inner = producer(node.input(0), "reshape")
    return r.reshape(inner.input(0), node.output.shape) if inner else None


def keep_reduced_axes(r: Rewriter, node: Node) -> Value | None:
    """reshape(reduce(x)) that puts the reduced axes back -> reduce(x) that keeps them."""
    inner = producer(node.input(0), *REDUCTIONS)
    if inner is None or attr(inner, "keepdims"):
        return None
    x = inner.input(0)
    axes = tuple(a % x.type.rank for a in attr(inner, "axes"))
    kept = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    return r.add(inner.op, x, axes=axes, keepdims=True) if r.same_shape(kept, node.output.shape) else None


def reduce_before_broadcast(r: Rewriter, node: Node) -> Value | None:
    """reduce(broadcast_to(x)) over axes that the broadcast leaves alone -> broadcast_to(reduce(x))."""
    inner = producer(node.input(0), "broadcast_to")
    if inner is None:
        return None
    x, wide = inner.input(0), inner.output.shape
    axes = [a % len(wide) for a in attr(node, "axes")]
    if x.type.rank != len(wide) or not r.same_shape([x.shape[a] for a in axes], [wide[a] for a in axes]):
        return None
    return r.broadcast(r.add(node.op, x, **node.attrs), node.output.shape)


def transpose_through_groups(r: Rewriter, node: Node) -> Value | None:
    """reshape(transpose(reshape(x))) that merges axes, permutes and splits them again -> transpose(x)."""
    middle = producer(node.input(0), "transpose")
    first = None if middle is None else producer(middle.input(0), "reshape")
    if middle is None or first is None:
        return None
    x = first.input(0)
    groups = group_axes(r, x.shape, first.output.shape)
    if groups is None:
        return None
    perm = tuple(axis for p in attr(middle, "perm") for axis in groups[p])
    if not r.same_shape([x.shape[p] for p in perm], node.output.shape):
        return None
    return r.add("transpose", x, perm=perm)


def group_axes(r: Rewriter, fine: Sequence[Dim], coarse: Sequence[Dim]) -> list[list[int]] | None:
    """For each axis of `coarse` the neighbouring axes of `fine` that it merges; None where a reshape does more."""
    groups: list[list[int]] = []
    at = 0
    for size in coarse:
        ends = list(accumulate(fine[at:], lambda a, b: a * b))
        count = next((i for i, total in enumerate(ends, 1) if r.graph.known_equal(total, size)), None)
        if count is None:
            return None
        groups.append(list(range(at, at + count)))
        at += count
    if any(d != 1 for d in fine[at:]):
        return None
    if groups:
        groups[-1] += range(at, len(fine))
    return groups


def drop_identity_transpose(r: Rewriter, node: Node) -> Value | None:
    """Transpose that leaves every axis in place -> x."""
    perm = attr(node, "perm")
    return node.input(0) if perm == tuple(range(len(perm))) else None


def reshape_ones(r: Rewriter, node: Node) -> Value | None:
    """Transpose that moves axes of size 1 only -> reshape(x)."""
    x = node.input(0)
    moved = [p for p in attr(node, "perm") if x.shape[p] != 1]
    return r.reshape(x, node.output.shape) if moved == sorted(moved) else None


def merge_transposes(r: Rewriter, node: Node) -> Value | None:
    """transpose(transpose(x)) -> transpose(x)."""
    inner = producer(node.input(0), "transpose")
    if inner is None:
        return None
    first = attr(inner, "perm")
    return r.add("transpose", inner.input(0), perm=tuple(first[p] for p in attr(node, "perm")))


def transpose_of_concat(r: Rewriter, node: Node) -> Value | None:
    """transpose(concat(transpose(a), transpose(b))) -> concat(transpose(a), transpose(b)), moved once."""
    inner = producer(node.input(0), "concat")
    if inner is None or any(producer(v, "transpose") is None for v in inner.operands):
        return None
    perm = attr(node, "perm")
    moved = [r.add("transpose", v, perm=perm) for v in inner.operands]
    return r.add("concat", *moved, axis=perm.index(attr(inner, "axis") % len(perm)))


def merge_broadcasts(r: Rewriter, node: Node) -> Value | None:
    """broadcast_to(broadcast_to(x)) -> broadcast_to(x)."""
    inner = producer(node.input(0), "broadcast_to")
    return r.broadcast(inner.input(0), node.output.shape) if inner else None


def drop_whole_slice(r: Rewriter, node: Node) -> Value | None:
    """Slice of everything in order -> x."""
    x = node.input(0)
    whole = r.same_shape(x.shape, node.output.shape) and all(
        step == 1 or d == 1 for step, d in zip(attr(node, "steps"), x.shape, strict=True))
    return x if whole else None


def merge_slices(r: Rewriter, node: Node) -> Value | None:
    """slice(slice(x)) -> slice(x)."""
    inner = producer(node.input(0), "slice")
    if inner is None:
        return None
    starts = tuple(shortened(a + b * step) for a, b, step in zip(
        attr(inner, "starts"), attr(node, "starts"), attr(inner, "steps"), strict=True))
    steps = tuple(a * b for a, b in zip(attr(inner, "steps"), attr(node, "steps"), strict=True))
    return r.add("slice", inner.input(0), starts=starts, sizes=attr(node, "sizes"), steps=steps)


def slice_of_concat(r: Rewriter, node: Node) -> Value | None:
    """slice(concat(a, b)) of elements of a alone -> slice(a); of all of some operands -> concat of those."""
    inner = producer(node.input(0), "concat")
    if inner is None:
        return None
    axis = attr(inner, "axis") % node.output.type.rank
    starts, sizes, steps = (list(attr(node, name)) for name in ("starts", "sizes", "steps"))
    if steps[axis] != 1:
        return None
    first, last = starts[axis], starts[axis] + sizes[axis]
    at: Dim = 0
    whole: list[Value] = []
    for operand in inner.operands:
        end = at + operand.shape[axis]
        if nonnegative(first - at) and nonnegative(end - last):
            starts[axis] = first - at
            return r.add("slice", operand, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))
        if nonnegative(at - first) and nonnegative(last - end):
            whole.append(operand)
        at = end
    if len(whole) == len(inner.inputs) or sum((v.shape[axis] for v in whole), 0) != sizes[axis]:
        return None
    starts[axis] = 0
    joined = r.add("concat", *whole, axis=axis)
    return r.add("slice", joined, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))


def merge_concats(r: Rewriter, node: Node) -> Value | None:
    """concat(x) -> x; concat(concat(a, b), c) along one axis -> concat(a, b, c); empty operands go.

    A long one that is read more than once stays: what doubles many times would not end.
    """
    axis = attr(node, "axis") % node.output.type.rank
    flat: list[Value] = []
    for value in node.operands:
        inner = producer(value, "concat")
        nested = inner is not None and attr(inner, "axis") % value.type.rank == axis and (
            len(inner.inputs) <= _COPIED or len(value.users) == 1)
        flat.extend(inner.operands if inner is not None and nested else [value])
    kept = [v for v in flat if v.shape[axis] != 0] or flat[:1]
    if kept == list(node.operands) and len(kept) > 1:
        return None
    return r.add("concat", *kept, axis=axis) if len(kept) > 1 else kept[0]


def drop_zero_pad(r: Rewriter, node: Node) -> Value | None:
    """Pad by nothing -> x."""
    return node.input(0) if not any((*attr(node, "before"), *attr(node, "after"))) else None


def count_axes_from_front(r: Rewriter, node: Node) -> Value | None:
    """Axis -1 -> axis rank - 1, so that equal nodes look equal."""
    rank = node.input(0).type.rank
    name = "axes" if node.op in REDUCTIONS else "axis"
    given = node.attrs.get(name, -1)
    counted = tuple(sorted(a % rank for a in given)) if isinstance(given, tuple) else int(str(given)) % rank
    return None if counted == given else r.add(node.op, *node.operands, **{**node.attrs, name: counted})


RULES: Rules = {
    "reshape": (drop_same_shape, merge_reshapes, keep_reduced_axes, transpose_through_groups),
    "transpose": (drop_identity_transpose, reshape_ones, merge_transposes, transpose_of_concat),
    "broadcast_to": (drop_same_shape, merge_broadcasts),
    "slice": (drop_whole_slice, merge_slices, slice_of_concat),
    "concat": (count_axes_from_front, merge_concats),
    **dict.fromkeys(("gather", "gather_elements", "cumsum", "softmax"), (count_axes_from_front,)),
    "pad": (drop_zero_pad,),
    **dict.fromkeys(REDUCTIONS, (count_axes_from_front, reduce_before_broadcast)),
}
