"""The graph: SSA values with symbolic shapes, nodes with typed attributes, constants held aside by name."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from q8c.errors import CompileError
from q8c.ir.dims import Dim, Expr, symbols
from q8c.ir.types import DType, TensorType

Array = NDArray[Any]
_NEAR = 64  # nodes to either side of the last place, where the next one mostly is
Attr: TypeAlias = "bool | int | float | str | DType | Expr | tuple[Any, ...]"


@dataclass(eq=False)
class Value:
    """One SSA value: a graph input, a constant or a node's output.

    `users` lists the nodes that read it, once per operand; graph outputs are not in it. `slot` is the arena slot the
    memory plan gave it. Identity is equality.
    """

    name: str
    type: TensorType
    producer: Node | None = None
    users: list[Node] = field(default_factory=list)
    data: Array | None = None
    is_constant: bool = False
    slot: int | None = None

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The symbolic shape."""
        return self.type.shape

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.type.dtype

    def array(self) -> Array:
        """The constant's elements. Raises CompileError where the text named a constant whose data was not given."""
        if self.data is None:
            raise CompileError(f"constant %{self.name}: its data was not given; expected {self.type}; "
                               f"pass the file of constants beside the graph text")
        return self.data

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(eq=False)
class Node:
    """One operation. `source` names the nodes of the model it stands for; `body` is the region of a `loop`."""

    op: str
    inputs: list[Value | None]
    outputs: list[Value]
    attrs: dict[str, Attr] = field(default_factory=dict)
    source: tuple[str, ...] = ()
    body: Graph | None = None

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def input(self, index: int) -> Value:
        """Operand `index`, which must be present."""
        value = self.inputs[index]
        if value is None:
            raise CompileError(f"{self}: operand {index} is missing")
        return value

    @property
    def operands(self) -> Iterator[Value]:
        """The operands that are present."""
        return (v for v in self.inputs if v is not None)

    def __str__(self) -> str:
        where = f" ({self.source[0]})" if self.source else ""
        return f"{self.op} %{self.outputs[0].name}{where}" if self.outputs else f"{self.op}{where}"

    __repr__ = __str__


class Graph:
    """A list of nodes in topological order, with inputs, outputs and constants.

    `assumptions` holds pairs of sizes that were taken to be equal because the model only makes sense so; the run time
    checks them. `counts` holds sizes that follow from no shape: how many elements of an input are not 0, by the size's
    name. `stretches` holds the axes of inputs that may be given as 1, and are stretched then. `loose` names sizes that
    may be 1 where others are not, while it is found out what becomes of them; where two meet, the larger one results.
    """

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.outputs = ()
        self.output_names: list[str] = []
        self.nodes: list[Node] = []
        self.constants: dict[str, Value] = {}
        self.assumptions: list[tuple[Dim, Dim]] = []
        self.counts: dict[str, Value] = {}
        self.stretches: dict[Value, tuple[int, ...]] = {}
        self.loose: frozenset[str] = frozenset()
        self._names: dict[str, int] = {}
        self._found = 0

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What the graph returns; a value may be there several times."""
        return self._outputs

    @outputs.setter
    def outputs(self, values: Iterable[Value]) -> None:
        self._outputs = tuple(values)
        self._returned: frozenset[Value] | None = None  # made when it is asked for: outputs come one by one

    def is_output(self, value: Value) -> bool:
        """Whether the graph returns this value."""
        if self._returned is None:
            self._returned = frozenset(self._outputs)
        return value in self._returned

    def fresh_name(self, hint: str) -> str:
        """`hint` if no value has that name yet, else `hint_1`, `hint_2`, …"""
        if hint not in self._names:
            self._names[hint] = 0
            return hint
        while True:
            self._names[hint] += 1
            name = f"{hint}_{self._names[hint]}"
            if name not in self._names:
                self._names[name] = 0
                return name

    def add_input(self, name: str, type: TensorType) -> Value:
        """Append a graph input."""
        value = Value(self.fresh_name(name), type)
        self.inputs.append(value)
        return value

    def add_output(self, value: Value, name: str | None = None) -> None:
        """Append a graph output; `name` is what the user calls it (the value's own name if not given)."""
        self.outputs = (*self.outputs, value)
        self.output_names.append(value.name if name is None else name)

    def constant(self, data: Array | np.generic | float | int, name: str = "c", *,
                 type: TensorType | None = None) -> Value:
        """A new constant holding `data` (not copied); `type` may state a scalar's element type."""
        array = np.asarray(data, dtype=type.dtype.numpy if type else None)
        return self.declare_constant(name, type or TensorType(DType.of(array.dtype), array.shape), array)

    def declare_constant(self, name: str, type: TensorType, data: Array | None) -> Value:
        """A new constant of a stated type, with or without its elements."""
        if data is not None and (data.shape != type.shape or data.dtype != type.dtype.numpy):
            raise CompileError(f"constant %{name}: expected {type}, got {data.dtype}{list(data.shape)}")
        value = Value(self.fresh_name(name), type, data=data, is_constant=True)
        self.constants[value.name] = value
        return value

    def add(self, op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Attr] | None = None, *,
            name: str | None = None, source: tuple[str, ...] = (), before: Node | None = None,
            body: Graph | None = None) -> Node:
        """Append (or insert before a node) a node whose output types the op's own inference gives.

        Raises CompileError that names the op and operands where the types do not fit.
        """
        from q8c.ir.ops import infer  # the registry needs this module's types

        node = Node(op, list(inputs), [], dict(attrs or {}), source, body)
        types = infer(self, node)
        hints = [name or op] if len(types) == 1 else [f"{name or op}_{i}" for i in range(len(types))]
        node.outputs = [Value(self.fresh_name(hint), t, producer=node) for hint, t in zip(hints, types, strict=True)]
        self.insert(node, before)
        return node

    def insert(self, node: Node, before: Node | None = None) -> None:
        """Put a finished node into the list and register its uses."""
        self.nodes.insert(len(self.nodes) if before is None else self._find(before), node)
        for value in node.operands:
            value.users.append(node)

    def replace_uses(self, old: Value, new: Value) -> None:
        """Make every reader of `old`, graph outputs included, read `new`."""
        readers, old.users = old.users, []
        for node in dict.fromkeys(readers):
            node.inputs = [new if v is old else v for v in node.inputs]
        new.users.extend(readers)
        if self.is_output(old):
            self.outputs = [new if v is old else v for v in self.outputs]

    def set_inputs(self, node: Node, inputs: Sequence[Value | None]) -> None:
        """Give a node other operands, keeping uses right."""
        for value in node.operands:
            value.users.remove(node)
        node.inputs = list(inputs)
        for value in node.operands:
            value.users.append(node)

    def erase(self, node: Node) -> None:
        """Remove a node nobody reads. Raises CompileError if an output is still read."""
        for value in node.outputs:
            if value.users or self.is_output(value):
                raise CompileError(f"{node}: cannot be erased, %{value.name} is still read")
        del self.nodes[self._find(node)]
        for value in node.operands:
            value.users.remove(node)

    def _find(self, node: Node) -> int:
        """Where a node stands. Passes go from front to back, so it is looked for near the last one first."""
        try:
            self._found = self.nodes.index(node, max(self._found - _NEAR, 0), self._found + _NEAR)
        except ValueError:
            self._found = self.nodes.index(node)
        return self._found

    def prune(self) -> bool:
        """Remove nodes and constants nobody needs; whether anything went."""
        kept: list[Node] = []
        needed = {id(v) for v in self.outputs}
        for node in reversed(self.nodes):
            if any(id(v) in needed for v in node.outputs):
                kept.append(node)
                needed |= {id(v) for v in node.operands}
            else:
                for value in node.operands:
                    value.users.remove(node)
        constants = {n: v for n, v in self.constants.items() if id(v) in needed}
        changed = len(kept) != len(self.nodes) or len(constants) != len(self.constants)
        self.nodes = kept[::-1]
        self.constants = constants
        return changed

    def values(self) -> Iterator[Value]:
        """All values in order of definition: inputs, constants, node outputs."""
        yield from self.inputs
        yield from self.constants.values()
        for node in self.nodes:
            yield from node.outputs

    def symbols(self) -> list[str]:
        """The names of all symbolic sizes of the inputs' shapes, in order of first appearance."""
        found: dict[str, None] = {}
        for value in self.inputs:
            for d in value.shape:
                for name in sorted(symbols(d)):
                    found.setdefault(name)
        return list(found)

    def assume_equal(self, a: Dim, b: Dim) -> None:
        """Record that two sizes are equal, to be checked at run time."""
        if a != b and not self.known_equal(a, b):
            self.assumptions.append((a, b))

    def known_equal(self, a: Dim, b: Dim) -> bool:
        """Whether two sizes are equal as polynomials or by a recorded assumption."""
        return a == b or any({a, b} == {x, y} for x, y in self.assumptions)


def clone(graph: Graph, name: str | None = None) -> Graph:
    """A deep copy that shares only the constants' arrays."""
    copy = Graph(name or graph.name)
    mapping: dict[Value, Value] = {}
    for value in graph.values():
        mapping[value] = Value(value.name, value.type, data=value.data, is_constant=value.is_constant, slot=value.slot)
    copy.inputs = [mapping[v] for v in graph.inputs]
    copy.constants = {n: mapping[v] for n, v in graph.constants.items()}
    for node in graph.nodes:
        new = Node(node.op, [None if v is None else mapping[v] for v in node.inputs],
                   [mapping[v] for v in node.outputs], dict(node.attrs), node.source,
                   clone(node.body) if node.body else None)
        for value in new.outputs:
            value.producer = new
        if new.body:
            new.body.assumptions = copy.assumptions
        copy.insert(new)
    copy.outputs = [mapping[v] for v in graph.outputs]
    copy.output_names = list(graph.output_names)
    copy.assumptions.extend(graph.assumptions)
    copy.counts = {n: mapping[v] for n, v in graph.counts.items()}
    copy.stretches = {mapping[v]: axes for v, axes in graph.stretches.items()}
    copy._names = dict(graph._names)
    return copy


def view_root(value: Value) -> Value:
    """The value whose bytes this one is: a reshape moves nothing."""
    while value.producer is not None and value.producer.op == "reshape":
        value = value.producer.input(0)
    return value


def ancestors(value: Value | None) -> set[Value]:
    """The value and all values it is computed from."""
    found: set[Value] = set()
    todo = [] if value is None else [value]
    while todo:
        here = todo.pop()
        if here not in found:
            found.add(here)
            todo += [] if here.producer is None else here.producer.operands
    return found
