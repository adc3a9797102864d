"""Where ops that work row by row leave the axis of picked rows (`selection.py`)."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from q8c.ir.dims import product
from q8c.ir.graph import Node, Value
from q8c.ir.ops import OPS, attributes


@dataclass(frozen=True)
class Rows:
    """What a value with an axis of picked rows is for all rows: those of the axes `over` of the mask, in order."""

    pick: Node
    axis: int
    over: tuple[int, ...]
    value: Value


def axis_after(node: Node, given: dict[Value, Rows]) -> int | None:
    """Which axis of a node's result the rows are, None if it does not keep them apart."""
    if OPS[node.op].elementwise:
        rank = node.output.type.rank
        axes = {rows.axis + rank - v.type.rank for v, rows in given.items()}
        return axes.pop() if len(axes) == 1 else None
    rule = _RULES.get(node.op)
    return None if rule is None else rule(node, given)


def _matmul(node: Node, given: dict[Value, Rows]) -> int | None:
    x = node.input(0)
    if x not in given or node.input(1) in given or given[x].axis == x.type.rank - 1:
        return None
    return given[x].axis + node.output.type.rank - x.type.rank


def _transpose(node: Node, given: dict[Value, Rows]) -> int | None:
    return list(attributes(node)["perm"]).index(given[node.input(0)].axis)


def _reshape(node: Node, given: dict[Value, Rows]) -> int | None:
    x, axis, shape = node.input(0), given[node.input(0)].axis, node.output.shape
    before, size = product(x.shape[:axis]), x.shape[axis]
    return next((i for i, d in enumerate(shape) if d == size and product(shape[:i]) == before), None)


def _slice(node: Node, given: dict[Value, Rows]) -> int | None:
    x, axis, attrs = node.input(0), given[node.input(0)].axis, attributes(node)
    whole = attrs["starts"][axis] == 0 and attrs["sizes"][axis] == x.shape[axis] and attrs["steps"][axis] == 1
    return axis if whole else None


def _broadcast(node: Node, given: dict[Value, Rows]) -> int | None:
    return given[node.input(0)].axis + node.output.type.rank - node.input(0).type.rank


def _along(node: Node, given: dict[Value, Rows]) -> int | None:
    """Along other axes: softmax, reductions that keep them."""
    x, attrs = node.input(0), attributes(node)
    axes = {a % x.type.rank for a in attrs.get("axes", (attrs.get("axis", -1),))}
    return given[x].axis if x in given and given[x].axis not in axes and attrs.get("keepdims", True) else None


def _gather(node: Node, given: dict[Value, Rows]) -> int | None:
    x, where = node.input(0), node.input(1)
    axis = attributes(node)["axis"] % x.type.rank
    if x not in given:
        return int(axis) + given[where].axis
    if where in given or axis == given[x].axis:
        return None
    return given[x].axis + (where.type.rank - 1 if axis < given[x].axis else 0)


def _gather_nd(node: Node, given: dict[Value, Rows]) -> int | None:
    where = node.input(1)
    if node.input(0) in given or attributes(node)["batch_dims"] or given[where].axis == where.type.rank - 1:
        return None
    return given[where].axis


_Rule = Callable[[Node, dict[Value, Rows]], "int | None"]
_RULES: dict[str, _Rule] = {
    "matmul": _matmul, "transpose": _transpose, "reshape": _reshape, "slice": _slice, "broadcast_to": _broadcast,
    "gather": _gather, "gather_nd": _gather_nd,
    **dict.fromkeys(("softmax", "reduce_sum", "reduce_mean", "reduce_max", "reduce_min"), _along)}
