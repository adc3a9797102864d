"""Op references against formulas written down independently, and what type inference refuses."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from q8c.errors import CompileError, InputError
from q8c.ir import DType, Graph, TensorType
from q8c.ir.dims import Dim, sym
from q8c.ir.ops import OPS, Level, OpDef, attributes, register

X = np.array([-np.inf, -3.5, -2.5, -0.5, -0.0, 0.0, 0.5, 1.5, 2.5, 40.0, np.inf, np.nan])


def run(op: str, *args: Any, **attrs: Any) -> Any:
    """An op's first result, by its reference, with defaults filled in."""
    graph = Graph()
    inputs = [graph.add_input("x", TensorType(DType.of(a.dtype), a.shape)) for a in map(np.asarray, args)]
    node = graph.add(op, inputs, attrs)
    results = OPS[op].reference([np.asarray(a) for a in args], attributes(node))
    for value, result in zip(node.outputs, results, strict=True):
        assert (value.shape, value.dtype.numpy) == (result.shape, result.dtype)
    return results[0]


SCALAR: dict[str, Callable[[float], float]] = {
    "exp": math.exp, "log": math.log, "sqrt": math.sqrt, "erf": math.erf, "tanh": math.tanh, "sin": math.sin,
    "cos": math.cos, "floor": math.floor, "ceil": math.ceil, "round": round, "neg": lambda x: -x, "abs": abs,
    "reciprocal": lambda x: 1 / x, "rsqrt": lambda x: 1 / math.sqrt(x), "relu": lambda x: max(x, 0),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)), "silu": lambda x: x / (1 + math.exp(-x)),
    "softplus": lambda x: math.log1p(math.exp(x)), "sign": lambda x: (x > 0) - (x < 0),
    "gelu": lambda x: x * (1 + math.erf(x / 2**0.5)) / 2}


@pytest.mark.parametrize("op", SCALAR)
def test_elementwise_floats(op: str) -> None:
    for x in (-7.25, -2.5, -0.5, 0.25, 0.5, 1.0, 1.5, 3.75, 6.0):
        if op in ("log", "sqrt", "rsqrt"):
            x = abs(x)
        wanted = SCALAR[op](x)
        assert run(op, np.float64(x)) == pytest.approx(wanted, rel=1e-12, abs=1e-300)
        assert run(op, np.float32(x)) == pytest.approx(wanted, rel=3e-7, abs=1e-37)


def test_special_values_of_elementwise_floats() -> None:
    with np.errstate(all="raise"):  # the references warn about nothing
        assert np.array_equal(run("relu", X), np.where(np.isnan(X), np.nan, np.maximum(X, 0)), equal_nan=True)
        assert run("sigmoid", X)[[0, 9, 10]].tolist() == [0, 1, 1] and np.isnan(run("sigmoid", X)[-1])
        assert np.isnan(run("silu", X)[[0, -1]]).all() and run("silu", X)[10] == np.inf
        assert run("round", X)[1:9].tolist() == [-4, -2, -0.0, 0, 0, 0, 2, 2]
        assert run("softplus", np.array([800.0, -800.0])).tolist() == [800, 0]
        assert np.isnan(run("sqrt", np.float32(-1))) and run("reciprocal", np.float32(-0.0)) == -np.inf
        assert run("is_nan", X).tolist() == [False] * 11 + [True]


def test_gelu_with_tanh() -> None:
    x = np.linspace(-5, 5, 41)
    wanted = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x]
    np.testing.assert_allclose(run("gelu", x, approximate="tanh"), wanted, rtol=1e-12, atol=1e-15)


@given(st.integers(-128, 127), st.integers(-128, 127))
def test_integer_division_is_cs(a: int, b: int) -> None:
    x, y = np.array([a], np.int8), np.array([b], np.int8)
    quotient = 0 if b == 0 or (a, b) == (-128, -1) else int(math.copysign(abs(a) // abs(b), a * b))
    assert run("div", x, y)[0] == quotient
    assert run("mod", x, y)[0] == (a % b if b else 0)
    assert run("mod", x, y, truncate=True)[0] == (int(math.fmod(a, b)) if b else 0)


def test_unsigned_division_and_float_mod() -> None:
    assert run("div", np.array([7, 200, 1], np.uint8), np.array([2, 0, 255], np.uint8)).tolist() == [3, 0, 0]
    assert run("mod", np.array([5.5, -5.5]), np.array([2.0, 2.0])).tolist() == [1.5, 0.5]
    assert run("mod", np.array([5.5, -5.5]), np.array([2.0, 2.0]), truncate=True).tolist() == [1.5, -1.5]
    assert run("div", np.array([1.0, 0.0]), np.zeros(2))[0] == np.inf


def test_min_and_max_keep_nan() -> None:
    assert np.isnan(run("max", np.array([np.nan, 1.0]), np.array([1.0, np.nan]))).all()
    assert np.isnan(run("min", np.array([np.nan, 1.0]), np.array([1.0, np.nan]))).all()


def test_casts_saturate_floats_and_wrap_integers() -> None:
    x = np.array([-np.inf, -1e30, -129.9, -128.7, -1.9, 0.9, 127.9, 128.0, 1e30, np.inf, np.nan], np.float32)
    assert run("cast", x, to=DType.i8).tolist() == [-128, -128, -128, -128, -1, 0, 127, 127, 127, 127, 0]
    assert run("cast", x, to=DType.u8).tolist() == [0, 0, 0, 0, 0, 0, 127, 128, 255, 255, 0]
    big = np.array([2.0**63, -2.0**63, 2.0**62, -2.0**70])
    assert run("cast", big, to=DType.i64).tolist() == [2**63 - 1, -2**63, 2**62, -2**63]
    assert run("cast", big, to=DType.u64).tolist() == [2**63, 0, 2**62, 0]
    assert run("cast", np.array([300, -1, 128], np.int32), to=DType.i8).tolist() == [44, -1, -128]
    assert run("cast", np.array([0.0, -0.0, 0.1, np.nan]), to=DType.bool).tolist() == [False, False, True, True]
    assert run("cast", np.array([True, False]), to=DType.f32).tolist() == [1, 0]
    assert run("cast", np.array([1e6, 1e-9], np.float32), to=DType.f16).tolist() == [np.inf, 0]


def test_where_and_logic_broadcast() -> None:
    c = np.array([[True], [False]])
    assert run("where", c, np.array([1, 2]), np.array(9)).tolist() == [[1, 2], [9, 9]]
    assert run("xor", c, np.array([True, False])).tolist() == [[False, True], [True, False]]
    assert run("less_equal", np.array([1.0, np.nan]), np.array([1.0, 1.0])).tolist() == [True, False]


def test_movement() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(run("slice", x, starts=(1, 2, 3), sizes=(1, 3, 2), steps=(1, -1, -2)), x[1:, ::-1, 3::-2])
    assert run("slice", x, starts=(0, 0, 0), sizes=(2, 0, 4), steps=(1, 1, 1)).shape == (2, 0, 4)
    assert np.array_equal(run("pad", x, before=(0, 1, 0), after=(1, 0, 2), value=7.0),
                          np.pad(x, [(0, 1), (1, 0), (0, 2)], constant_values=7))
    assert np.array_equal(run("concat", x, x[:, :1], axis=-2), np.concatenate([x, x[:, :1]], 1))
    assert np.array_equal(run("broadcast_to", x[:, :1], shape=(5, 2, 3, 1)), np.broadcast_to(x[:, :1], (5, 2, 3, 4)))
    assert run("iota", size=3).tolist() == [0, 1, 2] and run("sizes", values=(4, 5)).tolist() == [4, 5]
    copy = OPS["copy"].reference([x], {})[0]
    assert np.array_equal(copy, x) and not np.shares_memory(copy, x)


@pytest.mark.parametrize("exclusive, reverse, wanted", [
    (False, False, [1, 3, 6]), (True, False, [0, 1, 3]), (False, True, [6, 5, 3]), (True, True, [5, 3, 0])])
def test_cumsum(exclusive: bool, reverse: bool, wanted: list[int]) -> None:
    assert run("cumsum", np.array([1, 2, 3]), axis=0, exclusive=exclusive, reverse=reverse).tolist() == wanted


def test_a_running_sum_does_not_take_itself_off_again() -> None:
    y = run("cumsum", np.array([1, np.inf, 2], np.float32), axis=0, exclusive=True)
    assert y.tolist() == [0, 1, np.inf]


def test_gathers() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    i = np.array([[0, -1], [2, 1]])
    assert np.array_equal(run("gather", x, i, axis=1), x[:, i])
    assert np.array_equal(run("gather_nd", x, np.array([[[0, 1], [1, -1]]])), x[[[0, 1]], [[1, -1]]])
    assert np.array_equal(run("gather_nd", x, np.array([[[2], [0]], [[1], [1]]]), batch_dims=1),
                          np.stack([x[0][[2, 0]], x[1][[1, 1]]]))
    j = np.array([[[3, 0]], [[1, -2]]])
    assert np.array_equal(run("gather_elements", x, j, axis=2), np.take_along_axis(x[:, :1], j, 2))
    for op, index in (("gather", np.array([2])), ("gather", np.array([-3])), ("gather_nd", np.array([[1, 3]])),
                      ("gather_elements", np.array([[[2]]]))):
        with pytest.raises(InputError, match="out of"):
            run(op, x, index)


def test_reductions() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    for name in ("sum", "mean", "max", "min", "prod"):
        wanted = getattr(np, name)(x.astype(np.float64), axis=(0, 2), keepdims=True).astype(np.float32)
        assert np.array_equal(run(f"reduce_{name}", x, axes=(0, -1)), wanted)
    assert run("reduce_sum", np.array([[2**40, 1]]), axes=(1,), keepdims=False).tolist() == [2**40 + 1]
    assert run("argmax", np.array([[1, 5, 5]]), axes=(1,), keepdims=False).tolist() == [1]
    assert run("argmin", np.array([[1.0, 0.0]]), axes=(-1,)).tolist() == [[1]]


def test_products() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 1, 3, 5)).astype(np.float32), rng.standard_normal((4, 5, 6)).astype(np.float32)
    wanted = np.einsum("bxik,hkj->bhij", a.astype(np.float64), b.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(run("matmul", a, b), wanted, rtol=1e-6)
    assert np.array_equal(run("matmul", a, np.swapaxes(b, 1, 2).copy(), transpose_b=True), run("matmul", a, b))
    assert run("matmul", np.array([[100, 100]], np.int32), np.array([[100], [100]], np.int32)).tolist() == [[20000]]


def test_softmax() -> None:
    x = np.array([[1000.0, 1001.0], [-np.inf, 0.0], [-np.inf, -np.inf], [np.nan, 0.0]], np.float32)
    y = run("softmax", x)
    assert y[0].tolist() == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)]) and y[1].tolist() == [0, 1]
    assert np.isnan(y[2:]).all()
    assert np.array_equal(run("softmax", x.T.copy(), axis=0), y.T, equal_nan=True)


def test_norms() -> None:
    rng = np.random.default_rng(2)
    x, w, b = (rng.standard_normal(s) for s in ((3, 5), 5, 5))
    centered = x - x.mean(1, keepdims=True)
    wanted = centered / np.sqrt(x.var(1, keepdims=True) + 0.1) * w
    np.testing.assert_allclose(run("layer_norm", x, w, epsilon=0.1), wanted)
    np.testing.assert_allclose(run("layer_norm", x, w, b, epsilon=0.1), wanted + b)
    np.testing.assert_allclose(run("rms_norm", x, w, epsilon=0.1), x * w / np.sqrt((x * x).mean(1)[:, None] + 0.1))
    bad = x.copy()
    bad[1, 2] = np.nan
    assert np.isnan(run("layer_norm", bad, w)).sum() == 5


def attend(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], mask: NDArray[Any], scale: float) -> NDArray[Any]:
    """One head by the book."""
    scores = np.exp(q @ k.T * scale + mask)
    return np.asarray(scores / scores.sum(1, keepdims=True) @ v)


def test_attention_with_shared_keys_offsets_and_a_mask() -> None:
    rng = np.random.default_rng(3)
    packed = rng.standard_normal((2, 3, 4 * 2 + 2 * 2 * 2)).astype(np.float32)  # 4 query heads, 2 of keys, 2 of values
    mask = rng.standard_normal((2, 1, 1, 3)).astype(np.float32)
    y = run("attention", packed, packed, packed, mask, heads=4, kv_heads=2, head_size=2, scale=0.5, offsets=(0, 8, 12))
    for batch in range(2):
        for head in range(4):
            part = packed[batch, :, 2 * head:2 * head + 2]
            at = 2 * (head // 2)
            k, v = packed[batch, :, 8 + at:10 + at], packed[batch, :, 12 + at:14 + at]
            np.testing.assert_allclose(y[batch, :, 2 * head:2 * head + 2], attend(part, k, v, mask[batch, 0], 0.5),
                                       rtol=1e-5, atol=1e-6)


def test_causal_attention_counts_from_the_last_key() -> None:
    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((1, n, 2)).astype(np.float32) for n in (2, 3, 3))
    y = run("attention", q, k, v, heads=1, kv_heads=1, head_size=2, scale=1.0, causal=True)
    first = attend(q[0, :1], k[0, :2], v[0, :2], np.zeros((1, 2)), 1.0)
    np.testing.assert_allclose(y[0, :1], first, rtol=1e-5)


def test_rows_without_keys_are_nan_or_zero() -> None:
    x, mask = np.ones((1, 2, 2), np.float32), np.array([[-np.inf, -np.inf], [0, 0]], np.float32).reshape(1, 1, 2, 2)
    attrs: dict[str, Any] = {"heads": 1, "kv_heads": 1, "head_size": 2, "scale": 1.0}
    y = run("attention", x, x, x, mask, **attrs)
    assert np.isnan(y[0, 0]).all() and (y[0, 1] == 1).all()
    assert run("attention", x, x, x, mask, **attrs, nan_to_zero=True)[0].tolist() == [[0, 0], [1, 1]]


def test_linear_with_everything_behind_it() -> None:
    rng = np.random.default_rng(5)
    x, w, b, r = (rng.standard_normal(s).astype(np.float32) for s in ((3, 4), (4, 2), 2, (3, 2)))
    for activation in ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"):
        y = run("linear", x, w, b, r, activation=activation)
        plain = run("linear", x, w, b)
        kind = {"approximate": "tanh"} if activation == "gelu_tanh" else {}
        name = activation.removesuffix("_tanh")
        wanted = plain if activation == "none" else run(name, plain, **kind)
        np.testing.assert_allclose(y, wanted + r, rtol=1e-6)


N, M = sym("n"), sym("m")
REFUSED: list[tuple[str, list[tuple[DType, tuple[Dim, ...]]], dict[str, Any], str]] = [
    ("add", [(DType.f32, (N,)), (DType.f64, (N,))], {}, "expected two operands of one number type"),
    ("add", [(DType.bool, (N,)), (DType.bool, (N,))], {}, "expected two operands of one number type"),
    ("add", [(DType.f32, (3,)), (DType.f32, (4,))], {}, "sizes 3 and 4 do not match"),
    ("exp", [(DType.i32, (N,))], {}, "expected a float operand"),
    ("and", [(DType.bool, (N,)), (DType.i8, (N,))], {}, "expected bool operands"),
    ("where", [(DType.f32, ()), (DType.f32, ()), (DType.f32, ())], {}, "expected \\(bool, T, T\\)"),
    ("reshape", [(DType.f32, (6,))], {"shape": (4,)}, "sizes 6 and 4 do not match"),
    ("transpose", [(DType.f32, (2, 3))], {"perm": (0, 0)}, "no permutation of rank 2"),
    ("broadcast_to", [(DType.f32, (2, 3))], {"shape": (3,)}, "the target's rank is smaller"),
    ("slice", [(DType.f32, (N,))], {"starts": (N,), "sizes": (1,), "steps": (1,)}, "leaves the axis of size n"),
    ("slice", [(DType.f32, (4,))], {"starts": (2,), "sizes": (3,), "steps": (1,)}, "leaves the axis of size 4"),
    ("slice", [(DType.f32, (4,))], {"starts": (1,), "sizes": (3,), "steps": (-1,)}, "leaves the axis of size 4"),
    ("slice", [(DType.f32, (4,))], {"starts": (1,), "sizes": (1,), "steps": (0,)}, "a step is 0"),
    ("concat", [(DType.f32, (N,)), (DType.f32, (N, 1))], {"axis": 0}, "expected one type and rank"),
    ("concat", [(DType.f32, (N,))], {"axis": 1}, "axis 1 is outside rank 1"),
    ("gather", [(DType.f32, (N,)), (DType.f32, (M,))], {}, "expected i32 or i64 indices"),
    ("gather_nd", [(DType.f32, (N,)), (DType.i64, (M, 2))], {}, "index tuples no longer than the rank"),
    ("matmul", [(DType.f32, (N,)), (DType.f32, (N, M))], {}, "expected operands of rank >= 2"),
    ("matmul", [(DType.f32, (2, 3)), (DType.f32, (4, 2))], {}, "sizes 3 and 4 do not match"),
    ("layer_norm", [(DType.f32, (N, 4)), (DType.f32, (5,))], {}, "sizes 5 and 4 do not match"),
    ("softmax", [(DType.f32, (N, 4))], {"axis": 2}, "axis 2 is outside rank 2"),
    ("reduce_sum", [(DType.f32, (N,))], {}, "attribute 'axes' is missing"),
    ("reduce_sum", [(DType.f32, (N,))], {"axes": (1,)}, "axis 1 is outside rank 1"),
    ("linear", [(DType.f32, (N, 4)), (DType.f32, (4, 2))], {"activation": "swish"}, "activation is none of none, relu"),
    ("linear", [(DType.f32, (N, 4)), (DType.f32, (4, 2)), (DType.f32, (3,))], {}, "expected the bias as"),
    ("attention", [(DType.f32, (1, N, 6))] * 3, {"heads": 3, "kv_heads": 2, "head_size": 2, "scale": 1.0},
     "kv_heads must divide heads"),
    ("attention", [(DType.f32, (1, N, 6))] * 3, {"heads": 4, "kv_heads": 4, "head_size": 2, "scale": 1.0},
     "do not fit the channels"),
    ("dynamic_quantize", [(DType.f64, (N, 4))], {}, "expected f32 rows"),
    ("q8_matmul", [(DType.i8, (N, 4)), (DType.i8, (4, 2))], {}, "u8"),
    ("cast", [(DType.f32, ())], {"to": "f32"}, "attribute to expected dtype, got 'f32'"),
]


@pytest.mark.parametrize("op, types, attrs, message", REFUSED)
def test_what_does_not_fit_is_refused(op: str, types: list[Any], attrs: dict[str, Any], message: str) -> None:
    graph = Graph()
    inputs = [graph.add_input("x", TensorType(*t)) for t in types]
    with pytest.raises(CompileError, match=message) as caught:
        graph.add(op, inputs, attrs)
    assert str(caught.value).startswith(op) and not graph.nodes


@given(st.lists(st.sampled_from([1, 2, N, M]), max_size=4), st.lists(st.sampled_from([1, 2, N, M]), max_size=4))
@settings(max_examples=200, deadline=None)
def test_symbolic_broadcasting_is_numpys(a: list[Dim], b: list[Dim]) -> None:
    graph = Graph()
    x, y = (graph.add_input("x", TensorType(DType.f32, tuple(s))) for s in (a, b))
    result = graph.add("add", [x, y]).output.shape
    # sizes that had to be equal are 2 in this instance, as are all
    shapes = [tuple(1 if d == 1 else 2 for d in s) for s in (a, b)]
    assert tuple(1 if d == 1 else 2 for d in result) == np.broadcast_shapes(*shapes)


def test_every_op_is_registered_once_with_a_level() -> None:
    assert {d.level for d in OPS.values()} == set(Level)
    with pytest.raises(ValueError, match="op add is registered twice"):
        register(OpDef("add", "a b", OPS["add"].infer, OPS["add"].reference))
    for definition in OPS.values():
        least, most = definition.arity()
        assert most is None or least <= most


def test_the_place_of_the_largest_of_no_elements_is_zero_as_in_kernels() -> None:
    assert run("argmax", np.zeros((2, 0), np.float32), axes=(1,), keepdims=False).tolist() == [0, 0]
