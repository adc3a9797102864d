"""What one element of a value is, at a position given by symbols: index arithmetic as sizes, the rest as numbers.

Where an element depends on something that is not known, such as whether one position comes before another or whether
an input is 0 there, that is a `Fact`; `cases` goes through all the ways the facts may be.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np

from q8c.errors import CompileError
from q8c.ir.dims import Dim, Expr, nonnegative, substitute, symbols
from q8c.ir.graph import Node, Value
from q8c.ir.ops import OPS, attributes
from q8c.passes.rules import attr, uniform

Index: TypeAlias = "tuple[Dim, ...]"
Element: TypeAlias = "Dim | np.generic"
"""A size, for integers; else a number."""
MAX_CASES = 64
_MAX_DEPTH = 100


@dataclass(frozen=True)
class Order:
    """Whether a difference of positions is >= 0."""

    difference: Expr


@dataclass(frozen=True)
class NotZero:
    """Whether an element of a value that is not followed further is not 0; integers and floats are then taken for 1."""

    value: Value
    index: Index


Fact: TypeAlias = "Order | NotZero"
Facts: TypeAlias = "Mapping[Fact, bool]"
T = TypeVar("T")


class Undecided(Exception):
    """What an element is depends on a fact."""

    def __init__(self, fact: Fact) -> None:
        self.fact = fact


class Opaque(Exception):
    """What an element is cannot be told; the message says at which node."""


@dataclass
class Elements:
    """Elements of values where the facts are as given. `highest` holds the largest value of symbols of positions."""

    highest: Mapping[str, Dim]
    facts: Facts
    known: dict[tuple[Value, Index], Element] = field(default_factory=dict)

    def at(self, value: Value, index: Index, depth: int = 0) -> Element:
        """The element at an index, in which axes of size 1 may be given any place. Raises Undecided and Opaque."""
        index = tuple(0 if d == 1 else i for i, d in zip(index, value.shape, strict=True))
        key = value, index
        if key not in self.known:
            if depth > _MAX_DEPTH:
                raise Opaque("its mask is computed in too many steps")
            self.known[key] = self._read(value, index, depth + 1)
        return self.known[key]

    def holds(self, difference: Dim) -> bool:
        """Whether a difference is >= 0. Raises Undecided where it is neither always nor never."""
        if isinstance(difference, int):
            return difference >= 0
        low, high = self._bound(difference, 1), self._bound(difference, -1)
        if nonnegative(low):
            return True
        if nonnegative(high * -1 - 1):
            return False
        flipped = difference * -1 - 1  # not (d >= 0) is -d - 1 >= 0; one of them stands for both
        fact, turned = (Order(difference), False) if str(difference) <= str(flipped) else (Order(_expr(flipped)), True)
        if fact not in self.facts:
            raise Undecided(fact)
        return self.facts[fact] != turned

    def _bound(self, d: Expr, sign: int) -> Dim:
        """A size that d is never below (sign 1) or above (-1): positions replaced by the first or last there is."""
        ends: dict[str, Dim] = {}
        for monomial, coefficient in d.terms:
            for name in symbols(Expr({monomial: 1})) & self.highest.keys():
                ends[name] = 0 if coefficient * sign > 0 else self.highest[name]
        return substitute(d, ends)

    def _read(self, value: Value, index: Index, depth: int) -> Element:
        node = value.producer
        if value.is_constant:
            return self._constant(value, index)
        if node is None or node.body is not None:
            return self._fact(value, index)
        if OPS[node.op].elementwise:
            return self._elementwise(node, index, depth)
        reader = _READERS.get(node.op)
        if reader is not None:
            return reader(self, node, index, depth)
        if value.dtype.name == "bool":
            return self._fact(value, index)
        raise Opaque(f"its mask is computed by {node}")

    def _fact(self, value: Value, index: Index) -> Element:
        fact = NotZero(value, index)
        if fact not in self.facts:
            raise Undecided(fact)
        found = self.facts[fact]
        return _element(value.dtype.numpy.type(found))

    def _constant(self, value: Value, index: Index) -> Element:
        same = uniform(value)
        if same is not None:
            return _element(value.dtype.numpy.type(same))
        data = value.array()
        if not data.size:
            raise Opaque(f"its mask is read from the constant %{value.name}, which is empty")
        fixed = tuple(i for i in index if isinstance(i, int))
        if len(fixed) == len(index):
            return _element(data[fixed])
        found = _step(data)
        if found is not None:
            offset, near, far = found
            row, column = index[-2:] if data.ndim > 1 else (0, index[-1])
            return _element(near if self.holds(row + offset - column) else far)
        from_positions = _affine(data) if value.dtype.is_int else None
        if from_positions is None:
            raise Opaque(f"its mask is read from the constant %{value.name}")
        return sum((i * s for i, s in zip(index, from_positions[1], strict=True)), from_positions[0])

    def _elementwise(self, node: Node, index: Index, depth: int) -> Element:
        rank = node.output.type.rank
        args = [self.at(v, index[rank - v.type.rank:], depth) for v in self._needed(node, index, depth)]
        if node.op == "where":
            return args[0]
        if any(isinstance(a, Expr) for a in args):
            return self._sizes(node, args)
        arrays = [np.asarray(a, dtype=v.dtype.numpy) for a, v in zip(args, node.operands, strict=True)]
        try:
            y = OPS[node.op].reference(arrays, attributes(node))[0].reshape(())[()]
        except (ValueError, TypeError, CompileError) as error:
            raise Opaque(f"its mask is computed by {node}") from error
        return _element(y)

    def _needed(self, node: Node, index: Index, depth: int) -> Sequence[Value]:
        """The operands an element depends on: of a choice, only the one that is chosen."""
        if node.op != "where":
            return list(node.operands)
        condition = node.input(0)
        chosen = self.at(condition, index[node.output.type.rank - condition.type.rank:], depth)
        return [node.input(1) if chosen else node.input(2)]

    def _sizes(self, node: Node, args: Sequence[Element]) -> Element:
        """Arithmetic and comparisons of sizes."""
        a, b = (*args, 0)[:2]
        if isinstance(a, (int, Expr)) and isinstance(b, (int, Expr)):
            if node.op in _ARITHMETIC:
                return _ARITHMETIC[node.op](a, b)
            if node.op in _COMPARISONS:
                return np.bool_(_COMPARISONS[node.op](self.holds, a, b))
            if node.op == "abs":
                return a if self.holds(a) else a * -1
            if node.op in ("min", "max"):
                return a if self.holds(b - a if node.op == "min" else a - b) else b
            if node.op == "cast" and node.output.dtype.is_int:
                return a
            if node.op == "cast" and node.output.dtype.name == "bool":
                return np.bool_(not (self.holds(a) and self.holds(a * -1)))
        raise Opaque(f"its mask computes with positions in {node}")


def cases(highest: Mapping[str, Dim], ask: Callable[[Elements], T]) -> Iterator[tuple[Facts, T]]:
    """The answer of `ask` in every case of the facts it turns out to depend on. Raises Opaque."""
    waiting: list[dict[Fact, bool]] = [{}]
    count = 0
    while waiting:
        facts = waiting.pop()
        try:
            answer = ask(Elements(highest, facts))
        except Undecided as undecided:
            count += 1
            if count > MAX_CASES:
                raise Opaque("its mask depends on too many things") from None
            both = ({**facts, undecided.fact: held} for held in (True, False))
            waiting.extend(case for case in both if consistent(case))
            continue
        yield facts, answer


def consistent(facts: Facts) -> bool:
    """Whether no two facts about order contradict each other: d >= 0 makes e >= 0 where e >= d."""
    orders = [(f.difference if held else f.difference * -1 - 1) for f, held in facts.items() if isinstance(f, Order)]
    return not any(nonnegative((a + b) * -1 - 1) for i, a in enumerate(orders) for b in orders[i + 1:])


def _expr(d: Dim) -> Expr:
    assert isinstance(d, Expr)
    return d


def _element(x: Any) -> Element:
    number: np.generic = x
    return int(x) if np.issubdtype(number.dtype, np.integer) else number


def _step(data: Any) -> tuple[int, Any, Any] | None:
    """(offset, near, far) if an array is `near` where row + offset >= column on its last two axes, else `far`."""
    rows = data.reshape(-1, *data.shape[-2:]) if data.ndim > 1 else data.reshape(1, 1, -1)
    first = rows[0]
    near, far = first[-1, 0], first[0, -1]
    if near == far or not (rows == first).all():
        return None
    offset = int(np.argmax(first[0] != near)) - 1 if (first[0] == near).any() else int(
        -np.argmax(first[:, 0] == near))
    found = np.tri(first.shape[0], first.shape[1], offset, dtype=np.bool_)
    return (offset, near, far) if np.array_equal(first, np.where(found, near, far)) else None


def _affine(data: Any) -> tuple[int, list[int]] | None:
    """(offset, steps) if the integers of an array are offset + sum(steps * position)."""
    zero = (0,) * data.ndim
    steps = [int(data[tuple(int(a == axis) for a in range(data.ndim))]) - int(data[zero]) if n > 1 else 0
             for axis, n in enumerate(data.shape)]
    expected = int(data[zero]) + sum(
        step * np.arange(n).reshape([-1 if a == axis else 1 for a in range(data.ndim)])
        for axis, (n, step) in enumerate(zip(data.shape, steps, strict=True)))
    return (int(data[zero]), steps) if np.array_equal(np.broadcast_to(expected, data.shape), data) else None


def _reshape(e: Elements, node: Node, index: Index, depth: int) -> Element:
    """Axes of size 1 put in or taken out, and neighbours split; what is merged cannot be taken apart."""
    x = node.input(0)
    places = [(d, i) for d, i in zip(node.output.shape, index, strict=True) if d != 1]
    found: list[Dim] = []
    for size in x.shape:
        total: Dim = 1
        place: Dim = 0
        while size != 1 and total != size:
            if not places:
                raise Opaque(f"its mask is reshaped by {node}")
            d, i = places.pop(0)
            total, place = total * d, place * d + i
        found.append(place)
    return e.at(x, tuple(found), depth)


def _transpose(e: Elements, node: Node, index: Index, depth: int) -> Element:
    perm = list(attr(node, "perm"))
    return e.at(node.input(0), tuple(index[perm.index(axis)] for axis in range(len(perm))), depth)


def _broadcast(e: Elements, node: Node, index: Index, depth: int) -> Element:
    return e.at(node.input(0), index[len(index) - node.input(0).type.rank:], depth)


def _slice(e: Elements, node: Node, index: Index, depth: int) -> Element:
    moved = zip(attr(node, "starts"), index, attr(node, "steps"), strict=True)
    return e.at(node.input(0), tuple(start + i * step for start, i, step in moved), depth)


def _concat(e: Elements, node: Node, index: Index, depth: int) -> Element:
    axis = attr(node, "axis") % len(index)
    place = index[axis]
    *first, last = node.operands
    for value in first:
        rest = place - value.shape[axis]
        if not e.holds(rest):
            return e.at(value, (*index[:axis], place, *index[axis + 1:]), depth)
        place = rest
    return e.at(last, (*index[:axis], place, *index[axis + 1:]), depth)


def _gather(e: Elements, node: Node, index: Index, depth: int) -> Element:
    x, where = node.input(0), node.input(1)
    axis = attr(node, "axis") % x.type.rank
    end = axis + where.type.rank
    return e.at(x, (*index[:axis], _position(e, e.at(where, index[axis:end], depth), x.shape[axis], node),
                    *index[end:]), depth)


def _gather_nd(e: Elements, node: Node, index: Index, depth: int) -> Element:
    x, where = node.input(0), node.input(1)
    batch = attr(node, "batch_dims")
    lead = where.type.rank - 1
    count = int(str(where.shape[-1]))
    picked = [_position(e, e.at(where, (*index[:lead], n), depth), x.shape[batch + n], node) for n in range(count)]
    return e.at(x, (*index[:batch], *picked, *index[lead:]), depth)


def _position(e: Elements, found: Element, size: Dim, node: Node) -> Dim:
    if not isinstance(found, (int, Expr)):
        raise Opaque(f"its mask is picked by {node}")
    return found if e.holds(found) else found + size


def _iota(e: Elements, node: Node, index: Index, depth: int) -> Element:
    return index[0]


def _numbers(e: Elements, node: Node, index: Index, depth: int) -> Element:
    if not isinstance(index[0], int):
        raise Opaque(f"its mask is computed by {node}")
    size: Dim = attr(node, "values")[index[0]]
    return size


_Reader = Callable[[Elements, Node, Index, int], Element]
_READERS: dict[str, _Reader] = {
    "reshape": _reshape, "transpose": _transpose, "broadcast_to": _broadcast, "slice": _slice, "concat": _concat,
    "gather": _gather, "gather_nd": _gather_nd, "iota": _iota, "sizes": _numbers}
_ARITHMETIC: dict[str, Callable[[Dim, Dim], Dim]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "neg": lambda a, b: a * -1}
_Holds = Callable[[Dim], bool]
_COMPARISONS: dict[str, Callable[[_Holds, Dim, Dim], bool]] = {
    "less": lambda holds, a, b: not holds(a - b), "less_equal": lambda holds, a, b: holds(b - a),
    "greater": lambda holds, a, b: not holds(b - a), "greater_equal": lambda holds, a, b: holds(a - b),
    "equal": lambda holds, a, b: holds(a - b) and holds(b - a)}
