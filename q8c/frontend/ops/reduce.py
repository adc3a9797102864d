"""Reductions in all forms, norms of vectors, ArgMax and ArgMin."""
from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from q8c.frontend.ops.shape import axes_of
from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, from_size
from q8c.ir.types import DType

Reduce: TypeAlias = Callable[[str, Tensor], Tensor]


def _reduction(c: Call) -> Reduce | None:
    """Reduces over the node's axes, or None where an empty list of axes asks for nothing to be done."""
    x = c.input(0)
    given = axes_of(c)
    if not given and c.attr_int("noop_with_empty_axes", 0):
        return None
    axes = tuple(c.axes(given, x.rank)) if given else tuple(range(x.rank))
    keep = bool(c.attr_int("keepdims", 1))
    return lambda op, t: c.emit(op, t, axes=axes, keepdims=keep)


@importer("ReduceSum", "ReduceMean", "ReduceProd")
def reduce(c: Call) -> Tensor:
    """Sum, mean or product over axes."""
    op = {"ReduceSum": "reduce_sum", "ReduceMean": "reduce_mean", "ReduceProd": "reduce_prod"}[c.op]
    run = _reduction(c)
    return c.input(0) if run is None else run(op, c.input(0))


@importer("ReduceMax", "ReduceMin")
def reduce_extreme(c: Call) -> Tensor:
    """Largest or smallest over axes; bools as numbers."""
    x, run = c.input(0), _reduction(c)
    if run is None:
        return x
    op = "reduce_max" if c.op == "ReduceMax" else "reduce_min"
    if x.dtype is DType.bool:
        return c.builder.cast(run(op, c.builder.cast(x, DType.u8)), DType.bool)
    return run(op, x)


@importer("ReduceSumSquare", "ReduceL2", "ReduceL1", "ReduceLogSum", "ReduceLogSumExp")
def reduce_composed(c: Call) -> Tensor:
    """Reductions that are an elementwise op before or after a sum."""
    x, run = c.input(0), _reduction(c)

    def total(t: Tensor) -> Tensor:
        return t if run is None else run("reduce_sum", t)

    if c.op == "ReduceL1":
        return total(c.emit("abs", x))
    if c.op == "ReduceSumSquare":
        return total(c.emit("mul", x, x))
    if c.op == "ReduceL2":
        wide = x if x.dtype.is_float else c.builder.cast(x, DType.f64)
        return c.builder.cast(c.emit("sqrt", total(c.emit("mul", wide, wide))), x.dtype)
    wide = x if x.dtype.is_float else c.builder.cast(x, DType.f64)
    if c.op == "ReduceLogSum":
        return c.builder.cast(c.emit("log", total(wide)), x.dtype)
    return c.builder.cast(_log_sum_exp(c, wide, run), x.dtype)


def _log_sum_exp(c: Call, x: Tensor, run: Reduce | None) -> Tensor:
    """log(sum(exp(x - max))) + max, the max taken as 0 where it is not finite."""
    if run is None:
        return x
    axes = axes_of(c) or list(range(x.rank))
    top = c.emit("reduce_max", x, axes=tuple(c.axes(axes, x.rank)), keepdims=True)
    finite = c.emit("less", c.emit("abs", top), c.scalar(float("inf"), x))
    top = c.emit("where", finite, top, c.scalar(0, x))
    log = c.emit("log", run("reduce_sum", c.emit("exp", c.emit("sub", x, top))))
    return c.emit("add", log, c.builder.reshape(top, log.shape))


@importer("LpNormalization")
def lp_normalization(c: Call) -> Tensor:
    """x divided by its norm along an axis; 0 where the norm is 0."""
    x = c.input(0)
    p, axes = c.attr_int("p", 2), (c.axis(c.attr_int("axis", -1), x.rank),)
    if p not in (1, 2):
        c.fail(f"p is {p}, expected 1 or 2")
    parts = c.emit("abs", x) if p == 1 else c.emit("mul", x, x)
    norm = c.emit("reduce_sum", parts, axes=axes, keepdims=True)
    norm = norm if p == 1 else c.emit("sqrt", norm)
    zero = c.emit("equal", norm, c.scalar(0, x))
    return c.emit("where", zero, c.scalar(0, x), c.emit("div", x, norm))


@importer("ArgMax", "ArgMin")
def arg_extreme(c: Call) -> Tensor:
    """The index of the first (or last) largest or smallest element along an axis."""
    x = c.input(0)
    axis, keep = c.axis(c.attr_int("axis", 0), x.rank), bool(c.attr_int("keepdims", 1))
    op = c.op.lower()
    if not c.attr_int("select_last_index", 0):
        return c.emit(op, x, axes=(axis,), keepdims=keep)
    size = x.shape[axis]
    found = c.emit(op, c.builder.slice_axis(x, axis, size - 1, size, -1), axes=(axis,), keepdims=keep)
    return c.emit("sub", from_size(size - 1), found)
