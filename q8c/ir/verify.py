"""The verifier: a graph that passes is well formed and every type is what its op infers."""
from __future__ import annotations

from q8c.errors import CompileError
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops import infer
from q8c.ir.types import TensorType


def verify(graph: Graph) -> None:
    """Raise CompileError that names the first thing wrong with the graph; return nothing if all is well."""
    if len(graph.outputs) != len(graph.output_names):
        raise CompileError(f"graph {graph.name}: {len(graph.outputs)} outputs but {len(graph.output_names)} names")
    defined: set[Value] = set()
    names: set[str] = set()
    for value in [*graph.inputs, *graph.constants.values()]:
        _define(value, defined, names)
    for name, value in graph.constants.items():
        if name != value.name or not value.is_constant:
            raise CompileError(f"constant {value!r} is kept under the name {name!r}")
    reads: dict[Value, int] = {}
    for node in graph.nodes:
        for value in node.operands:
            if value not in defined:
                raise CompileError(f"{node}: reads {value!r} before it is defined")
            reads[value] = reads.get(value, 0) + 1
        check_results(graph, node)
        if node.body is not None:
            verify(node.body)
        for value in node.outputs:
            if value.producer is not node:
                raise CompileError(f"{node}: {value!r} does not name it as its producer")
            _define(value, defined, names)
    for value in defined:
        if len(value.users) != reads.get(value, 0):
            raise CompileError(f"{value!r}: {len(value.users)} users are noted, {reads.get(value, 0)} read it")
    for name, value in graph.counts.items():
        if value not in graph.inputs or name in graph.symbols():
            raise CompileError(f"graph {graph.name}: {name} counts {value!r}, which is no input, or is a size of one")
    for value in graph.outputs:
        if value not in defined:
            raise CompileError(f"the output {value!r} is not defined")


def check_results(graph: Graph, node: Node) -> None:
    """Raise CompileError unless the node's outputs have the types its op infers."""
    known = len(graph.assumptions)
    inferred = infer(graph, node)
    if len(graph.assumptions) > known:
        a, b = graph.assumptions.pop()
        del graph.assumptions[known:]
        raise CompileError(f"{node}: needs {a} == {b}, which is not assumed")
    if len(inferred) != len(node.outputs):
        raise CompileError(f"{node}: expected {len(inferred)} outputs, got {len(node.outputs)}")
    for value, type in zip(node.outputs, inferred, strict=True):
        if not _same_type(graph, value.type, type):
            raise CompileError(f"{node}: %{value.name} is stated as {value.type} but the op gives {type}")


def _same_type(graph: Graph, a: TensorType, b: TensorType) -> bool:
    return a.dtype is b.dtype and a.rank == b.rank and all(
        graph.known_equal(x, y) for x, y in zip(a.shape, b.shape, strict=True))


def _define(value: Value, defined: set[Value], names: set[str]) -> None:
    if value.name in names:
        raise CompileError(f"the name %{value.name} is defined twice")
    names.add(value.name)
    defined.add(value)
