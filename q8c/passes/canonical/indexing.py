"""Rules about index arithmetic: what attention masks and positions are made of in exported graphs."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from q8c.ir import DType, Node, Value
from q8c.ir.dims import Dim, product
from q8c.passes.affine import Affine, above, affine, never_above, never_below, row_major
from q8c.passes.rules import Rewriter, Rules, attr, producer

Proof = Callable[[Affine, Affine], bool]


def known_comparison(r: Rewriter, node: Node) -> Value | None:
    """a < b and the like over positions and sizes -> true or false where it is the same everywhere."""
    a, b = affine(node.input(0)), affine(node.input(1))
    if a is None or b is None:
        return None
    holds, fails = _PROOFS[node.op]
    answer = True if holds(a, b) else False if fails(a, b) else None
    return None if answer is None else r.broadcast(r.constant(answer, DType.bool), node.output.shape)


def _below(a: Affine, b: Affine) -> bool:
    return above(b, a)


def _differ(a: Affine, b: Affine) -> bool:
    return above(a, b) or above(b, a)


def _equal(a: Affine, b: Affine) -> bool:
    return never_above(a, b) and never_below(a, b)


_PROOFS: dict[str, tuple[Proof, Proof]] = {
    "less": (_below, never_below), "less_equal": (never_above, above), "greater": (above, never_above),
    "greater_equal": (never_below, _below), "equal": (_equal, _differ)}


def known_extreme(r: Rewriter, node: Node) -> Value | None:
    """max(a, b), min(a, b) over positions and sizes -> the operand that always wins."""
    a, b = affine(node.input(0)), affine(node.input(1))
    if a is None or b is None:
        return None
    first, second = (never_below, never_above) if node.op == "max" else (never_above, never_below)
    if first(a, b):
        return r.broadcast(node.input(0), node.output.shape)
    return r.broadcast(node.input(1), node.output.shape) if second(a, b) else None


def gather_of_positions(r: Rewriter, node: Node) -> Value | None:
    """gather(x, positions that count on) -> slice, reshape and broadcast of x."""
    x, axis = node.input(0), attr(node, "axis") % node.input(0).type.rank
    index = affine(node.input(1))
    if index is None or not index.lies_within(x.shape[axis]):
        return None
    return _take(r, x, axis, index, node.output.shape)


def gather_nd_of_positions(r: Rewriter, node: Node) -> Value | None:
    """gather_nd(x, tuples of positions that count on together) -> slice, reshape and broadcast of x."""
    x, indices = node.input(0), node.input(1)
    parts = components(indices)
    if attr(node, "batch_dims") or parts is None:
        return None
    depth = len(parts)
    if not all(p.lies_within(d) for p, d in zip(parts, x.shape, strict=False)):
        return None
    strides = row_major(x.shape[:depth])
    shape = indices.shape[:-1]
    offset = sum((p.offset * s for p, s in zip(parts, strides, strict=True)), 0)
    steps = tuple(sum((p.steps[axis] * s for p, s in zip(parts, strides, strict=True)), 0)
                  for axis in range(len(shape)))
    flat = r.reshape(x, (product(x.shape[:depth]), *x.shape[depth:]))
    return _take(r, flat, 0, Affine(shape, offset, steps), node.output.shape)


def gather_of_broadcast(r: Rewriter, node: Node) -> Value | None:
    """gather_elements(x, broadcast_to(indices)) -> gather_elements(x, indices), which broadcasts them itself."""
    wide = producer(node.input(1), "broadcast_to")
    if wide is None:
        return None
    shape = node.output.shape
    indices = r.reshape(wide.input(0), (1,) * (len(shape) - wide.input(0).type.rank) + wide.input(0).shape)
    return r.add("gather_elements", node.input(0), indices, axis=attr(node, "axis"), shape=shape)


def scatter_of_positions(r: Rewriter, node: Node) -> Value | None:
    """scatter_nd(x, positions that count on along each axis, updates) -> concat of x before, the updates and x behind.

    They may leave out elements along one axis only.
    """
    x, indices, updates = node.input(0), node.input(1), node.input(2)
    parts = components(indices)
    if attr(node, "reduction") != "none" or parts is None or indices.type.rank - 1 != len(parts):
        return None
    for axis, part in enumerate(parts):
        steps = tuple(int(i == axis and size != 1) for i, size in enumerate(part.shape))
        if part.steps != steps or not part.lies_within(x.shape[axis]):
            return None
    cut = [axis for axis in range(len(parts)) if not r.graph.known_equal(updates.shape[axis], x.shape[axis])]
    if len(cut) != 1:
        return None if cut else updates
    axis, first = cut[0], parts[cut[0]].offset

    def rest(start: Dim, end: Dim) -> Value:
        starts = tuple(start if i == axis else 0 for i in range(x.type.rank))
        sizes = tuple(end - start if i == axis else d for i, d in enumerate(x.shape))
        return r.add("slice", x, starts=starts, sizes=sizes, steps=(1,) * x.type.rank)

    behind = rest(first + updates.shape[axis], x.shape[axis])
    return r.add("concat", rest(0, first), updates, behind, axis=axis)


def components(indices: Value) -> list[Affine] | None:
    """What each entry of the index tuples along the last axis is, if all are affine."""
    joined = producer(indices, "concat")
    columns = list(joined.operands) if joined is not None else [indices]
    found = [affine(v) for v in columns]
    axis = indices.type.rank - 1
    if joined is not None and attr(joined, "axis") % indices.type.rank != axis:
        return None
    parts = [Affine(a.shape[:-1], a.offset, a.steps[:-1]) for a in found if a is not None and a.shape[axis] == 1]
    return parts if len(parts) == len(columns) else None


def _take(r: Rewriter, x: Value, axis: int, index: Affine, shape: Sequence[Dim]) -> Value | None:
    """x[..., index, ...] for an index that is in range, if the index counts on."""
    counted = index.counted()
    if counted is None:
        return None
    count = product(counted)
    before, after = x.shape[:axis], x.shape[axis + 1:]
    if not (index.offset == 0 and r.graph.known_equal(count, x.shape[axis])):
        starts = tuple(index.offset if i == axis else 0 for i in range(x.type.rank))
        x = r.add("slice", x, starts=starts, sizes=(*before, count, *after), steps=(1,) * x.type.rank)
    return r.broadcast(r.reshape(x, (*before, *counted, *after)), tuple(shape))


RULES: Rules = {
    **dict.fromkeys(_PROOFS, (known_comparison,)),
    **dict.fromkeys(("max", "min"), (known_extreme,)),
    "gather": (gather_of_positions,),
    "gather_elements": (gather_of_broadcast,),
    "gather_nd": (gather_nd_of_positions,),
    "scatter_nd": (scatter_of_positions,),
}
