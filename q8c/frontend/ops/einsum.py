"""Einsum as transposes and matrix products, one operand after the other."""
from __future__ import annotations

from collections.abc import Sequence

from q8c.frontend.ops.scatter import position
from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, from_size
from q8c.ir.dims import Dim, compare, product
from q8c.ir.types import DType

_DOTS = "0123456789"  # stand for the axes of an ellipsis, counted from the right


@importer("Einsum", since=12)
def einsum(c: Call) -> Tensor:
    """The sum of products the equation states, from left to right."""
    terms, result = _parse(c)
    single = [_diagonal(c, x, term) for x, term in zip(c.every(), terms, strict=True)]
    terms = [term for _, term in single]
    operands = [_summed(c, x, term, set(result).union(*terms[:i], *terms[i + 1:]))
                for i, (x, term) in enumerate(single)]
    sizes = {a: d for (x, _), term in zip(single, terms, strict=True) for a, d in zip(term, x.shape, strict=True)}
    x, term = operands[0]
    left = set(term)
    for i, (y, other) in enumerate(operands[1:], 2):
        left = set(term + other)  # what the last product has still to sum over
        later = set(result).union(*terms[i:])
        kept = result if i == len(operands) else "".join(a for a in dict.fromkeys(term + other) if a in later)
        x, term = _product(c, x, term, y, other, kept), kept
    x = c.builder.transpose(x, [term.index(a) for a in result])
    return _none_to_zero(c, x, [sizes[a] for a in sizes if a not in left]) if len(operands) > 1 else x


def _none_to_zero(c: Call, x: Tensor, sizes: Sequence[Dim]) -> Tensor:
    """The result, zero where an axis that was summed over before the last product is empty: a sum of no products is
    that whatever the other operands hold, but 0 times an infinity is no number."""
    size = product(sizes)
    if compare(size, 0) == 1:
        return x
    empty = c.emit("equal", from_size(size), c.scalar(0, DType.i64))
    return c.emit("where", empty, c.scalar(0, x), x)


def _diagonal(c: Call, x: Tensor, term: str) -> tuple[Tensor, str]:
    """The operand with each axis named once: of those named twice, the elements where their indices are equal."""
    for i, name in enumerate(term):
        j = term.find(name, i + 1)
        if j > 0:
            c.builder.same(x.shape[i], x.shape[j])
            equal = c.emit("equal", position(c, x.shape, i), position(c, x.shape, j))
            x = c.emit("reduce_sum", c.emit("where", equal, x, c.scalar(0, x)), axes=(j,), keepdims=False)
            return _diagonal(c, x, term[:j] + term[j + 1:])
    return x, term


def _parse(c: Call) -> tuple[list[str], str]:
    """The axes of each operand and of the result, an ellipsis as digits."""
    equation = c.attr_str("equation").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(c.inputs):
        c.fail(f"the equation {equation!r} has {len(terms)} operands, the node {len(c.inputs)}")
    ranks = [c.input(i).rank for i in range(len(terms))]
    hidden = [rank - len(t.replace("...", "")) if "..." in t else 0 for t, rank in zip(terms, ranks, strict=True)]
    if min(hidden) < 0 or max(hidden) > len(_DOTS):
        c.fail(f"the equation {equation!r} does not fit operands of rank {ranks}")
    spelled = [t.replace("...", _DOTS[len(_DOTS) - n:]) for t, n in zip(terms, hidden, strict=True)]
    letters = "".join(terms).replace("...", "")
    dots = _DOTS[len(_DOTS) - max(hidden):]
    if not arrow:
        result = "..." + "".join(sorted(a for a in set(letters) if letters.count(a) == 1))
    result = result.replace("...", dots)
    for term, rank in zip(spelled, ranks, strict=True):
        if len(term) != rank or any(not (a.isalpha() or a in dots) for a in term):
            c.fail(f"the equation {equation!r} does not fit operands of rank {ranks}")
    if len(set(result)) < len(result) or set(result) - set("".join(spelled)):
        c.fail(f"the equation {equation!r} has a wrong result")
    return spelled, result


def _summed(c: Call, x: Tensor, term: str, kept: set[str]) -> tuple[Tensor, str]:
    """The operand without the axes that nothing else names."""
    axes = tuple(i for i, a in enumerate(term) if a not in kept)
    if axes:
        x = c.emit("reduce_sum", x, axes=axes, keepdims=False)
    return x, "".join(a for a in term if a in kept)


def _product(c: Call, a: Tensor, left: str, b: Tensor, right: str, result: str) -> Tensor:
    """The sum of products of two operands. Weights are the second matrix, and of two that are computed the one whose
    axes come later in the result: so heads of keys that are named before those of queries are found all the same."""
    if _comes_first(a, left, b, right, result):
        a, left, b, right = b, right, a, left
    batch = [i for i in left if i in right and i in result]
    inner = [i for i in left if i in right and i not in result]
    rows = [i for i in left if i not in right]
    cols = [i for i in right if i not in left]
    sizes: dict[str, Dim] = {}
    for term, x in ((left, a), (right, b)):
        for name, d in zip(term, x.shape, strict=True):
            if sizes.get(name, 1) == 1:
                sizes[name] = d
    for name in inner:
        c.builder.same(a.shape[left.index(name)], b.shape[right.index(name)])

    def matrix(x: Tensor, term: str, groups: Sequence[Sequence[str]]) -> Tensor:
        moved = c.builder.transpose(x, [term.index(i) for group in groups for i in group])
        own = {i: x.shape[term.index(i)] for i in term}
        lead = [own[i] for i in groups[0]]
        return c.builder.reshape(moved, (*lead, *(product(own[i] for i in group) for group in groups[1:])))

    y = c.emit("matmul", matrix(a, left, (batch, rows, inner)), matrix(b, right, (batch, inner, cols)))
    order = [*batch, *rows, *cols]
    y = c.builder.reshape(y, [sizes[i] for i in order])
    return c.builder.transpose(y, [order.index(i) for i in result])


def _comes_first(a: Tensor, left: str, b: Tensor, right: str, result: str) -> bool:
    """Whether the first of two operands is better taken for the second one."""
    if (a.known is None) is not (b.known is None):
        return b.known is None
    rows, cols = ([result.index(i) for i in result if i in own and i not in other]
                  for own, other in ((left, right), (right, left)))
    return bool(rows and cols) and cols[0] < rows[0]
