"""Elementwise ops over a size that varies, against the reference evaluator."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import DTypeLike

from q8c.ir import interpret
from q8c.ir.ops.elementwise import gelu, sigmoid
from tests.frontend.support import BOOL, F32, I64, Array, compare, integers, load, model, node, normal, text

ROWS = (1, 4, 0)
UNARY: list[tuple[str, int, dict[str, Any]]] = [
    *((op, 13, {}) for op in ("Exp", "Sqrt", "Erf", "Tanh", "Sigmoid", "Floor", "Ceil", "Round", "Reciprocal", "Neg",
                              "Abs", "Sign", "Relu", "Softplus", "Log", "Softsign", "Identity")),
    *((op, 11, {}) for op in ("Sin", "Cos", "Elu", "Selu", "HardSigmoid", "LeakyRelu", "ThresholdedRelu")),
    ("LeakyRelu", 16, {"alpha": 0.3}), ("Elu", 22, {"alpha": 0.5}), ("Celu", 12, {"alpha": 2.0}),
    ("HardSigmoid", 22, {"alpha": 0.4, "beta": 0.3}), ("HardSwish", 14, {}), ("Mish", 18, {}),
    ("Swish", 24, {}), ("Swish", 24, {"alpha": 0.5}), ("Gelu", 20, {}), ("Gelu", 20, {"approximate": "tanh"}),
    ("Shrink", 9, {"bias": 0.1, "lambd": 0.4}), ("Selu", 22, {}), ("Clip", 7, {"min": -0.5}),
    ("Clip", 10, {"min": -0.5, "max": 0.25})]


@pytest.mark.parametrize(("op", "opset", "attrs"), UNARY, ids=lambda x: str(x))
def test_unary(op: str, opset: int, attrs: dict[str, Any]) -> None:
    proto = model([node(op, "x", **attrs)], {"x": (F32, ["n", 3])}, {"y": F32}, opset=opset)
    shift = 3 if op in ("Log", "Sqrt", "Reciprocal") else 0
    feeds = [{"x": np.abs(normal(n, 3)) + 1 if shift else normal(n, 3)} for n in ROWS]
    with np.errstate(all="ignore"):
        compare(proto, *feeds)


@pytest.mark.parametrize(("op", "opset", "attrs"), UNARY, ids=lambda x: str(x))
def test_unary_keeps_the_rank_of_a_scalar(op: str, opset: int, attrs: dict[str, Any]) -> None:
    graph = load(model([node(op, "x", **attrs)], {"x": (F32, [])}, {"y": F32}, opset=opset))
    assert graph.outputs[0].shape == ()


@pytest.mark.parametrize("op", ["Abs", "Neg", "Sign", "Relu"])
def test_unary_on_integers(op: str) -> None:
    proto = model([node(op, "x")], {"x": (I64, ["n"])}, {"y": I64}, opset=14)
    compare(proto, {"x": integers(7)})


BINARY = [*((op, t, t) for op in ("Add", "Sub", "Mul", "Div") for t in (F32, np.int32)),
          *((op, t, BOOL) for op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual") for t in (F32, I64)),
          *((op, BOOL, BOOL) for op in ("And", "Or", "Xor", "Equal")),
          ("Mod", I64, I64), ("Min", I64, I64), ("Max", F32, F32), ("PRelu", F32, F32)]


def operand(dtype: DTypeLike, *shape: int, seed: int) -> Array:
    if dtype is BOOL:
        return integers(*shape, low=0, high=2, dtype=bool, seed=seed)
    if dtype is F32:
        return normal(*shape, seed=seed)
    found = integers(*shape, dtype=dtype, seed=seed)
    return np.where(found == 0, 2, found).astype(dtype)


@pytest.mark.parametrize(("op", "dtype", "result"), BINARY)
def test_binary_broadcasts(op: str, dtype: DTypeLike, result: DTypeLike) -> None:
    proto = model([node(op, "a b")], {"a": (dtype, ["n", 1, 3]), "b": (dtype, [2, 1])}, {"y": result}, opset=16)
    if op == "PRelu":  # its slope broadcasts one way only
        proto = model([node(op, "a b")], {"a": (dtype, ["n", 2, 3]), "b": (dtype, [2, 1])}, {"y": result}, opset=16)
    middle = 2 if op == "PRelu" else 1
    compare(proto, *({"a": operand(dtype, n, middle, 3, seed=1), "b": operand(dtype, 2, 1, seed=2)} for n in ROWS))


def test_integer_division_truncates() -> None:
    proto = model([node("Div", "a b")], {"a": (I64, ["n"]), "b": (I64, ["n"])}, {"y": I64})
    graph = load(proto)
    got = interpret(graph, {"a": np.array([-7, 7, -7, 7]), "b": np.array([2, 2, -2, -2])})[0]
    assert got.tolist() == [-3, 3, 3, -3]


@pytest.mark.parametrize("fmod", [0, 1])
def test_mod_of_floats_and_integers(fmod: int) -> None:
    dtype = F32 if fmod else I64
    proto = model([node("Mod", "a b", fmod=fmod)], {"a": (dtype, ["n"]), "b": (dtype, ["n"])}, {"y": dtype})
    compare(proto, {"a": np.array([-7, 7, -7, 5], dtype), "b": np.array([3, 3, -3, -3], dtype)})


@pytest.mark.parametrize(("base", "exponent"), [(F32, F32), (F32, I64), (I64, F32), (np.int32, I64)])
def test_pow_of_two_types_has_the_first_type(base: DTypeLike, exponent: DTypeLike) -> None:
    proto = model([node("Pow", "a b")], {"a": (base, ["n"]), "b": (exponent, [])}, {"y": base}, opset=15)
    compare(proto, {"a": np.array([0, 1, 2, 3], base), "b": np.array(2, exponent)})


@pytest.mark.parametrize("op", ["Min", "Max", "Sum", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_operands(op: str, count: int) -> None:
    names = [f"x{i}" for i in range(count)]
    proto = model([node(op, " ".join(names))], {n: (F32, ["n", 3]) for n in names}, {"y": F32}, opset=13)
    compare(proto, {n: normal(2, 3, seed=i) for i, n in enumerate(names)})


@pytest.mark.parametrize("operands", ["x lo hi", "x - hi", "x lo", "x"])
def test_clip_with_operands(operands: str) -> None:
    bounds = {"lo": np.float32(-0.5), "hi": np.float32(0.25)}
    constants = {n: np.asarray(a) for n, a in bounds.items() if n in operands}
    proto = model([node("Clip", operands)], {"x": (F32, ["n"])}, {"y": F32}, constants, opset=12)
    compare(proto, {"x": normal(9)})


def test_where_is_nan_and_is_inf() -> None:
    x = np.array([1, np.nan, np.inf, -np.inf, 0], F32)
    nodes = [node("IsNaN", "x", "nan"), node("Where", "nan zero x", "y"), node("IsInf", "x", "inf"),
             node("IsInf", "x", "up", detect_negative=0), node("IsInf", "x", "none", detect_negative=0,
                                                                   detect_positive=0)]
    proto = model(nodes, {"x": (F32, ["n"])}, {"y": F32, "nan": BOOL, "inf": BOOL, "up": BOOL, "none": BOOL},
                  {"zero": np.zeros((), F32)})
    compare(proto, {"x": x})


@pytest.mark.parametrize("to", [np.int32, np.int64, np.float32, np.float64, np.bool_, np.uint8])
@pytest.mark.parametrize("dtype", [F32, I64, BOOL])
def test_cast_and_cast_like(dtype: DTypeLike, to: DTypeLike) -> None:
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to))
    proto = model([node("Cast", "x", to=code), node("CastLike", "x like", "z")],
                  {"x": (dtype, ["n"]), "like": (to, [1])}, {"y": to, "z": to})
    compare(proto, {"x": np.array([0, 1, 2, 3.7], dtype), "like": np.zeros(1, to)})


@pytest.mark.parametrize("to", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.uint64])
@pytest.mark.parametrize("dtype", [F32, np.float64])
def test_floats_that_do_not_fit_wrap(dtype: DTypeLike, to: DTypeLike) -> None:
    x = np.array([-1.0, -2.5, -0.5, 300.7, 70000.0, 2.0**31 - 2.0**10, 2.0**63 if to == np.uint64 else 0], dtype)
    proto = model([node("Cast", "x", to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to)))], {"x": (dtype, ["n"])},
                  {"y": to})
    compare(proto, {"x": x})


def test_half_floats_are_computed_in_f32() -> None:
    half = np.float16
    proto = model([node("Mul", "x w", "h"), node("Tanh", "h")], {"x": (half, ["n", 3])}, {"y": half},
                  {"w": normal(3).astype(half)})
    assert text(proto) == """\
graph @g(%x: f16[n, 3]) {
  const %w: f32[3] = [0.12573242, -0.13208008, 0.640625]
  %cast: f32[n, 3] = cast(%x) {to = f32}
  %mul: f32[n, 3] = mul(%cast, %w)
  %tanh: f32[n, 3] = tanh(%mul)
  %cast_1: f16[n, 3] = cast(%tanh) {to = f16}
  return %cast_1 as "y"
}"""
    compare(proto, {"x": normal(2, 3).astype(half)}, rtol=1e-3)


def test_bfloat16_stands_as_f32_at_the_borders() -> None:
    proto = model([node("Add", "x w")], {"x": (F32, ["n"])}, {"y": F32}, {"w": np.ones(1, F32)})
    bf16 = onnx.TensorProto.BFLOAT16
    proto.graph.input[0].type.tensor_type.elem_type = bf16
    proto.graph.output[0].type.tensor_type.elem_type = bf16
    proto.graph.initializer[0].CopyFrom(onnx.helper.make_tensor("w", bf16, [1], b"\xc0\x3f", raw=True))
    graph = load(proto)
    assert str(graph.inputs[0].type) == "f32[n]" and graph.constants["w"].array().tolist() == [1.5]


@pytest.mark.parametrize(("op", "operands", "like"), [
    ("Gelu", "x", "erf"), ("FastGelu", "x b", "tanh"), ("FastGelu", "x", "tanh"), ("BiasGelu", "x b", "erf"),
    ("QuickGelu", "x", "sigmoid")])
def test_gelu_of_onnx_runtime(op: str, operands: str, like: str) -> None:
    proto = model([node(op, operands, domain="com.microsoft")], {"x": (F32, ["n", 3])}, {"y": F32},
                  {"b": normal(3, seed=5)}, opset_imports=[onnx.helper.make_opsetid("com.microsoft", 1)])
    x = normal(4, 3)
    z = x + normal(3, seed=5) if "b" in operands else x
    want = z * sigmoid(np.asarray(1.702 * z)) if like == "sigmoid" else gelu(z, "tanh" if like == "tanh" else "none")
    np.testing.assert_allclose(interpret(load(proto), {"x": x})[0], want, rtol=1e-5, atol=1e-6)
