"""Finding the tensor whose heads an operand of attention is."""
from __future__ import annotations

from dataclasses import dataclass

from q8c.ir.dims import Dim
from q8c.ir.graph import Graph, Node, Value
from q8c.passes.axis_parts import REPEAT, Axis, move, run, whole
from q8c.passes.rules import uniform

MOVES = ("reshape", "transpose", "slice", "broadcast_to")


@dataclass(frozen=True)
class Heads:
    """An operand of attention: `heads` heads of `size` channels from `offset` on in `value` [batch, seq, channels].

    `scale` is what it is multiplied by, `repeat` how often each head is used in turn, `batch` and `seq` the sizes.
    """

    value: Value
    heads: int
    size: int
    offset: int
    repeat: int
    scale: float
    batch: Dim
    seq: Dim


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


def find_heads(graph: Graph, value: Value, transposed: bool) -> Heads | None:
    """What an operand [batch, heads, seq, size] or [batch * heads, seq, size] of a product is cut from.

    `transposed` says that its last two axes are exchanged. The farthest tensor up that fits is taken, so that slices
    of a merged projection become an offset; one of rank 3 before one of rank 2. None if there is none.
    """
    path: list[Node] = []
    found: Heads | None = None
    while True:
        heads = _follow(graph, value, path, transposed)
        if heads is not None and (found is None or value.type.rank == 3):
            found = heads
        node = value.producer
        scaled = None if node is None else scaling(node)
        if node is None or (scaled is None and node.op not in MOVES):
            return found
        value = node.input(0) if scaled is None else scaled[0]
        path.insert(0, node)


def _follow(graph: Graph, source: Value, path: list[Node], transposed: bool) -> Heads | None:
    """The operand if it is heads of `source` after the nodes of `path`."""
    moved = whole(source.shape)
    scale = 1.0
    for node in path:
        scaled = scaling(node)
        after = moved if scaled is not None else move(graph, moved, node)
        if after is None:
            return None
        moved = after
        scale *= 1.0 if scaled is None else scaled[1]
    axes = list(moved.axes)
    if transposed:
        axes[-2:] = axes[:-3:-1]
    if len(axes) == 3:
        axes[:1] = [tuple(p for p in axes[0] if p.axis == 0), tuple(p for p in axes[0] if p.axis != 0)]
    return _cut(source, tuple(axes), moved.offsets, scale) if len(axes) == 4 else None


def _cut(source: Value, axes: tuple[Axis, ...], offsets: tuple[Dim, ...], scale: float) -> Heads | None:
    """The heads of a source [batch, seq, channels] or [batch * seq, channels], if the axes are these."""
    if source.type.rank not in (2, 3) or any(o != 0 for o in offsets[:-1]) or not isinstance(offsets[-1], int):
        return None
    batch, heads, seq, channels = axes
    size = channels[0].size if channels else 1
    repeat: Dim = 1
    if heads and heads[-1].axis == REPEAT:
        repeat, heads = heads[-1].size, heads[:-1]
    count = heads[0].size if heads else 1
    if not isinstance(count, int) or not isinstance(size, int) or not isinstance(repeat, int):
        return None
    last = source.type.rank - 1
    sizes = source.shape[0] if last == 2 else batch[0].size if batch else 1, seq[0].size if seq else 1
    expected = (run(0, 1 if last == 2 else sizes[1], sizes[0]), run(last, size, count),
                run(last - 1, 1, source.shape[1] if last == 2 else sizes[1]), run(last, 1, size))
    if (batch, heads, seq, channels) != expected:
        return None
    return Heads(source, count, size, offsets[-1], repeat, scale, *sizes)
