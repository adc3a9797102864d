"""How to say that two sizes must be equal."""
from __future__ import annotations

from q8c.ir.dims import Call, Dim


def relation(a: Dim, b: Dim) -> str:
    """An equation of two sizes, written as a bound where it is one: `seq <= 512` for `seq == min(512, seq)`."""
    for size, bounded in ((a, b), (b, a)):
        call = _call(bounded)
        if call is not None and call.op in ("min", "max") and len(call.args) == 2 and size in call.args:
            first, second = call.args
            return f"{size} {'<=' if call.op == 'min' else '>='} {second if size == first else first}"
    return f"{a} == {b}"


def _call(d: Dim) -> Call | None:
    """The operation, if a size is nothing else."""
    (factors, coefficient), *more = (((), 0),) if isinstance(d, int) else d.terms
    found = factors[0] if len(factors) == 1 and coefficient == 1 and not more else None
    return found if isinstance(found, Call) else None
