"""Products, norms, convolutions, einsum, attention against the reference evaluator."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import q8c
from q8c.errors import CompileError
from q8c.ir import interpret
from tests.frontend.support import BOOL, F32, Array, compare, integers, load, model, node, normal, text


@pytest.mark.parametrize(("a", "b"), [((4,), (4,)), ((4,), (4, 3)), ((2, 4), (4,)), ((2, 4), (4, 3)),
                                      ((5, 2, 4), (4, 3)), ((5, 1, 2, 4), (3, 4, 2)), ((4,), (5, 4, 3))])
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    proto = model([node("MatMul", "a b")], {"a": (F32, ["n", *a[1:]] if len(a) > 1 else a), "b": (F32, b)}, {"y": F32})
    compare(proto, {"a": normal(*a), "b": normal(*b, seed=1)})


@pytest.mark.parametrize("attrs", [{}, {"transB": 1}, {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
                                   {"beta": 0.0}], ids=str)
@pytest.mark.parametrize("bias", [None, (1,), (3,), (2, 1), ()], ids=str)
@pytest.mark.parametrize("constant", [True, False])
def test_gemm(attrs: dict[str, Any], bias: tuple[int, ...] | None, constant: bool) -> None:
    a = normal(4, 2) if attrs.get("transA") else normal(2, 4)
    b = normal(3, 4, seed=1) if attrs.get("transB") else normal(4, 3, seed=1)
    constants = {"b": b} if constant else {}
    inputs = {"a": (F32, a.shape), **({} if constant else {"b": (F32, b.shape)})}
    if bias is not None:
        constants["c"] = normal(*bias, seed=2)
    proto = model([node("Gemm", "a b" if bias is None else "a b c", **attrs)], inputs, {"y": F32}, constants, opset=13)
    compare(proto, {"a": a} if constant else {"a": a, "b": b})


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_gemm_of_other_types_compiles_with_a_transposed_operand(dtype: Any, tmp_path: Path) -> None:
    proto = model([node("Gemm", "a b", transB=1)], {"a": (dtype, ["n", 4]), "b": (dtype, ["m", 4])}, {"y": dtype})
    a, b = (integers(n, 4, dtype=dtype, seed=n) for n in (2, 3))
    y, = q8c.load(q8c.compile(proto, tmp_path / "m.q8c")).run(None, {"a": a, "b": b})
    np.testing.assert_array_equal(y, a @ b.T)


def test_gemm_with_a_transposed_weight_is_a_plain_product() -> None:
    proto = model([node("Gemm", "a b c", transB=1)], {"a": (F32, ["n", 384])}, {"y": F32},
                  {"b": normal(768, 384), "c": np.zeros(768, F32)}, opset=13)
    assert text(proto) == """\
graph @g(%a: f32[n, 384]) {
  const %b: f32[768, 384] = @b
  const %c: f32[768] = 0.0
  %transpose: f32[384, 768] = transpose(%b) {perm = (1, 0)}
  %matmul: f32[n, 768] = matmul(%a, %transpose)
  %add: f32[n, 768] = add(%matmul, %c)
  return %add as "y"
}"""


@pytest.mark.parametrize("axis", [-1, 1, 0])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization(axis: int, bias: bool) -> None:
    shape = (4,) if axis == -1 else (3, 4)
    declared: list[int | str] = [3, 4] if axis == 0 else ["n", 3, 4]
    x = {"x": (F32, declared)}
    feeds = [{"x": normal(3, 4)}] if axis == 0 else [{"x": normal(n, 3, 4)} for n in (1, 3)]
    constants = {"scale": normal(*shape, seed=1), **({"bias": normal(*shape, seed=2)} if bias else {})}
    operands = "x scale bias" if bias else "x scale"
    proto = model([node("LayerNormalization", operands, "y mean deviation", axis=axis, epsilon=1e-3)], x,
                  {"y": F32, "mean": F32, "deviation": F32}, constants, opset=17)
    compare(proto, *feeds)


@pytest.mark.parametrize("axes", [None, [0, 2], [-1]])
def test_mean_variance_normalization_far_from_zero(axes: list[int] | None) -> None:
    x = normal(2, 3, 4, 5, seed=5)
    attrs: dict[str, Any] = {} if axes is None else {"axes": axes}
    proto = model([node("MeanVarianceNormalization", "x", **attrs)],
                  {"x": (F32, ["n", 3, 4, "w"])}, {"y": F32})
    over = (0, 2, 3) if axes is None else tuple(axes)
    y, = interpret(load(proto), {"x": x + 1000})
    far = (x + 1000).astype(np.float64)
    expected = (far - far.mean(over, keepdims=True)) / far.std(over, keepdims=True)
    np.testing.assert_allclose(y, expected, atol=1e-3)


def test_batch_normalization_far_from_zero_and_by_infinite_scales() -> None:
    parts = {"s": np.array([1, -np.inf], F32), "b": np.array([0.5, 1], F32), "m": np.array([1e5, 2], F32),
             "v": np.array([0.01, 1], F32)}
    proto = model([node("BatchNormalization", "x s b m v")], {"x": (F32, ["n", 2, 3])}, {"y": F32}, parts)
    x = np.array([[[1, 2, 3], [4, 1, -1]], [[-2, 0, 1], [3, 3, 3]]], F32)
    x[:, 0] += 1e5
    compare(proto, {"x": x})


def test_rms_normalization() -> None:
    proto = model([node("RMSNormalization", "x scale", axis=1)], {"x": (F32, ["n", 3, 4])}, {"y": F32},
                  {"scale": normal(3, 4)}, opset=23)
    compare(proto, {"x": normal(2, 3, 4)})


def contrib(op: str, operands: str, outputs: str = "y", **attrs: Any) -> onnx.ModelProto:
    constants = {"scale": normal(4, seed=1), "beta": normal(4, seed=2), "bias": normal(4, seed=3)}
    return model([node(op, operands, outputs, domain="com.microsoft", epsilon=1e-5, **attrs)],
                 {"x": (F32, ["n", 3, 4]), "skip": (F32, ["n", 3, 4])}, {n: F32 for n in outputs.split() if n != "-"},
                 {k: v for k, v in constants.items() if k in operands},
                 opset_imports=[onnx.helper.make_opsetid("com.microsoft", 1)])


@pytest.mark.parametrize("operands", ["x skip scale", "x skip scale beta", "x skip scale beta bias",
                                      "x skip scale - bias"])
def test_skip_layer_normalization(operands: str) -> None:
    proto = contrib("SkipLayerNormalization", operands)
    proto.graph.node[0].output.extend(["", "", "sum"])
    proto.graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, None))
    compare(proto, {"x": normal(2, 3, 4), "skip": normal(2, 3, 4, seed=9)}, runtime=True, atol=1e-5)


def test_skip_simplified_layer_normalization() -> None:
    proto = contrib("SkipSimplifiedLayerNormalization", "x skip scale bias")
    compare(proto, {"x": normal(2, 3, 4), "skip": normal(2, 3, 4, seed=9)}, runtime=True, atol=1e-5)


def test_simplified_layer_normalization_stands_in_the_default_domain() -> None:
    proto = model([node("SimplifiedLayerNormalization", "x scale", axis=-1)], {"x": (F32, ["n", 4])}, {"y": F32},
                  {"scale": normal(4)}, opset=14)
    assert "rms_norm(%x, %scale)" in text(proto)


@pytest.mark.parametrize("attrs", [{}, {"transA": 1, "transB": 1, "alpha": 0.5}], ids=str)
def test_fused_matmul(attrs: dict[str, Any]) -> None:
    a, b = ((4, 2), (3, 4)) if attrs else ((2, 4), (4, 3))
    proto = model([node("FusedMatMul", "a b", domain="com.microsoft", **attrs)], {"a": (F32, ["n", *a]), "b": (F32, b)},
                  {"y": F32}, opset_imports=[onnx.helper.make_opsetid("com.microsoft", 1)])
    compare(proto, {"a": normal(2, *a), "b": normal(*b)}, runtime=True)


@pytest.mark.parametrize(("image", "kernel"), [((8, 12), (4, 4)), ((6,), (2,)), ((5, 5), (2, 2)), ((3, 3), (1, 1)),
                                               ((4, 4, 4), (2, 4, 1))])
@pytest.mark.parametrize("bias", [True, False])
def test_conv_of_patches_that_do_not_overlap(image: tuple[int, ...], kernel: tuple[int, ...], bias: bool) -> None:
    constants = {"w": normal(5, 3, *kernel), **({"b": normal(5)} if bias else {})}
    proto = model([node("Conv", "x w b" if bias else "x w", strides=kernel, kernel_shape=kernel)],
                  {"x": (F32, ["n", 3, *image])}, {"y": F32}, constants, opset=11)
    compare(proto, {"x": normal(2, 3, *image)}, rtol=1e-4, atol=1e-5)


def test_conv_of_an_image_whose_size_varies() -> None:
    proto = model([node("Conv", "x w", strides=[2, 2])], {"x": (F32, [1, 3, "h", 4])}, {"y": F32},
                  {"w": normal(5, 3, 2, 2)})
    compare(proto, {"x": normal(1, 3, 6, 4)}, {"x": normal(1, 3, 7, 4)}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("equation", "shapes"), [
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]), ("bij,bkj->bik", [(2, 3, 4), (2, 5, 4)]), ("ij->ji", [(3, 4)]),
    ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]), ("...ij,...jk->...ik", [(2, 3, 4, 5), (2, 3, 5, 6)]),
    ("i,j->ij", [(3,), (4,)]), ("ij->", [(3, 4)]), ("ij,j", [(3, 4), (4,)]), ("bij->bi", [(2, 3, 4)]),
    ("i,i->", [(3,), (3,)]), ("ijk,k->ji", [(2, 3, 4), (4,)]), ("ab,bc->ca", [(2, 3), (3, 4)]),
    ("i,i->i", [(3,), (3,)]), ("bi,...->bi", [(2, 3), ()]), ("ii->i", [(3, 3)]), ("ii", [(3, 3)]),
    ("...iji->...j", [(4, 3, 5, 3)]), ("iij,j->i", [(3, 3, 4), (4,)]),
    ("ij,jk,kl->il", [(3, 4), (4, 5), (5, 3)]), ("bi,ij,bj->b", [(2, 3), (3, 4), (2, 4)]),
    ("aecd,abcd->acbe", [(2, 6, 3, 4), (2, 5, 3, 4)]), ("bij,ki->bkj", [(2, 3, 4), (5, 3)])])
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    names = ["a", "b", "c"][:len(shapes)]
    proto = model([node("Einsum", " ".join(names), equation=equation)],
                  {n: (F32, ["n", *s[1:]] if s and s[0] == 2 else s) for n, s in zip(names, shapes, strict=True)},
                  {"y": F32}, opset=12)
    compare(proto, {n: normal(*s, seed=i) for i, (n, s) in enumerate(zip(names, shapes, strict=True))})


@pytest.mark.parametrize("equation", ["ab,c,d->cd", "ab,bc,d->ad"])
def test_einsum_of_nothing_is_zero_beside_infinities(equation: str) -> None:
    arrays = {"x": np.zeros((2, 0), F32),
              "y": np.zeros((0, 3), F32) if "bc" in equation else np.array([np.inf, 1], F32),
              "z": np.array([np.inf, -np.inf, 2], F32)}
    names = dict(zip(arrays, equation.split("->")[0].split(","), strict=True))
    proto = model([node("Einsum", "x y z", "out", equation=equation)],
                  {n: (F32, list(names[n])) for n in arrays}, {"out": F32})
    with np.errstate(invalid="ignore"):
        assert not interpret(load(proto), arrays)[0].any()  # the reference takes operands in an order of its own
    assert "where" not in text(model([node("Einsum", "x y z", "out", equation="ab,bc,cd->ad")],
                                     {n: (F32, ["n", 2]) for n in arrays}, {"out": F32}))


ATTENTION: list[tuple[str, dict[str, Any], tuple[int, ...] | None]] = [  # operands after q k v, attributes, mask shape
    ("", {}, None), ("", {"scale": 0.3, "softcap": 2.0}, None), ("", {"scale": 0.0}, None),
    ("", {"is_causal": 1}, None), ("mask", {}, (4, 6)), ("mask", {"is_causal": 1}, (2, 1, 4, 6)),
    ("bools", {}, (2, 3, 4, 6)), ("bools", {"is_causal": 1}, (4, 6)),
    ("- past_k past_v", {"is_causal": 1}, None), ("bools past_k past_v", {}, (4, 8))]


@pytest.mark.parametrize(("more", "attrs", "mask"), ATTENTION, ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_attention(more: str, attrs: dict[str, Any], mask: tuple[int, ...] | None, groups: int) -> None:
    heads = 3 // groups
    arrays: dict[str, Array] = {"q": normal(2, 3, 4, 8), "k": normal(2, heads, 6, 8, seed=1),
                                "v": normal(2, heads, 6, 8, seed=2)}
    if "past" in more:
        arrays |= {"past_k": normal(2, heads, 2, 8, seed=3), "past_v": normal(2, heads, 2, 8, seed=4)}
    if mask is not None:
        bools = integers(*mask, low=0, high=2, dtype=bool, seed=5)
        bools[..., 0, :] = False  # a query without keys gives zeros
        arrays |= {"mask": normal(*mask)} if "mask" in more else {"bools": bools}
    outputs = {"y": F32, **({"k_all": F32, "v_all": F32} if "past" in more else {})}
    proto = model([node("Attention", f"q k v {more}", " ".join(outputs), **attrs)],
                  {n: (BOOL if n == "bools" else F32, ["b", *a.shape[1:]] if a.ndim == 4 else a.shape)
                   for n, a in arrays.items()}, outputs, opset=24)
    with np.errstate(all="ignore"):
        compare(proto, arrays, atol=1e-5)


def test_attention_of_three_axes_and_of_padded_keys() -> None:
    arrays = {"q": normal(2, 4, 24), "k": normal(2, 6, 8, seed=1), "v": normal(2, 6, 8, seed=2)}
    proto = model([node("Attention", "q k v", q_num_heads=3, kv_num_heads=1, is_causal=1)],
                  {n: (F32, ["b", *a.shape[1:]]) for n, a in arrays.items()}, {"y": F32}, opset=23)
    compare(proto, arrays, atol=1e-5)
    arrays4 = {"q": normal(2, 3, 4, 8), "k": normal(2, 3, 6, 8), "v": normal(2, 3, 6, 8), "filled": np.array([4, 6])}
    proto = model([node("Attention", "q k v - - - filled", is_causal=1)],
                  {n: (a.dtype, a.shape) for n, a in arrays4.items()}, {"y": F32}, opset=24)
    compare(proto, arrays4, atol=1e-5)


def test_attention_keeps_nan_of_the_operands() -> None:
    q = normal(1, 1, 3, 4)
    q[0, 0, 1, 0] = np.nan
    arrays = {"q": q, "k": normal(1, 1, 3, 4), "v": normal(1, 1, 3, 4), "mask": np.tril(np.ones((3, 3), bool))}
    proto = model([node("Attention", "q k v mask")], {n: (a.dtype, a.shape) for n, a in arrays.items()}, {"y": F32},
                  opset=23)
    y = interpret(load(proto), arrays)[0]
    assert np.isnan(y[0, 0, 1]).all() and np.isfinite(y[0, 0, [0, 2]]).all()


def test_ops_that_onnx_defines_by_others() -> None:
    nodes = [node("RotaryEmbedding", "x cos sin at", num_heads=2),
             node("GroupNormalization", "z s b", "g", num_groups=2)]
    constants = {"cos": normal(7, 4), "sin": normal(7, 4), "at": np.array([[0, 2, 5]] * 2), "s": normal(4),
                 "b": normal(4)}
    proto = model(nodes, {"x": (F32, ["b", 3, 16]), "z": (F32, ["b", 4, 5])}, {"y": F32, "g": F32}, constants, opset=23)
    graph = compare(proto, {"x": normal(2, 3, 16), "z": normal(2, 4, 5)}, atol=1e-5)
    assert {s for n in graph.nodes for s in n.source} == {"y", "g"}


def test_products_of_sizes_that_do_not_match() -> None:
    with pytest.raises(CompileError, match="sizes 4 and 5 do not match"):
        load(model([node("MatMul", "a b")], {"a": (F32, ["n", 4]), "b": (F32, [5, 3])}, {"y": F32}))
