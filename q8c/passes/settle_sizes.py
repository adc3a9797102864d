"""Give sizes of inputs that can only be one thing the form of that thing."""
from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.dims import Call, Dim, Expr, as_symbol, nonnegative, symbols
from q8c.ir.graph import Graph, Node
from q8c.ir.rename import rename
from q8c.passes.affine import affine
from q8c.passes.canonical.indexing import components
from q8c.passes.manager import Pass, Report
from q8c.passes.rules import attr


@dataclass(frozen=True)
class SettleSizes(Pass):
    """Replaces the size of an input's axis that has a name of its own, such as `total`, by `past + seq`.

    It must be that where the graph takes the two for equal, or where `past + seq` elements are read from the axis: the
    model says nothing about any more, and then an input that has more is refused. Positions and masks of a cache then
    have sizes that agree as they stand. So it is with integers of which as many are read as another input has on that
    axis: a mask whose batch and length have names of their own.
    """

    name: ClassVar[str] = "settle-sizes"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a size was replaced."""
        changed = False
        while True:
            found = next(wanted(graph), None)
            if found is None:
                return changed
            name, size = found
            for value in graph.inputs:
                if any(as_symbol(d) == name for d in value.shape) and value.users:
                    report.rewrote(value.users[0], f"{name} of %{value.name} is {size}")
            rename(graph, {name: size})
            changed = True


def wanted(graph: Graph) -> Iterator[tuple[str, Expr]]:
    """Names of sizes, and what each has to be."""
    taken = [(a, b) for pair in graph.assumptions for a, b in (pair, pair[::-1])]
    read = [pair for node in graph.nodes if node.op in ("gather", "gather_nd") for pair in read_to(node)]
    read += [(v.shape[0], n.output.shape[0]) for v in graph.inputs for n in v.users
             if n.op == "reshape" and v.type.rank == n.output.type.rank > 1]
    for pairs, by_reading in ((taken, False), (read, True)):
        for a, b in pairs:
            for name, size in solved(_capped(a, b) - b):
                fits = len(symbols(size)) > 1 or by_reading and is_twin(graph, name, size)
                if fits and is_free(graph, name, size):
                    yield name, size
    for (first, tokens), (other, new) in itertools.pairwise(pasts(graph)):
        own = as_symbol(other)
        if own is not None and isinstance(first, Expr) and tokens == new and is_free(graph, own, first):
            yield own, first


def pasts(graph: Graph) -> list[tuple[Dim, Dim]]:
    """Of every cache of keys or values, how many tokens are kept in an input, and how many are put behind them into an
    output."""
    ends = set(graph.outputs)
    return [(n.input(0).shape[2], n.input(1).shape[2]) for n in graph.nodes
            if n.op == "concat" and n.output in ends and n.output.type.rank == 4 and len(n.inputs) == 2
            and attr(n, "axis") in (2, -2) and n.input(0) in graph.inputs]


def solved(difference: Dim) -> list[tuple[str, Expr]]:
    """Names of sizes that are a sum of others if a difference is 0."""
    if isinstance(difference, int):
        return []
    pairs = [(as_symbol(Expr({m: c})), Expr({m: 1}) - difference) for m, c in difference.terms]
    return [(name, size) for name, size in pairs
            if name is not None and isinstance(size, Expr) and name not in symbols(size) and nonnegative(size)]


def _capped(a: Dim, b: Dim) -> Dim:
    """x where a is min(x, b), else a."""
    call = a.terms[0][0][0] if isinstance(a, Expr) and len(a.terms) == 1 and len(a.terms[0][0]) == 1 else None
    if isinstance(call, Call) and call.op == "min" and len(call.args) == 2 and b in call.args:
        return call.args[1 - call.args.index(b)]
    return a


def read_to(node: Node) -> list[tuple[Dim, Dim]]:
    """The sizes of the axes that a gather picks from, each with how far it reads, where that is known."""
    x, index = node.input(0), node.input(1)
    if node.op == "gather":
        axis, parts = attr(node, "axis") % x.type.rank, [affine(index)]
    else:
        axis, parts = attr(node, "batch_dims"), list(components(index) or [])
    ends = [None if part is None else part.high for part in parts]
    return [(size, end + 1) for size, end in zip(x.shape[axis:], ends, strict=False) if end is not None]


def is_free(graph: Graph, name: str, size: Expr) -> bool:
    """Whether a size follows from nothing but the input that has it, while `size` is made of such that others have."""
    plain = {as_symbol(d) for v in graph.inputs for d in v.shape} - {None, name}
    mixed = {s for v in graph.inputs for d in v.shape if as_symbol(d) is None for s in symbols(d)}
    return symbols(size) <= plain and name not in mixed and name not in graph.counts


def is_twin(graph: Graph, name: str, size: Expr) -> bool:
    """Whether only integers, such as a mask, have a size, on an axis on which another input has `size`."""
    mine = {(v, i) for v in graph.inputs for i, d in enumerate(v.shape) if as_symbol(d) == name}
    axes = {i for _, i in mine}
    others = [v for v in graph.inputs if all(v is not m for m, _ in mine)]
    return not any(v.dtype.is_float for v, _ in mine) and len(axes) == 1 and any(
        v.type.rank > i and v.shape[i] == size for v in others for i in axes)
