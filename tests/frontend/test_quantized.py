"""Quantized ops, alone to the bit as the standard says, and small quantized models as int8 products."""
from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import q8c
from q8c.compiler import compile_model
from q8c.errors import UnsupportedError
from q8c.frontend import import_onnx
from q8c.ir import interpret, spill
from q8c.passes.pipeline import Options
from tests.frontend.support import F32, Array, Shape, compare, integers, model, node, normal
from tests.models import mlp

DOMAIN = "com.microsoft"
MICROSOFT = [helper.make_opsetid(DOMAIN, 1)]
U8, I8, I32 = np.uint8, np.int8, np.int32
X = normal(3, 4, 6) * F32(4)
ROWS: Shape = ["n", 4, 6]
AXIS_SCALE, AXIS_ZERO = np.array([0.1, 0.2, 0.5, 0.01], F32), np.array([0, 255, 128, 7], U8)
BLOCK_SCALE, BLOCK_ZERO = np.abs(normal(3, 4, 2, seed=4)) + F32(0.1), integers(3, 4, 2, dtype=I8)


def exactly(proto: onnx.ModelProto, feed: Mapping[str, Array], folder: Path) -> None:
    """Import and interpret, then compile and run: the reference evaluator's elements, all of them."""
    compare(proto, feed, rtol=0, atol=0)
    session = q8c.load(q8c.compile(proto, folder / "m.q8c"))
    for got, want in zip(session.run(None, dict(feed)), ReferenceEvaluator(proto).run(None, dict(feed)), strict=True):
        np.testing.assert_array_equal(got, np.asarray(want))


QUANTIZE: dict[str, tuple[dict[str, Array], dict[str, Any]]] = {
    "tensor": ({"s": np.array(0.05, F32), "z": np.array(128, U8)}, {}),
    "signed": ({"s": np.array([0.05], F32), "z": np.array([-3], I8)}, {}),
    "no zero point": ({"s": np.array(0.05, F32)}, {}),
    "sixteen bits": ({"s": np.array(0.001, F32), "z": np.array(-100, np.int16)}, {}),
    "axis": ({"s": AXIS_SCALE, "z": AXIS_ZERO}, {"axis": -2}),
    "blocks": ({"s": BLOCK_SCALE, "z": BLOCK_ZERO}, {"axis": 2, "block_size": 3}),
}


@pytest.mark.parametrize("case", QUANTIZE)
@pytest.mark.parametrize("constant", [True, False])
def test_quantize_and_dequantize(case: str, constant: bool, tmp_path: Path) -> None:
    scales, attrs = QUANTIZE[case]
    to = scales["z"].dtype if "z" in scales else np.dtype(U8)
    inputs: dict[str, tuple[Any, Shape]] = {"x": (F32, [3, 4, 6])}
    feed = {"x": X}
    if not constant:
        inputs |= {n: (a.dtype, list(a.shape)) for n, a in scales.items()}
        feed |= scales
    names = " ".join(scales)
    nodes = [node("QuantizeLinear", f"x {names}", "q", **attrs), node("DequantizeLinear", f"q {names}", "y", **attrs)]
    proto = model(nodes[:1], inputs, {"q": to}, scales if constant else None, opset=21)
    exactly(proto, feed, tmp_path)
    integer = integers(3, 4, 6, low=0, high=100, dtype=to)
    proto = model(nodes[1:], {**inputs, "q": (to, [3, 4, 6])}, {"y": F32}, scales if constant else None, opset=21)
    exactly(proto, feed | {"q": integer}, tmp_path)


@pytest.mark.parametrize("to", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_quotient_is_of_the_type_of_its_scale(to: int, tmp_path: Path) -> None:
    x = np.arange(-256, 257).astype(F32)  # bfloat16 holds each
    scale = helper.make_tensor("s", to, [], [0.51])
    proto = model([node("Cast", "x", "h", to=to), node("QuantizeLinear", "h s z", "y")], {"x": (F32, ["n"])},
                  {"y": np.uint16}, {"z": np.array(30000, np.uint16)}, opset=23)
    proto.graph.initializer.append(scale)
    exactly(proto, {"x": x}, tmp_path)
    single = np.rint(x / F32(numpy_helper.to_array(scale))) + 30000
    assert (interpret(import_onnx(proto), {"x": x})[0] != single).any()


@pytest.mark.parametrize("x", [X, np.abs(X), -np.abs(X), np.zeros((1, 4, 6), F32), np.full((1, 4, 6), 1e-30, F32)],
                         ids=["both signs", "positive", "negative", "zeros", "tiny"])
def test_dynamic_quantize(x: Array, tmp_path: Path) -> None:
    proto = model([node("DynamicQuantizeLinear", "x", "q s z")], {"x": (F32, ROWS)}, {"q": U8, "s": F32, "z": U8})
    exactly(proto, {"x": x}, tmp_path)


@pytest.mark.parametrize(("a", "b", "a_zero", "b_zero"), [
    ((2, 3, 300), (300, 5), (), (5,)), ((4, 40), (40, 6), (4, 1), ()), ((7,), (7, 3), None, None),
    ((3, 8), (8,), (1,), None), ((2, 1, 3, 4), (2, 4, 5), None, None)], ids=str)
def test_matmul_integer(a: Any, b: Any, a_zero: Any, b_zero: Any, tmp_path: Path) -> None:
    feed: dict[str, Array] = {"a": integers(*a, low=0, high=256, dtype=U8),
                              "b": integers(*b, low=-128, high=128, dtype=I8, seed=1)}
    if a_zero is not None:
        feed["az"] = integers(*a_zero, low=0, high=256, dtype=U8, seed=2)
    if b_zero is not None:
        feed["bz"] = integers(*b_zero, low=-128, high=128, dtype=I8, seed=3)
    names = " ".join(n if n in feed else "-" for n in ("a", "b", "az", "bz"))
    proto = model([node("MatMulInteger", names.rstrip(" -"))], {n: (v.dtype, list(v.shape)) for n, v in feed.items()},
                  {"y": I32})
    exactly(proto, feed, tmp_path)


def test_qlinear_matmul_alone(tmp_path: Path) -> None:
    feed = {"a": integers(2, 3, 40, low=0, high=256, dtype=U8), "b": integers(40, 8, low=0, high=256, dtype=U8, seed=1)}
    constants: dict[str, Array] = {"sa": np.array(0.01, F32), "za": np.array(100, U8), "sb": np.full(8, 0.02, F32),
                                   "zb": np.full(8, 90, U8), "sy": np.array(0.05, F32), "zy": np.array(130, U8)}
    proto = model([node("QLinearMatMul", "a sa za b sb zb sy zy")],
                  {n: (v.dtype, list(v.shape)) for n, v in feed.items()}, {"y": U8}, constants)
    exactly(proto, feed, tmp_path)


def contrib(op: str, inputs: str, feeds: Mapping[str, Array], constants: Mapping[str, Array], **attrs: Any) -> None:
    """One node of ONNX Runtime's own domain against ONNX Runtime."""
    proto = model([node(op, inputs, domain=DOMAIN, **attrs)], {n: (a.dtype, list(a.shape)) for n, a in feeds.items()},
                  {"y": F32}, constants, opset_imports=MICROSOFT)
    compare(proto, feeds, runtime=True, rtol=1e-4, atol=1e-4)


WEIGHT = integers(32, 96, low=-128, high=128, dtype=I8, seed=6)
SCALES = np.abs(normal(96, seed=7)) * F32(0.01) + F32(1e-3)


@pytest.mark.parametrize("columns", [False, True])
def test_products_of_quantized_operands_as_float(columns: bool) -> None:
    scale, zero = (SCALES, np.zeros(96, I8)) if columns else (np.array(0.01, F32), np.array(3, I8))
    constants = {"w": WEIGHT, "sw": scale, "zw": zero, "b": normal(96)}
    contrib("DynamicQuantizeMatMul", "x w sw zw b", {"x": normal(2, 5, 32)}, constants)
    contrib("MatMulIntegerToFloat", "a w sa sw za zw b", {"a": integers(5, 32, low=0, high=256, dtype=U8)},
            constants | {"sa": np.array(0.02, F32), "za": np.array(120, U8)})


def test_attention_of_quantized_operands() -> None:
    constants = {"w": WEIGHT, "b": normal(96), "sx": np.array(0.02, F32), "sw": np.array(0.01, F32),
                 "zx": np.array(120, U8), "zw": np.array(0, I8)}
    contrib("QAttention", "x w b sx sw mask zx zw",
            {"x": integers(2, 5, 32, low=0, high=256, dtype=U8), "mask": np.array([5, 3], I32)}, constants, num_heads=2)


def test_as_many_scales_as_slices_however_each_is_named(tmp_path: Path) -> None:
    feed = {"x": normal(1, 3), "s": np.array([0.5], F32)}
    proto = model([node("QuantizeLinear", "x s", axis=0)], {"x": (F32, [1, 3]), "s": (F32, ["k"])}, {"y": U8})
    exactly(proto, feed, tmp_path)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("zero", [False, True])
def test_matmul_nbits(bits: int, block: int, zero: bool) -> None:
    depth, cols = 80, 24
    blocks = -(-depth // block)
    constants = {"w": integers(cols, blocks, block * bits // 8, low=0, high=256, dtype=U8),
                 "s": np.abs(normal(cols * blocks, seed=1)) * F32(0.01)}
    if zero:
        constants["z"] = integers(cols * -(-blocks * bits // 8), low=0, high=256, dtype=U8, seed=2)
    contrib("MatMulNBits", "x w s z" if zero else "x w s", {"x": normal(2, 3, depth)}, constants, K=depth, N=cols,
            bits=bits, block_size=block)


@pytest.mark.parametrize(("zero", "reasons"), [(128, []), (100, ["more than q8-channel has"])])
def test_columns_beyond_the_steps_there_are_say_so(zero: int, reasons: list[str], tmp_path: Path) -> None:
    constants = {"w": integers(64, 24, low=0, high=256, dtype=U8), "s": np.abs(normal(24)) * F32(0.01) + F32(1e-3),
                 "z": np.full(24, zero, U8)}
    proto = model([node("DequantizeLinear", "w s z", "f", axis=1), node("MatMul", "x f")], {"x": (F32, ["n", 64])},
                  {"y": F32}, constants)
    part, = compile_model(proto, tmp_path / "m.q8c").parts
    assert [p.form for p in part.products] == ["int8"]
    found = [str(d) for d in part.report.declines if "rounded again" in str(d)]
    assert len(found) == len(reasons) and all(r in d for r, d in zip(reasons, found, strict=True))


def test_large_weights_of_few_bits_never_are_floats_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_AT_ONCE", spill.LARGE)
    depth, cols = 1024, 4096
    constants = {"w": integers(cols, depth // 32, 16, low=0, high=256, dtype=U8), "s": normal(cols * depth // 32)}
    proto = model([node("MatMulNBits", "x w s", domain=DOMAIN, K=depth, N=cols, bits=4, block_size=32)],
                  {"x": (F32, ["n", depth])}, {"y": F32}, constants, opset_imports=MICROSOFT)
    tracemalloc.start()
    graph = import_onnx(proto)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    weight = next(v for v in graph.constants.values() if v.type.size == depth * cols)
    assert peak < weight.array().nbytes


def test_matmul_nbits_in_an_order_of_its_own() -> None:
    """Zero points are those that ONNX Runtime has then whatever it is given."""
    order = np.random.default_rng(0).permutation(np.arange(80) // 32).astype(I32)
    constants = {"w": integers(24, 3, 16, low=0, high=256, dtype=U8), "s": np.abs(normal(72, seed=1)) * F32(0.01),
                 "z": np.full(48, 0x88, U8), "order": order}
    for shape in ((3, 80), (80,)):
        contrib("MatMulNBits", "x w s z order", {"x": normal(*shape)}, constants, K=80, N=24, bits=4, block_size=32)


@pytest.fixture
def some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for large weights."""
    monkeypatch.setattr("q8c.ir.spill.LARGE", 1)
    monkeypatch.setattr("q8c.ir.spill._AT_ONCE", 800)


@pytest.mark.parametrize(("kind", "depth"), [(0, 64), (1, 63)])
def test_matmul_bnb4(kind: int, depth: int, some_rows_at_a_time: None) -> None:
    constants = {"w": integers(12 * depth, low=0, high=256, dtype=U8), "s": np.abs(normal(24)) * F32(0.1)}
    contrib("MatMulBnb4", "x w s", {"x": normal(3, depth)}, constants, K=depth, N=24, block_size=64, quant_type=kind)


@pytest.mark.parametrize("kind", ["bytes", "pairs", "UINT4", "INT4"])
@pytest.mark.parametrize("zero", [False, True])
def test_tables_in_blocks(kind: str, zero: bool, some_rows_at_a_time: None) -> None:
    rows, cols, block, bits = 11, 96, 32, 8 if kind == "bytes" else 4
    low = -8 if kind == "INT4" else 0
    data = integers(rows, cols, low=low, high=low + (1 << bits))
    zeros = integers(rows, 4, low=low, high=low + (1 << bits), seed=1)[:, :4 if kind == "pairs" else 3]
    attrs: dict[str, Any] = {"bits": bits} if kind in ("bytes", "pairs") else {}
    proto = model([node("GatherBlockQuantized", "d i s z" if zero else "d i s", domain=DOMAIN, block_size=block,
                        **attrs)], {"i": (np.int64, ["n", 2])}, {"y": F32}, {"s": np.abs(normal(rows, 3))}, opset=21,
                  opset_imports=MICROSOFT)
    for name, values in (("d", data), *([("z", zeros)] if zero else [])):
        if kind in ("bytes", "pairs"):
            packed = values if kind == "bytes" else values[:, ::2] | values[:, 1::2] << 4
            tensor = numpy_helper.from_array(packed.astype(U8), name)
        else:
            tensor = helper.make_tensor(name, getattr(TensorProto, kind), values.shape, values.reshape(-1))
        proto.graph.initializer.append(tensor)
    compare(proto, {"i": np.array([[3, 0], [10, 3]])}, runtime=True, rtol=1e-6)


CONV: dict[str, Array] = {"xs": np.array(0.03, F32), "xz": np.array(120, U8), "ys": np.array(0.5, F32),
                          "yz": np.array(128, U8)}


@pytest.mark.parametrize(("columns", "group", "bias"), [(False, 1, False), (True, 1, True), (True, 2, True)])
def test_qlinear_conv(columns: bool, group: int, bias: bool) -> None:
    constants: dict[str, Array] = CONV | {"w": integers(8, 4 // group, 3, 3, low=-127, high=128, dtype=I8),
                                          "ws": np.abs(normal(8)) * F32(0.02) if columns else np.array(0.02, F32),
                                          "wz": np.zeros(8, I8) if columns else np.array(3, I8),
                                          "b": integers(8, low=-2000, high=2000, dtype=I32)}
    names = "x xs xz w ws wz ys yz" + " b" * bias
    proto = model([node("QLinearConv", names, pads=[1, 1, 1, 1], strides=[2, 2], group=group)],
                  {"x": (U8, ["n", 4, 9, "width"])}, {"y": U8}, {n: constants[n] for n in names.split()[1:]})
    x = integers(2, 4, 9, 7, low=0, high=256, dtype=U8)
    got, = interpret(import_onnx(proto), {"x": x})
    wanted, = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    assert got.dtype == U8 and len(np.unique(wanted)) > 50
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize(("bits", "size", "weights", "block"), [
    (4, 32, "default", 32), (8, 32, "default", 32), (4, 32, "q8-channel", 0), (4, 64, "default", 32),
    (4, 16, "default", 32)])
def test_weights_in_blocks_stay_in_blocks(bits: int, size: int, weights: str, block: int, tmp_path: Path) -> None:
    depth, cols = 128, 48
    constants = {"w": integers(cols, depth // size, size * bits // 8, low=0, high=256, dtype=U8),
                 "s": np.abs(normal(cols * depth // size, seed=1)) * F32(0.01) + F32(1e-4)}
    proto = model([node("MatMulNBits", "x w s", domain=DOMAIN, K=depth, N=cols, bits=bits, block_size=size)],
                  {"x": (F32, ["n", depth])}, {"y": F32}, constants, opset_imports=MICROSOFT)
    result = compile_model(proto, tmp_path / "m.q8c", options=Options(weights=weights))
    linears = [n for n in result.parts[0].graph.nodes if n.op == "q8_linear"]
    found = [(n.attrs.get("block", 0), n.attrs.get("bits", 8)) for n in linears]
    assert found == [(block, bits if block and size >= block else 8)]
    x = normal(5, depth)
    assert relative(q8c.load(result.path).run(None, {"x": x})[0], interpret(import_onnx(proto), {"x": x})[0]) < 0.02


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("type", [TensorProto.INT4, TensorProto.UINT4])
def test_four_bit_weights_are_read(raw: bool, type: int) -> None:
    low = -8 if type == TensorProto.INT4 else 0
    values = integers(64, 50, low=low, high=low + 16)
    proto = model([node("DequantizeLinear", "w s", "f", axis=0, block_size=32), node("MatMul", "x f")],
                  {"x": (F32, ["n", 64])}, {"y": F32}, {"s": np.abs(normal(2, 50))}, opset=21)
    tensor = helper.make_tensor("w", type, [64, 50], values.reshape(-1))
    if raw:
        pairs = values.reshape(-1, 2) & 15
        tensor = TensorProto(name="w", data_type=type, dims=[64, 50],
                             raw_data=(pairs[:, 0] | pairs[:, 1] << 4).astype(U8).tobytes())
    proto.graph.initializer.append(tensor)
    x = normal(3, 64)
    scale = np.repeat(numpy_helper.to_array(proto.graph.initializer[0]), 32, axis=0)
    graph = import_onnx(proto)
    np.testing.assert_allclose(interpret(graph, {"x": x})[0], x @ (values * scale), rtol=1e-4, atol=1e-4)


def test_four_bit_results_are_refused() -> None:
    proto = model([node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")], {"x": (F32, ["n"])},
                  {"y": F32}, {"s": np.array(0.1, F32)}, opset=21)
    proto.graph.initializer.append(helper.make_tensor("z", TensorProto.INT4, [], [0]))
    with pytest.raises(UnsupportedError, match="four bits"):
        import_onnx(proto)


def relative(y: Array, wanted: Array) -> float:
    return float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted))


class _Reader:
    """Calibration rows for ONNX Runtime's static quantizer."""

    def __init__(self, rows: Array) -> None:
        self._rows = iter([{"x": rows}])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rows, None)


@pytest.mark.parametrize(("form", "activation"), [
    ("dynamic i8", "Gelu"), ("dynamic u8", "Gelu"), ("dynamic columns", "Relu"), ("QDQ", "Relu"),
    ("QDQ i8 columns", "Gelu"), ("QOperator", "Relu")])
def test_models_that_onnx_runtime_quantized(form: str, activation: str, tmp_path: Path) -> None:
    """Every product runs as int8, and the error against the float model is no larger than ONNX Runtime's own."""
    from onnxruntime import quantization as ort

    plain, quantized = tmp_path / "plain.onnx", tmp_path / "quantized.onnx"
    onnx.save(mlp((64, 96, 48), activation), plain)
    rows = normal(40, 64)
    columns, signed = "columns" in form, "i8" in form
    weight = ort.QuantType.QUInt8 if "u8" in form else ort.QuantType.QInt8
    if form.startswith("dynamic"):
        ort.quantize_dynamic(plain, quantized, per_channel=columns, weight_type=weight)
    else:
        layout = getattr(ort.QuantFormat, form.split()[0])
        ort.quantize_static(plain, quantized, _Reader(rows), layout, ["MatMul", "Relu"], per_channel=columns,
                            activation_type=ort.QuantType.QInt8 if signed else ort.QuantType.QUInt8)
    result = compile_model(quantized, tmp_path / "m.q8c")
    assert [p.form for p in result.parts[0].products] == ["int8"] * 2
    sessions = [onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (plain, quantized)]
    wanted, theirs = (np.asarray(s.run(None, {"x": rows})[0]) for s in sessions)
    ours = q8c.load(result.path).run(None, {"x": rows})[0]
    assert relative(ours, wanted) <= relative(theirs, wanted)


def test_without_quantizing_the_file_is_followed_to_the_letter(tmp_path: Path) -> None:
    from onnxruntime import quantization as ort

    onnx.save(mlp((64, 96, 48), "Relu"), tmp_path / "plain.onnx")
    ort.quantize_dynamic(tmp_path / "plain.onnx", tmp_path / "quantized.onnx")
    session = q8c.load(q8c.compile(tmp_path / "quantized.onnx", tmp_path / "m.q8c", quantize=False))
    rows = normal(7, 64)
    found = ReferenceEvaluator(str(tmp_path / "quantized.onnx")).run(None, {"x": rows})
    wanted = np.asarray(found[0])  # type: ignore[index]
    assert relative(session.run(None, {"x": rows})[0], wanted) < 1e-6
