"""Function bodies: model-local functions inlined, and ONNX's own definitions of ops by simpler ops."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from q8c.errors import CompileError
from q8c.frontend.registry import describe
from q8c.frontend.tensor import Found, TensorList
from q8c.frontend.weights import onnx_type

if TYPE_CHECKING:
    import onnx

NODE_LIMIT = 1_000_000  # nodes after inlining; functions that call functions can grow without bound
_BODY_DOMAIN = "q8c.body"
DEFINED = ("", "ai.onnx.preview")
"""Domains whose ops ONNX defines by others where it can."""
Key: TypeAlias = "tuple[str, str, str]"


def function_key(item: onnx.NodeProto | onnx.FunctionProto) -> Key:
    """What links a call to a function: domain, name, overload."""
    import onnx

    return item.domain, item.op_type if isinstance(item, onnx.NodeProto) else item.name, item.overload


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and all nodes in their subgraphs."""
    stack = [iter(nodes)]
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
            continue
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                if graph.node:
                    stack.append(iter(graph.node))


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions inlined where their opsets agree with the model's.

    Raises CompileError for functions that call themselves, that grow beyond `NODE_LIMIT` nodes, or that are called with
    more than they take or give.
    """
    if not model.functions:
        return model
    _check_calls(model)
    _check_growth(model)
    _write_defaults(model)
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # the inliner's C++ errors have no common type
        raise CompileError(f"the model's functions cannot be inlined: {' '.join(str(error).split())}") from error


def _check_calls(model: onnx.ModelProto) -> None:
    functions = {function_key(f): f for f in model.functions}
    for node in (n for nodes in (model.graph.node, *(f.node for f in model.functions)) for n in all_nodes(nodes)):
        function = functions.get(function_key(node))
        for what in ("input", "output") if function is not None else ():
            most, given = len(getattr(function, what)), len(getattr(node, what))
            if given > most:
                raise CompileError(f"{describe(node)}: {given} {what}s; the model's function has {most}")


def _write_defaults(model: onnx.ModelProto) -> None:
    """Give every call of a function the attributes it leaves to their defaults, which the inliner knows nothing of."""
    defaults = {function_key(f): f.attribute_proto for f in model.functions if f.attribute_proto}
    for nodes in (model.graph.node, *(f.node for f in model.functions)) if defaults else ():
        for node in all_nodes(nodes):
            given = {a.name for a in node.attribute}
            node.attribute.extend(a for a in defaults.get(function_key(node), ()) if a.name not in given)


def _check_growth(model: onnx.ModelProto) -> None:
    bodies = {function_key(f): [function_key(n) for n in all_nodes(f.node)] for f in model.functions}
    sizes: dict[Key, int] = {}
    for key in _callees_first(bodies):
        sizes[key] = sum(1 + sizes.get(callee, 0) for callee in bodies[key])
    total = sum(1 + sizes.get(function_key(n), 0) for n in all_nodes(model.graph.node))
    if total > NODE_LIMIT:
        raise CompileError(f"the model's functions grow to {total} nodes when inlined; the limit is {NODE_LIMIT}")


def _callees_first(bodies: dict[Key, list[Key]]) -> Iterator[Key]:
    done: set[Key] = set()
    for root in bodies:
        path: list[Key] = []
        open_keys: set[Key] = set()
        stack = [] if root in done else [(root, iter(bodies[root]))]
        while stack:
            key, callees = stack[-1]
            if key not in open_keys:
                open_keys.add(key)
                path.append(key)
            callee = next((c for c in callees if c in bodies and c not in done), None)
            if callee is None:
                stack.pop()
                done.add(key)
                open_keys.discard(key)
                yield key
            elif callee in open_keys:
                raise CompileError(f"the model's function {callee[1]!r} calls itself")
            else:
                stack.append((callee, iter(bodies[callee])))


@dataclass
class Body:
    """The nodes an op stands for, over inputs `i0`, `i1`, … and outputs `o0`, …, in opsets of their own."""

    nodes: Sequence[onnx.NodeProto]
    opset_import: Sequence[onnx.OperatorSetIdProto]


def expand(node: onnx.NodeProto, opset: int, inputs: Sequence[Found | None],
           functions: dict[Key, onnx.FunctionProto]) -> Body | None:
    """The body of a call to a model's function, or of an op that ONNX defines by others; None if there is none."""
    function = functions.get(function_key(node))
    if function is None:
        if node.domain not in DEFINED:
            return None
        node = _with_defaults(node, opset)
        function = _schema_function(node, opset, [_type_of(t) for t in inputs])
    return None if function is None else _inlined(node, function)


def has_body(node: onnx.NodeProto, opset: int) -> bool:
    """Whether ONNX defines this op by others."""
    schema = _schema(node, opset) if node.domain in DEFINED else None
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def _schema(node: onnx.NodeProto, opset: int) -> Any:
    """ONNX's schema of an op (its stubs lack what function bodies need), or None."""
    import onnx

    try:
        return onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None


def _with_defaults(node: onnx.NodeProto, opset: int) -> onnx.NodeProto:
    """A copy whose attributes include the schema's defaults."""
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    given = {a.name for a in node.attribute}
    schema = _schema(node, opset)
    for name, attribute in (schema.attributes if schema else {}).items():
        if name not in given and attribute.default_value.type:
            copy.attribute.append(attribute.default_value)
    return copy


def _type_of(found: Found | None) -> onnx.TypeProto:
    import onnx

    if isinstance(found, TensorList):
        element = found.tensors[0] if found.tensors else None
        return onnx.TypeProto(sequence_type=onnx.TypeProto.Sequence(elem_type=_type_of(element)))
    return onnx_type(None if found is None else found.type)


def _schema_function(node: onnx.NodeProto, opset: int, types: Sequence[onnx.TypeProto]) -> onnx.FunctionProto | None:
    import onnx

    schema = _schema(node, opset)
    if schema is None:
        return None
    if schema.has_function:
        found: onnx.FunctionProto = schema.function_body
        return found
    if not schema.has_context_dependent_function:
        return None
    versions = schema.context_dependent_function_opset_versions
    data = schema.get_context_dependent_function_with_opset_version(
        max(versions), node.SerializeToString(), [t.SerializeToString() for t in types])
    function = onnx.FunctionProto()
    function.ParseFromString(data)
    return function if function.node else None


def _inlined(node: onnx.NodeProto, function: onnx.FunctionProto) -> Body:
    import onnx
    from onnx import helper, inliner

    call = onnx.NodeProto()
    call.CopyFrom(node)
    del call.input[:], call.output[:]
    call.input.extend(f"i{i}" if name else "" for i, name in enumerate(node.input))
    call.output.extend(f"o{i}" if name else "" for i, name in enumerate(node.output))
    call.domain, call.op_type, call.overload = _BODY_DOMAIN, "body", ""
    body = onnx.FunctionProto()
    body.CopyFrom(function)
    body.domain, body.name, body.overload = _BODY_DOMAIN, "body", ""
    if all(entry.domain for entry in body.opset_import):  # ONNX's bodies outside of its default domain leave it out
        body.opset_import.append(helper.make_opsetid("", onnx.defs.onnx_opset_version()))
    imports = [*body.opset_import, helper.make_opsetid(_BODY_DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([call], "body", [], []), functions=[body], opset_imports=imports)
    return Body(list(inliner.inline_local_functions(model).graph.node), list(body.opset_import))
