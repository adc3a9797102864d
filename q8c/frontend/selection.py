"""Rows picked by NonZero or by a Range, as mixtures of experts pick each expert's tokens, without knowing how many.

What is computed from picked rows, row by row, is computed for all rows instead, and where it is written back, rows that
were not picked are left out. So every size follows from shapes. A row is computed once for each position of those axes
of the mask that it depends on: with a mask [choices, tokens], what depends on the token alone once for every token.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from q8c.errors import Error, UnsupportedError
from q8c.frontend.selection_axes import Rows, axis_after
from q8c.ir.dims import Dim, as_symbol, product, substitute, sym
from q8c.ir.graph import Array, Attr, Graph, Node, Value, ancestors
from q8c.ir.interpret import run_node
from q8c.ir.nested import names_in, substituted
from q8c.ir.ops import OPS, attributes
from q8c.ir.rename import rename
from q8c.ir.types import DType

_PICKS = {"nonzero": ("NonZero", "how many are not zero"), "span": ("Range", "its length")}
_PROBE = 7
"""Rows of made-up indices, by which it shows what is done with indices."""
_MOST = 64
"""Rows for one place among which the last is found by comparing."""


@dataclass(frozen=True)
class Indices:
    """Where elements of a value with an axis of picked rows are from: the axis of the mask that each is an index of."""

    pick: Node
    axis: int
    parts: Array


def resolve_selections(graph: Graph) -> None:
    """Replace `nonzero` and `span` by work on all rows, in time linear in the nodes; leave out what nobody needs.

    Raises UnsupportedError where rows are mixed, or how many there are is asked for."""
    picks = [n for n in graph.nodes if n.op in _PICKS]
    graph.prune()
    if not picks:
        return
    rename(graph, _Selections(graph).run())
    graph.prune()
    counts = {_count(n): n for n in picks}
    for node in graph.nodes:
        for name in names_in(node.attrs.values(), *(v.shape for v in node.outputs)) & counts.keys():
            raise _refused(counts[name], f"{node} depends on how many there are")
    for a, b in graph.assumptions:
        for name in names_in(a, b) & counts.keys():
            raise _refused(counts[name], f"{a} must be {b}")


def _count(pick: Node) -> str:
    """The name of the number of rows that are picked."""
    name = as_symbol(pick.output.shape[-1])
    assert name is not None
    return name


def _refused(pick: Node, reason: str) -> UnsupportedError:
    """The error for rows whose number cannot be resolved, naming the inputs that it is computed from."""
    names = sorted(v.name for v in ancestors(pick.output) if v.producer is None and not v.is_constant)
    op, what = _PICKS[pick.op]
    name = pick.source[0] if pick.source else ""
    return UnsupportedError(f"cannot compile 1 node of this model: {op} {name!r}: {what} is computed from data "
                            f"(of input {', '.join(names)}), and {reason}", names)


class _Selections:
    """One walk over the nodes; `rows` and `indices` hold the values that have an axis of picked rows, `lengths` of how
    many rows each span picks some, and `sizes` what numbers of rows are by others."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._lengths: dict[Node, Dim] = {}
        self._sizes: dict[str, Dim] = {}
        self._rows: dict[Value, Rows] = {}
        self._indices: dict[Value, Indices] = {}

    def run(self) -> dict[str, Dim]:
        """Do it; sizes to be replaced by others everywhere."""
        nodes, self._graph.nodes = self._graph.nodes, []
        for node in nodes:
            if node.op in _PICKS:
                parts = np.zeros(_PROBE, int) if node.op == "span" else np.repeat(
                    np.arange(node.input(0).type.rank)[:, None], _PROBE, axis=1)
                self._indices[node.output] = Indices(node, parts.ndim - 1, parts)
            elif not any(v in self._rows or v in self._indices for v in node.operands):
                self._graph.nodes.append(node)
                continue
            else:
                self._replace(node)
            for value in node.operands:
                value.users.remove(node)
        for value in self._graph.outputs:
            if value in self._rows or value in self._indices:
                raise _refused((self._rows.get(value) or self._indices[value]).pick, f"%{value.name} is an output")
        return self._sizes

    def _axes(self, pick: Node) -> tuple[Dim, ...]:
        """The sizes of the axes of all rows of which some are picked."""
        if pick.op == "nonzero":
            return pick.input(0).shape
        if pick not in self._lengths:
            raise _refused(pick, "what it numbers is not known to be rows")
        return (self._lengths[pick],)

    def _size(self, pick: Node, over: Sequence[int]) -> Dim:
        return product(self._axes(pick)[a] for a in over)

    def _replace(self, node: Node) -> None:
        found = self._moved_indices(node)
        if found is not None:
            self._indices[node.output] = found
            return
        if node.op == "gather" and node.input(1) in self._indices:
            pick, x = self._indices[node.input(1)].pick, node.input(0)
            length = substitute(x.shape[attributes(node)["axis"] % x.type.rank], self._sizes)
            if pick.op == "span" and self._lengths.setdefault(pick, length) != length:
                raise _refused(pick, f"{node} is not of {self._lengths[pick]} rows")
        given = {v: self._found(v) for v in node.operands if v in self._rows or v in self._indices}
        if node.op == "concat" and self._joined(node, given):
            return
        pick = next(iter(given.values())).pick
        if any(rows.pick is not pick for rows in given.values()) or len(node.outputs) != 1:
            raise _refused(pick, f"{node} takes others too")
        if node.op == "scatter_nd":
            self._written(node, pick, given)
            return
        axis = axis_after(node, given)
        if axis is None:
            raise _refused(pick, f"{node} does not work row by row")
        over = tuple(sorted({a for rows in given.values() for a in rows.over}))
        size = self._size(pick, over)
        inputs = [None if v is None else self._expanded(given[v], over) if v in given else
                  self._alike(node, v, axis, pick) for v in node.inputs]
        attrs = {name: substituted(value, {_count(pick): size}) for name, value in node.attrs.items()}
        value = self._whole_axis(node, given) or self._add(node, node.op, *inputs, **attrs)
        self._rows[node.output] = Rows(pick, axis, over, value)

    def _add(self, node: Node, op: str, *inputs: Value | None, **attrs: Attr) -> Value:
        return self._graph.add(op, inputs, attrs, source=node.source).output

    def _moved_indices(self, node: Node) -> Indices | None:
        """What a node makes of indices alone by moving them."""
        if node.op not in ("reshape", "transpose", "slice", "broadcast_to") or node.input(0) not in self._indices:
            return None
        given = self._indices[node.input(0)]
        try:
            [parts] = run_node(node, [given.parts], {_count(given.pick): _PROBE})
        except (Error, KeyError):
            return None
        axis = [i for i, d in enumerate(node.output.shape) if d == sym(_count(given.pick))]
        same = len(axis) == 1 and parts.shape[axis[0]] == _PROBE and (parts == parts.take([0], axis[0])).all()
        return Indices(given.pick, axis[0], parts) if same else None

    def _found(self, value: Value) -> Rows:
        """The rows of a value, made from positions where it holds indices."""
        if value not in self._rows:
            self._rows[value] = self._positions(value, self._indices[value])
        return self._rows[value]

    def _positions(self, value: Value, given: Indices) -> Rows:
        over = tuple(sorted({int(p) for p in given.parts.flat}))
        shape = [1 if i == given.axis else d for i, d in enumerate(value.shape)]
        total: Value | None = None
        for part in over:
            numbers = self._add(given.pick, "iota", size=self._axes(given.pick)[part], dtype=DType.i64)
            lead = [1] * given.axis + [numbers.shape[0]] + [1] * (value.type.rank - given.axis - 1)
            here = Rows(given.pick, given.axis, (part,), self._add(given.pick, "reshape", numbers, shape=tuple(lead)))
            wide = self._expanded(here, over)
            is_here = self._graph.constant(np.ascontiguousarray(given.parts.take([0], given.axis) == part), "is_part")
            total = wide if total is None else self._add(given.pick, "where", is_here, wide, total)
        assert total is not None
        if any(d != 1 for d in shape) and len(over) == 1:
            shape[given.axis] = self._size(given.pick, over)
            total = self._add(given.pick, "broadcast_to", total, shape=tuple(shape))
        return Rows(given.pick, given.axis, over, total)

    def _expanded(self, rows: Rows, over: tuple[int, ...]) -> Value:
        """Rows for all positions of more axes of the mask."""
        if rows.over == over:
            return rows.value
        sizes = self._axes(rows.pick)
        before, behind = rows.value.shape[:rows.axis], rows.value.shape[rows.axis + 1:]
        apart = self._add(rows.pick, "reshape", rows.value,
                          shape=(*before, *(sizes[a] if a in rows.over else 1 for a in over), *behind))
        wide = self._add(rows.pick, "broadcast_to", apart, shape=(*before, *(sizes[a] for a in over), *behind))
        return self._add(rows.pick, "reshape", wide, shape=(*before, self._size(rows.pick, over), *behind))

    def _alike(self, node: Node, value: Value, axis: int, pick: Node) -> Value:
        """An operand that is the same for all rows, without the axis of rows it may have been stretched to."""
        count = sym(_count(pick))
        source = value.producer
        if count in value.shape and source is not None and source.op == "broadcast_to":
            x = source.input(0)
            x = self._add(node, "reshape", x, shape=(1,) * (value.type.rank - x.type.rank) + x.shape)
            value = self._add(node, "broadcast_to", x, shape=tuple(1 if d == count else d for d in value.shape))
        own = axis - node.output.type.rank + value.type.rank
        if OPS[node.op].elementwise and own >= 0 and value.shape[own] != 1:
            raise _refused(pick, f"{node} has an operand for each")
        return value

    def _whole_axis(self, node: Node, given: dict[Value, Rows]) -> Value | None:
        """What a gather by all positions of an axis, in order, gives: its operand."""
        if node.op != "gather" or node.input(0) in given or node.input(1) not in self._indices:
            return None
        x, rows = node.input(0), given[node.input(1)]
        axis = attributes(node)["axis"] % x.type.rank
        if len(rows.over) > 1 or rows.value.type.size != substitute(x.shape[axis], self._sizes):
            return None
        return self._add(node, "reshape", x, shape=(*x.shape[:axis], *rows.value.shape, *x.shape[axis + 1:]))

    def _joined(self, node: Node, given: dict[Value, Rows]) -> bool:
        """Whether rows of spans, each of which begins where the one before ends, are put together again to as many as
        there are, which the model takes for granted elsewhere: each is then that of the last span that begins no later.
        """
        rows = [given[v] for v in node.operands if v in given]
        picks, axis = [one.pick for one in rows], attributes(node)["axis"] % node.output.type.rank
        if len(rows) < len(node.inputs) or any(one.pick.op != "span" or one.axis != axis for one in rows):
            return False
        length, counts = self._size(picks[0], (0,)), [sym(_count(p)) for p in picks]
        together = sum(counts, start=cast(Dim, 0))
        chained = _is_zero(picks[0].input(0)) and all(
            a.input(1) is b.input(0) for a, b in zip(picks, picks[1:], strict=False))
        if not chained or not self._graph.known_equal(together, length) or any(
                self._size(p, (0,)) != length for p in picks):
            return False
        numbers = self._add(node, "iota", size=length, dtype=DType.i64)
        total = rows[0].value
        for one in rows[1:]:
            begun = self._add(node, "greater_equal", numbers, one.pick.input(0))
            begun = self._add(node, "reshape", begun, shape=(length, *[1] * (total.type.rank - axis - 1)))
            total = self._add(node, "where", begun, one.value, total)
        self._sizes[_count(picks[-1])] = length - (together - counts[-1])
        self._graph.replace_uses(node.output, total)
        return True

    def _written(self, node: Node, pick: Node, given: dict[Value, Rows]) -> None:
        """Rows written back to the places they came from, or added to what is there."""
        x, where, updates = node.input(0), node.input(1), node.input(2)
        mask, found = pick.input(0), self._indices.get(where)
        parts = [] if found is None or found.axis != 0 else [int(p) for p in found.parts[0].flat]
        if pick.op == "nonzero" and x not in given and parts == list(range(mask.type.rank)) and all(
                map(self._graph.known_equal, mask.shape, x.shape)):
            self._written_in_place(node, pick, given)
            return
        if pick.op != "nonzero" or x in given or updates not in given or given[updates].axis != 0 or len(parts) != 1 \
                or not self._graph.known_equal(x.shape[0], mask.shape[parts[0]]):
            raise _refused(pick, f"{node} does not write each to where it came from")
        every, row = tuple(range(mask.type.rank)), updates.shape[1:]
        order = (*(a for a in every if a != parts[0]), parts[0])
        others = product(mask.shape[a] for a in order[:-1])
        wide = self._add(node, "reshape", self._expanded(given[updates], every), shape=(*mask.shape, *row))
        picked = mask if mask.dtype is DType.bool else self._add(node, "cast", mask, to=DType.bool)
        picked = self._add(node, "reshape", picked, shape=(*mask.shape, *[1] * len(row)))
        behind = tuple(range(len(order), len(order) + len(row)))
        new, there = (self._add(node, "reshape", self._add(node, "transpose", v, perm=(*order, *behind)),
                                shape=(others, x.shape[0], *v.shape[len(order):])) for v in (wide, picked))
        combine = {"add": self._added, "none": self._put}.get(attributes(node)["reduction"])
        if combine is None:
            raise _refused(pick, f"{node} neither adds nor replaces")
        self._graph.replace_uses(node.output, combine(node, pick, x, new, there))

    def _written_in_place(self, node: Node, pick: Node, given: dict[Value, Rows]) -> None:
        """Rows written where the mask, whose axes are the first of what is written to, is not zero."""
        x, mask, updates = node.input(0), pick.input(0), node.input(2)
        row = x.shape[mask.type.rank:]
        if updates in given and given[updates].axis == 0:
            every = self._expanded(given[updates], tuple(range(mask.type.rank)))
            new = self._add(node, "reshape", every, shape=x.shape)
        else:
            new = self._alike(node, updates, 0, pick)
            if new.shape[0] != 1:
                raise _refused(pick, f"{node} has an operand for each")
            new = self._add(node, "reshape", new, shape=(*[1] * mask.type.rank, *row))
        there = mask if mask.dtype is DType.bool else self._add(node, "cast", mask, to=DType.bool)
        there = self._add(node, "reshape", there, shape=(*mask.shape, *[1] * len(row)))
        if attributes(node)["reduction"] == "add":
            new = self._add(node, "add", x, new)
        elif attributes(node)["reduction"] != "none":
            raise _refused(pick, f"{node} neither adds nor replaces")
        self._graph.replace_uses(node.output, self._add(node, "where", there, new, x))

    def _added(self, node: Node, pick: Node, x: Value, new: Value, there: Value) -> Value:
        """x [rows, ...] with the sum of all new rows [n, rows, ...] that are there."""
        zero = self._graph.constant(np.zeros((), x.dtype.numpy), "zero")
        left = self._add(node, "where", there, new, zero)
        return self._add(node, "add", x, self._add(node, "reduce_sum", left, axes=(0,), keepdims=False))

    def _put(self, node: Node, pick: Node, x: Value, new: Value, there: Value) -> Value:
        """x [rows, ...] with the last of the new rows [n, rows, ...] that is there in its place."""
        count = new.shape[0]
        if not isinstance(count, int) or count > _MOST:
            raise _refused(pick, f"{node} puts any number of rows into one place")
        for n in range(count):
            one, is_there = (
                self._add(node, "reshape", self._add(
                    node, "slice", v, starts=(n, *[0] * (v.type.rank - 1)), sizes=(1, *v.shape[1:]),
                    steps=(1,) * v.type.rank), shape=v.shape[1:]) for v in (new, there))
            x = self._add(node, "where", is_there, one, x)
        return x


def _is_zero(value: Value) -> bool:
    return value.is_constant and not value.array().any()
