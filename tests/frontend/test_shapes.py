"""Shape arithmetic as exporters write it leaves no node behind."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from q8c.errors import CompileError, InputError, UnsupportedError
from q8c.ir import interpret
from tests.frontend.support import BOOL, F32, I64, compare, integers, load, model, node, normal, text

END = np.iinfo(np.int64).max


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def scalar(x: int) -> Any:
    return np.array(x, dtype=np.int64)


def test_split_heads_and_join_them_leaves_two_moves() -> None:
    nodes = [node("Shape", "x", "s"), node("Gather", "s zero", "b"), node("Gather", "s one", "n"),
             node("Unsqueeze", "b axis", "b1"), node("Unsqueeze", "n axis", "n1"),
             node("Concat", "b1 n1 minus size", "heads", axis=0), node("Reshape", "x heads", "h"),
             node("Transpose", "h", "t", perm=[0, 2, 1, 3]), node("Shape", "t", "ts"), node("Gather", "ts axis", "b2"),
             node("Transpose", "t", "u", perm=[0, 2, 1, 3]), node("Concat", "b2 n1 minus", "joined", axis=0),
             node("Reshape", "u joined")]
    proto = model(nodes, {"x": (F32, ["batch", "seq", 12])}, {"y": F32},
                  {"zero": scalar(0), "one": scalar(1), "axis": ints(0), "minus": ints(-1), "size": ints(4)})
    assert text(proto) == """\
graph @g(%x: f32[batch, seq, 12]) {
  %reshape: f32[batch, seq, 3, 4] = reshape(%x) {shape = (batch, seq, 3, 4)}
  %transpose: f32[batch, 3, seq, 4] = transpose(%reshape) {perm = (0, 2, 1, 3)}
  %transpose_1: f32[batch, seq, 3, 4] = transpose(%transpose) {perm = (0, 2, 1, 3)}
  %reshape_1: f32[batch, seq, 12] = reshape(%transpose_1) {shape = (batch, seq, 12)}
  return %reshape_1 as "y"
}"""
    compare(proto, {"x": normal(2, 3, 12)}, {"x": normal(1, 1, 12)})


def test_positions_cut_from_a_table_need_the_table_to_be_long_enough() -> None:
    nodes = [node("Shape", "ids", "n", start=1, end=2), node("Slice", "positions zero n one one", "p"),
             node("Gather", "table p", "pos"), node("Gather", "words ids", "w"), node("Add", "w pos")]
    proto = model(nodes, {"ids": (I64, ["batch", "seq"])}, {"y": F32},
                  {"positions": np.arange(8)[None], "zero": ints(0), "one": ints(1), "table": normal(8, 4),
                   "words": normal(9, 4)})
    graph = compare(proto, {"ids": integers(2, 3, low=0, high=9)}, {"ids": integers(1, 8, low=0, high=9)})
    assert [f"{a} == {b}" for a, b in graph.assumptions] == ["seq == min(8, seq)"]
    assert str(graph.outputs[0].type) == "f32[batch, seq, 4]"


def test_where_that_guards_an_expand_is_resolved() -> None:
    """PyTorch writes `expand` as Where(shape == -1, 1, shape)."""
    nodes = [node("Shape", "x", "s"), node("Gather", "s zero", "b"), node("Unsqueeze", "b axis", "b1"),
             node("Concat", "b1 minus six", "shape", axis=0), node("Shape", "shape", "rank"),
             node("ConstantOfShape", "rank", "ones", value=onnx.numpy_helper.from_array(ints(1))),
             node("Mul", "ones minus1", "minuses"), node("Equal", "shape minuses", "same"),
             node("Where", "same ones shape", "target"), node("Expand", "x target")]
    proto = model(nodes, {"x": (F32, ["n", 5, 1])}, {"y": F32},
                  {"zero": scalar(0), "axis": ints(0), "minus": ints(-1), "minus1": scalar(-1), "six": ints(6)})
    assert "\n".join(text(proto).splitlines()[1:-2]) == \
        "  %broadcast_to: f32[n, 5, 6] = broadcast_to(%x) {shape = (n, 1, 6)}"
    compare(proto, {"x": normal(2, 5, 1)})


@pytest.mark.parametrize(("op", "other", "expected"), [
    ("Add", 3, "n + 3"), ("Sub", 1, "n - 1"), ("Mul", 4, "4*n"), ("Div", 2, "(n // 2)"), ("Mod", 8, "(n % 8)"),
    ("Min", 8, "min(8, n)"), ("Max", 8, "max(8, n)"), ("Pow", 2, "n*n")])
def test_arithmetic_on_sizes(op: str, other: int, expected: str) -> None:
    nodes = [node("Shape", "x", "n", start=0, end=1), node(op, "n k", "m"), node("ConstantOfShape", "m")]
    proto = model(nodes, {"x": (F32, ["n"])}, {"y": F32}, {"k": ints(other)})
    graph = compare(proto, *({"x": normal(n)} for n in (1, 7, 16)))
    assert str(graph.outputs[0].shape[0]) == expected


def test_sizes_by_way_of_floats() -> None:
    nodes = [node("Shape", "x", "n"), node("Cast", "n", "f", to=onnx.TensorProto.FLOAT), node("Mul", "f four", "m"),
             node("Div", "m two", "d"), node("Floor", "d", "e"), node("Cast", "e", "k", to=onnx.TensorProto.INT64),
             node("ConstantOfShape", "k")]
    proto = model(nodes, {"x": (F32, ["n"])}, {"y": F32}, {"four": np.array([4], F32), "two": np.array([2], F32)})
    assert str(compare(proto, {"x": normal(3)}).outputs[0].type) == "f32[2*n]"


def test_shape_arithmetic_of_many_kinds() -> None:
    nodes = [node("Shape", "x", "s"), node("Size", "x", "size"), node("ReduceProd", "s", "count", keepdims=0),
             node("Slice", "s from end ax back", "reversed"), node("Split", "s", "a b c", num_outputs=3),
             node("GatherND", "s last", "c1"), node("ScatterND", "s last one", "scattered"),
             node("Squeeze", "a", "a0"), node("Range", "zero a0 step", "r"), node("Not", "no", "yes"),
             node("Greater", "size minus", "positive"), node("And", "positive yes", "both"),
             node("Where", "both a b", "picked"), node("Concat", "picked c1 count1", "all", axis=0),
             node("Reshape", "count axis0", "count1"), node("CumSum", "s zero", "sums"), node("Neg", "s", "n"),
             node("Abs", "n2", "abs"), node("Neg", "n", "n2"), node("Sub", "size count", "nought")]
    order = {n.output[0]: n for n in nodes}
    nodes = [order[k] for k in ("s", "size", "count", "reversed", "a", "c1", "scattered", "a0", "r", "yes", "positive",
                                "both", "picked", "count1", "all", "sums", "n", "n2", "abs", "nought")]
    nodes += [node("ConstantOfShape", t, f"y_{t}") for t in ("reversed", "scattered", "all", "sums", "abs", "nought_1")]
    nodes.insert(-1, node("Reshape", "nought axis0", "nought_1"))
    constants = {"from": ints(-1), "end": ints(-END), "ax": ints(0), "back": ints(-1), "last": ints(2)[None],
                 "one": ints(1), "zero": scalar(0), "step": scalar(1), "no": np.array(False), "minus": scalar(-1),
                 "axis0": ints(1)}
    outputs = [n.output[0] for n in nodes if n.op_type == "ConstantOfShape"]
    proto = model(nodes, {"x": (F32, ["a", "b", 2])}, {**dict.fromkeys(outputs, F32), "r": I64}, constants, opset=18)
    graph = compare(proto, {"x": normal(3, 2, 2)}, {"x": normal(1, 4, 2)})
    assert [str(v.type) for v in graph.outputs] == [
        "f32[2, b, a]", "f32[a, b, 1]", "f32[a, 2, 2*a*b]", "f32[a, a + b, a + b + 2]", "f32[a, b, 2]", "f32[0]",
        "i64[a]"]
    assert {n.op for n in graph.nodes} == {"broadcast_to", "iota"}


def test_sizes_needed_as_data_become_ops() -> None:
    nodes = [node("Shape", "x", "s"), node("Cast", "s", "f", to=onnx.TensorProto.FLOAT), node("Mul", "x f", "y"),
             node("Gather", "s last", "n"), node("Sqrt", "f", "root")]
    proto = model(nodes, {"x": (F32, ["a", 2])}, {"y": F32, "s": I64, "n": I64, "root": F32}, {"last": scalar(0)})
    graph = compare(proto, {"x": normal(3, 2)})
    assert text(proto).splitlines()[1] == "  %sizes: i64[2] = sizes() {values = (a, 2)}"
    assert {n.op for n in graph.nodes} == {"sizes", "cast", "mul", "reshape", "sqrt"}


def test_a_quotient_of_what_may_be_below_zero_is_rounded_towards_zero() -> None:
    nodes = [node("Shape", "x", "s"), node("Add", "s minus", "a"), node("Div", "a two", "d"), node("Sub", "d s")]
    proto = model(nodes, {"x": (F32, ["n"])}, {"y": I64}, {"minus": ints(-5), "two": ints(2)})
    compare(proto, *({"x": normal(n)} for n in range(9)))


def test_a_length_behind_windows_is_that_of_the_convolution() -> None:
    """PyTorch's (length - 3) / 2 + 1, twice, where ONNX rounds towards zero and a convolution down."""
    nodes = [node("Conv", "x kernel", "c", strides=[2]), node("Conv", "c kernel", "z", strides=[2]),
             node("Shape", "x", "length", start=2, end=3), node("Add", "length minus", "a"), node("Div", "a two", "b"),
             node("Add", "b one", "d"), node("Add", "d minus", "e"), node("Div", "e two", "f"),
             node("Add", "f one", "steps"), node("Concat", "steps one", "shape", axis=0), node("Reshape", "z shape")]
    proto = model(nodes, {"x": (F32, [1, 1, "n"])}, {"y": F32},
                  {"kernel": normal(1, 1, 3), "minus": ints(-3), "two": ints(2), "one": ints(1)})
    graph = compare(proto, *({"x": normal(1, 1, n)} for n in (7, 8, 9, 10, 11, 30)), atol=1e-5)
    assert str(graph.outputs[0].type) == "f32[((n + 1) // 4) - 1, 1]"
    assert [str(a) for a, _ in graph.assumptions][:2] == ["max(0, n - 3)", "max(((n + 1) // 2) - 4, 0)"]


def test_an_area_behind_windows_is_that_of_the_convolution() -> None:
    nodes = [node("Conv", "x kernel", "c", strides=[2, 2]), node("Shape", "x", "size", start=2),
             node("Add", "size minus", "a"), node("Div", "a two", "b"), node("Add", "b one", "steps"),
             node("ReduceProd", "steps", "area"), node("Concat", "one area", "shape", axis=0),
             node("Reshape", "c shape")]
    proto = model(nodes, {"x": (F32, [1, 1, "n", "m"])}, {"y": F32},
                  {"kernel": normal(1, 1, 3, 3), "minus": ints(-3), "two": ints(2), "one": ints(1)}, opset=18)
    graph = compare(proto, *({"x": normal(1, 1, n, 13 - n)} for n in (3, 4, 5, 6)), atol=1e-5)
    assert str(graph.outputs[0].type) == "f32[1, ((m + 1) // 2)*((n + 1) // 2) - ((m + 1) // 2) - ((n + 1) // 2) + 1]"


def test_sizes_of_which_those_that_are_kept_are_stated_as_minus_one() -> None:
    """As PyTorch writes x.expand(n - 1, -1), where it could be that n is 0 for all that is known."""
    nodes = [node("Shape", "like", "n"), node("Sub", "n one", "m"), node("Concat", "m minus", "sizes", axis=0),
             node("Equal", "sizes minus", "kept"), node("Where", "kept one sizes", "shape"), node("Expand", "x shape")]
    proto = model(nodes, {"x": (F32, [1, 3]), "like": (F32, ["n"])}, {"y": F32}, {"minus": ints(-1), "one": ints(1)})
    graph = compare(proto, *({"x": normal(1, 3), "like": normal(n)} for n in (2, 5)))
    assert {n.op for n in graph.nodes} == {"broadcast_to"}


def test_comparison_that_depends_on_the_size_stays() -> None:
    nodes = [node("Shape", "x", "n"), node("Greater", "n four", "big"), node("Where", "big x zero")]
    proto = model(nodes, {"x": (F32, ["n"])}, {"y": F32}, {"four": ints(4), "zero": np.zeros((), F32)})
    compare(proto, {"x": normal(3)}, {"x": normal(6)})


def test_range_with_steps() -> None:
    nodes = [node("Shape", "x", "n1"), node("Squeeze", "n1", "n"), node("Range", "one n two", "up"),
             node("Range", "n one minus", "down"), node("Range", "f0 f1 f2", "floats"),
             node("Range", "n n one", "none")]
    proto = model(nodes, {"x": (F32, ["n"])}, {"up": I64, "down": I64, "floats": F32, "none": I64},
                  {"one": scalar(1), "two": scalar(2), "minus": scalar(-2), "f0": np.array(0.5, F32),
                   "f1": np.array(3, F32), "f2": np.array(0.75, F32)})
    compare(proto, *({"x": normal(n)} for n in (1, 2, 5, 8)))


def test_a_branch_that_shapes_decide_is_taken() -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        made = onnx.helper.make_node(op, ["x"], [f"{name}_out"])
        return onnx.helper.make_graph([made], name, [], [onnx.helper.make_tensor_value_info(
            f"{name}_out", onnx.TensorProto.FLOAT, None)])

    nodes = [node("Shape", "x", "s"), node("Gather", "s last", "c"), node("Equal", "c four", "is"),
             node("If", "is", "y", then_branch=branch("then", "Neg"), else_branch=branch("else", "Unique"))]
    proto = model(nodes, {"x": (F32, ["n", 4])}, {"y": F32}, {"last": scalar(1), "four": scalar(4)})
    graph = compare(proto, {"x": normal(3, 4)})
    assert [n.op for n in graph.nodes] == ["neg"]
    other = model(nodes, {"x": (F32, ["n", 5])}, {"y": F32}, {"last": scalar(1), "four": scalar(4)})
    with pytest.raises(UnsupportedError, match="Unique"):
        load(other)
    other = model(nodes, {"x": (F32, ["n", "m"])}, {"y": F32}, {"last": scalar(1), "four": scalar(4)})
    with pytest.raises(UnsupportedError, match="If .*: its condition is computed from data"):
        load(other)


@pytest.mark.parametrize(("shape", "allow_zero", "expected"), [
    (ints(0, -1), 0, "f32[a, 12]"), (ints(-1), 0, "f32[12*a]"), (ints(-1, 3, 2), 0, "f32[2*a, 3, 2]"),
    (ints(0, 0, 2, 2), 0, "f32[a, 3, 2, 2]"), (ints(2, -1), 1, "f32[2, 6*a]")])
def test_reshape(shape: Any, allow_zero: int, expected: str) -> None:
    proto = model([node("Reshape", "x shape", allowzero=allow_zero)], {"x": (F32, ["a", 3, 4])}, {"y": F32},
                  {"shape": shape})
    assert str(compare(proto, {"x": normal(2, 3, 4)}).outputs[0].type) == expected


@pytest.mark.parametrize("shape", [ints(-1, -1), ints(-2), ints(1, 1, 1, 0), ints(0, 5, -1)])
def test_wrong_reshapes(shape: Any) -> None:
    proto = model([node("Reshape", "x shape", allowzero=int(shape[0] == 0))], {"x": (F32, [2, 3, 4])}, {"y": F32},
                  {"shape": shape})
    with pytest.raises(CompileError, match="Reshape|reshape"):
        load(proto)


@pytest.mark.parametrize(("order", "kept", "refused"), [
    (ints(1, 3), [(2, 3), (0, 2)], [(1, 0), (2, 0)]),    # [b, -1]: where b is 0, the standard keeps a
    (ints(2, 0, 1), [(2, 3), (0, 1)], [(0, 0)])])  # [2, a, b]: it keeps b and 2, which fits if b is 0 too
def test_sizes_that_turn_out_zero_are_refused_where_the_standard_keeps_others(
        order: Any, kept: list[tuple[int, int]], refused: list[tuple[int, int]]) -> None:
    nodes = [node("Shape", "x", "s"), node("Concat", "s rest", "t", axis=0), node("Gather", "t order", "shape"),
             node("Reshape", "x shape")]
    proto = model(nodes, {"x": (F32, ["a", "b", 2])}, {"y": F32}, {"rest": ints(-1), "order": order})
    graph = load(proto)
    for sizes in kept:
        interpret(graph, {"x": normal(*sizes, 2)})
    for sizes in refused:
        with pytest.raises(InputError, match="needs"):
            interpret(graph, {"x": normal(*sizes, 2)})


def test_a_size_that_turns_out_below_zero_is_refused() -> None:
    proto = model([node("Pad", "x pads")], {"x": (F32, ["n"])}, {"y": F32}, {"pads": ints(-2, 1)})
    graph = load(proto)
    assert interpret(graph, {"x": normal(2)})[0].tolist() == [0]
    with pytest.raises(InputError, match="n - 2"):
        interpret(graph, {"x": normal(1)})


def test_a_shape_computed_from_data_is_told() -> None:
    proto = model([node("Reshape", "x shape")], {"x": (F32, ["n"]), "shape": (I64, [2])}, {"y": F32})
    with pytest.raises(UnsupportedError, match="the shape is computed from data"):
        load(proto)


def test_a_size_that_others_add_up_to_is_stated_by_them() -> None:
    nodes = [node("Concat", "past x", "all", axis=1), node("Where", "mask all zero")]
    proto = model(nodes, {"x": (F32, ["batch", "seq"]), "mask": (BOOL, ["rows", "total"]),
                          "past": (F32, ["batch", "past"])}, {"y": F32}, {"zero": np.zeros((), F32)})
    graph = load(proto)
    assert [str(v.type) for v in graph.inputs] == ["f32[batch, seq]", "bool[batch, past + seq]", "f32[batch, past]"]
    assert not graph.assumptions
    feed = {"x": normal(2, 3), "past": normal(2, 4), "mask": np.ones((2, 7), bool)}
    np.testing.assert_array_equal(interpret(graph, feed)[0], np.concatenate([feed["past"], feed["x"]], 1))


@pytest.mark.parametrize(("declared", "expected"), [
    (["batch", "past + seq", "seq", "past"], "batch, past + seq, seq, past"),
    ([None, None, 3, "?"], "x_0, x_1, 3, x_3"),
    (["seq-len", "seq len", "class", "1x"], "seq_len, seq_len_2, size_class, size_1x"),
    (["a", "a", "max", "b//2"], "a, a, size_max, b_2"), ([-1, 0, "x_0", "b // a"], "x_0_2, 0, x_0, b_a")])
def test_names_of_sizes(declared: list[Any], expected: str) -> None:
    proto = model([node("Neg", "x")], {"x": (F32, declared)}, {"y": F32})
    assert str(load(proto).inputs[0].type) == f"f32[{expected}]"


def test_sizes_spread_over_a_shape_without_elements() -> None:
    proto = model([node("Shape", "x", "n", end=1), node("Expand", "n zero", "y")], {"x": (F32, ["n", 2])}, {"y": I64},
                  {"zero": np.array([0, 1])})
    compare(proto, {"x": np.zeros((3, 2), F32)})
    varies = model([node("Shape", "x", "n", end=1), node("Shape", "x", "s"), node("Expand", "n s", "y")],
                   {"x": (F32, ["n", 0, 1])}, {"y": I64})
    compare(varies, {"x": np.zeros((3, 0, 1), F32)})
