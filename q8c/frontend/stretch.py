"""Which axes of inputs may be given as 1 where others are n: those the model does nothing with but broadcast.

The standard decides when a model runs which sizes stretch; the graph has sizes that meet as equal. An input given with
an axis of 1 can still be run where stretching it first gives the same. To find such axes the model is imported once
more, with a size of its own for each: sizes that may be 1 are `loose`, and where two of them meet the result is the
larger one. Then it shows where the values that have such an axis go.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from q8c.ir.dims import Call, Dim, Expr, as_symbol, dim_max, dim_min, floordiv, loose_names, mod, product, sym, symbols
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.nested import sizes_in
from q8c.ir.ops import OPS, attributes
from q8c.ir.types import TensorType

Axis = tuple[int, int]
"""An input's number, and one of its axes."""
Names = frozenset[str]


def apart(types: Sequence[TensorType]) -> tuple[list[TensorType], dict[str, Axis]]:
    """The types with a name for each axis that varies, and the axis of each name that may be 1 where others are not.

    The first of the axes that share a name keeps it, and is taken to be as long as the others can be.
    """
    places = [(i, axis, d) for i, t in enumerate(types) for axis, d in enumerate(t.shape) if isinstance(d, Expr)]
    taken = {name for _, _, d in places for name in symbols(d)}
    sizes = [d for _, _, d in places]
    loose: dict[str, Axis] = {}
    shapes = [list(t.shape) for t in types]
    for number, (i, axis, d) in enumerate(places):
        name = as_symbol(d)
        if name is None or d in sizes[:number]:
            name = f"loose_{i}_{axis}"
            while name in taken:
                name += "_"
        elif d in sizes[number + 1:]:
            continue
        loose[name] = i, axis
        shapes[i][axis] = sym(name)
    return [t.with_shape(shape) for t, shape in zip(types, shapes, strict=True)], loose


def stretchable(graph: Graph) -> tuple[set[str], set[Names]]:
    """Names of loose sizes that may be 1 where the graph has them meet others, and sets of them of which never all may.

    For such sizes every value is what it would be with the input stretched, or that before it is stretched; outputs are
    the same.
    """
    firm: set[str] = set()
    while True:
        flow = _Flow(graph, frozenset(firm))
        flow.run()
        found = {name for names in flow.fixed if len(names) == 1 for name in names}
        if found <= firm:
            return set(graph.loose) - firm, {names for names in flow.fixed if not names & firm}
        firm |= found


def usable(graph: Graph, loose: Mapping[str, Axis], names: Iterable[str], sets: Iterable[Names]) -> set[Axis]:
    """The axes of a graph's inputs that may be 1 one by one.

    Of a set of which never all may be, one is left out, unless they are all there is to tell a size: that is 1 then.
    """
    left = set(names)
    for one in sorted(sets, key=sorted):
        size = [graph.inputs[i].shape[axis] for i, axis in map(loose.__getitem__, one)]
        telling = sum(bool(symbols(d) & symbols(size[0])) for v in graph.inputs for d in v.shape)
        if one <= left and (as_symbol(size[0]) is None or set(size) != {size[0]} or telling > len(one)):
            left.discard(min(one))
    return {loose[name] for name in left}


@dataclass
class _Flow:
    """One walk over a graph; `firm` are sizes that are loose no more. `fixed` are the sets of sizes that may not all be
    1 where others are not."""

    graph: Graph
    firm: Names
    fixed: set[Names] = field(default_factory=set)
    _known: dict[Dim, Names] = field(default_factory=dict)

    def run(self) -> None:
        """Fill `fixed`."""
        for node in self.graph.nodes:
            self._node(node)
        for pair in self.graph.assumptions:
            if self._settled(pair[0]) != self._settled(pair[1]):
                self._mentioned(pair)
        for value in self.graph.outputs:
            self.fixed.update(names for _, names in self._tags(value))

    def _node(self, node: Node) -> None:
        kept = set(_kept(node))
        for number, value in enumerate(node.inputs):
            for axis, names in [] if value is None else self._tags(value):
                if (number, axis) not in kept:
                    self.fixed.add(names)
        if node.op in _MOVED:
            came = {after for _, after in _MOVED[node.op](node)}
            self.fixed.update(names for axis, names in self._tags(node.output) if axis not in came)
        if node.op == "concat":
            self._alike(node)
        self._mentioned(tuple(sizes_in(v for k, v in node.attrs.items() if (node.op, k) not in _RESULT_SIZES)))
        for value in node.outputs:
            self._mentioned([d for d in value.shape if not self._names(d)])

    def _alike(self, node: Node) -> None:
        """What is put one behind the other has to be as long on other axes, all of it."""
        for sizes in zip(*(v.shape for v in node.operands), strict=True):
            if len(set(sizes)) > 1:
                self.fixed.update(names for d in sizes if (names := self._names(d)))

    def _mentioned(self, sizes: Sequence[Dim]) -> None:
        self.fixed.update(frozenset((name,)) for d in sizes for name in symbols(self._settled(d)) & self._loose)

    @property
    def _loose(self) -> Names:
        return self.graph.loose - self.firm

    def _tags(self, value: Value) -> Iterator[tuple[int, Names]]:
        """The axes that are 1 where all of these sizes are, and as long as others otherwise."""
        return ((axis, names) for axis, d in enumerate(value.shape) if (names := self._names(d)))

    def _names(self, d: Dim) -> Names:
        if d not in self._known:
            self._known[d] = loose_names(self._settled(d), self._loose)
        return self._known[d]

    def _settled(self, d: Dim) -> Dim:
        """d where the larger of a loose size and a firm one is the firm one."""
        if isinstance(d, int) or not self.firm & symbols(d):
            return d
        total: Dim = 0
        for monomial, coefficient in d.terms:
            total = total + product(sym(a) if isinstance(a, str) else self._settled_call(a) for a in monomial) \
                * coefficient
        return total

    def _settled_call(self, call: Call) -> Dim:
        args = [self._settled(a) for a in call.args]
        if call.op == "max":
            names = loose_names(Expr({(call,): 1}), self.graph.loose)
            return sym(min(names & self.firm)) if names & self.firm else dim_max(*args)
        return dim_min(*args) if call.op == "min" else floordiv(*args) if call.op == "//" else mod(*args)


def _kept(node: Node) -> Iterator[Axis]:
    """The (operand, axis) along which a node works on each element for itself, and whose size the result has."""
    if OPS[node.op].elementwise or node.op in ("broadcast_to", "copy"):
        yield from ((n, axis) for n, v in enumerate(node.inputs) if v is not None for axis in range(v.type.rank))
    elif node.op in _MOVED:
        yield from ((0, before) for before, _ in _MOVED[node.op](node))
    elif node.op in _RULES:
        yield from _RULES[node.op](node)


def _reshape(node: Node) -> Iterator[tuple[int, int]]:
    x, y = node.input(0).shape, node.output.shape
    return ((i, j) for i, d in enumerate(x) for j, e in enumerate(y) if d == e and product(x[:i]) == product(y[:j]))


def _slice(node: Node) -> Iterator[tuple[int, int]]:
    a, shape = attributes(node), node.input(0).shape
    return ((i, i) for i, d in enumerate(shape) if (a["starts"][i], a["sizes"][i], a["steps"][i]) == (0, d, 1))


def _concat(node: Node) -> Iterator[Axis]:
    rank = node.output.type.rank
    return ((n, i) for n in range(len(node.inputs)) for i in range(rank) if i != attributes(node)["axis"] % rank)


def _gather(node: Node) -> Iterator[Axis]:
    x, index = node.input(0).type.rank, node.input(1).type.rank
    yield from ((0, i) for i in range(x) if i != attributes(node)["axis"] % x)
    yield from ((1, i) for i in range(index))


def _matmul(node: Node) -> Iterator[Axis]:
    depth = {0: node.input(0).type.rank - 1, 1: node.input(1).type.rank - (1 if attributes(node)["transpose_b"] else 2)}
    return ((n, i) for n in (0, 1) for i in range(node.input(n).type.rank) if i != depth[n])


def _beside(node: Node) -> Iterator[Axis]:
    """Along other axes than those it goes along."""
    x, a = node.input(0).type.rank, attributes(node)
    along = {i % x for i in a.get("axes", (a.get("axis", -1),))}
    return ((0, i) for i in range(x) if i not in along)


_RESULT_SIZES = {("reshape", "shape"), ("broadcast_to", "shape"), ("slice", "sizes")}
_MOVED = {"reshape": _reshape, "slice": _slice}
"""(axis before, axis after) of those that stay as they are."""
_RULES: dict[str, Callable[[Node], Iterator[Axis]]] = {
    "transpose": lambda node: ((0, i) for i in range(node.output.type.rank)), "concat": _concat, "gather": _gather,
    "matmul": _matmul, "conv": lambda node: iter([(0, 0)]),
    **dict.fromkeys(("softmax", "layer_norm", "rms_norm", "cumsum", "cumprod", "reduce_sum", "reduce_mean",
                     "reduce_max", "reduce_min", "reduce_prod"), _beside)}
