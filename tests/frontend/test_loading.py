"""Models as paths, bytes and protos; initializers in all forms; functions; names."""
from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from q8c.errors import CompileError, Error, UnsupportedError
from q8c.frontend import content_digest, import_onnx
from q8c.ir import interpret, print_graph, verify
from tests.frontend.support import BOOL, F32, I64, Array, compare, load, model, node, normal, value


def linear(weight: Array) -> onnx.ModelProto:
    return model([node("MatMul", "x w")], {"x": (F32, ["n", weight.shape[0]])}, {"y": F32}, {"w": weight})


def test_path_bytes_and_proto_give_the_same_graph(tmp_path: Path) -> None:
    weight = normal(64, 32)
    proto = linear(weight)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    before = proto.SerializeToString()
    texts = {print_graph(import_onnx(m)) for m in (proto, before, bytearray(before), path, str(path))}
    assert len(texts) == 1 and proto.SerializeToString() == before
    for given in (proto, before, path):
        np.testing.assert_array_equal(import_onnx(given).constants["w"].array(), weight)


def test_weights_of_a_file_are_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(linear(normal(64, 32)), path)
    array = import_onnx(path).constants["w"].array()
    assert not array.flags.owndata and not array.flags.writeable


@pytest.mark.parametrize("where", [b"\x32", b"\x3a\x86\x80\x80\x80\x08\x52"], ids=["model", "graph"])
def test_what_protobuf_does_not_read_is_not_copied(where: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"  # a doc_string of 2 GiB, none of it on the disk
    start = linear(normal(4, 4)).SerializeToString() + where + b"\x80\x80\x80\x80\x08"
    path.write_bytes(start)
    os.truncate(path, len(start) + 2**31)
    with pytest.raises(CompileError, match="more than 2 GB without the data of its initializers"):
        import_onnx(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int8, np.uint8, np.int32, np.int64, np.bool_])
@pytest.mark.parametrize("size", [0, 3, 2000])
def test_initializers_of_every_type(tmp_path: Path, dtype: Any, size: int) -> None:
    data = np.arange(size).astype(dtype)
    to = helper.np_dtype_to_tensor_dtype(np.dtype(np.float64))
    proto = model([node("Cast", "w", to=to)], {}, {"y": np.float64}, {"w": data})
    onnx.save(proto, tmp_path / "m.onnx")
    onnx.save(proto, tmp_path / "e.onnx", save_as_external_data=True, size_threshold=0, location="e.data")
    for path in ("m.onnx", "e.onnx"):
        got = interpret(import_onnx(tmp_path / path), {})[0]
        np.testing.assert_array_equal(got, data.astype(np.float64))


def test_external_data_with_offsets(tmp_path: Path) -> None:
    weights = {f"w{i}": normal(4, 4, seed=i) for i in range(3)}
    nodes = [node("MatMul", "x w0", "a"), node("MatMul", "a w1", "b"), node("MatMul", "b w2")]
    proto = model(nodes, {"x": (F32, ["n", 4])}, {"y": F32}, weights)
    (tmp_path / "data").mkdir()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="data/weights.bin")
    before = len(os.listdir("/proc/self/fd"))
    graph = import_onnx(tmp_path / "m.onnx")
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # not one for each tensor: a process may have 1024
    verify(graph)
    for name, data in weights.items():
        np.testing.assert_array_equal(graph.constants[name].array(), data)
    with pytest.raises(CompileError, match="give the model as a path"):
        import_onnx((tmp_path / "m.onnx").read_bytes())
    with (tmp_path / "data" / "weights.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CompileError, match="is the data file complete"):
        import_onnx(tmp_path / "m.onnx")
    (tmp_path / "data" / "weights.bin").unlink()
    with pytest.raises(CompileError, match="not beside the model"):
        import_onnx(tmp_path / "m.onnx")


def external(entries: dict[str, str]) -> onnx.ModelProto:
    proto = linear(normal(4, 4))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in entries.items():
        tensor.external_data.add(key=key, value=entry)
    return proto


@pytest.mark.parametrize(("location", "message"), [
    ("../secret", "outside the model's folder"), ("{root}/secret", "relative to the model's folder"),
    ("link", "outside the model's folder"), ("sub/../../secret", "outside"), ("", "relative"), (".", "not beside"),
    ("a" * 5000, "File name too long")])
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str, message: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    folder = tmp_path / "folder"
    folder.mkdir()
    os.symlink(tmp_path / "secret", folder / "link")
    onnx.save(external({"location": location.format(root=tmp_path)}), folder / "m.onnx")
    with pytest.raises(CompileError, match=message):
        import_onnx(folder / "m.onnx")


@pytest.mark.parametrize("entries", [{"offset": "-4"}, {"offset": "8"}, {"length": "60"}, {"length": "x"},
                                     {"length": "99999999999999999999"}])
def test_wrong_places_in_external_data(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "w").write_bytes(bytes(64))
    onnx.save(external({"location": "w", **entries}), tmp_path / "m.onnx")
    with pytest.raises(CompileError, match="external data|its entry names"):
        import_onnx(tmp_path / "m.onnx")


def test_external_data_nobody_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "w").write_bytes(bytes(64))
    onnx.save(external({"location": "w"}), tmp_path / "m.onnx")
    monkeypatch.setattr("q8c.frontend.weights._mapped", denied)
    with pytest.raises(CompileError, match="tensor '.': cannot read its external data, 'w': Permission denied"):
        import_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize(("change", "message"), [("sizes", r"no machine holds the shape \[0, 4611686018427387904\]"),
                                                 ("segment", "its data is cut into segments")])
@pytest.mark.parametrize("place", ["beside", "inside"])
def test_tensors_that_cannot_be_read(change: str, message: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(64))
    proto = external({"location": "w"}) if place == "beside" else linear(normal(64, 64))
    tensor = proto.graph.initializer[0]
    if change == "sizes":
        tensor.dims[:] = [0, 2**62]
    else:
        tensor.segment.begin, tensor.segment.end = 0, 4
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(Error, match=message):
        import_onnx(tmp_path / "m.onnx")


def test_digest_covers_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(linear(normal(4, 4)), path, save_as_external_data=True, size_threshold=0, location="w.bin")
    first = content_digest(path)
    assert content_digest(path) == first
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "w.bin").write_bytes(data)
    assert content_digest(path) != first
    onnx.save(linear(normal(4, 4)), path)
    assert content_digest(path) != first


def test_initializers_may_be_listed_as_inputs() -> None:
    proto = linear(normal(4, 3))
    proto.graph.input.append(value("w", F32, [4, 3]))
    assert [v.name for v in compare(proto, {"x": normal(2, 4)}).inputs] == ["x"]


def test_constants_in_all_forms() -> None:
    sparse = helper.make_sparse_tensor(helper.make_tensor("v", TensorProto.FLOAT, [2], [1.0, 2.0]),
                                       helper.make_tensor("i", TensorProto.INT64, [2], [1, 5]), [2, 3])
    forms: dict[str, tuple[str, Any, Any]] = {
        "t": ("value", numpy_helper.from_array(np.array([1, 2])), I64), "i": ("value_int", 7, I64),
        "is": ("value_ints", [1, 2], I64), "f": ("value_float", 0.5, F32), "fs": ("value_floats", [1.5], F32),
        "s": ("sparse_value", sparse, F32)}
    nodes = [node("Constant", "", name, **{form: data}) for name, (form, data, _) in forms.items()]
    proto = model(nodes, {}, {name: dtype for name, (_, _, dtype) in forms.items()})
    graph = load(proto)
    assert not graph.nodes
    got = dict(zip(graph.output_names, interpret(graph, {}), strict=True))
    assert {n: a.tolist() for n, a in got.items()} == {
        "t": [1, 2], "i": 7, "is": [1, 2], "f": 0.5, "fs": [1.5], "s": [[0, 1, 0], [0, 0, 2]]}
    text = model([node("Constant", "", value_string="a")], {}, {"y": F32})
    with pytest.raises(UnsupportedError, match="value_string"):
        load(text)


def test_outputs_that_are_inputs_or_constants_or_twice_the_same() -> None:
    proto = model([node("Neg", "x"), node("Identity", "x", "same"), node("Identity", "y", "again")],
                  {"x": (F32, ["n"]), "unused": (F32, ["m", 2])},
                  {"y": F32, "x": F32, "w": F32, "same": F32, "again": F32}, {"w": normal(2)})
    graph = compare(proto, {"x": normal(3), "unused": normal(1, 2)})
    assert graph.output_names == ["y", "x", "w", "same", "again"]
    assert [v.name for v in graph.inputs] == ["x", "unused"]


def test_the_default_domain_has_two_names() -> None:
    proto = model([node("Neg", "x", "a"), node("Abs", "a", domain="ai.onnx")], {"x": (F32, ["n"])}, {"y": F32})
    graph = load(proto)
    assert [n.op for n in graph.nodes] == ["neg", "abs"]
    proto.opset_import[0].domain = "ai.onnx"
    assert print_graph(load(proto)) == print_graph(graph)


def test_what_a_file_may_leave_out(tmp_path: Path) -> None:
    """A name of the graph, what an output is; and it may be of an older format than says which opset it is of."""
    proto = model([node("Neg", "x")], {"x": (F32, ["n"])}, {"y": F32}, opset=8)
    proto.ir_version, proto.graph.name = 2, ""
    proto.graph.output[0].ClearField("type")
    assert [str(v.type) for v in load(proto).outputs] == ["f32[n]"]


def test_the_ops_of_onnx_runtime_need_no_import() -> None:
    compare(model([node("QuickGelu", "x", domain="com.microsoft")], {"x": (F32, ["n"])}, {"y": F32}),
            {"x": normal(5)}, runtime=True)


def test_constants_in_nodes_may_lie_in_files(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(8) + normal(5).tobytes())
    apart = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[5], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "data"), ("offset", "8")):
        apart.external_data.add(key=key, value=text)
    branch = helper.make_graph([node("Add", "x w", "z")], "b", [], [value("z", F32, None)], [apart])
    nodes = [node("Constant", "", "v", value=apart), node("Add", "x v", "s"),
             node("If", "c", "i", then_branch=branch, else_branch=branch), node("Mul", "s i")]
    proto = model(nodes, {"x": (F32, ["n"])}, {"y": F32}, {"c": np.array(True)})
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    y, = interpret(import_onnx(tmp_path / "m.onnx"), {"x": np.ones(5, F32)})
    np.testing.assert_array_equal(y, (1 + normal(5)) ** 2)


def test_nodes_may_stand_in_any_order() -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        return helper.make_graph([node(op, "b", name)], name, [], [value(name, F32, None)])

    chosen = node("If", "c", "d", then_branch=branch("t", "Neg"), else_branch=branch("e", "Abs"))
    nodes = [node("Exp", "d"), chosen, node("Tanh", "a", "b"), node("Sin", "x", "a")]
    inputs: dict[str, Any] = {"x": (F32, ["n"])}
    upside_down = load(model(nodes, inputs, {"y": F32}, {"c": np.array(True)}))
    assert [n.op for n in upside_down.nodes] == ["sin", "tanh", "neg", "exp"]
    sorted_ = load(model(nodes[::-1], inputs, {"y": F32}, {"c": np.array(True)}))
    assert print_graph(upside_down) == print_graph(sorted_)


def test_what_nothing_needs_is_not_looked_at() -> None:
    """Nodes of unknown ops and inputs of unknown types among it."""
    inner = helper.make_graph([node("Magic", "x", "z", domain="com.acme")], "g", [], [value("z", F32, None)])
    nodes = [node("Constant", "", "text", value_string="abc"), node("Neg", "x"),
             node("Magic", "text", "m", domain="com.acme"), node("If", "c", "i", then_branch=inner, else_branch=inner)]
    proto = model(nodes, {"x": (F32, ["n"]), "c": (BOOL, []), "u": (F32, ["m"])}, {"y": F32})
    proto.graph.input.append(helper.make_tensor_value_info("words", TensorProto.STRING, ["n"]))
    proto.graph.input.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))
    proto.graph.input.append(value("shapeless", F32, None))
    graph = load(proto)
    assert [n.op for n in graph.nodes] == ["neg"] and [v.name for v in graph.inputs] == ["x", "c", "u"]


def test_sources_are_node_names_or_output_names() -> None:
    proto = model([node("Neg", "x", "a", name="layer/Neg"), node("Abs", "a", "out")], {"x": (F32, ["n"])}, {"out": F32})
    assert [n.source for n in load(proto).nodes] == [("layer/Neg",), ("out",)]


def with_functions(opset: int = 20) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset)]
    scale = helper.make_node("Constant", [], ["s"])
    attribute = scale.attribute.add(name="value_float", type=onnx.AttributeProto.FLOAT)
    attribute.ref_attr_name = "factor"
    inner = helper.make_function("own", "Scaled", ["a"], ["b"], [scale, helper.make_node("Mul", ["a", "s"], ["b"])],
                                 imports, ["factor"])
    outer = helper.make_function(
        "own", "Twice", ["a"], ["c"],
        [helper.make_node("Scaled", ["a"], ["b"], domain="own", factor=3.0),
         helper.make_node("Softmax", ["b"], ["d"]),
         helper.make_node("Scaled", ["d"], ["c"], domain="own", factor=0.5)],
        [*imports, helper.make_opsetid("own", 1)])
    return model([node("Twice", "x", "y", domain="own"), node("Twice", "y", "z", domain="own")],
                 {"x": (F32, ["n", 2, 3])}, {"z": F32}, opset_imports=[helper.make_opsetid("own", 1)],
                 functions=[inner, outer])


def test_functions_are_inlined() -> None:
    graph = compare(with_functions(), {"x": normal(2, 2, 3)})
    assert [n.op for n in graph.nodes] == ["mul", "softmax", "mul"] * 2


def test_a_function_of_another_opset_keeps_its_meaning() -> None:
    """Softmax of opset 12 runs over all axes from 1 on."""
    graph = load(with_functions(opset=12))
    assert [n.op for n in graph.nodes if n.op != "reshape"] == ["mul", "softmax", "mul"] * 2
    y = interpret(graph, {"x": normal(2, 2, 3)})[0]
    np.testing.assert_allclose(y.sum(axis=(1, 2)), [0.5, 0.5], rtol=1e-5)


@pytest.mark.parametrize("opset", [20, 12], ids=["inlined", "of another opset"])
def test_what_a_function_s_attributes_are_by_default(opset: int) -> None:
    body = helper.make_node("LeakyRelu", ["a"], ["b"])
    body.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT).ref_attr_name = "alpha"
    own = helper.make_function("own", "Leak", ["a"], ["b"], [body], [helper.make_opsetid("", opset)],
                               attribute_protos=[helper.make_attribute("alpha", 0.75)])
    nodes = [node("Leak", "x", "y", domain="own"), node("Leak", "x", "z", domain="own", alpha=0.25)]
    compare(model(nodes, {"x": (F32, ["n"])}, {"y": F32, "z": F32}, opset_imports=[helper.make_opsetid("own", 1)],
                  functions=[own]), {"x": normal(9)}, runtime=True)


def test_a_function_may_take_the_name_of_an_op() -> None:
    own = helper.make_function("", "Gelu", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])],
                               [helper.make_opsetid("", 20)])
    proto = model([node("Gelu", "x")], {"x": (F32, ["n"])}, {"y": F32}, functions=[own])
    assert [n.op for n in load(proto).nodes] == ["neg"]
