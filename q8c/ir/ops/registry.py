"""What an op is: operands, attributes, type inference and a numpy reference, each stated once.

An op is defined by registering an `OpDef`; the families stand in the files beside this one. `infer` is called with an
`Operands`, which carries the operand types, the attributes with defaults filled in, and the helpers that decide whether
two sizes are equal.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn

from q8c.errors import CompileError
from q8c.ir.dims import Dim, Expr, dim_max, loose_names
from q8c.ir.graph import Array, Attr, Graph, Node
from q8c.ir.types import DType, TensorType

REQUIRED: Any = object()


class Level(Enum):
    """Where in the pipeline an op appears: as imported, after quantization, or fused for a kernel."""

    tensor = 1
    quantized = 2
    fused = 3


@dataclass(frozen=True)
class AttrSpec:
    """An attribute's kind (`bool int float str dtype dim ints floats strs dims`) and default."""

    kind: str
    default: Any = REQUIRED


@dataclass(frozen=True)
class Operands:
    """What an inference function sees of a node."""

    graph: Graph
    node: Node
    types: tuple[TensorType | None, ...]
    attrs: Mapping[str, Any]

    def type(self, index: int) -> TensorType:
        """The type of operand `index`, which must be present."""
        found = self.types[index]
        if found is None:
            self.fail(f"operand {index} is missing")
        return found

    def fail(self, problem: str) -> NoReturn:
        """Raise the CompileError that names the node and its operands."""
        got = ", ".join("-" if t is None else str(t) for t in self.types)
        raise CompileError(f"{self.node}: {problem}; got operands ({got})")

    def same(self, a: Dim, b: Dim) -> Dim:
        """Either size, which must be equal.

        Two different integers are an error. Sizes that may be equal at run time are recorded as an assumption of the
        graph, which the run time checks; the plainer of the two is returned.
        """
        if a == b:
            return a
        if isinstance(a, int) and isinstance(b, int):
            self.fail(f"sizes {a} and {b} do not match")
        self.graph.assume_equal(a, b)
        return min((a, b), key=lambda d: (not isinstance(d, int), len(str(d)), str(d)))

    def broadcast(self, *shapes: Sequence[Dim]) -> tuple[Dim, ...]:
        """The numpy-style broadcast of symbolic shapes; only a literal 1 stretches, and what the graph names loose."""
        rank = max(map(len, shapes), default=0)
        result: list[Dim] = []
        for axis in range(-rank, 0):
            size: Dim = 1
            for shape in shapes:
                if len(shape) >= -axis and shape[axis] != 1:
                    size = shape[axis] if size == 1 else self._met(size, shape[axis])
            result.append(size)
        return tuple(result)

    def _met(self, a: Dim, b: Dim) -> Dim:
        """What two sizes stretch to, neither of them a literal 1."""
        loose = [bool(loose_names(d, self.graph.loose)) for d in (a, b)]
        if all(loose):
            return dim_max(a, b)
        return (b if loose[0] else a) if any(loose) else self.same(a, b)

    def expect(self, condition: bool, problem: str) -> None:
        """Fail with `problem` unless the condition holds."""
        if not condition:
            self.fail(problem)


Infer = Callable[[Operands], Sequence[TensorType]]
Reference = Callable[[Sequence[Any], Mapping[str, Any]], Sequence[Array]]


@dataclass(frozen=True)
class OpDef:
    """One op: `operands` names them in order, with `?` for optional ones and `*` before a last one that repeats.

    `reference(arrays, attrs)` gets sizes in attributes as integers and returns one array per output.
    """

    name: str
    operands: str
    infer: Infer
    reference: Reference
    attrs: Mapping[str, AttrSpec] = field(default_factory=dict)
    level: Level = Level.tensor
    elementwise: bool = False
    has_body: bool = False
    doc: str = ""

    def arity(self) -> tuple[int, int | None]:
        """The least and the greatest number of operands (None: no limit)."""
        names = self.operands.split()
        least = sum(not n.endswith("?") and not n.startswith("*") for n in names)
        return least, None if names and names[-1].startswith("*") else len(names)


OPS: dict[str, OpDef] = {}


def register(definition: OpDef) -> None:
    """Add an op. Raises ValueError if the name is taken."""
    if definition.name in OPS:
        raise ValueError(f"op {definition.name} is registered twice")
    OPS[definition.name] = definition


def definition_of(node: Node) -> OpDef:
    """The definition of a node's op. Raises CompileError if there is none."""
    found = OPS.get(node.op)
    if found is None:
        raise CompileError(f"{node}: there is no op of this name")
    return found


def attributes(node: Node) -> dict[str, Any]:
    """A node's attributes with defaults filled in; each must be of its kind. Raises CompileError otherwise."""
    specs = definition_of(node).attrs
    for name in node.attrs:
        if name not in specs:
            raise CompileError(f"{node}: no attribute {name!r}; expected {', '.join(specs) or 'none'}")
    filled: dict[str, Any] = {}
    for name, spec in specs.items():
        value = node.attrs.get(name, spec.default)
        if value is REQUIRED:
            raise CompileError(f"{node}: attribute {name!r} is missing")
        if not _is_kind(value, spec.kind):
            raise CompileError(f"{node}: attribute {name} expected {spec.kind}, got {value!r}")
        filled[name] = value
    return filled


def infer(graph: Graph, node: Node) -> Sequence[TensorType]:
    """The types of a node's outputs. Raises CompileError where operands or attributes do not fit."""
    definition = definition_of(node)
    least, most = definition.arity()
    present = len(node.inputs)
    if present < least or (most is not None and present > most) or None in node.inputs[:least]:
        raise CompileError(f"{node}: expected operands ({definition.operands}), got {present}")
    if definition.has_body != (node.body is not None):
        raise CompileError(f"{node}: {'needs' if definition.has_body else 'takes no'} body")
    types: list[TensorType | None] = [None if v is None else v.type for v in node.inputs]
    if most is not None:
        types += [None] * (most - present)
    return definition.infer(Operands(graph, node, tuple(types), attributes(node)))


def _is_kind(value: Attr, kind: str) -> bool:
    if kind.endswith("s") and kind != "s":
        return isinstance(value, tuple) and all(_is_kind(v, kind[:-1]) for v in value)
    if kind == "int":
        return type(value) is int
    if kind == "float":
        return type(value) is float
    if kind == "dim":
        return type(value) is int or isinstance(value, Expr)
    return isinstance(value, {"bool": bool, "str": str, "dtype": DType}[kind])
