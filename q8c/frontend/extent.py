"""How many elements a slice or range has, in sizes."""
from __future__ import annotations

from q8c.ir.dims import SIZE_LIMIT, Call, Dim, Expr, dim_max, dim_min, floordiv, nonnegative
from q8c.ir.piecewise import shortened


def difference(a: Dim, b: Dim) -> Dim:
    """a - b with the minimum or maximum outermost, so that `seq - min(seq, 5)` becomes `max(0, seq - 5)`."""
    for size, sign in ((b, -1), (a, 1)):
        call = _extreme(size)
        if call is not None:
            parts = [difference(x, b) if sign > 0 else difference(a, x) for x in call.args]
            largest = (call.op == "max") == (sign > 0)
            return dim_max(*parts) if largest else dim_min(*parts)
    return a - b


def ceil_div(a: Dim, b: int) -> Dim:
    """a / b rounded up."""
    return a if b == 1 else floordiv(a + (b - 1), b)


def slice_extent(size: Dim, start: Dim, end: Dim, step: int) -> tuple[Dim, Dim]:
    """The first index and the number of elements of ONNX's `start:end:step` on an axis of a size."""
    first, last = _place(start, size), _place(end, size)
    if step > 0:
        first, last = _clamp(first, size), _clamp(last, size)
        return shortened(first), ceil_div(shortened(dim_max(0, difference(last, first))), step)
    first = dim_min(dim_max(first, 0), size - 1)
    last = dim_min(dim_max(last, -1), size - 1)
    start = first if first == size - 1 else shortened(dim_max(0, first))  # of an axis without elements nothing is read
    return start, ceil_div(shortened(dim_max(0, difference(first, last))), -step)


def _place(index: Dim, size: Dim) -> Dim:
    """index from the first element on; -1 or the size for what is outside of every axis."""
    if isinstance(index, int) and abs(index) >= SIZE_LIMIT:
        return size if index > 0 else -1
    return from_end(index, size)


def from_end(index: Dim, size: Dim) -> Dim:
    """index, or index + size where it is negative."""
    if nonnegative(index):
        return index
    if nonnegative(-1 - index):
        return index + size
    return index + size * dim_min(1, dim_max(0, index * -1))


def _clamp(index: Dim, size: Dim) -> Dim:
    return dim_max(0, dim_min(index, size))


def _extreme(d: Dim) -> Call | None:
    if isinstance(d, Expr) and len(d.terms) == 1:
        monomial, coefficient = d.terms[0]
        if coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], Call) \
                and monomial[0].op in ("max", "min"):
            return monomial[0]
    return None
