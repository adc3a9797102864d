"""Sizes of one variable as pieces of straight lines, as slices of slices are: their shortest form."""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from q8c.ir.dims import Atom, Call, Dim, Expr, dim_max, nonnegative

_REACH = 256  # values of the variable up to which pieces are told apart


@dataclass(frozen=True)
class _Pieces:
    """What a size is for 0, 1, … of the variable, and by how much each value after those is larger than the last."""

    values: tuple[int, ...]
    slope: int

    def to(self, count: int) -> _Pieces:
        """The same with at least so many values."""
        more = range(1, count - len(self.values) + 1)
        return _Pieces((*self.values, *(self.values[-1] + self.slope * i for i in more)), self.slope)

    def plus(self, other: _Pieces, factor: int) -> _Pieces:
        """The sum of this and as many times the other."""
        count = max(len(self.values), len(other.values))
        pairs = zip(self.to(count).values, other.to(count).values, strict=True)
        return _Pieces(tuple(a + factor * b for a, b in pairs), self.slope + factor * other.slope)


@lru_cache(4096)
def shortened(d: Dim) -> Dim:
    """A size >= 0 written as max(0, a + b*n + c*max(0, n - i) + …) of its only variable n, if that is shorter."""
    if not isinstance(d, Expr):
        return d
    leaves: set[Atom] = set()
    _collect(d, leaves)
    if len(leaves) != 1:
        return d
    leaf, = leaves
    found = _pieces(d, leaf) if isinstance(leaf, str) or nonnegative(Expr({(leaf,): 1})) else None
    if found is None:
        return d
    other = _hinges(found, Expr({(leaf,): 1}))
    return other if len(str(other)) < len(str(d)) else d


def _collect(d: Dim, leaves: set[Atom]) -> None:
    """The atoms that d is made of with sums, `min` and `max`."""
    for monomial, _ in d.terms if isinstance(d, Expr) else ():
        for atom in monomial:
            if isinstance(atom, Call) and atom.op in ("min", "max"):
                for arg in atom.args:
                    _collect(arg, leaves)
            else:
                leaves.add(atom)


def _pieces(d: Dim, leaf: Atom) -> _Pieces | None:
    """d by the values of its leaf; None if it is no straight line in it from `_REACH` on, or a product."""
    if not isinstance(d, Expr):
        return _Pieces((d,), 0) if abs(d) <= _REACH else None
    total: _Pieces | None = _Pieces((0,), 0)
    for monomial, factor in d.terms:
        part = _term(monomial[0], leaf) if len(monomial) == 1 else None if monomial else _pieces(1, leaf)
        if total is None or part is None or not monomial and abs(factor) > _REACH:
            return None
        total = total.plus(part, factor)
    return total


def _term(atom: Atom, leaf: Atom) -> _Pieces | None:
    if atom == leaf:
        return _Pieces((0,), 1)
    assert isinstance(atom, Call)
    choose = max if atom.op == "max" else min
    first, *rest = (_pieces(arg, leaf) for arg in atom.args)
    for other in rest:
        if first is None or other is None:
            return None
        count = max(len(first.values), len(other.values))
        a, b = first.to(count), other.to(count)
        apart, closing = b.values[-1] - a.values[-1], a.slope - b.slope
        if closing and apart // closing >= 0:  # where the lines cross, after the last values
            count += apart // closing + 1
        if count > _REACH:
            return None
        first = _Pieces(tuple(map(choose, a.to(count).values, b.to(count).values)), choose(a.slope, b.slope))
    return first


def _hinges(p: _Pieces, n: Expr) -> Dim:
    """A line, and at each value of n where its slope changes by how much."""
    slopes = [b - a for a, b in zip(p.values, p.values[1:], strict=False)] + [p.slope]
    found: Dim = p.values[0] + n * slopes[0]
    for i, (before, after) in enumerate(zip(slopes, slopes[1:], strict=False), 1):
        if after != before:
            found = found + dim_max(0, n - i) * (after - before)
    return dim_max(0, found)
