"""Finding the tensor whose heads an operand of attention is."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from q8c.ir.dims import Dim, product
from q8c.ir.graph import Graph, Node, Value
from q8c.passes.axis_parts import REPEAT, Axis, move, run, whole
from q8c.passes.rules import uniform

MOVES = ("reshape", "transpose", "slice", "broadcast_to")

RANKS = (2, 3, 4)  # of tensors that heads can be cut from as they stand


@dataclass(frozen=True)
class Heads:
    """An operand of attention: `heads` heads of `size` channels from `offset` on in `value`.

    `value` is [batch, seq, channels], or the same rows of channels in other axes, or [batch, heads, seq, size]; `shape`
    is the first of these, or the last; `swapped`: it is [seq, batch, channels]. `scale` is what it is multiplied by,
    `repeat` how often each head is used in turn, `batch` and `seq` the sizes. `turned`: the last two axes of
    `value` change places before it is given that shape.
    """

    value: Value
    shape: tuple[Dim, ...]
    swapped: bool
    heads: int
    size: int
    offset: int
    repeat: int
    scale: float
    batch: Dim
    seq: Dim
    turned: bool = False

    @property
    def preference(self) -> tuple[bool, int]:
        """Of several sources, the least is the best: several heads, as batch and heads in one axis look like one; then
        as it lies, rows that a reshape for free deals out, rows to be put in another order, heads split already."""
        way = 2 if self.swapped else 3 if len(self.shape) == 4 else 0 if self.value.type.rank == 3 else 1
        return self.heads * self.repeat == 1, way


def scaling(node: Node) -> tuple[Value, float] | None:
    """(x, factor) if a node multiplies or divides x by a uniform constant and keeps its shape."""
    if node.op not in ("mul", "div"):
        return None
    factor = uniform(node.input(1))
    if factor is not None:
        found = node.input(0), float(factor) if node.op == "mul" else 1 / float(factor) if factor else None
    else:
        factor = uniform(node.input(0)) if node.op == "mul" else None
        found = node.input(1), None if factor is None else float(factor)
    x, scale = found
    return None if scale is None or x.shape != node.output.shape else (x, scale)


def find_heads(graph: Graph, value: Value, order: Sequence[int]) -> Heads | None:
    """What an operand [batch, heads, seq, size] or [batch * heads, seq, size] of a product is cut from.

    `order` says which of its axes these are. Of the tensors up its way that fit, the one of the preferred rank is
    taken, and of these the farthest, so that slices of a merged projection become an offset. None if there is none.
    """
    path: list[Node] = []
    found: list[Heads] = []
    while True:
        heads = next(filter(None, (_follow(graph, value, view, path, order) for view in _views(value, path))), None)
        found += [] if heads is None else [heads]
        node = value.producer
        scaled = None if node is None else scaling(node)
        if node is None or (scaled is None and node.op not in MOVES):
            break
        value = node.input(0) if scaled is None else scaled[0]
        path.insert(0, node)
    return min(reversed(found), key=lambda h: h.preference, default=None)


def ordered_heads(value: Value, transposed: bool, like: Heads | None) -> Heads | None:
    """An operand [..., heads, seq, size] of a product as it is, once its last two axes are exchanged if it is
    transposed; of one [batch * heads, seq, size] both are those of the operand it is to be `like`."""
    *lead, rows, size = value.shape
    seq, size = (size, rows) if transposed else (rows, size)
    batch, heads = product(lead[:-1]), lead[-1] if lead else 0
    if len(lead) == 1:
        batch, heads = (lead[0], 1) if like is None else (like.batch, like.heads)
    if not isinstance(heads, int) or not isinstance(size, int) or batch * heads != product(lead):
        return None
    return Heads(value, (batch, heads, seq, size), False, heads, size, 0, 1, 1.0, batch, seq, transposed)


def _views(source: Value, path: list[Node]) -> Iterator[tuple[Dim, ...]]:
    """The shapes a source can be looked at in: its own, else its rows in one axis where these are dealt out anew."""
    if source.type.rank in RANKS:
        yield source.shape
    if source.type.rank > 3 and path and path[0].op == "reshape":
        yield product(source.shape[:-1]), source.shape[-1]


def _follow(graph: Graph, source: Value, view: tuple[Dim, ...], path: list[Node], order: Sequence[int]) -> Heads | None:
    """The operand if it is heads of `source`, looked at in the shape `view`, after the nodes of `path`."""
    moved = whole(view)
    scale = 1.0
    for node in path:
        scaled = scaling(node)
        after = moved if scaled is not None else move(graph, moved, node)
        if after is None:
            return None
        moved = after
        scale *= 1.0 if scaled is None else scaled[1]
    if len(moved.axes) != len(order):
        return None
    axes = tuple(moved.axes[axis] for axis in order)
    for batch_axis in (0, 1) if len(view) == 3 else (0,):
        found = _cut(source, view, _four(axes, batch_axis), moved.offsets, scale, batch_axis)
        if found is not None:
            return found
    return None


def _four(axes: tuple[Axis, ...], batch_axis: int) -> tuple[Axis, ...]:
    """The axes batch, heads, seq and channels, where the first two may be one."""
    if len(axes) != 3:
        return axes
    batch, heads = (tuple(p for p in axes[0] if (p.axis == batch_axis) is is_batch) for is_batch in (True, False))
    return batch, heads, axes[1], axes[2]


def _cut(source: Value, view: tuple[Dim, ...], axes: tuple[Axis, ...], offsets: tuple[Dim, ...], scale: float,
         batch_axis: int) -> Heads | None:
    """The heads of a source, if the axes batch, heads, seq and channels are these of its view."""
    rank, last = len(view), len(view) - 1
    if len(axes) != 4 or any(o != 0 for o in offsets[:-1]) or not isinstance(offsets[-1], int):
        return None
    batch, heads, seq, channels = axes
    repeat: Dim = 1
    if heads and heads[-1].axis == REPEAT:
        repeat, heads = heads[-1].size, heads[:-1]
    count, size = _length(heads), _length(channels)
    if not isinstance(count, int) or not isinstance(size, int) or not isinstance(repeat, int):
        return None
    seq_axis = last - 1 - batch_axis
    sizes = (_length(batch), _length(seq)) if rank == 2 else (view[batch_axis], view[seq_axis])
    split = run(1, 1, count) if rank == 4 else run(last, size, count)
    expected = (run(batch_axis, sizes[1] if rank == 2 else 1, sizes[0]), split, run(seq_axis, 1, sizes[1]),
                run(last, 1, size))
    if (batch, heads, seq, channels) != expected or (rank == 4 and view[1::2] != (count, size)):
        return None
    if rank == 2 and sizes[0] * sizes[1] != view[0]:  # the first of its rows
        return None
    shape = view if rank == 4 else (*sizes, view[-1])
    return Heads(source, shape, batch_axis == 1, count, size, offsets[-1], repeat, scale, *sizes)


def _length(axis: Axis) -> Dim:
    """The size of an axis of at most one part."""
    return axis[0].size if axis else 1
