"""ONNX protobuf to Graph: the loop over nodes, scopes of names, and what cannot be compiled."""
from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from q8c.errors import CompileError, Error, UnsupportedError
from q8c.frontend import ops  # noqa: F401  (registers the importers)
from q8c.frontend.builder import Builder
from q8c.frontend.choices import Choices, Decided, Undecided
from q8c.frontend.control import control_flow, is_control
from q8c.frontend.functions import Key, expand, function_key, has_body
from q8c.frontend.inputs import input_types, solve
from q8c.frontend.load import Model, opsets
from q8c.frontend.problems import Problems
from q8c.frontend.registry import Call, describe, find_importer, source_name
from q8c.frontend.scope import Absent, Scope
from q8c.frontend.selection import resolve_selections
from q8c.frontend.stretch import apart, stretchable, usable
from q8c.frontend.tensor import Found, Tensor, TensorList
from q8c.frontend.weights import WIDENED, border_type, compute_type, type_name
from q8c.ir.dims import dim_max, nonnegative, substitute
from q8c.ir.graph import Graph, Value
from q8c.ir.nested import names_in
from q8c.ir.types import TensorType

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("q8c.frontend")
MOST_WRITTEN = 100_000  # nodes that loops, branches and functions become; loops within loops have no end else
OLDEST_OPSET = 7  # since when operands broadcast as in numpy
_UNEXPECTED = (ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError, AssertionError,
               MemoryError, RecursionError)  # what a wrong model may cause in an importer that expects a right one


class GraphImporter:
    """Imports one model once, for given types of its inputs and what is decided of its Ifs."""

    def __init__(self, model: Model, types: Sequence[TensorType], decided: Decided | None,
                 loose: Iterable[str] = ()) -> None:
        self._model = model
        self._types = types
        self._graph = Graph(model.proto.graph.name or "model")
        self._graph.loose = frozenset(loose)
        self._builder = Builder(self._graph)
        self._choices = Choices(self._graph, decided)
        self._functions = {function_key(f): f for f in model.proto.functions}
        self._problems = Problems()
        self._written = 0

    def run(self) -> Graph:
        """The graph. Raises UnsupportedError that lists all that cannot be compiled, CompileError, or Undecided."""
        proto = self._model.proto.graph
        scope = Scope(self._model.opsets, self._model.weights)
        self._inputs(scope)
        self._nodes(proto.node, scope)
        for info in proto.output:
            self._output(info, scope)
        self._problems.check()
        resolve_selections(self._graph)
        for size in dict.fromkeys(d for value in self._graph.values() for d in value.shape):
            if not nonnegative(size):
                self._builder.same(dim_max(0, size), size)
        return self._graph

    def _inputs(self, scope: Scope) -> None:
        for info, type in zip(self._model.inputs(), self._types, strict=True):
            elem_type = info.type.tensor_type.elem_type
            what = f"input {info.name!r}"
            tensor = Tensor(type, value=self._graph.add_input(info.name, type))
            scope.names[info.name] = self._builder.cast(tensor, compute_type(elem_type, what))

    def _output(self, info: onnx.ValueInfoProto, scope: Scope) -> None:
        found = scope.find(info.name)
        if isinstance(found, Absent):
            if found.what is not None:
                raise UnsupportedError(f"the graph output {info.name!r} is {found.what}")
            return
        if isinstance(found, TensorList):
            raise UnsupportedError(f"the graph output {info.name!r} is a sequence; outputs are tensors")
        declared = info.type.tensor_type
        if declared.elem_type:
            what = f"output {info.name!r}"
            if found.dtype is not compute_type(declared.elem_type, what):
                raise CompileError(f"{what}: declared as {type_name(declared.elem_type)}, computed as {found.type}")
            found = self._builder.cast(found, border_type(declared.elem_type, what))
        if declared.HasField("shape") and len(declared.shape.dim) != found.rank:
            log.warning("output %r: declared with rank %d, computed as %s", info.name, len(declared.shape.dim),
                        found.type)
        self._graph.add_output(self._builder.value(found), info.name)

    def _nodes(self, nodes: Iterable[onnx.NodeProto], scope: Scope) -> None:
        for node in nodes:
            self._builder.source = scope.source or (source_name(node),)
            results = self._node(node, scope)
            for i, name in enumerate(node.output):
                if name:
                    found = results[i] if i < len(results) else None
                    what = None if not results else f"output {i} of {describe(node)}, which q8c does not compute"
                    scope.define(node, name, found or Absent(what))

    def _node(self, node: onnx.NodeProto, scope: Scope) -> Sequence[Found | None]:
        """The node's results; none if it cannot be compiled, which is noted, or if it reads what is not there."""
        opset = scope.opset(node)
        operands: list[Found | None] = []
        for name in node.input:
            found = scope.find(name) if name else None
            if isinstance(found, Absent):
                if found.what is not None:
                    self._problems.add(node, opset, f"reads {found.what}")
                return []
            operands.append(found)
        try:
            return self._compile(node, opset, operands, scope)
        except UnsupportedError as error:
            self._problems.add(node, opset, str(error), error.inputs)
            return []
        except Error:
            raise
        except OverflowError as error:  # of sizes, which says what it is
            raise CompileError(f"{describe(node)}: {error}") from error
        except _UNEXPECTED as error:
            raise CompileError(f"{describe(node)}: {type(error).__name__}: {' '.join(str(error).split())}") from error

    def _compile(self, node: onnx.NodeProto, opset: int, found: Sequence[Found | None],
                 scope: Scope) -> Sequence[Found | None]:
        operands = [t if isinstance(t, Tensor) else None for t in found]
        lists = {i: t for i, t in enumerate(found) if isinstance(t, TensorList)}
        importer = find_importer(node.domain, node.op_type, opset)
        if importer is not None and function_key(node) not in self._functions:
            made = importer(Call(node, opset, operands, self._builder, scope.weights, lists))
            return [made] if isinstance(made, (Tensor, TensorList)) else made
        if is_control(node):
            return control_flow(node, opset, found, scope, self._builder, self._choices, self._inside)
        body = expand(node, opset, found, self._functions)
        if body is None:
            raise UnsupportedError("")
        inner = scope.body(opsets(body.opset_import), self._builder.source)
        inner.names.update({f"i{i}": t for i, t in enumerate(found) if t is not None})
        outer, self._problems = self._problems, Problems()
        try:
            results = self._inside(body.nodes, [f"o{i}" if name else "" for i, name in enumerate(node.output)], inner)
            if self._problems:
                raise UnsupportedError(f"its definition by other ops needs {self._problems}", self._problems.inputs)
        finally:
            self._problems = outer
        return results

    def _inside(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], scope: Scope) -> list[Found | None]:
        """The named results of nodes in an inner scope. Raises CompileError where there are too many in all."""
        self._written += len(nodes) + 1
        if self._written > MOST_WRITTEN:
            raise CompileError(f"loops, branches and functions written out are more than {MOST_WRITTEN} nodes")
        note_unknown(nodes, scope, self._functions, self._problems)
        if self._problems:
            return []
        self._nodes(nodes, scope)
        found = [scope.find(name) if name else None for name in outputs]
        return [None if isinstance(t, Absent) else t for t in found]


def note_unknown(nodes: Iterable[onnx.NodeProto], scope: Scope, functions: Container[Key], problems: Problems) -> None:
    """Note every node of an op that nothing here imports; branches are looked into once they are taken."""
    for node in nodes:
        opset = scope.opset(node)
        if find_importer(node.domain, node.op_type, opset) is None and not is_control(node) \
                and function_key(node) not in functions and not has_body(node, opset):
            problems.add(node, opset)


def scan(model: Model) -> None:
    """Raise UnsupportedError that lists every node of an op that nothing here imports, or for an unknown opset."""
    from onnx.defs import onnx_opset_version

    opset, newest = model.opsets.get("", OLDEST_OPSET), onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UnsupportedError(f"the model is of opset {opset}, expected {OLDEST_OPSET} to {newest}; " + (
            "export it again with a newer opset" if opset < OLDEST_OPSET else "upgrade the onnx package"))
    problems = Problems()
    functions = {function_key(f) for f in model.proto.functions}
    note_unknown(model.proto.graph.node, Scope(model.opsets, model.weights), functions, problems)
    problems.check()


def import_graph(model: Model, decided: Decided | None = None) -> Graph:
    """The model's graph, for what is decided of its Ifs. Raises Undecided at the next one to decide, if any may be.

    Sizes that the model needs to be equal to a size of another input are stated so: where `mask` is declared as
    `[batch, total]` and `total` turns out to be `past + seq`, the input becomes `[batch, past + seq]`.
    """
    narrow = sum(type_name(elem_type) in WIDENED for _, elem_type, _ in model.weights.signatures())
    if narrow:
        log.info("%d weights are float16 or bfloat16; they are computed in f32", narrow)
    types = declared = input_types(model.inputs())
    while True:
        graph = GraphImporter(model, types, decided).run()
        solved = solve(graph)
        if not solved:
            graph.stretches = _stretches(model, decided, declared, graph)
            return graph
        types = [t.with_shape(substitute(d, solved) for d in t.shape) for t in types]


def _stretches(model: Model, decided: Decided | None, declared: Sequence[TensorType],
               graph: Graph) -> dict[Value, tuple[int, ...]]:
    """The axes of each of the graph's inputs that may be given as 1."""
    found = [v.type for v in graph.inputs]
    named = [names_in(t.shape) for t in found]
    types, loose = apart(declared)
    if found == declared and sum(map(len, named)) == len(set().union(*named)) or not loose:
        return {}  # no size is that of another input
    try:
        probe = GraphImporter(model, types, decided, loose).run()
    except (Error, Undecided, *_UNEXPECTED):
        return {}  # a model that must have the sizes it declares
    places = sorted(usable(graph, loose, *stretchable(probe)))
    return {value: axes for i, value in enumerate(graph.inputs) if (axes := tuple(a for n, a in places if n == i))}
