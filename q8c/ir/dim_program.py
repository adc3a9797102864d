"""Symbolic dimensions as the programs that the run time evaluates."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from q8c.ir.dims import Atom, Dim

Program: TypeAlias = "int | list[Any]"


def to_program(d: Dim, index: Mapping[str, int]) -> Program:
    """d as the nested-list program the run time evaluates; `index` numbers the symbols."""
    if isinstance(d, int):
        return d
    terms: list[Program] = []
    for monomial, coefficient in d.terms:
        factors = [_atom_program(a, index) for a in monomial]
        if coefficient != 1 or not factors:
            factors.insert(0, coefficient)
        terms.append(factors[0] if len(factors) == 1 else ["*", *factors])
    return terms[0] if len(terms) == 1 else ["+", *terms]


def _atom_program(atom: Atom, index: Mapping[str, int]) -> Program:
    if isinstance(atom, str):
        return ["$", index[atom]]
    return [atom.op, *(to_program(a, index) for a in atom.args)]
