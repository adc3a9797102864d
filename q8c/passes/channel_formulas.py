"""What each channel of a value is, as a formula of channels of other values, and values made from such formulas.

A formula is a nested tuple that is equal to another where the two are the same number:
`("leaf", value, index)` is channel `index` of a value; `("move", how, formula)` one that was put elsewhere on the other
axes, by an op and what it is told of these axes; any other is an elementwise op, its attributes and its operands.
Slices, joins and splits of channels do not show in formulas, they only say which formula stands where.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from q8c.ir.dims import Dim
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops import OPS, attributes
from q8c.passes.rules import attr

Formula: TypeAlias = "tuple[Any, ...]"
Table: TypeAlias = NDArray[np.object_]
MAX_CHANNELS = 512  # of one head: more than any model has
MAX_DEPTH = 40


@dataclass
class Formulas:
    """Formulas of the channels of values: the elements along the last axis, or the last axes, of an array.

    `split` says which splits of channels are followed, as a split may also be one into heads: none (""), those into
    `pairs` [..., n, 2], or into `halves` [..., 2, n].
    """

    split: str = ""
    known: dict[Value, Table] = field(default_factory=dict)

    def of(self, value: Value, depth: int = 0) -> Table | None:
        """The formulas of a value's channels, one axis or more; None where it has none or too many of them."""
        if value not in self.known:
            found = None if depth > MAX_DEPTH else self._follow(value, depth + 1)
            if found is None:
                found = _leaves(value)
            if found is None:
                return None
            self.known[value] = found
        return self.known[value]

    def _follow(self, value: Value, depth: int) -> Table | None:
        node = value.producer
        if node is None or not value.shape or not isinstance(value.shape[-1], int) or value.shape[-1] > MAX_CHANNELS:
            return None
        if OPS[node.op].elementwise:
            return self._elementwise(node, depth)
        reader = {"reshape": self._reshape, "broadcast_to": self._broadcast, "slice": self._slice,
                  "concat": self._concat, "gather": self._gather}.get(node.op)
        return None if reader is None else reader(node, depth)

    def _elementwise(self, node: Node, depth: int) -> Table | None:
        tables = [self.of(v, depth) for v in node.operands]
        if any(t is None for t in tables):
            return None
        given = [t for t in tables if t is not None]
        if len({t.ndim for t in given if t.size > 1}) > 1:
            return None
        try:
            wide = np.broadcast_arrays(*(t.reshape(-1)[0:1] if t.size == 1 else t for t in given))
        except ValueError:
            return None
        attrs = tuple(sorted(attributes(node).items()))
        return _table([(node.op, attrs, *row) for row in zip(*(w.flat for w in wide), strict=True)], wide[0].shape)

    def _reshape(self, node: Node, depth: int) -> Table | None:
        """Channels split and joined with the other axes as they are, or the other way round."""
        x, shape = node.input(0), node.output.shape
        last = shape[-1] if self.split == "pairs" else shape[-2] if self.split == "halves" and len(shape) > 1 else 0
        splits, keeps = len(shape) > x.type.rank and last in (1, 2), x.shape[-1:] == shape[-1:]
        table = self.of(x, depth) if splits or keeps or len(shape) < x.type.rank else None
        if table is None:
            return None
        rest = _suffix(shape, table.size)
        return None if rest is None else _moved("reshape", x.shape, shape, table, table.reshape(rest))

    def _broadcast(self, node: Node, depth: int) -> Table | None:
        x, shape = node.input(0), node.output.shape
        table = self.of(x, depth)
        if table is None or x.type.rank != len(shape):
            return None
        rest = tuple(d for d in shape[len(shape) - table.ndim:] if isinstance(d, int))
        wide = np.broadcast_to(table, rest) if len(rest) == table.ndim else None
        return None if wide is None else _moved("broadcast_to", x.shape, shape, table, wide)

    def _slice(self, node: Node, depth: int) -> Table | None:
        x = node.input(0)
        table = self.of(x, depth)
        if table is None:
            return None
        ranges = list(zip(attr(node, "starts"), attr(node, "sizes"), attr(node, "steps"), strict=True))
        lead = x.type.rank - table.ndim
        for axis, (start, size, step) in enumerate(ranges[lead:]):
            if not isinstance(start, int) or not isinstance(size, int):
                return None
            table = np.take(table, range(start, start + size * step, step), axis=axis)
        whole = all(r == (0, d, 1) for r, d in zip(ranges[:lead], x.shape, strict=False))
        return table if whole else _wrapped(("slice", tuple(ranges[:lead])), table)

    def _concat(self, node: Node, depth: int) -> Table | None:
        tables = [self.of(v, depth) for v in node.operands]
        given = [t for t in tables if t is not None]
        axis = attr(node, "axis") % node.output.type.rank - node.output.type.rank
        if len(given) < len(tables) or len({t.ndim for t in given}) > 1 or axis < -given[0].ndim:
            return None
        return np.concatenate(given, axis=axis)

    def _gather(self, node: Node, depth: int) -> Table | None:
        """Rows of a table picked by position, or channels picked by constants."""
        x, index = node.input(0), node.input(1)
        axis = attr(node, "axis") % x.type.rank
        if axis == 0 and x.is_constant and x.type.rank == 2:
            table = self.of(x, depth)
            return None if table is None or table.ndim != 1 else _wrapped(("gather", index), table)
        if axis != x.type.rank - 1 or not index.is_constant or index.type.rank != 1:
            return None
        table = self.of(x, depth)
        return None if table is None else np.take(table, index.array(), axis=-1)


def _leaves(value: Value) -> Table | None:
    """A value's channels as themselves; equal columns of a constant are the first of them."""
    count = value.shape[-1] if value.shape else 1
    if not isinstance(count, int) or not 0 < count <= MAX_CHANNELS:
        return None
    first = list(range(count))
    if value.is_constant and value.data is not None and value.shape and count > 1:
        seen: dict[bytes, int] = {}
        columns = np.ascontiguousarray(value.data.reshape(-1, count).T)
        first = [seen.setdefault(column.tobytes(), i) for i, column in enumerate(columns)]
    return _table([("leaf", value, i) for i in first], (count,))


def _suffix(shape: Sequence[Dim], count: int) -> tuple[int, ...] | None:
    """The fewest last axes of a shape that have `count` elements; None if there are no such."""
    sizes: list[int] = []
    for d in reversed(shape):
        if not isinstance(d, int):
            break
        sizes.insert(0, d)
        if np.prod(sizes) == count:
            return tuple(sizes)
    return None


def _moved(op: str, before: Sequence[Dim], after: Sequence[Dim], old: Table, new: Table) -> Table:
    """The channels after an op that may have changed the axes before them too."""
    lead = tuple(after[:len(after) - new.ndim])
    return new if lead == tuple(before[:len(before) - old.ndim]) else _wrapped((op, lead), new)


def _wrapped(how: tuple[object, ...], table: Table) -> Table:
    return _table([("move", how, f) for f in table.flat], table.shape)


def _table(formulas: Sequence[Formula], shape: tuple[int, ...]) -> Table:
    table = np.empty(len(formulas), dtype=object)
    table[:] = formulas
    return table.reshape(shape)


def place(formula: Formula) -> tuple[Formula, int] | None:
    """A formula of one channel, and of constants, without and with the channel's number; None for any other."""
    if formula[0] == "leaf":
        return ("leaf", formula[1]), formula[2]
    if formula[0] == "move":
        inner = place(formula[2])
        return None if inner is None else (("move", formula[1], inner[0]), inner[1])
    parts = [place(f) for f in formula[2:]]
    numbers = {part[1] for part in parts if part is not None and not leaf(part[0]).is_constant}
    if None in parts or len(numbers) != 1:
        return None
    return (*formula[:2], *(part[0] for part in parts if part is not None)), numbers.pop()


def leaf(formula: Formula) -> Value:
    """The value whose channel a formula of one channel, and of constants, is of."""
    if formula[0] == "leaf":
        value: Value = formula[1]
        return value
    values = [leaf(f) for f in formula[2:]]
    return next((v for v in values if not v.is_constant), values[0])


@dataclass
class Builder:
    """Makes values whose channels are given formulas; new nodes stand before `before`, equal values are made once."""

    graph: Graph
    before: Node
    made: dict[tuple[Formula, ...], Value] = field(default_factory=dict)

    def value(self, formulas: Sequence[Formula]) -> Value | None:
        """A value with these channels along its last axis; None where they have no common form."""
        key = tuple(formulas)
        if key not in self.made:
            found = self._make(key)
            if found is None:
                return None
            self.made[key] = found
        return self.made[key]

    def _make(self, formulas: tuple[Formula, ...]) -> Value | None:
        first = formulas[0]
        if any(f[:2] != first[:2] or len(f) != len(first) for f in formulas):
            return None
        if first[0] == "leaf":
            return self._columns(first[1], [f[2] for f in formulas])
        if first[0] == "move":
            inner = self.value([f[2] for f in formulas])
            return None if inner is None else self._again(first[1], inner)
        operands = [self.value([f[i] for f in formulas]) for i in range(2, len(first))]
        if any(v is None for v in operands):
            return None
        return self.add(first[0], *operands, **dict(first[1]))

    def _columns(self, value: Value, columns: list[int]) -> Value | None:
        size = value.shape[-1] if value.shape else 1
        if size == 1 or columns == list(range(int(str(size)))):
            return value
        if value.is_constant:
            return self.graph.constant(np.ascontiguousarray(value.array()[..., columns]), value.name)
        steps = set(np.diff(columns).tolist()) or {1}
        if len(steps) > 1 or steps == {0}:
            return None
        lead = value.type.rank - 1
        return self.add("slice", value, starts=(0,) * lead + (columns[0],), sizes=(*value.shape[:-1], len(columns)),
                        steps=(1,) * lead + (steps.pop(),))

    def _again(self, how: tuple[Any, ...], value: Value) -> Value:
        """What was done to the other axes, done to a value with these channels."""
        op, what = how
        channels = value.shape[-1]
        if op == "gather":
            return self.add(op, value, what, axis=0)
        if op == "slice":
            starts, sizes, steps = zip(*what, (0, channels, 1), strict=True)
            return self.add(op, value, starts=starts, sizes=sizes, steps=steps)
        return value if value.shape == (*what, channels) else self.add(op, value, shape=(*what, channels))

    def add(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """The output of a new node."""
        return self.graph.add(op, inputs, attrs, before=self.before).output
