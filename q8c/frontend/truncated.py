"""Sizes that are divided as ONNX divides, towards zero, where what is divided may be below zero."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

from q8c.ir.dims import Atom, Call, Dim, Expr, Monomial, dim_max, dim_min, floordiv, mod, nonnegative, product, sym
from q8c.ir.graph import Graph


def truncated(a: Dim, b: int) -> Dim:
    """a / b rounded towards zero, for b above zero: max(0, a) // b - max(0, -a) // b."""
    return floordiv(dim_max(0, a), b) - floordiv(dim_max(0, a * -1), b)


def settled(graph: Graph, size: Dim) -> Dim:
    """A size in which `truncated(x - 3, b)` and the like became (x - 3) // b: the graph takes x from now on to be 3 or
    more.

    PyTorch states lengths behind windows so, `(length - kernel) / stride + 1`. A convolution gives the length that
    floor division gives, and where the two differ the window has no place at all.
    """
    total = _with_atoms(size, lambda atom: _settled_call(graph, atom) if isinstance(atom, Call) else sym(atom))
    for quotient in dict.fromkeys(a for monomial, _ in _terms(total) for a in monomial):
        found = _dividend(quotient)
        if found is None:
            continue
        a, b = found
        negative = floordiv(dim_max(0, a * -1), b)
        without = _with_atoms(total, partial(_replaced, quotient, floordiv(a, b) + negative))
        below = {atom for monomial, _ in _terms(negative) for atom in monomial}
        if below and not any(below & set(monomial) for monomial, _ in _terms(without)):
            graph.assume_equal(dim_max(0, a), a)
            total = without
    return total


def _replaced(old: Atom, new: Dim, atom: Atom) -> Dim:
    return new if atom == old else Expr({(atom,): 1})


def _with_atoms(size: Dim, become: Callable[[Atom], Dim]) -> Dim:
    """A size with its symbols and calls replaced."""
    total: Dim = 0
    for monomial, coefficient in _terms(size):
        total = total + product((coefficient, *map(become, monomial)))
    return total


def _terms(size: Dim) -> tuple[tuple[Monomial, int], ...]:
    return size.terms if isinstance(size, Expr) else (((), size),) if size else ()


def _settled_call(graph: Graph, call: Call) -> Dim:
    args = [settled(graph, a) for a in call.args]
    if call.op in ("max", "min"):
        return dim_max(*args) if call.op == "max" else dim_min(*args)
    return floordiv(*args) if call.op == "//" else mod(*args)


def _dividend(atom: object) -> tuple[Expr, int] | None:
    """(a, b) for max(0, a) // b, if a is below zero for the smallest sizes only."""
    if not isinstance(atom, Call) or atom.op != "//" or not isinstance(atom.args[1], int):
        return None
    largest = atom.args[0].terms if isinstance(atom.args[0], Expr) else ()
    inner = largest[0][0][0] if len(largest) == 1 and largest[0][1] == 1 and len(largest[0][0]) == 1 else None
    if not isinstance(inner, Call) or inner.op != "max" or len(inner.args) != 2 or 0 not in inner.args:
        return None
    a = inner.args[1 - inner.args.index(0)]
    if not isinstance(a, Expr) or not nonnegative(a - dict(a.terms).get((), 0)):
        return None
    return a, atom.args[1]
