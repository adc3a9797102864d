"""Dresses nodes as exporters do: in branches, loops of one step and functions; constants as nodes or as inputs."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
DOMAIN, MICROSOFT = "local", "com.microsoft"
BRANCHES, LOOPS, FUNCTIONS = 0.04, 0.04, 0.04  # of all nodes, those in one
AS_NODES, AS_INPUTS = 0.3, 0.15                # of all models, those with constants as nodes, and as inputs too


def model_of(seed: int, nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto],
             constants: Mapping[str, Array], outputs: Mapping[str, Array], opset: int) -> onnx.ModelProto:
    """The part of a model that outputs depend on; all inputs stay. `outputs` has an example of each."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    used = {n: a for n, a in constants.items() if n in needed}
    functions: list[onnx.FunctionProto] = []
    body = [part for node in kept[::-1] for part in _dressed(seed, node, opset, functions)]
    style = np.random.default_rng([seed, 78]).random()
    as_nodes, as_inputs = style < AS_NODES, AS_NODES <= style < AS_NODES + AS_INPUTS and not functions
    graph = helper.make_graph(
        [*(_constant(n, a) for n, a in used.items() if as_nodes), *body], "fuzz",
        [*inputs, *(_declared(n, a, a.shape) for n, a in used.items() if as_inputs)],
        [_declared(n, a, [None] * a.ndim) for n, a in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in used.items() if not as_nodes])
    domains = [*imports(opset), *([helper.make_opsetid(DOMAIN, 1)] if functions else [])]
    return helper.make_model(graph, ir_version=3 if as_inputs else 10, functions=functions, opset_imports=domains)


def imports(opset: int) -> list[onnx.OperatorSetIdProto]:
    """The sets of ops that nodes are of."""
    return [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]


def _dressed(seed: int, node: onnx.NodeProto, opset: int, functions: list[onnx.FunctionProto]) -> list[onnx.NodeProto]:
    """A node, or nodes that mean the same."""
    way = np.random.default_rng([seed, *map(ord, node.output[0])]).random()
    if way < BRANCHES:
        return _branch(node)
    if way < BRANCHES + LOOPS and len(node.output) == 1:
        return _loop(node, opset)
    if 1 - way < FUNCTIONS and "" not in node.input:
        return [_function(node, opset, functions)]
    return [node]


def _branch(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """An If whose condition is known; its other branch gives something else."""
    name = node.output[0]
    inner = _renamed(node, node.input, [f"{n}_inside" for n in node.output])
    others = [_constant(f"{n}_other", np.arange(3)) for n in node.output]
    branches = [helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=o) for n in nodes for o in n.output])
                for nodes in ([inner], others)]
    taken = len(name) % 2 == 0
    chosen = helper.make_node("If", [f"{name}_if"], node.output, then_branch=branches[not taken],
                              else_branch=branches[taken])
    return [_constant(f"{name}_if", np.array(taken)), chosen]


def _loop(node: onnx.NodeProto, opset: int) -> list[onnx.NodeProto]:
    """A Loop of one step whose one row of results is what the node gives."""
    name = node.output[0]
    inner = [helper.make_node("Identity", [f"{name}_c"], [f"{name}_d"]),
             _renamed(node, node.input, [f"{name}_inside"])]
    body = helper.make_graph(
        inner, name, [_declared(f"{name}_i", np.array(0), []), _declared(f"{name}_c", np.array(True), [])],
        [_declared(f"{name}_d", np.array(True), []), onnx.ValueInfoProto(name=f"{name}_inside")])
    loop = helper.make_node("Loop", [f"{name}_steps", ""], [f"{name}_rows"], body=body)
    steps, axis = _constant(f"{name}_steps", np.array(1)), _constant(f"{name}_axis", np.array([0]))
    if opset < 13:
        return [steps, loop, helper.make_node("Squeeze", [f"{name}_rows"], [name], axes=[0])]
    return [steps, axis, loop, helper.make_node("Squeeze", [f"{name}_rows", f"{name}_axis"], [name])]


def _function(node: onnx.NodeProto, opset: int, functions: list[onnx.FunctionProto]) -> onnx.NodeProto:
    """A call of a function of the model's own that holds the node."""
    inputs, outputs = [f"a{i}" for i in range(len(node.input))], [f"b{i}" for i in range(len(node.output))]
    made = helper.make_function(DOMAIN, f"F{len(functions)}", inputs, outputs, [_renamed(node, inputs, outputs)],
                                imports(opset))
    functions.append(made)
    return helper.make_node(made.name, node.input, node.output, domain=DOMAIN)


def _renamed(node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:], copy.output[:] = inputs, outputs
    return copy


def _constant(name: str, array: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def _declared(name: str, array: Array, shape: Sequence[int | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)
