"""Sequences and optional values, taken apart at import."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from q8c.errors import CompileError, UnsupportedError
from tests.frontend.support import F32, I64, compare, load, model, node, normal, value

X = normal(5, 4)
CONSTANTS: dict[str, Any] = {"zero": np.array(0), "one": np.array(1), "two": np.array(2), "last": np.array(-1),
                             "sizes": np.array([1, 3])}
LISTED = [node("Neg", "x", "a"), node("Abs", "x", "b"), node("SequenceConstruct", "x a", "s"),
          node("SequenceInsert", "s b zero", "t")]


def made(nodes: list[onnx.NodeProto], output: Any = F32) -> onnx.ModelProto:
    return model(nodes, {"x": (F32, ["n", 4])}, {"y": output}, CONSTANTS)


@pytest.mark.parametrize("nodes", [
    [node("SequenceAt", "t last")], [node("SequenceAt", "t one")],
    [node("SequenceErase", "t one", "u"), node("ConcatFromSequence", "u", axis=1)],
    [node("SequenceErase", "t -", "u"), node("ConcatFromSequence", "u", axis=-1, new_axis=1)],
    [node("Identity", "t", "u"), node("Optional", "u", "o"), node("OptionalGetElement", "o", "v"),
     node("SequenceInsert", "v x", "w"), node("ConcatFromSequence", "w", axis=0)],
    [node("SplitToSequence", "x two", "u", axis=1), node("SequenceAt", "u one")],
    [node("SplitToSequence", "x sizes", "u", axis=1), node("SequenceAt", "u one")],
    [node("SplitToSequence", "x", "u", axis=1), node("SequenceAt", "u last")],
    [node("SplitToSequence", "x", "u", axis=-1, keepdims=0), node("SequenceAt", "u two")],
    [node("SequenceEmpty", "", "u"), node("SequenceInsert", "u x", "v"), node("SequenceAt", "v zero")]],
    ids=lambda nodes: " ".join(n.op_type for n in nodes))
def test_what_is_made_of_sequences(nodes: list[onnx.NodeProto]) -> None:
    compare(made([*LISTED, *nodes]), {"x": X}, {"x": X[:2]}, runtime=True)


def test_how_many_there_are_is_known() -> None:
    compare(made([*LISTED, node("SequenceLength", "t")], I64), {"x": X})
    chosen = [helper.make_graph([node(op, "x", "z")], op, [], [value("z", F32, None)]) for op in ("Exp", "Tanh")]
    graph = compare(made([node("Optional", "x", "o"), node("OptionalHasElement", "o", "c"),
                          node("If", "c", then_branch=chosen[0], else_branch=chosen[1])]), {"x": X}, runtime=True)
    assert [n.op for n in graph.nodes] == ["exp"]


def test_a_loop_may_collect_its_results_in_a_sequence() -> None:
    """As TorchScript writes a list that is appended to; a function, and a branch, may be given one."""
    def typed(name: str, dtype: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, [])

    held = helper.make_tensor_sequence_value_info("h", TensorProto.FLOAT, None)
    grown = helper.make_tensor_sequence_value_info("g", TensorProto.FLOAT, None)
    body = helper.make_graph([node("Mul", "v x", "w"), node("SequenceInsert", "h w", "g")], "body",
                             [typed("i", TensorProto.INT64), typed("c", TensorProto.BOOL), value("v", F32, None), held],
                             [typed("c", TensorProto.BOOL), value("w", F32, None), grown])
    own = helper.make_function("own", "Joined", ["q"], ["r"], [node("ConcatFromSequence", "q", "r", axis=0)],
                               [helper.make_opsetid("", 20)])
    nodes = [node("SequenceEmpty", "", "e"), node("Loop", "two - x e", "end all", body=body),
             node("Joined", "all", domain="own")]
    proto = model(nodes, {"x": (F32, ["n", 4])}, {"y": F32}, CONSTANTS, functions=[own],
                  opset_imports=[helper.make_opsetid("own", 1)])
    compare(proto, {"x": X}, runtime=True)


def test_an_op_may_go_over_a_sequence() -> None:
    body = helper.make_graph([node("Mul", "v v", "w")], "body", [value("v", F32, None)], [value("w", F32, None)])
    compare(made([*LISTED, node("SequenceMap", "t", "u", body=body), node("SequenceAt", "u last")]), {"x": X},
            runtime=True)


@pytest.mark.parametrize(("nodes", "problem"), [
    ([*LISTED, node("Neg", "t")], "Neg .* operand 0 is a sequence, expected a tensor"),
    ([*LISTED, node("If", "t", then_branch=helper.make_graph([], "t", [], []),
                    else_branch=helper.make_graph([], "e", [], []))], "If .* operand 0 is a sequence"),
    ([*LISTED, node("Identity", "t")], "the graph output 'y' is a sequence; outputs are tensors"),
    ([node("SplitToSequence", "x", "u"), node("SequenceAt", "u zero")], "splits n elements into parts of 1"),
    ([*LISTED, node("SequenceErase", "t last", "u"), node("SequenceAt", "u two")],
     "SequenceAt 'y': there is no place 2 in a sequence of 2 tensors"),
    ([node("SequenceAt", "x zero")], "SequenceAt 'y': operand 0 is no sequence")])
def test_what_cannot_be_made_of_sequences(nodes: list[onnx.NodeProto], problem: str) -> None:
    with pytest.raises((CompileError, UnsupportedError), match=problem):
        load(made(nodes))
