"""Symbolic dimensions: integers, or polynomials over named sizes such as `batch * seq` or `past + seq`.

An `Expr` is kept in one canonical form (a sum of integer multiples of products of atoms), so two expressions that are
equal as polynomials compare equal. Atoms are symbols, or floor division, remainder, max and min that could not be
resolved. Every symbol stands for a size, so it is taken to be an integer >= 0.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import TypeAlias

Dim: TypeAlias = "int | Expr"
Atom: TypeAlias = "str | Call"
Monomial: TypeAlias = "tuple[Atom, ...]"
TERM_LIMIT = 1000  # terms of a product and factors of a term; models stay below ten, squaring a few times does not
_REMEMBERED = 4096  # results of each operation: a model has few sizes, and all its layers ask for the same ones
SIZE_LIMIT = 2**47  # every size is below this (the x86-64 address space), so a larger bound bounds nothing


@dataclass(frozen=True, slots=True)
class Call:
    """An operation that stays unevaluated inside an expression: `//`, `%`, `max` or `min`."""

    op: str
    args: tuple[Dim, ...]

    def __str__(self) -> str:
        if self.op in ("max", "min"):
            return f"{self.op}({', '.join(map(str, self.args))})"
        return f"({_operand(self.args[0])} {self.op} {_operand(self.args[1], right=True)})"


class Expr:
    """A symbolic size in canonical form. Make one with `sym`, arithmetic, or `parse_dim`."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms: tuple[tuple[Monomial, int], ...] = tuple(
            sorted(((m, c) for m, c in terms.items() if c), key=lambda t: (-len(t[0]), _key(t[0]))))
        self._hash = hash(self.terms)

    def __add__(self, other: Dim) -> Dim:
        return _plus(self, other)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: Dim) -> Dim:
        return self * -1 + other

    def __mul__(self, other: Dim) -> Dim:
        return _times(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __rmod__(self, other: Dim) -> Dim:
        return mod(other, self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Expr({self})"

    def __str__(self) -> str:
        text = ""
        for monomial, coefficient in self.terms:
            factors = [str(a) for a in monomial]
            if abs(coefficient) != 1 or not factors:
                factors.insert(0, str(abs(coefficient)))
            sign = "-" if coefficient < 0 else "+"
            text += (f" {sign} " if text else "-" if coefficient < 0 else "") + "*".join(factors)
        return text


def sym(name: str) -> Expr:
    """The symbol `name` (a Python identifier) as an expression."""
    if not name.isidentifier() or name in ("max", "min"):
        raise ValueError(f"symbol name {name!r} is not an identifier")
    return Expr({(name,): 1})


@lru_cache(_REMEMBERED)
def floordiv(a: Dim, b: Dim) -> Dim:
    """a // b, divided out where it is exact, without factors that both have. A division whose divisor turns out 0 at
    run time raises there.

    Raises ZeroDivisionError for the divisor 0.
    """
    if b == 0:
        raise ZeroDivisionError(f"{a} // 0")
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 1:
        return a
    if a == b:
        return 1
    exact = _divide_exactly(a, b)
    if exact is not None:
        return exact
    common = _common_factor(a, b)
    if common != 1:
        return floordiv(*(d for d in (_divide_exactly(a, common), _divide_exactly(b, common)) if d is not None))
    return _floordiv_by(a, b) if isinstance(a, Expr) and isinstance(b, int) and b > 0 \
        else Expr({(Call("//", (a, b)),): 1})


def mod(a: Dim, b: Dim) -> Dim:
    """a % b, 0 where b divides a as polynomials. Raises ZeroDivisionError for the divisor 0."""
    if b == 0:
        raise ZeroDivisionError(f"{a} % 0")
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if b == 1 or _divide_exactly(a, b) is not None:
        return 0
    return Expr({(Call("%", (a, b)),): 1})


def dim_max(*args: Dim) -> Dim:
    """The largest of the arguments; those that can be proved not larger than another are dropped."""
    return _extreme("max", args, max)


def dim_min(*args: Dim) -> Dim:
    """The smallest of the arguments; those that can be proved not smaller than another are dropped."""
    return _extreme("min", args, min)


def nonnegative(d: Dim, depth: int = 4) -> bool:
    """Whether d >= 0 for all sizes, as far as can be proved.

    It is if all coefficients and all atoms are, and if it is with some max (min taken off) replaced by an argument;
    `depth` is how many are replaced at a time, as every one multiplies the work.
    """
    if isinstance(d, int):
        return d >= 0
    if all(c >= 0 and all(map(_atom_nonnegative, m)) for m, c in d.terms):
        return True
    for monomial, coefficient in d.terms if depth else ():
        call = monomial[0] if len(monomial) == 1 else None
        if isinstance(call, Call) and call.op == ("max" if coefficient > 0 else "min"):
            rest = d - Expr({monomial: coefficient})
            if any(nonnegative(rest + arg * coefficient, depth - 1) for arg in call.args):
                return True
    return False


def _atom_nonnegative(atom: Atom) -> bool:
    if isinstance(atom, str):
        return True
    if atom.op == "%":
        return nonnegative(atom.args[1])
    return (any if atom.op == "max" else all)(map(nonnegative, atom.args))


def compare(a: Dim, b: Dim) -> int | None:
    """The sign of a - b if it is the same for all sizes, else None."""
    difference = a - b
    if isinstance(difference, int):
        return (difference > 0) - (difference < 0)
    for sign in (1, -1):
        if nonnegative(difference * sign - 1):
            return sign
    return None


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all dims; 1 for none."""
    result: Dim = 1
    for d in dims:
        result = result * d
    return result


def symbols(d: Dim) -> set[str]:
    """Names of all symbols in d."""
    found: set[str] = set()
    for atom in _atoms(d):
        found |= {atom} if isinstance(atom, str) else set().union(*(symbols(a) for a in atom.args))
    return found


def as_symbol(d: Dim) -> str | None:
    """The symbol's name if d is exactly one symbol, else None."""
    if isinstance(d, Expr) and len(d.terms) == 1:
        monomial, coefficient = d.terms[0]
        if coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], str):
            return monomial[0]
    return None


def loose_names(d: Dim, loose: frozenset[str]) -> frozenset[str]:
    """The names if d is one of these symbols or the largest of some, else none."""
    (factors, coefficient), *more = d.terms if isinstance(d, Expr) else (((), 0),)
    if more or coefficient != 1 or len(factors) != 1:
        return frozenset()
    atom = factors[0]
    if isinstance(atom, str):
        return frozenset((atom,)) & loose
    names = [as_symbol(a) for a in atom.args]
    return frozenset(n for n in names if n is not None) if atom.op == "max" and loose.issuperset(names) else frozenset()


def substitute(d: Dim, env: Mapping[str, Dim]) -> Dim:
    """d with every symbol of env replaced."""
    if isinstance(d, int):
        return d
    total: Dim = 0
    for monomial, coefficient in d.terms:
        value: Dim = coefficient
        for atom in monomial:
            value = value * _substitute_atom(atom, env)
        total = total + value
    return total


def evaluate(d: Dim, env: Mapping[str, int]) -> int:
    """The integer d stands for, given every symbol's value. Raises KeyError for a symbol that has none."""
    value = substitute(d, env)
    if not isinstance(value, int):
        raise KeyError(f"no value for {', '.join(sorted(symbols(value)))} in {d}")
    return value


def _key(monomial: Monomial) -> tuple[str, ...]:
    return tuple(map(str, monomial))


def _operand(d: Dim, right: bool = False) -> str:
    """An operand of // or %, in brackets if it is a sum or, on the right, a product."""
    if isinstance(d, int):
        return str(d)
    monomial, coefficient = d.terms[0]
    bare = len(d.terms) == 1 and (coefficient == 1 and len(monomial) == 1 or coefficient > 0 and not right)
    return str(d) if bare else f"({d})"


def _degree(d: Dim) -> int:
    return max((len(m) for m, _ in _terms(d)), default=0)


def _terms(d: Dim) -> tuple[tuple[Monomial, int], ...]:
    return ((((), d),) if d else ()) if isinstance(d, int) else d.terms


def _atoms(d: Dim) -> Iterator[Atom]:
    for monomial, _ in _terms(d):
        yield from monomial


def _reduce(terms: Mapping[Monomial, int]) -> Dim:
    kept = {m: c for m, c in terms.items() if c}
    if not kept:
        return 0
    if list(kept) == [()]:
        return kept[()]
    return Expr(kept)


@lru_cache(_REMEMBERED)
def _plus(a: Expr, b: Dim) -> Dim:
    terms = dict(a.terms)
    for m, c in _terms(b):
        terms[m] = terms.get(m, 0) + c
    return _reduce(terms)


@lru_cache(_REMEMBERED)
def _times(a: Expr, b: Dim) -> Dim:
    if len(a.terms) * len(_terms(b)) > TERM_LIMIT or _degree(a) + _degree(b) > TERM_LIMIT:
        raise OverflowError(f"a product of sizes grows beyond {TERM_LIMIT} terms or factors")
    terms: dict[Monomial, int] = {}
    for m1, c1 in a.terms:
        for m2, c2 in _terms(b):
            m = tuple(sorted(m1 + m2, key=str))
            terms[m] = terms.get(m, 0) + c1 * c2
    return _reduce(terms)


def _divide_exactly(a: Dim, b: Dim) -> Dim | None:
    """a / b as a polynomial if b divides a without remainder, else None."""
    divisor = _terms(b)
    if not divisor:
        return None
    lead, lead_coefficient = divisor[0]
    rest, quotient = a, 0
    for _ in range(64):
        if rest == 0:
            return quotient
        monomial, coefficient = _terms(rest)[0]
        remaining = _cancel(monomial, lead)
        if remaining is None or coefficient % lead_coefficient:
            return None
        factor = _reduce({remaining: coefficient // lead_coefficient})
        quotient = quotient + factor  # type: ignore[assignment]
        rest = rest - factor * b
    return None


def _common_factor(a: Dim, b: Dim) -> Dim:
    """What every term of two dims is a multiple of."""
    terms = [*_terms(a), *_terms(b)]
    shared = Counter(terms[0][0])
    for monomial, _ in terms[1:]:
        shared &= Counter(monomial)
    return _reduce({tuple(sorted(shared.elements(), key=str)): gcd(*(c for _, c in terms))}) if terms else 1


def _floordiv_by(a: Expr, b: int) -> Dim:
    """a // b with whole multiples of b taken out of the division: (n - 6) // 5 is (n + 4) // 5 - 2; and divisions one
    after the other as one: (n // 5 + 1) // 2 is (n + 5) // 10."""
    whole = _reduce({m: c // b for m, c in a.terms if c % b == 0 or m == ()})
    rest = a - whole * b
    if isinstance(rest, Expr):
        (monomial, coefficient), *more = rest.terms
        inner = monomial[0] if len(monomial) == 1 and coefficient == 1 and all(m == () for m, _ in more) else None
        if isinstance(inner, Call) and inner.op == "//" and isinstance(inner.args[1], int) and inner.args[1] > 0:
            if inner.args[1] * b >= SIZE_LIMIT:
                raise OverflowError(f"a size is divided by {inner.args[1] * b}, and none is so large")
            dividend, divisor = inner.args[0], inner.args[1]
            return whole + floordiv(dividend + (rest - Expr({monomial: 1})) * divisor, divisor * b)
    return whole + (rest // b if isinstance(rest, int) else Expr({(Call("//", (rest, b)),): 1}))


def _cancel(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    left = list(monomial)
    for atom in divisor:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


@lru_cache(_REMEMBERED)
def _extreme(op: str, args: tuple[Dim, ...], fold: Callable[[list[int]], int]) -> Dim:
    sign = 1 if op == "max" else -1
    flat: list[Dim] = []
    for arg in args:
        call = arg.terms[0][0][0] if isinstance(arg, Expr) and len(arg.terms) == 1 and arg.terms[0][1] == 1 \
            and len(arg.terms[0][0]) == 1 else None
        flat.extend(call.args if isinstance(call, Call) and call.op == op else [arg])
    if op == "min" and any(isinstance(a, Expr) for a in flat):
        flat = [a for a in flat if not (isinstance(a, int) and a >= SIZE_LIMIT)]
    integers = [a for a in flat if isinstance(a, int)]
    kept: list[Dim] = [fold(integers)] if integers else []
    for arg in flat:
        if not isinstance(arg, int) and arg not in kept:
            kept.append(arg)
    kept = [a for i, a in enumerate(kept)
            if not any(_dominates(b, a, sign, first=j < i) for j, b in enumerate(kept) if j != i)]
    if len(kept) == 1:
        return kept[0]
    return Expr({(Call(op, tuple(sorted(kept, key=str))),): 1})


def _dominates(b: Dim, a: Dim, sign: int, first: bool) -> bool:
    """Whether b makes a needless in a max (sign 1) or min (sign -1); ties keep the first."""
    difference = (b - a) * sign
    if difference == 0:
        return first
    return nonnegative(difference)


def _substitute_atom(atom: Atom, env: Mapping[str, Dim]) -> Dim:
    if isinstance(atom, str):
        return env[atom] if atom in env else sym(atom)
    args = [substitute(a, env) for a in atom.args]
    if atom.op == "max":
        return dim_max(*args)
    if atom.op == "min":
        return dim_min(*args)
    return floordiv(*args) if atom.op == "//" else mod(*args)
