"""Rotary positions as exporters write them, as one kernel."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from q8c.ir.dims import Dim
from q8c.ir.graph import Attr, Graph, Node, Value
from q8c.ir.types import DType
from q8c.passes.attention_heads import find_heads
from q8c.passes.channel_formulas import Builder, Formula, Formulas, leaf, place
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import sources, substitute
from q8c.passes.rules import attr, nodes_between

WHOLE, SWAP = (0, 1, 2, 3), (0, 2, 1, 3)
Term: TypeAlias = "tuple[int, tuple[Formula, ...]]"
"""A sign and the factors of a product."""


@dataclass(frozen=True)
class Turned:
    """Channels `x` of a head, of which the first are turned in pairs: formulas of x, and of the factors of
    cos and sin for each pair."""

    x: tuple[Formula, ...]
    cos: tuple[tuple[Formula, ...], ...]
    sin: tuple[tuple[Formula, ...], ...]
    interleaved: bool


@dataclass(frozen=True)
class FuseRotary(Pass):
    """Replaces the rotation of pairs of channels by positions, in any spelling, by rotary(x, cos, sin).

    What is computed is read as a formula per channel: x cos - y sin for the first of a pair and y cos + x sin for the
    second, where pairs are halves of a head or neighbours. Channels behind the last pair may pass unchanged.
    """

    name: ClassVar[str] = "fuse-rotary"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a rotation was found."""
        made = split_reshapes(graph)
        found = find_rotations(graph)
        changed = False
        writer: Writer | None = None
        for node, rotation in found:
            writer = writer or Writer(graph, Builder(graph, node))
            new = writer.write(node, rotation)
            if isinstance(new, str):
                report.decline(node, new)
            else:
                report.rewrote(new, f"{new.attrs['heads']} heads of {new.attrs['head_size']}")
                changed = True
        if found:
            graph.prune()
        join_reshapes(graph, made)
        return changed


def split_reshapes(graph: Graph) -> list[Node]:
    """Make two of each reshape that deals out or joins heads and their pairs at once; the new ones, which see heads."""
    made: list[Node] = []
    for node in list(graph.nodes):
        shape = shape_of_heads(node) if node.op == "reshape" else None
        if shape is not None:
            new = graph.add("reshape", node.inputs, {"shape": shape}, before=node, source=node.source)
            graph.set_inputs(node, [new.output])
            made.append(new)
    return made


def shape_of_heads(node: Node) -> tuple[Dim, ...] | None:
    """The shape [.., .., .., head_size] between what a reshape reads and writes, where one is rows of channels and the
    other their pairs; None where it is either, or no pairs are there."""
    x, y = node.input(0), node.output
    pairs = y if x.type.rank == 3 and y.type.rank == 5 and x.shape[:2] == y.shape[:2] else x
    joins = pairs is x and x.producer is not None and x.producer.op == "concat" and x.type.rank == 5
    if 2 not in pairs.shape[3:] or pairs is x and not joins:
        return None
    shape = (*pairs.shape[:3], pairs.shape[3] * pairs.shape[4])
    return None if shape == y.shape else shape


def join_reshapes(graph: Graph, made: Sequence[Node]) -> None:
    """Make one again of reshapes that were made two and are read still."""
    for new in made:
        if new.output.users:
            graph.set_inputs(new.output.users[0], new.inputs)
            graph.erase(new)


def find_rotations(graph: Graph) -> list[tuple[Node, Turned]]:
    """The rotations in a graph in order, each with its last node; what is part of a larger one is not listed."""
    walks = [Formulas(split) for split in ("", "pairs", "halves")]
    inside: set[Node] = set()
    found: list[tuple[Node, Turned]] = []
    for node in reversed(graph.nodes):
        if node in inside or not may_turn(node):
            continue
        rotation = next((t for t in (turned(walk, node.output) for walk in walks) if t is not None), None)
        if rotation is not None:
            inside.update(nodes_between(node, {leaf(f) for f in rotation.x}))
            found.append((node, rotation))
    return found[::-1]


def may_turn(node: Node) -> bool:
    """Whether a node has the look of the last of a rotation, so that it is worth asking what its channels are."""
    if not node.outputs or node.output.dtype is not DType.f32 or node.output.type.rank != 4:
        return False
    makers = [v.producer.op if v.producer is not None else "" for v in node.operands]
    if node.op == "reshape":
        return makers == ["concat"]
    if node.op == "concat":
        return not {"add", "sub"}.isdisjoint(makers)
    return node.op == "add" and makers == ["mul", "mul"]


def turned(walk: Formulas, value: Value) -> Turned | None:
    """The rotation that a value [.., .., .., head_size] is; None if it is none."""
    table = walk.of(value)
    if table is None or table.ndim != 1 or table.size < 2:
        return None
    channels = [tuple(terms(f)) for f in table]
    rotated = next((i for i, t in enumerate(channels) if len(t) == 1), len(channels))
    if rotated < 2 or rotated % 2:
        return None
    for factor in channels[0][0][1] + channels[0][1][1] if len(channels[0]) == 2 else ():
        found = _pairs(channels, rotated, factor)
        if found is not None:
            return found
    return None


def terms(formula: Formula, sign: int = 1) -> Iterator[Term]:
    """The products that a formula adds up."""
    if formula[0] in ("add", "sub"):
        yield from terms(formula[2], sign)
        yield from terms(formula[3], sign if formula[0] == "add" else -sign)
    else:
        sign, factors = _factors(formula, sign)
        yield sign, factors


def _factors(formula: Formula, sign: int) -> Term:
    if formula[0] == "neg":
        return _factors(formula[2], -sign)
    if formula[0] != "mul":
        return sign, (formula,)
    sign, left = _factors(formula[2], sign)
    sign, right = _factors(formula[3], sign)
    return sign, left + right


def _pairs(channels: Sequence[Sequence[Term]], rotated: int, first: Formula) -> Turned | None:
    """The rotation in which `first` is channel 0 of what is turned."""
    at = place(first)
    if at is None:
        return None

    def split(c: int) -> tuple[Term, Term, int, Formula, Formula] | None:
        """A channel's own term and its partner's without x, which channel the partner is, x of both."""
        found: dict[bool, tuple[Term, int, Formula]] = {}
        for sign, factors in channels[c]:
            for i, factor in enumerate(factors):
                where = place(factor)
                if where is not None and where[0] == at[0]:
                    rest = sign, factors[:i] + factors[i + 1:]
                    found.setdefault(where[1] - at[1] == c, (rest, where[1] - at[1], factor))
                    break
        own, other = found.get(True), found.get(False)
        return None if own is None or other is None else (own[0], other[0], other[1], own[2], other[2])

    parts = [split(c) if len(channels[c]) == 2 else None for c in range(rotated)]
    whole = [p for p in parts if p is not None]
    interleaved = len(whole) == rotated and whole[0][2] == 1 and rotated > 2
    step = 1 if interleaved else rotated // 2
    firsts = range(0, rotated, 2) if interleaved else range(rotated // 2)
    if len(whole) < rotated:
        return None
    for a in firsts:
        (own_a, other_a, partner_a, *x_a), (own_b, other_b, partner_b, *x_b) = whole[a], whole[a + step]
        signs = (own_a[0], own_b[0], other_a[0], other_b[0])
        if (partner_a, partner_b) != (a + step, a) or signs != (1, 1, -1, 1) or x_a != x_b[::-1]:
            return None
        if not _same(own_a[1], own_b[1]) or not _same(other_a[1], other_b[1]):
            return None
    x = [p[3] for p in whole]
    for terms_left in channels[rotated:]:
        if len(terms_left) != 1 or terms_left[0][0] != 1 or len(terms_left[0][1]) != 1:
            return None
        x.append(terms_left[0][1][0])
    return Turned(tuple(x), tuple(whole[a][0][1] for a in firsts), tuple(whole[a][1][1] for a in firsts), interleaved)


def _same(a: tuple[Formula, ...], b: tuple[Formula, ...]) -> bool:
    return a == b or Counter(a) == Counter(b)


@dataclass
class Writer:
    """Writes rotary nodes; cos and sin that layers share are made once, before the first of them."""

    graph: Graph
    build: Builder
    shared: dict[tuple[object, ...], Value | None] = field(default_factory=dict)

    def write(self, node: Node, found: Turned) -> Node | str:
        """The rotary node for a rotation, whose readers read it, or why there is none."""
        y = node.output
        self.build.before = node
        x = self.build.value(found.x)
        if x is None or x.shape != y.shape:
            return "what is turned are not the channels of one value"
        made = self.positions(found, y)
        if isinstance(made, str):
            return made
        cos, sin, axis = made
        rows, heads, offset = self.rows(x, axis)
        attrs: dict[str, Attr] = {"heads": heads, "head_size": int(str(x.shape[3])), "rotary_size": 2 * len(found.cos)}
        attrs |= ({"offset": offset} if offset else {}) | ({"interleaved": True} if found.interleaved else {})
        new = self.graph.add("rotary", [rows, cos, sin], attrs, name=y.name, before=node,
                             source=sources(nodes_between(node, [rows, cos, sin])))
        split = (y.shape[0], y.shape[axis], heads, y.shape[3])
        result = self.build.add("reshape", new.output, shape=split)
        substitute(self.graph, y, self.build.add("transpose", result, perm=SWAP) if axis == 2 else result)
        return new

    def positions(self, found: Turned, y: Value) -> tuple[Value, Value, int] | str:
        """cos and sin as [batch or 1, seq, pairs], and which axis of y the positions are, or why that is unclear."""
        values = [self.product(rows) for rows in (found.cos, found.sin)]
        axes: set[int] = set()
        for value in values:
            if value is None or value.type.rank > 4:
                return "its cos and sin are not computed alike for all pairs"
            shape = (1,) * (4 - value.type.rank) + value.shape
            known = self.graph.known_equal
            fits = [axis for axis in (1, 2) if shape[3 - axis] == 1 and known(shape[axis], y.shape[axis])]
            if not fits or not (shape[0] == 1 or known(shape[0], y.shape[0])):
                return f"its cos or sin of shape [{', '.join(map(str, value.shape))}] is not one per position"
            axes.add(fits[-1])
        if len(axes) > 1:
            return "its cos and sin have their positions on different axes"
        axis = axes.pop()
        cos, sin = (self.flat(value, y.shape[axis]) for value in values if value is not None)
        return cos, sin, axis

    def product(self, rows: tuple[tuple[Formula, ...], ...]) -> Value | None:
        """A value whose channel i is the product of the factors of row i, None if the rows are not alike."""
        if rows not in self.shared:
            columns = list(zip(*rows, strict=True)) if len({len(row) for row in rows}) == 1 else []
            factors = [self.build.value(column) for column in columns]
            total = factors[0] if factors else None
            for factor in factors[1:]:
                total = None if total is None or factor is None else self.build.add("mul", total, factor)
            self.shared[rows] = total
        return self.shared[rows]

    def flat(self, value: Value, seq: Dim) -> Value:
        """cos or sin as [batch or 1, seq, pairs]; what stretches over heads before is left out."""
        batch = value.shape[0] if value.type.rank == 4 else 1
        shape = (batch, seq, value.shape[-1])
        if (value, shape) not in self.shared:
            node = value.producer
            inner = node.input(0) if node is not None and node.op == "reshape" else value
            self.shared[value, shape] = inner if inner.shape == shape else self.build.add("reshape", value, shape=shape)
        found = self.shared[value, shape]
        assert found is not None
        return found

    def rows(self, x: Value, axis: int) -> tuple[Value, int, int]:
        """What holds the heads of x, whose positions are on an axis, how many they are, and the first one's channel."""
        heads = int(str(x.shape[3 - axis]))
        found = find_heads(self.graph, x, SWAP if axis == 1 else WHOLE)
        if found is not None and found.scale == 1 and found.repeat == 1:
            if found.value.type.rank == 3:
                return found.value, heads, found.offset
            if found.value.type.rank == 2:
                shape = (found.batch, found.seq, found.value.shape[-1])
                return self.build.add("reshape", found.value, shape=shape), heads, found.offset
        node = x.producer
        if axis == 2 and node is not None and node.op == "transpose" and attr(node, "perm") == SWAP:
            x, axis = node.input(0), 1
        if axis == 2:
            return x, heads, 0
        return self.build.add("reshape", x, shape=(*x.shape[:2], heads * int(str(x.shape[3])))), heads, 0
