"""Loops with row ops: against the reference, and the same bits whatever the tier, the threads and the other rows."""
from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from q8c.ir import q8
from q8c.ir.types import DType
from tests.codegen.jit import both_widths
from tests.codegen.kernels import Arrays, compiled, loop_text

EPS = 2.0**-24
SOFTMAX_ERROR = 4e-7  # absolute: one ulp of exp, and the rounding of x - max, at most 1/e in effect
COLS = [1, 3, 15, 16, 17, 64, 384, 1000]
F32 = NDArray[np.float32]


def sum_error(x: F32) -> Any:
    """The largest error of a row's sum: one rounding for every vector of an accumulator, and 6 of the tree."""
    return (x.shape[-1] / 64 + 7) * EPS * np.abs(x.astype(np.float64)).sum(-1, keepdims=True)


def norm_error(x: F32, scale: F32, y: NDArray[Any]) -> Any:
    """Of layer_norm and rms_norm: the mean and x - mean lose digits where the row is far from 0 for its spread."""
    wide = x.astype(np.float64)
    spread = np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    size = np.abs(wide).max(-1, keepdims=True, initial=0)
    return (4 + x.shape[-1] / 64) * EPS * (np.abs(scale) * (size / spread) * 2 + 2 * np.abs(y)) + 1e-7


def run(text: str, **feeds: NDArray[Any]) -> tuple[Arrays, Arrays]:
    """The outputs, which must be the same bits on all tiers and thread counts, and the reference's."""
    first: Arrays = []
    for tier in both_widths():
        kernel = compiled(tier, text)
        for threads in (1, 2, 3):
            got = kernel(threads, **feeds)
            first = first or got
            for a, b in zip(got, first, strict=True):
                assert a.tobytes() == b.tobytes(), (tier.name, threads)
    return first, kernel.expected(**feeds)


def rows_text(cols: int | str, lines: str, outputs: dict[str, str], vectors: str = "", dtype: str = "f32") -> str:
    full, row = f"[rows, {cols}]", "[rows, 1]"
    inputs = {"x": dtype + full, **dict.fromkeys(vectors.split(), f"{dtype}[{cols}]")}
    return loop_text(inputs, lines.replace("[F]", full).replace("[R]", row),
                     {n: t.replace("[F]", full).replace("[R]", row) for n, t in outputs.items()})


def rows_of(rng: np.random.Generator, rows: int, cols: int) -> F32:
    """Rows of quite different sizes and offsets."""
    x = rng.normal(size=(rows, cols)) * 10.0 ** rng.uniform(-3, 2, (rows, 1)) + rng.normal(size=(rows, 1))
    return x.astype(np.float32)


QUANTIZE = "%q: i8[F], %s: f32[R], %t: i32[R] = dynamic_quantize(%{})"
ZERO = QUANTIZE.replace("[R] =", "[R], %z: i32[R] =") + " {{zero_point = true}}"
R8 = {"q": "i8[F]", "s": "f32[R]", "t": "i32[R]"}
R8_ZERO = {**R8, "z": "i32[R]"}
LAYER_NORM = "%y: f32[F] = layer_norm(%x, %w, %b) {epsilon = 1e-5}"


@pytest.mark.parametrize("cols", [*COLS, "cols"])
@pytest.mark.parametrize("zero", ["", "zero"])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_dynamic_quantize_is_exact(cols: int | str, zero: str, rows: int) -> None:
    x = rows_of(np.random.default_rng(1), rows, 100 if isinstance(cols, str) else cols)
    if rows > 2:
        x[0], x[1, 0], x[2, -1], x[3, -1] = 0, np.nan, -np.inf, np.inf
        x[4:6] = np.abs(x[4:6]) * [[1], [-1]]
        x[6, :], x[7] = 1e-42, np.round(x[7] * 100) / 2  # denormals; ties
    text = rows_text(cols, ZERO.format("x"), R8_ZERO) if zero else rows_text(cols, QUANTIZE.format("x"), R8)
    got, expected = run(text, x=x)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_row_of_one_element_beside_long_rows_is_quantized() -> None:
    """The row's mean as R8: its three bytes of padding are 0 too."""
    x = rows_of(np.random.default_rng(8), 5, 40)
    outputs = {"y": "f32[F]", "m": "f32[R]", "q": "i8[R]", "s": "f32[R]", "t": "i32[R]"}
    lines = "%m: f32[R] = reduce_max(%x) {axes = (-1)} %y: f32[F] = sub(%x, %m)"
    for quantize, results in ((QUANTIZE, outputs), (ZERO, {**outputs, "z": "i32[R]"})):
        got, expected = run(rows_text(40, lines + quantize.format("m").replace("[F]", "[R]"), results), x=x)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cols", [*COLS, "cols"])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_norms(cols: int | str, rows: int) -> None:
    rng = np.random.default_rng(2)
    n = 77 if isinstance(cols, str) else cols
    x, w, b = rows_of(rng, rows, n), *rng.normal(size=(2, n)).astype(np.float32)
    lines = f"""{LAYER_NORM}
        %u: f32[F] = layer_norm(%x, %w) {{epsilon = 1e-5}}
        %r: f32[F] = rms_norm(%x, %w) {{epsilon = 1e-6}}"""
    got, expected = run(rows_text(cols, lines, dict.fromkeys("yur", "f32[F]"), "w b"), x=x, w=w, b=b)
    error = [np.abs(a - e) for a, e in zip(got, expected, strict=True)]
    assert (error[0] <= norm_error(x, w, expected[0]) + EPS * np.abs(b)).all()
    assert (error[1] <= norm_error(x, w, expected[1])).all()
    assert (error[2] <= (n / 64 + 12) * EPS * np.abs(expected[2]) + 1e-30).all()


@pytest.mark.parametrize("cols", [*COLS, "cols"])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_softmax(cols: int | str, rows: int) -> None:
    x = rows_of(np.random.default_rng(3), rows, 200 if isinstance(cols, str) else cols)
    x[:, ::3] -= 50
    if rows > 2 and x.shape[1] > 1:
        x[1, 1:] = -np.inf
        x[2] = -np.inf  # a row without any key is NaN, as in the reference
    (y,), (expected,) = run(rows_text(cols, "%y: f32[F] = softmax(%x)", {"y": "f32[F]"}), x=x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    assert (np.abs(y - expected)[~np.isnan(y)] <= SOFTMAX_ERROR).all()


@pytest.mark.parametrize("cols", [1, 17, 1000, "cols"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "i64", "u8", "bool"])
def test_reductions(cols: int | str, dtype: str) -> None:
    rng = np.random.default_rng(4)
    n = 90 if isinstance(cols, str) else cols
    x = rng.integers(0, 3 if dtype in ("bool", "f16") else 100, (5, n)).astype(DType[dtype].numpy)
    if dtype == "f32":
        x[1, 0], x[2, -1], x[3] = np.nan, np.inf, rng.normal(size=n)
    ops = ("sum", "max", "min", "mean")
    lines = " ".join(f"%{op}: {dtype}[R] = reduce_{op}(%x) {{axes = (-1)}}" for op in ops)
    got, expected = run(rows_text(cols, lines, dict.fromkeys(ops, f"{dtype}[R]"), dtype=dtype), x=x)
    for op, y, want in zip(ops, got, expected, strict=True):
        if dtype == "f32" and op in ("sum", "mean"):
            np.testing.assert_array_equal(np.isfinite(y), np.isfinite(want))
            bound = sum_error(x[3:]) / (n if op == "mean" else 1) + EPS * np.abs(want[3:])
            assert np.isfinite(y[3:]).all() and (np.abs(y[3:] - want[3:]) <= bound).all()
        elif op == "mean" and dtype[0] == "f":
            np.testing.assert_allclose(y, want, rtol=1e-3 if dtype == "f16" else 1e-15)
        else:
            np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_the_mean_of_none_is_no_number(dtype: str) -> None:
    for cols in (0, "cols"):
        text = rows_text(cols, f"%y: {dtype}[R] = reduce_mean(%x) {{axes = (-1)}}", {"y": f"{dtype}[R]"}, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of the reference
            got, expected = run(text, x=np.zeros((3, 0), DType[dtype].numpy))
        assert np.isnan(got[0]).all() and np.isnan(expected[0]).all()


@pytest.mark.parametrize("dtype", ["f32", "i64", "bool"])
def test_products(dtype: str) -> None:
    """Integers wrap; floats round once for every factor."""
    rng = np.random.default_rng(7)
    x = rng.uniform(0.9, 1.1, (4, 90)) if dtype == "f32" else rng.integers(dtype == "bool", 9, (4, 90))
    x = x.astype(DType[dtype].numpy)
    text = rows_text(90, f"%y: {dtype}[R] = reduce_prod(%x) {{axes = (-1)}}", {"y": f"{dtype}[R]"}, dtype=dtype)
    (y,), (expected,) = run(text, x=x)
    np.testing.assert_allclose(y, expected, rtol=90 * EPS if dtype == "f32" else 0)


@pytest.mark.parametrize("cols", [17, 384, "cols"])
def test_residual_norm_quantize(cols: int | str) -> None:
    """Every step is right given the one before it."""
    rng = np.random.default_rng(5)
    n = 130 if isinstance(cols, str) else cols
    x, w, b, r = rows_of(rng, 6, n), *rng.normal(size=(3, n)).astype(np.float32)
    lines = f"%z: f32[F] = add(%x, %r) {LAYER_NORM.replace('%x', '%z')} {QUANTIZE.format('y')}"
    (y, q, s, t), (expected, *_) = run(rows_text(cols, lines, {"y": "f32[F]", **R8}, "w b r"), x=x, w=w, b=b, r=r)
    assert (np.abs(y - expected) <= norm_error(x + r, w, expected) + EPS * np.abs(b)).all()
    for got, want in zip((q, s, t), q8.quantize_rows(y), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_vector_kept_in_scratch_or_in_a_result_gives_the_same() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(7, 200)).astype(np.float32)
    text = rows_text("cols", f"%y: f32[F] = gelu(%x) {QUANTIZE.format('y')}", R8)
    shown = rows_text("cols", f"%y: f32[F] = gelu(%x) {QUANTIZE.format('y')}", {"y": "f32[F]", **R8})
    (q, s, t), _ = run(text, x=x)
    (y, *r8), _ = run(shown, x=x)
    for got, want, oracle in zip((q, s, t), r8, q8.quantize_rows(y), strict=True):
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(got, oracle)


_CHAIN = rows_text(48, f"""
    %g: f32[F] = gelu(%x)
    {LAYER_NORM.replace("%x", "%g")}
    %p: f32[F] = softmax(%y)
    %m: f32[R] = reduce_mean(%x) {{axes = (-1)}}
    {QUANTIZE.format("y")}""", {"y": "f32[F]", "p": "f32[F]", "m": "f32[R]", **R8}, "w b")


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 6), bad=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]), seed=st.integers(0, 999))
def test_a_row_depends_on_nothing_else(rows: int, bad: float, seed: int) -> None:
    """Alone or beside other rows, even rows of NaN: the same bits; and a row with NaN or Inf shows it everywhere."""
    rng = np.random.default_rng(seed)
    x, w, b = rows_of(rng, rows, 48), *rng.normal(size=(2, 48)).astype(np.float32)
    x[0, seed % 48] = bad
    all_rows, _ = run(_CHAIN, x=x, w=w, b=b)
    for row in range(rows):
        alone, _ = run(_CHAIN, x=x[row:row + 1], w=w, b=b)
        for a, one in zip(all_rows, alone, strict=True):
            assert a[row].tobytes() == one[0].tobytes()
    y, p, m, q, s, t = all_rows
    if not np.isfinite(bad) and bad != -np.inf:  # gelu(-inf) is NaN too, but the mean stays -inf
        assert np.isnan(y[0]).all() and np.isnan(p[0]).all() and not np.isfinite(m[0])
    if not np.isfinite(bad):
        assert np.isnan(s[0]) and not q[0].any() and t[0] == 0
    assert all(np.isfinite(a[1:]).all() for a in all_rows)


@settings(max_examples=12, deadline=None)
@given(batch=st.integers(0, 3), seq=st.integers(1, 5), seed=st.integers(0, 99))
def test_operands_broadcast_over_leading_axes(batch: int, seq: int, seed: int) -> None:
    """Attention scores with a mask [b, 1, 1, s], a bias [h, s, s] and a number per row."""
    rng = np.random.default_rng(seed)
    inputs = {"x": "f32[b, 3, s, s]", "mask": "f32[b, 1, 1, s]", "bias": "f32[3, s, s]", "row": "f32[b, 1, s, 1]",
              "scale": "f32[]"}
    text = loop_text(inputs, """
        %u: f32[b, 3, s, s] = mul(%x, %scale)
        %v: f32[b, 3, s, s] = add(%u, %mask)
        %w: f32[b, 3, s, s] = add(%v, %bias)
        %z: f32[b, 3, s, s] = mul(%w, %row)
        %y: f32[b, 3, s, s] = softmax(%z)""", {"y": "f32[b, 3, s, s]"})
    shapes = {"x": (batch, 3, seq, seq), "mask": (batch, 1, 1, seq), "bias": (3, seq, seq), "row": (batch, 1, seq, 1),
              "scale": ()}
    feeds = {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
    (y,), (expected,) = run(text, **feeds)
    assert (np.abs(y - expected) <= SOFTMAX_ERROR).all()
