"""Whatever is wrong with a model is one error of the project's own family, on one line."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from q8c.errors import CompileError, Error, UnsupportedError
from q8c.frontend import import_onnx
from q8c.ir.dims import as_symbol
from tests.frontend.support import BOOL, F32, I64, load, model, node, normal


def message(proto: Any, kind: type[Error] = CompileError) -> str:
    """The one-line error that importing gives."""
    with pytest.raises(kind) as caught:
        import_onnx(proto)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_everything_unsupported_is_listed_before_anything_else() -> None:
    nodes = [node("MaxRoiPool", "x", "a", name="first"), node("Det", "x", "b"), node("MaxRoiPool", "x", "c"),
             node("Magic", "nowhere", "d", domain="com.acme"), node("Neg", "x")]
    proto = model(nodes, {"x": (F32, ["n", "n"])}, dict.fromkeys("abcdy", F32), opset=13,
                  opset_imports=[helper.make_opsetid("com.acme", 3)])
    assert message(proto, UnsupportedError) == (
        "cannot compile 4 nodes of this model: MaxRoiPool (opset 13) 'first', 'c'; Det (opset 13) 'b'; "
        "com.acme.Magic (opset 3) 'd'")


def test_many_unsupported_nodes_are_abbreviated_but_every_op_is_named() -> None:
    nodes = [node("MaxRoiPool", "x", f"a{i}") for i in range(30)] + [node("Det", "x", "b")]
    proto = model(nodes, {"x": (F32, [2, 2])}, {name: F32 for n in nodes for name in n.output})
    assert message(proto, UnsupportedError) == (
        "cannot compile 31 nodes of this model: MaxRoiPool (opset 20) 'a0', 'a1', 'a2' and 27 more; Det (opset 20) 'b'")


def test_unsupported_variants_are_collected_too() -> None:
    nodes = [node("Cast", "x", "a", to=TensorProto.STRING), node("Neg", "a", "b"), node("Reshape", "b shape", "c"),
             node("Reshape", "x shape", "d")]
    proto = model(nodes, {"x": (F32, [2]), "shape": (I64, [1])}, {"c": F32, "d": F32})
    found = message(proto, UnsupportedError)
    assert found.startswith(
        "cannot compile 2 nodes of this model: Cast (opset 20) 'a': to: element type STRING is not supported")
    assert found.endswith("; Reshape (opset 20) 'd': the shape is computed from data (of input shape); "
                          "it must follow from shapes and constants")


def test_an_output_no_importer_computes_is_told_when_it_is_read() -> None:
    norm = node("SkipLayerNormalization", "x x s", "y mean", domain="com.microsoft")

    def made(nodes: list[onnx.NodeProto], output: str) -> onnx.ModelProto:
        return model(nodes, {"x": (F32, ["n", 4])}, {output: F32}, {"s": normal(4)},
                     opset_imports=[helper.make_opsetid("com.microsoft", 1)])

    load(made([norm], "y"))
    read = made([norm, node("Neg", "mean", "z")], "z")
    assert "Neg (opset 20) 'z': reads output 1 of SkipLayerNormalization 'y'" in message(read, UnsupportedError)
    returned = made([norm], "mean")
    assert "the graph output 'mean' is output 1" in message(returned, UnsupportedError)


def test_an_op_whose_definition_is_unsupported_names_both() -> None:
    proto = model([node("Bernoulli", "x")], {"x": (F32, ["n"])}, {"y": F32})
    text = message(proto, UnsupportedError)
    assert "Bernoulli (opset 20) 'y': its definition by other ops needs RandomUniformLike" in text


def test_old_opsets() -> None:
    assert "opset 6, expected 7 to" in message(
        model([node("Neg", "x")], {"x": (F32, ["n"])}, {"y": F32}, opset=6), UnsupportedError)


def simple() -> onnx.ModelProto:
    return model([node("Add", "x w", "a"), node("Tanh", "a")], {"x": (F32, ["n", 3])}, {"y": F32}, {"w": normal(3)})


def broken(change: str) -> onnx.ModelProto:
    proto = simple()
    graph = proto.graph
    if change == "cycle":
        graph.node[0].input[1] = "y"
    elif change == "missing value":
        graph.node[0].input[1] = "nowhere"
    elif change == "name twice":
        graph.node[1].output[0] = "a"
    elif change == "output overwrites a weight":
        graph.node[0].output[0] = "w"
    elif change == "input twice":
        graph.input.append(graph.input[0])
    elif change == "weight twice":
        graph.initializer.append(graph.initializer[0])
    elif change == "weight without a name":
        graph.initializer[0].name = ""
    elif change == "missing output":
        graph.output[0].name = "nowhere"
    elif change == "weight too short":
        graph.initializer[0].raw_data = b"abc"
    elif change == "weight too large":
        graph.initializer[0].dims[:] = [2**40, 2**40]
    elif change == "weight of negative size":
        graph.initializer[0].dims[:] = [-3]
    elif change == "weight without a type":
        graph.initializer[0].data_type = 0
    elif change == "weight of an unknown type":
        graph.initializer[0].data_type = 99
    elif change == "attribute of the wrong type":
        graph.node[1].CopyFrom(node("Softmax", "a", axis=1.5))
    elif change == "unknown attribute":
        graph.node[1].CopyFrom(node("Tanh", "a", axis=1))
    elif change == "too few operands":
        del graph.node[0].input[1:]
    elif change == "too many operands":
        graph.node[1].input.extend(["w", "w"])
    elif change == "no opset":
        del proto.opset_import[:]
    elif change == "two opsets":
        proto.opset_import.append(helper.make_opsetid("", 12))
    elif change == "future opset":
        proto.opset_import[0].version = 9999
    elif change == "future IR":
        proto.ir_version = 9999
    elif change == "rank unknown":
        graph.input[0].type.tensor_type.ClearField("shape")
    elif change == "type unknown":
        graph.input[0].type.tensor_type.elem_type = 0
    elif change == "not a tensor":
        graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])))
    elif change == "declared as another type":
        graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    elif change == "mixed types":
        graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return proto


@pytest.mark.parametrize("change", [
    "cycle", "missing value", "name twice", "output overwrites a weight", "input twice", "weight twice",
    "weight without a name", "missing output", "weight too short", "weight too large", "weight of negative size",
    "weight without a type", "weight of an unknown type", "attribute of the wrong type", "unknown attribute",
    "too few operands", "too many operands", "no opset", "two opsets", "future opset", "future IR", "rank unknown",
    "type unknown", "not a tensor", "declared as another type", "mixed types"])
def test_broken_models(change: str, tmp_path: Path) -> None:
    with pytest.raises((CompileError, UnsupportedError)) as caught:
        import_onnx(broken(change))
    assert "\n" not in str(caught.value)
    path = tmp_path / "m.onnx"
    path.write_bytes(broken(change).SerializeToString())
    with pytest.raises((CompileError, UnsupportedError)):
        import_onnx(path)


def test_nodes_in_a_circle_are_named() -> None:
    nodes = [node("Add", "x b", "a", name="first"), node("Neg", "a", "b"), node("Abs", "a")]
    assert message(model(nodes, {"x": (F32, ["n"])}, {"y": F32})) == (
        "Add 'first': it reads what is computed from its own result, or from that of nodes that wait for each other; "
        "expected a graph without a cycle")


@pytest.mark.parametrize("data", [b"", b"\x00", b"not an ONNX file at all" * 9, b"\x08\x07", bytes(1000), b"\xff" * 64])
def test_bytes_that_are_no_model(data: bytes, tmp_path: Path) -> None:
    assert "not an ONNX model" in message(data)
    (tmp_path / "m.onnx").write_bytes(data)
    assert "m.onnx" in message(tmp_path / "m.onnx")


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    assert "there is no such file" in message(tmp_path / "none.onnx")
    assert "there is no such file" in message(tmp_path)
    assert "expected a path, bytes or a ModelProto, got int" in message(3)


def test_truncated_and_altered_bytes_never_raise_anything_else() -> None:
    proto = model([node("Slice", "x one two", "s"), node("MatMul", "s w", "m"), node("Reshape", "m shape", "r"),
                   node("Softmax", "r", axis=-1)], {"x": (F32, ["n", 4])}, {"y": F32},
                  {"one": np.array([0]), "two": np.array([2]), "w": normal(4, 4), "shape": np.array([0, 2, 2])})
    data = proto.SerializeToString()
    rng = np.random.default_rng(0)
    samples = [data[:n] for n in range(0, len(data), 7)]
    for _ in range(300):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            changed[at] = rng.integers(0, 256)
        samples.append(bytes(changed))
    outcomes = set()
    for sample in samples:
        try:
            import_onnx(sample)
            outcomes.add("imported")
        except Error as error:
            assert "\n" not in str(error)
            outcomes.add(type(error).__name__)
    assert outcomes == {"imported", "CompileError", "UnsupportedError"}


def huge(kind: str) -> onnx.ModelProto:
    big = np.array([2**15, 2**15, 2**10])
    constants: dict[str, Any] = {"shape": big, "c": np.ones((2, 1), F32), "zero": np.array(0.0), "one": np.array(1.0),
                                 "limit": np.array(1e12), "reps": np.array([2**20, 2**20])}
    nodes = {"ConstantOfShape": [node("ConstantOfShape", "shape")], "Expand": [node("Expand", "one32 shape")],
             "Range": [node("Range", "zero limit one", "r"), node("Cast", "r", to=1)], "Tile": [node("Tile", "c reps")],
             "Pad": [node("Pad", "c pads")],
             "chain": [node("ConstantOfShape", "shape", "a"), node("Exp", "a", "b"), node("Add", "b a")]}
    constants |= {"one32": np.ones((), F32), "pads": np.array([0, 0, 2**40, 0])}
    return model(nodes[kind], {}, {"y": F32}, constants)


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand", "Range", "Tile", "Pad", "chain"])
def test_a_tiny_file_cannot_ask_for_a_huge_array_at_import(kind: str) -> None:
    graph = load(huge(kind))
    assert sum(v.array().nbytes for v in graph.constants.values()) < 100_000


def test_sizes_no_machine_has_are_refused() -> None:
    proto = model([node("ConstantOfShape", "shape")], {}, {"y": F32}, {"shape": np.array([2**31, 2**31])})
    assert "4611686018427387904 elements" in message(proto)


def test_sizes_that_grow_without_bound_are_refused() -> None:
    squares = [node("Shape", "x", "s0"), *(node("Mul", f"s{i} s{i}", f"s{i + 1}") for i in range(40)),
               node("ConstantOfShape", "s40")]
    told = message(model(squares, {"x": (F32, ["n"])}, {"y": F32}))
    assert "grows beyond" in told and "Error" not in told
    sums = [node("Shape", "x", "s"), node("ReduceSum", "s", "s0"),
            *(node("Mul", f"s{i} s{i}", f"s{i + 1}") for i in range(40)), node("ConstantOfShape", "s40")]
    assert "grows beyond" in message(model(sums, {"x": (F32, ["a", "b", "c"])}, {"y": F32}))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_windows_of_millions_of_elements_are_refused(op: str) -> None:
    proto = model([node(op, "x", kernel_shape=[5000, 5000])], {"x": (F32, [1, 1, "h", "w"])}, {"y": F32})
    with pytest.raises(UnsupportedError, match="windows of 25000000 elements; expected up to 4096"):
        load(proto)


@pytest.mark.parametrize(("made", "kind", "what"), [
    (node("LRN", "x", size=2**40), UnsupportedError, "size is 1099511627776; expected 1 to 4096"),
    (node("Split", "x", "y z", axis=0, num_outputs=2**40), CompileError, "1099511627776 parts for 2 outputs"),
    (node("Resize", "x - s"), CompileError, "the scales are [1.0, 1.0, nan, 2.0], expected numbers above 0"),
    (node("DequantizeLinear", "x s", axis=2, block_size=-3), CompileError, "block_size is -3, expected 0 or more")],
    ids=lambda x: x.op_type if isinstance(x, onnx.NodeProto) else "")
def test_attributes_that_mean_nothing(made: onnx.NodeProto, kind: type[Error], what: str) -> None:
    dtype = np.int8 if made.op_type == "DequantizeLinear" else F32
    proto = model([made], {"x": (dtype, [1, 1, "h", "w"])}, dict.fromkeys(made.output, F32),
                  {"s": np.array([1, 1, np.nan, 2], F32)}, opset=21)
    assert what in message(proto, kind)


@pytest.mark.parametrize("zero", [[1, 1, 1, 1], [1, 5]], ids=str)
def test_zero_points_of_more_than_their_operand(zero: list[int]) -> None:
    proto = model([node("MatMulInteger", "x w - z")], {"x": (np.int8, ["n", 3])}, {"y": np.int32},
                  {"w": np.ones((3, 1), np.int8), "z": np.ones(zero, np.int8)})
    assert "matmul_integer (y): expected zero points" in message(proto, CompileError)


@pytest.mark.parametrize(("bits", "table"), [(4, np.ones((2, 16), np.int8)), (8, np.ones((2, 32), F32)),
                                             (4, np.uint8(1))], ids=str)
def test_tables_that_are_no_bytes(bits: int, table: Any) -> None:
    made = node("GatherBlockQuantized", "t i s", domain="com.microsoft", bits=bits, block_size=16)
    proto = model([made], {"i": (np.int64, ["n"])}, {"y": F32}, {"t": np.asarray(table), "s": np.ones((2, 2), F32)},
                  opset_imports=[onnx.helper.make_opsetid("com.microsoft", 1)])
    assert "operand 0 is" in message(proto) and "expected bytes" in message(proto)


def test_a_size_named_by_a_product_of_thousands_of_terms_has_a_name_of_its_own() -> None:
    wide = "*".join(["(a+b+c+d+1)"] * 40)
    proto = model([node("Relu", "x")], {"x": (F32, [wide]), "z": (F32, ["a", "b", "c", "d"])}, {"y": F32})
    assert as_symbol(load(proto).outputs[0].shape[0])


def test_halving_a_size_over_and_over() -> None:
    nodes = [node("Slice", f"v{i} zero end zero two", f"v{i + 1}") for i in range(2000)]
    constants = {"zero": np.array([0]), "end": np.array([2**62]), "two": np.array([2])}
    proto = model(nodes, {"v0": (F32, ["n"])}, {"v2000": F32}, constants)
    start = time.perf_counter()
    assert "a size is divided by 140737488355328" in message(proto)
    assert time.perf_counter() - start < 10


def functions(bodies: dict[str, list[str]]) -> onnx.ModelProto:
    """A model whose functions each call the ones listed."""
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    made = []
    for name, callees in bodies.items():
        steps = [helper.make_node(c, [f"v{i}"], [f"v{i + 1}"], domain="own") for i, c in enumerate(callees)]
        steps.append(helper.make_node("Neg", [f"v{len(callees)}"], ["out"]))
        made.append(helper.make_function("own", name, ["v0"], ["out"], steps, imports))
    return model([node(next(iter(bodies)), "x", "y", domain="own")], {"x": (F32, ["n"])}, {"y": F32}, functions=made,
                 opset_imports=[imports[1]])


def test_loops_within_loops_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 steps of 1000 steps of 1000 steps."""
    monkeypatch.setattr("q8c.frontend.importer.MOST_WRITTEN", 3000)
    inner = node("Identity", "s", "s0")
    for depth in range(3):
        i, c = f"i{depth}", f"c{depth}"
        condition = helper.make_tensor_value_info(c, TensorProto.BOOL, [])
        body = helper.make_graph([inner], f"body{depth}", [
            helper.make_tensor_value_info(i, TensorProto.INT64, []), condition],
            [condition, onnx.ValueInfoProto(name=f"s{depth}")])
        inner = node("Loop", "steps -", f"s{depth + 1}", body=body)
    proto = model([inner, node("ReduceSum", "s3", "y", keepdims=0)], {"s": (F32, ["n"])}, {"y": F32},
                  {"steps": np.array(1000)})
    assert "written out are more than 3000 nodes" in message(proto)


@pytest.mark.parametrize(("counted", "problem"), [
    ([node("Shape", "x", "steps")], "its trip count is n; it must be the same for all sizes"),
    ([node("Cast", "x", "i", to=TensorProto.INT64), node("ReduceMax", "i", "steps", keepdims=0)],
     r"its trip count is computed from data (of input x); it must follow from shapes and constants")])
def test_loops_of_steps_that_vary(counted: list[onnx.NodeProto], problem: str) -> None:
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    body = helper.make_graph([node("Neg", "s", "t")], "body", [
        helper.make_tensor_value_info("i", TensorProto.INT64, []), condition, onnx.ValueInfoProto(name="s")],
        [condition, onnx.ValueInfoProto(name="t")])
    proto = model([*counted, node("Loop", "steps - x", "y", body=body)], {"x": (F32, ["n"])}, {"y": F32})
    assert problem in message(proto, UnsupportedError)


def test_functions_that_call_themselves_or_grow_without_bound() -> None:
    assert "'f' calls itself" in message(functions({"f": ["g"], "g": ["f"]}))
    assert "'f' calls itself" in message(functions({"f": ["f"]}))
    layers = {f"f{i}": [f"f{i + 1}"] * 10 for i in range(12)} | {"f12": []}
    assert "when inlined; the limit is" in message(functions(layers))
    assert len(load(functions({"f": ["g", "g"], "g": ["h"] * 3, "h": []})).nodes) == 9


def test_functions_called_with_more_than_they_take() -> None:
    proto = functions({"f": []})
    proto.graph.node[0].input.append(proto.graph.node[0].input[0])
    assert message(proto).endswith("2 inputs; the model's function has 1")


def test_an_unexpected_failure_names_the_node() -> None:
    proto = model([node("OneHot", "i depth values", "y", name="hot")], {"i": (I64, ["n"])}, {"y": F32},
                  {"depth": np.array(-5), "values": np.array([0, 1], F32)})
    assert "hot" in message(proto)


@pytest.mark.parametrize(("op", "operands"), [("And", "x x"), ("Exp", "i"), ("Where", "x x x"), ("MatMul", "x i"),
                                              ("Sqrt", "b"), ("Gather", "x x"), ("IsInf", "i")])
def test_operands_of_wrong_types(op: str, operands: str) -> None:
    inputs: dict[str, Any] = {"x": (F32, ["n", "n"]), "i": (I64, ["n"]), "b": (BOOL, ["n"])}
    proto = model([node(op, operands, name="the node")], inputs, {"y": F32})
    assert "the node" in message(proto)


@pytest.mark.parametrize("place", ["node", "weight", "size"])
def test_text_that_is_not_utf8(place: str) -> None:
    proto = simple()
    proto.graph.node[0].name, proto.graph.node[0].doc_string = "abcd", "efgh"
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = "ijkl"
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "mnop"
    old, new = {"node": (b"abcd", b"ab\xb1d"), "weight": (b"ijkl", b"\xffjkl"), "size": (b"mnop", b"mno\xe0")}[place]
    assert "is not UTF-8" in message(proto.SerializeToString().replace(old, new))
