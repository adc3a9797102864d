"""The reference interpreter: runs any graph at any level in numpy. It is the oracle of passes and kernels."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from q8c.errors import Error, InputError
from q8c.ir.dims import Dim, Expr, as_symbol, evaluate, substitute, symbols
from q8c.ir.graph import Array, Graph, Node, Value
from q8c.ir.ops import attributes, definition_of
from q8c.ir.ops.registry import Reference
from q8c.ir.relation import relation
from q8c.ir.spill import release

Observe = Callable[[Value, Array], None]
Instead = Callable[[Node], Reference | None]
VALUE_LIMIT = 2**62
"""What compiled code computes of sizes is less, either way, too."""


def interpret(graph: Graph, feeds: Mapping[str, Any], keep: dict[str, Array] | None = None,
              observe: Observe | None = None, instead: Instead | None = None) -> list[Array]:
    """The graph's outputs for the given inputs (by name).

    If `keep` is given, every computed value is put into it by name; otherwise values are dropped after their last use.
    `observe` is called with every node's results as they come. `instead` may give a node another reference
    than its op's own. Raises InputError for feeds that do not fit, and sizes beyond 62 bits that follow from them.
    """
    arrays: dict[str, Array] = {}
    for value in graph.inputs:
        if value.name not in feeds:
            raise InputError(f"input {value.name!r} is missing; expected {value.type}")
        arrays[value.name] = np.asarray(feeds[value.name])
    try:
        arrays = stretched(graph, arrays)
        sizes = bind_sizes(graph, arrays)
        outputs = _run(graph, arrays, sizes, keep is None, observe, instead)
    except ZeroDivisionError as error:
        raise InputError(f"graph {graph.name}: the inputs' shapes make a size divide by zero: {error}") from error
    if keep is not None:
        keep.update(arrays)
    return outputs


def stretched(graph: Graph, arrays: dict[str, Array]) -> dict[str, Array]:
    """The inputs with axes of 1 as long as others say, where the graph says that they may be given as 1."""
    axes = [(v, axis) for v in graph.inputs if arrays[v.name].ndim == v.type.rank for axis in range(v.type.rank)]
    ones = [(v, axis) for v, axis in axes if axis in graph.stretches.get(v, ()) and arrays[v.name].shape[axis] == 1]
    if not ones:
        return arrays
    sizes: dict[str, int] = {}
    told = [(v.shape[axis], arrays[v.name].shape[axis]) for v, axis in axes if (v, axis) not in ones]
    for d, actual in told:
        if (name := as_symbol(d)) is not None:
            sizes.setdefault(name, actual)
    for d, actual in told:
        _solve(d, actual, sizes)
    found = dict(arrays)
    for value, axis in ones:
        d, array = value.shape[axis], found[value.name]
        if symbols(d) <= sizes.keys() and evaluate(d, sizes) > 1:
            shape = (*array.shape[:axis], evaluate(d, sizes), *array.shape[axis + 1:])
            found[value.name] = np.broadcast_to(array, shape)
    return found


def bind_sizes(graph: Graph, arrays: Mapping[str, Array]) -> dict[str, int]:
    """The value of every symbol, solved from the shapes of the inputs or counted in them; checks types, shapes and
    assumptions."""
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        array = arrays[value.name]
        if array.dtype != value.dtype.numpy or array.ndim != value.type.rank:
            raise InputError(f"input {value.name!r}: expected {value.type}, got {array.dtype}{list(array.shape)}")
        for d, actual in zip(value.shape, array.shape, strict=True):
            name = as_symbol(d)
            if name is not None:
                sizes.setdefault(name, actual)
    for value in graph.inputs:
        for d, actual in zip(value.shape, arrays[value.name].shape, strict=True):
            _solve(d, actual, sizes)
            unknown = sorted(symbols(d) - set(sizes))
            if unknown:
                raise InputError(f"input {value.name!r}: {unknown[0]} in {value.type} does not follow from the shapes")
            if evaluate(d, sizes) != actual:
                raise InputError(f"input {value.name!r}: expected {value.type}, got {list(arrays[value.name].shape)}; "
                                 f"{d} is {evaluate(d, sizes)}")
    for name, value in graph.counts.items():
        sizes[name] = int(np.count_nonzero(arrays[value.name]))
    for a, b in graph.assumptions:
        if evaluate(a, sizes) != evaluate(b, sizes):
            given = ", ".join(f"{name} = {sizes[name]}" for name in sorted(symbols(a) | symbols(b)))
            raise InputError(f"the model needs {relation(a, b)}, which {given or 'no size'} does not give")
    return sizes


def _solve(d: Dim, actual: int, sizes: dict[str, int]) -> None:
    """Find the one unknown of a linear size such as `past + seq`."""
    rest = substitute(d, sizes)
    if isinstance(rest, Expr) and len(rest.terms) <= 2:
        monomial, factor = rest.terms[0]
        offset = rest.terms[1][1] if len(rest.terms) == 2 else 0
        if len(monomial) == 1 and isinstance(monomial[0], str) and (len(rest.terms) == 1 or not rest.terms[1][0]):
            sizes[monomial[0]] = (actual - offset) // factor


def _run(graph: Graph, arrays: dict[str, Array], sizes: Mapping[str, int], drop: bool = False,
         observe: Observe | None = None, instead: Instead | None = None) -> list[Array]:
    last = {v: node for node in graph.nodes for v in node.operands} if drop else {}
    for name, value in graph.constants.items():
        arrays[name] = value.array()
    for node in graph.nodes:
        args = [None if v is None else arrays[v.name] for v in node.inputs]
        for value, result in zip(node.outputs, run_node(node, args, sizes, instead), strict=True):
            _check(node, value, result, sizes)
            arrays[value.name] = result
            if observe is not None:
                observe(value, result)
        for operand in set(node.operands):
            if operand.is_constant:
                release(operand.array())
            if last.get(operand) is node and not graph.is_output(operand):
                del arrays[operand.name]
    return [arrays[v.name] for v in graph.outputs]


def run_node(node: Node, args: list[Array | None], sizes: Mapping[str, int],
             instead: Instead | None = None) -> list[Array]:
    """One node's outputs for the given operands."""
    if node.body is not None:
        inner = {v.name: a for v, a in zip(node.body.inputs, args, strict=True) if a is not None}
        return _run(node.body, inner, sizes, instead=instead)
    try:
        reference = (instead(node) if instead else None) or definition_of(node).reference
        return list(reference(args, {k: _resolve(v, sizes) for k, v in attributes(node).items()}))
    except (ValueError, IndexError, TypeError) as error:
        raise Error(f"{node}: the reference failed: {error}") from error


def _resolve(value: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(value, tuple):
        return tuple(_resolve(v, sizes) for v in value)
    if not isinstance(value, Expr):
        return value
    size = evaluate(value, sizes)
    if not -VALUE_LIMIT < size < VALUE_LIMIT:
        raise InputError("a size computed from the input shapes is too large")
    return size


def _check(node: Node, value: Value, result: Array, sizes: Mapping[str, int]) -> None:
    expected = tuple(evaluate(d, sizes) for d in value.shape)
    if result.dtype != value.dtype.numpy or result.shape != expected:
        raise Error(f"{node}: %{value.name} is {value.type}, {expected} here, but the reference gave "
                    f"{result.dtype}{list(result.shape)}")
