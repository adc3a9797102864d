"""Sizes in attributes and shapes, where tuples may stand within tuples."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from q8c.ir.dims import Dim, Expr, substitute, symbols


def sizes_in(value: object) -> Iterator[Expr]:
    """The symbolic sizes in a value, or in the values of nested sequences."""
    if isinstance(value, Expr):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for one in value:
            yield from sizes_in(one)


def names_in(*values: object) -> set[str]:
    """The names of all symbols in them."""
    return {name for size in sizes_in(values) for name in symbols(size)}


def substituted(value: Any, sizes: Mapping[str, Dim]) -> Any:
    """An attribute with sizes replaced by others."""
    if isinstance(value, tuple):
        return tuple(substituted(v, sizes) for v in value)
    return substitute(value, sizes) if isinstance(value, Expr) else value
