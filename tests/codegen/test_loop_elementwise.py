"""Elementwise loops: every op on every element type, casts, and broadcasting."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from q8c.codegen.vmath import GELU_ERROR, POW_ULPS, ULPS
from q8c.ir.ops import OPS
from q8c.ir.types import DType
from tests.codegen.jit import both_widths
from tests.codegen.kernels import Arrays, compiled, loop_text

INTS = ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"]
CHOSEN = ["u8", "i32", "i64", "u64"]  # arithmetic on the others differs in width only
FLOATS = ["f16", "f32", "f64"]
COMPARISONS = ["equal", "less", "less_equal", "greater", "greater_equal", "is_nan"]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, 3.5, -2.5, np.inf, -np.inf, np.nan, 1e-40, 65000.0, -7.25, 127.0, 128.5]
SINGLE = 3e-7  # exp, log and the like of f64 have f32's precision, and its range


def run(text: str, **feeds: NDArray[Any]) -> Arrays:
    """The outputs, the same bits on tiers with short and long vectors and on all thread counts."""
    first: Arrays = []
    for tier in both_widths():
        kernel = compiled(tier, text)
        for threads in (1, 3):
            got = kernel(threads, **feeds)
            first = first or got
            for a, b in zip(got, first, strict=True):
                assert a.tobytes() == b.tobytes(), (tier.name, threads)
    return first


def each_op(ops: Mapping[str, str], operands: str, dtype: str, **feeds: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The results of several ops (with their attributes), all in one loop. A result is bool where the op is one of
    comparison, else of the operands' type; `operands` names those each op takes.
    """
    lines, outputs = "", {}
    for number, (op, attrs) in enumerate(ops.items()):
        name = op.split("#")[0]
        result = "bool" if name in COMPARISONS else attrs.split("to = ")[-1].rstrip("}") if name == "cast" else dtype
        outputs[f"y{number}"] = f"{result}[n]"
        arguments = ", ".join(f"%{x}" for x in operands.split())
        lines += f"%y{number}: {result}[n] = {name}({arguments}) {attrs}\n"
    inputs = {k: f"{DType.of(v.dtype)}[n]" for k, v in feeds.items()}
    return dict(zip(ops, run(loop_text(inputs, lines, outputs), **feeds), strict=True))


def samples(dtype: str, seed: int, count: int = 83) -> NDArray[Any]:
    """Numbers of a type with its extremes among them."""
    rng, kind = np.random.default_rng(seed), DType[dtype].numpy
    if dtype == "bool":
        return rng.integers(0, 2, count).astype(bool)
    if DType[dtype].is_float:
        with np.errstate(all="ignore"):
            x = np.concatenate([SPECIAL, rng.normal(size=count) * 10.0 ** rng.uniform(-2, 2, count)]).astype(kind)
        return np.asarray(rng.permutation(x)[:count])
    info = np.iinfo(DType[dtype].value)
    edges = np.array([0, 1, 2, 3, info.min, info.max, info.max - 1], dtype=kind)
    if info.min < 0:
        edges = np.concatenate([edges, np.array([-1, -2, -3], kind)])
    return np.concatenate([rng.choice(edges, count // 2), rng.integers(info.min, info.max, count - count // 2, kind)])


def reference(op: str, *args: NDArray[Any], **attrs: Any) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        return np.asarray(OPS[op].reference(args, attrs)[0])


def assert_same(got: NDArray[Any], expected: NDArray[Any]) -> None:
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [*CHOSEN, *FLOATS])
def test_arithmetic_is_exact(dtype: str) -> None:
    a, b = samples(dtype, 1), samples(dtype, 2)
    ops = dict.fromkeys(["add", "sub", "mul", "div", "min", "max"], "")
    for op, y in each_op(ops, "a b", dtype, a=a, b=b).items():
        assert_same(y, reference(op, a, b))


@pytest.mark.parametrize("dtype", [*CHOSEN, "f32", "f16"])
def test_mod_is_exact(dtype: str) -> None:
    a, b = samples(dtype, 3), samples(dtype, 4)
    ops = {"mod": "{truncate = false}", "mod#": "{truncate = true}"}
    got = each_op(ops, "a b", dtype, a=a, b=b)
    assert_same(got["mod"], reference("mod", a, b, truncate=False))
    assert_same(got["mod#"], reference("mod", a, b, truncate=True))


@pytest.mark.parametrize("dtype", FLOATS)
def test_mod_of_scalars(dtype: str) -> None:
    """LLVM rounds no double to a half by itself: what it would call for that is not there."""
    a, b = np.array(-7.5, DType[dtype].numpy), np.array(2, DType[dtype].numpy)
    text = loop_text({"a": f"{dtype}[]", "b": f"{dtype}[]"}, f"%y: {dtype}[] = mod(%a, %b) {{truncate = true}}",
                     {"y": f"{dtype}[]"})
    assert_same(run(text, a=a, b=b)[0], np.fmod(a, b))


@settings(max_examples=30, deadline=None)
@given(a=st.floats(width=32), b=st.floats(width=32))
def test_float_mod_is_exact_for_any_two(a: float, b: float) -> None:
    x, y = np.full(1, a, np.float32), np.full(1, b, np.float32)
    got = each_op({"mod": "{truncate = true}"}, "a b", "f32", a=x, b=y)["mod"]
    assert_same(got, reference("mod", x, y, truncate=True))


@pytest.mark.parametrize("dtype", [*CHOSEN, *FLOATS, "bool"])
def test_comparisons(dtype: str) -> None:
    a, b = samples(dtype, 5), samples(dtype, 6)
    b[::2] = a[::2]
    for op, y in each_op(dict.fromkeys(COMPARISONS[:5], ""), "a b", dtype, a=a, b=b).items():
        assert_same(y, reference(op, a, b))


def test_logic() -> None:
    a, b = samples("bool", 7), samples("bool", 8)
    for op, y in each_op(dict.fromkeys(["and", "or", "xor"], ""), "a b", "bool", a=a, b=b).items():
        assert_same(y, reference(op, a, b))
    assert_same(each_op({"not": ""}, "a", "bool", a=a)["not"], ~a)


@pytest.mark.parametrize("dtype", [*CHOSEN, *FLOATS, "bool"])
def test_where(dtype: str) -> None:
    c, a, b = samples("bool", 9), samples(dtype, 10), samples(dtype, 11)
    assert_same(each_op({"where": ""}, "c a b", dtype, c=c, a=a, b=b)["where"], np.where(c, a, b))


@pytest.mark.parametrize("dtype", [*CHOSEN, *FLOATS])
def test_exact_functions(dtype: str) -> None:
    x = samples(dtype, 12)
    ops = ["neg", "abs", "sign", "relu"]
    ops += ["sqrt", "floor", "ceil", "round", "reciprocal"] if dtype in FLOATS else []
    ops += ["is_nan", "rsqrt"] if dtype in ("f32", "f64") else []
    for op, y in each_op(dict.fromkeys(ops, ""), "x", dtype, x=x).items():
        assert_same(y, reference(op, x))


@pytest.mark.parametrize("source", [*INTS, *FLOATS, "bool"])
def test_casts(source: str) -> None:
    x = samples(source, 15)
    targets = [t for t in [*INTS, *FLOATS, "bool"] if (source, t) != ("f64", "f16")]  # rounded twice, by way of f32
    got = each_op({f"cast#{to}": f"{{to = {to}}}" for to in targets}, "x", source, x=x)
    for to in targets:
        assert_same(got[f"cast#{to}"], reference("cast", x, to=DType[to]))


def test_cast_f64_to_f16_is_within_one_place() -> None:
    x = samples("f64", 16)
    y = each_op({"cast": "{to = f16}"}, "x", "f64", x=x)["cast"]
    np.testing.assert_allclose(y, reference("cast", x, to=DType.f16), rtol=2.0**-10)


def test_functions_keep_their_budget() -> None:
    """Called by way of a loop, vmath has its own budget; f64 has single precision, f16 one rounding more."""
    x = np.concatenate([np.random.default_rng(17).normal(size=200) * 4, SPECIAL]).astype(np.float32)
    ops = dict.fromkeys(sorted(ULPS), "")
    for op, y in each_op(ops, "x", "f32", x=x).items():
        exact = reference(op, x.astype(np.float64))
        assert_close(y, exact, ULPS[op] * places(exact, np.float32))
    ops = dict.fromkeys(["exp", "log", "tanh"], "")
    wide = np.clip(x, -80, 80).astype(np.float64)
    for op, y in each_op(ops, "x", "f64", x=wide).items():
        exact = reference(op, wide)
        assert_close(y, exact, SINGLE * np.maximum(np.abs(exact), 1e-30))
    half = x.astype(np.float16)
    for op, y in each_op(ops, "x", "f16", x=half).items():
        exact = reference(op, half.astype(np.float64))
        assert_close(y, exact, places(exact, np.float16))


def places(exact: NDArray[Any], kind: type) -> NDArray[Any]:
    """One unit in the last place of each number."""
    with np.errstate(all="ignore"):
        return np.asarray(np.spacing(np.abs(exact).astype(kind)).astype(np.float64))


def assert_close(got: NDArray[Any], exact: NDArray[Any], bound: NDArray[Any]) -> None:
    with np.errstate(all="ignore"):
        same = (got == exact.astype(got.dtype)) | (np.isnan(got) & np.isnan(exact))
        assert (same | (np.abs(got - exact) <= bound)).all()


def test_gelu() -> None:
    x = (np.random.default_rng(18).normal(size=500) * 4).astype(np.float32)
    got = each_op({"gelu#none": '{approximate = "none"}', "gelu#tanh": '{approximate = "tanh"}'}, "x", "f32", x=x)
    for op, y in got.items():
        exact = reference("gelu", x.astype(np.float64), approximate=op[len("gelu#"):])
        assert (np.abs(y - exact) <= GELU_ERROR * np.maximum(1, np.abs(x))).all()


def test_pow() -> None:
    rng = np.random.default_rng(19)
    a = np.concatenate([np.abs(rng.normal(size=60)) * 5, [-2, -2, 0, 3]]).astype(np.float32)
    b = np.concatenate([rng.normal(size=60) * 6, [3, 0.5, 0, 0]]).astype(np.float32)
    exact = reference("pow", a.astype(np.float64), b.astype(np.float64))
    y = each_op({"pow": ""}, "a b", "f32", a=a, b=b)["pow"]
    assert_close(y, exact, POW_ULPS * places(exact, np.float32))
    for dtype in ("i32", "i64", "u8"):
        x, n = samples(dtype, 20), np.resize(np.arange(9), 83).astype(DType[dtype].numpy)
        assert_same(each_op({"pow": ""}, "a b", dtype, a=x, b=n)["pow"], reference("pow", x, n))


def test_pow_of_a_fixed_exponent() -> None:
    x = np.abs(samples("f32", 21))
    exponents = [0.0, 1.0, 2.0, 3.0, 0.5, -1.0, -0.5]
    lines = "".join(f"const %e{n}: f32[] = {e} %y{n}: f32[n] = pow(%x, %e{n})\n" for n, e in enumerate(exponents))
    got = run(loop_text({"x": "f32[n]"}, lines, {f"y{n}": "f32[n]" for n in range(len(exponents))}), x=x)
    for y, exponent in zip(got, exponents, strict=True):
        exact = reference("pow", x.astype(np.float64), np.float64(exponent))
        assert_close(y, exact, 2 * places(exact, np.float32))


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_broadcasting(data: st.DataObject) -> None:
    """Any mix of full, missing and stretched axes, symbolic or fixed."""
    rank = data.draw(st.integers(0, 4))
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 17, 40]), min_size=rank, max_size=rank))
    dims = [f"n{i}" if data.draw(st.booleans()) else str(n) for i, n in enumerate(sizes)]
    feeds: dict[str, NDArray[Any]] = {"full": np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes)}
    inputs = {"full": f"i64[{', '.join(dims)}]"}
    lines, last = "", "full"
    for name in ("x", "y"):
        start = data.draw(st.integers(0, rank))
        keep = [data.draw(st.booleans()) for _ in range(start, rank)]
        shape = [n if k else 1 for n, k in zip(sizes[start:], keep, strict=True)]
        inputs[name] = f"i64[{', '.join(d if k else '1' for d, k in zip(dims[start:], keep, strict=True))}]"
        feeds[name] = np.random.default_rng(len(lines)).integers(-99, 99, shape)
        lines += f"%s{name}: i64[{', '.join(dims)}] = sub(%{last}, %{name})\n"
        last = f"s{name}"
    expected = feeds["full"] - feeds["x"] - feeds["y"]
    got, = run(loop_text(inputs, lines, {last: inputs["full"]}), **feeds)
    assert_same(got, expected)


def test_long_rows_are_cut_into_chunks() -> None:
    rng = np.random.default_rng(22)
    text = loop_text({"x": "f32[b, n]", "p": "f32[1, n]"}, "%y: f32[b, n] = add(%x, %p)", {"y": "f32[b, n]"})
    x, p = rng.normal(size=(3, 10007)).astype(np.float32), rng.normal(size=(1, 10007)).astype(np.float32)
    assert_same(run(text, x=x, p=p)[0], x + p)
    text = loop_text({"x": "i8[100000]"}, "%y: i8[100000] = neg(%x)", {"y": "i8[100000]"})
    v = rng.integers(-100, 100, 100000).astype(np.int8)
    assert_same(run(text, x=v)[0], -v)
