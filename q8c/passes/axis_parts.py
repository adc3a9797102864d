"""Where the axes of a moved tensor come from: what reshape, transpose, slice and broadcast do to a source's axes.

Each axis of a tensor that holds elements of a source, moved, is a list of `Part`s: runs of a source axis, outermost
first. Splitting heads off channels, say, turns `[batch] [seq] [channels]` into `[batch] [heads] [seq] [size]` with
heads and size both parts of the channel axis, `size` and 1 elements apart.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from q8c.ir.dims import Dim, floordiv, mod
from q8c.ir.graph import Graph, Node
from q8c.passes.rules import attr

REPEAT = -1
Axis: TypeAlias = "tuple[Part, ...]"


@dataclass(frozen=True, slots=True)
class Part:
    """`size` places `stride` elements apart along an axis of the source; the axis REPEAT repeats the same element."""

    axis: int
    stride: Dim
    size: Dim


@dataclass(frozen=True, slots=True)
class Moved:
    """A tensor of a source's elements: its axes as parts of the source's.

    `offsets` is where on each of the source's axes the first element lies.
    """

    axes: tuple[Axis, ...]
    offsets: tuple[Dim, ...]

    @property
    def parts(self) -> Axis:
        """The parts of all axes in order, neighbours joined: what a reshape leaves as it is."""
        return join(part for axis in self.axes for part in axis)


def whole(shape: Sequence[Dim]) -> Moved:
    """A source as it stands."""
    return Moved(tuple(run(i, 1, d) for i, d in enumerate(shape)), (0,) * len(shape))


def run(axis: int, stride: Dim, size: Dim) -> Axis:
    """The axis that is one run of a source axis; no part where it has one element."""
    return () if size == 1 else (Part(axis, stride, size),)


def join(parts: Iterable[Part]) -> Axis:
    """Parts with those joined that together are one run."""
    found: list[Part] = []
    for part in parts:
        if found and found[-1].axis == part.axis != REPEAT and found[-1].stride == part.stride * part.size:
            part = Part(part.axis, part.stride, found.pop().size * part.size)
        found.append(part)
    return tuple(found)


def move(graph: Graph, moved: Moved, node: Node) -> Moved | None:
    """What a node makes of its first operand's axes; None if it is no move that can be followed."""
    if node.op == "reshape":
        axes = regroup(graph, moved.parts, node.output.shape)
        return None if axes is None else Moved(axes, moved.offsets)
    if node.op == "transpose":
        return Moved(tuple(moved.axes[p] for p in attr(node, "perm")), moved.offsets)
    if node.op == "broadcast_to":
        return spread(moved, node.output.shape)
    return take(moved, node) if node.op == "slice" else None


def regroup(graph: Graph, parts: Sequence[Part], shape: Sequence[Dim]) -> tuple[Axis, ...] | None:
    """The parts dealt out to the axes of a new shape, split where needed; None where sizes cannot be matched."""
    rest = list(parts)[::-1]
    axes: list[Axis] = []
    for size in shape:
        axis: list[Part] = []
        while size != 1:
            if not rest:
                return None
            part = rest.pop()
            if graph.known_equal(part.size, size):
                size = 1
            elif mod(size, part.size) == 0:
                size = floordiv(size, part.size)
            elif mod(part.size, size) == 0:
                inner = floordiv(part.size, size)
                rest.append(Part(part.axis, part.stride, inner))
                part = Part(part.axis, part.stride * inner, size)
                size = 1
            else:
                return None
            axis.append(part)
        axes.append(join(axis))
    return None if rest else tuple(axes)


def spread(moved: Moved, shape: Sequence[Dim]) -> Moved:
    """Axes of one element repeated."""
    axes = ((),) * (len(shape) - len(moved.axes)) + moved.axes
    return Moved(tuple((Part(REPEAT, 0, d),) if not axis and d != 1 else axis
                       for axis, d in zip(axes, shape, strict=True)), moved.offsets)


def take(moved: Moved, node: Node) -> Moved | None:
    """A slice without steps of axes that are one part each."""
    axes = list(moved.axes)
    offsets = list(moved.offsets)
    ranges = zip(node.input(0).shape, attr(node, "starts"), attr(node, "sizes"), attr(node, "steps"), strict=True)
    for i, (whole_size, start, size, step) in enumerate(ranges):
        if size == whole_size and start == 0 and step == 1:
            continue
        if len(axes[i]) != 1 or step != 1 or axes[i][0].axis == REPEAT:
            return None
        part = axes[i][0]
        offsets[part.axis] = offsets[part.axis] + start * part.stride
        axes[i] = run(part.axis, part.stride, size)
    return Moved(tuple(axes), tuple(offsets))
