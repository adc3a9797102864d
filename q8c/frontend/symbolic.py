"""IR ops on arrays of sizes: what a reference is to numbers, these are to symbolic sizes.

An op that is not here, or whose result is not the same for all sizes, gives None: the importer then emits the op.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from q8c.frontend.truncated import truncated
from q8c.ir.dims import Dim, compare, dim_max, dim_min, floordiv, mod, nonnegative
from q8c.ir.graph import Array
from q8c.ir.ops import OPS
from q8c.ir.types import DType

SYMBOLIC_LIMIT = 64  # elements; shapes and index vectors are far smaller
Function = Callable[[Sequence[Array], Mapping[str, Any]], Array]


class Unresolved(Exception):
    """The result depends on the sizes in a way that no size expression holds."""


def evaluate_symbolic(op: str, args: Sequence[Array], attrs: Mapping[str, Any], is_float: bool) -> Array | None:
    """The elements of op's result as objects, or None where they cannot be told; `is_float`: of the first operand."""
    function = (_FLOAT_FUNCTIONS if is_float else _FUNCTIONS).get(op)
    if function is None or any(a.size > SYMBOLIC_LIMIT for a in args):
        return None
    try:
        result = np.asarray(function([_as_elements(a) for a in args], attrs), dtype=object)
    except (Unresolved, ZeroDivisionError):
        return None
    return result


def _as_elements(array: Array) -> Array:
    """The array as Python ints, bools and Exprs; fractions are not sizes."""
    if array.dtype == object:
        return array
    if array.dtype.kind == "f":
        if not np.all(np.isfinite(array)) or np.any(array != np.trunc(array)):
            raise Unresolved
        return np.array([int(x) for x in array.flat] or [], dtype=object).reshape(array.shape)
    return array.astype(object)


def quotient(a: Dim, b: Dim) -> Dim:
    """a / b truncated towards zero, for a divisor whose sign is known."""
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    found = floordiv(a, b)
    if found * b == a or (nonnegative(a) and nonnegative(b)):
        return found
    if isinstance(b, int) and b > 0:
        return truncated(a, b)
    raise Unresolved


def _exact_quotient(a: Dim, b: Dim) -> Dim:
    found = floordiv(a, b)
    if found * b != a:
        raise Unresolved
    return found


def _remainder(a: Dim, b: Dim, truncate: bool) -> Dim:
    if truncate and not (nonnegative(a) and nonnegative(b)):
        raise Unresolved
    return mod(a, b)


def _power(a: Dim, b: Dim) -> Dim:
    if not isinstance(b, int) or not 0 <= b <= 4:
        raise Unresolved
    result: Dim = 1
    for _ in range(b):
        result = result * a
    return result


def sign_of(a: Dim, b: Dim) -> int:
    """The sign of a - b. Raises Unresolved where it depends on the sizes."""
    sign = compare(a, b)
    if sign is None:
        raise Unresolved
    return sign


def _positive(d: Dim) -> bool:
    if nonnegative(d - 1):
        return True
    if nonnegative(d * -1):
        return False
    raise Unresolved


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return bool(a == b)
    return a == b or sign_of(a, b) == 0


def _absolute(a: Dim) -> Dim:
    if nonnegative(a):
        return a
    if nonnegative(a * -1):
        return a * -1
    raise Unresolved


def _cast(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    if attrs["to"] is DType.bool:
        return _map(lambda a: sign_of(a, 0) != 0, args[0])
    return args[0]


def _map(function: Callable[..., Any], *args: Array) -> Array:
    found = np.frompyfunc(function, len(args), 1)(*args)
    return np.asarray(found, dtype=object)


def _elementwise(function: Callable[..., Any]) -> Function:
    return lambda args, attrs: _map(function, *args)


def _moved(op: str) -> Function:
    return lambda args, attrs: OPS[op].reference(args, attrs)[0]


def _gathered(op: str) -> Function:
    def gather(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
        if any(not isinstance(i, int) for i in args[1].flat):
            raise Unresolved
        return OPS[op].reference([args[0], args[1].astype(np.int64)], attrs)[0]
    return gather


def _reduced(function: Callable[..., Any]) -> Function:
    def reduce(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
        axes = tuple(a % args[0].ndim for a in attrs["axes"])
        kept = [i for i in range(args[0].ndim) if i not in axes]
        lead = [args[0].shape[i] for i in kept]
        rows = args[0].transpose(kept + list(axes)).reshape(int(np.prod(lead, dtype=int)), -1)
        found = np.empty(len(rows), dtype=object)
        for i, row in enumerate(rows):
            found[i] = function(row)
        shape = [1 if i in axes else d for i, d in enumerate(args[0].shape)] if attrs["keepdims"] else lead
        return found.reshape(shape)
    return reduce


def _fold(function: Callable[[Dim, Dim], Dim], start: int | None) -> Callable[[Array], Dim]:
    def fold(row: Array) -> Dim:
        if start is None and not len(row):
            raise Unresolved
        result: Dim = row[0] if start is None else start
        for element in row:
            result = function(result, element)
        return result
    return fold


def _cumsum(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    if attrs["exclusive"] or attrs["reverse"]:
        raise Unresolved
    return np.asarray(np.cumsum(args[0], axis=attrs["axis"]), dtype=object)


_FUNCTIONS: dict[str, Function] = {
    "add": _elementwise(lambda a, b: a + b), "sub": _elementwise(lambda a, b: a - b),
    "mul": _elementwise(lambda a, b: a * b), "div": _elementwise(quotient), "pow": _elementwise(_power),
    "mod": lambda args, attrs: _map(lambda a, b: _remainder(a, b, attrs["truncate"]), *args),
    "neg": _elementwise(lambda a: a * -1), "abs": _elementwise(_absolute),
    "sign": _elementwise(lambda a: sign_of(a, 0)), "relu": _elementwise(lambda a: dim_max(0, a)),
    "min": _elementwise(dim_min), "max": _elementwise(dim_max),
    "floor": _elementwise(lambda a: a), "ceil": _elementwise(lambda a: a), "round": _elementwise(lambda a: a),
    "equal": _elementwise(_equal),
    "less": _elementwise(lambda a, b: _positive(b - a)), "greater": _elementwise(lambda a, b: _positive(a - b)),
    "less_equal": _elementwise(lambda a, b: _positive(b - a + 1)),
    "greater_equal": _elementwise(lambda a, b: _positive(a - b + 1)),
    "where": lambda args, attrs: np.where(args[0].astype(bool), args[1], args[2]),
    "cast": _cast, "cumsum": _cumsum,
    "reduce_sum": _reduced(_fold(lambda a, b: a + b, 0)), "reduce_prod": _reduced(_fold(lambda a, b: a * b, 1)),
    "reduce_max": _reduced(_fold(dim_max, None)), "reduce_min": _reduced(_fold(dim_min, None)),
    **{op: _moved(op) for op in ("reshape", "transpose", "broadcast_to", "slice", "concat")},
    **{op: _gathered(op) for op in ("gather", "gather_nd")}}
_FLOAT_FUNCTIONS = {**_FUNCTIONS, "div": _elementwise(_exact_quotient)}
