"""The Q8 and R8 formats: bounds, exactness, and rows that hold NaN, Inf, zeros or denormals."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from q8c.errors import CompileError
from q8c.ir import parse_graph, q8
from q8c.ir.interpret import interpret

BLOCKS = list(q8.FORMATS.values())
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rows_of(data: st.DataObject, rows: int, depth: int) -> NDArray[np.float32]:
    values = data.draw(st.lists(floats32, min_size=rows * depth, max_size=rows * depth))
    return np.array(values, np.float32).reshape(rows, depth)


def spread(scale: NDArray[Any], block: int, depth: int) -> NDArray[Any]:
    """A scale per element from a scale per block, along the last axis."""
    return np.repeat(scale, block or depth, axis=-1)[..., :depth]


@given(st.data(), st.integers(1, 40), st.sampled_from(BLOCKS))
@settings(max_examples=50, deadline=None)
def test_rows_come_back_within_half_a_step(data: st.DataObject, depth: int, block: int) -> None:
    x = rows_of(data, 2, depth)
    q, scale, total = q8.quantize_rows(x, block)
    assert q.dtype == np.int8 and scale.dtype == np.float32 and total.dtype == np.int32
    assert q.shape == x.shape and scale.shape == total.shape == (2, q8.block_count(depth, block))
    assert q.min() >= -q8.QMAX and (scale >= q8.SCALE_FLOOR).all() and np.isfinite(scale).all()
    step = spread(scale, block, depth).astype(np.float64)
    assert (np.abs(q * step - x) <= step * 0.5000005).all()  # 1 / scale and the product round once each
    for row in range(2):
        for b in range(scale.shape[1]):
            part = slice(b * block, (b + 1) * block) if block else slice(None)
            assert total[row, b] == int(q[row, part].astype(int).sum())
            top = np.abs(x[row, part]).max()
            assert top <= 127 * q8.SCALE_FLOOR or np.abs(q[row, part].astype(int)).max() == q8.QMAX


@given(st.data(), st.integers(1, 40), st.sampled_from(BLOCKS))
@settings(max_examples=40, deadline=None)
def test_rows_with_a_zero_point_come_back_within_a_step(data: st.DataObject, depth: int, block: int) -> None:
    x = rows_of(data, 2, depth)
    q, scale, total, zero = q8.quantize_rows_zero(x, block)
    assert q.min() >= -q8.QMAX and np.abs(zero).max() <= q8.QMAX and zero.dtype == np.int32
    step = spread(scale, block, depth).astype(np.float64)
    assert (np.abs((q - spread(zero, block, depth)) * step - x) <= step * 1.001).all()
    assert (total.sum(axis=-1) == q.astype(int).sum(axis=-1)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_row_that_is_not_finite_is_nan_and_no_other_changes(bad: float, block: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, 70)).astype(np.float32)
    broken = x.copy()
    broken[1, 40] = bad
    q, scale, total = q8.quantize_rows(x, block)
    q1, scale1, total1 = q8.quantize_rows(broken, block)
    for clean in (0, 2):
        assert (q[clean] == q1[clean]).all() and (scale[clean] == scale1[clean]).all()
        assert (total[clean] == total1[clean]).all()
    hit = 40 // block if block else 0
    assert np.isnan(scale1[1, hit]) and np.isfinite(np.delete(scale1[1], hit)).all() and total1[1, hit] == 0
    assert np.isnan(q8.quantize_rows_zero(broken, block)[1][1, hit])
    w, columns = q8.quantize_weight(np.ones((70, 2), np.float32), block)
    y = q8.dequantize(q8.matmul_ref(q1, w, block=block), scale1, columns, block)
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-38, 2.0**-100])
def test_zeros_and_denormals_are_zero_or_small_never_nan(value: float) -> None:
    x = np.full((1, 8), value, np.float32)
    q, scale, total = q8.quantize_rows(x)
    assert scale[0, 0] == np.float32(q8.SCALE_FLOOR) and total[0, 0] == q.astype(int).sum()
    assert abs(float(q[0, 0]) * float(scale[0, 0]) - value) <= q8.SCALE_FLOOR / 2
    w, columns = q8.quantize_weight(x.T.copy())
    assert np.isfinite(q8.dequantize(q8.matmul_ref(q, w), scale, columns)).all()


def test_the_largest_floats_do_not_overflow() -> None:
    top = np.finfo(np.float32).max
    x = np.array([[top, -top, 1.0]], np.float32)
    q, scale, _ = q8.quantize_rows(x)
    assert q.tolist() == [[127, -127, 0]] and np.isfinite(scale).all()
    q, scale, _, zero = q8.quantize_rows_zero(x)
    assert q.tolist() == [[127, -127, 0]] and zero[0, 0] == 0 and np.isfinite(scale).all()


def test_a_row_of_no_elements_has_the_floor_scale() -> None:
    q, scale, total = q8.quantize_rows(np.zeros((2, 0), np.float32))
    assert q.shape == (2, 0) and (scale == np.float32(q8.SCALE_FLOOR)).all() and (total == 0).all()


def test_ties_round_to_even() -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
    assert q8.quantize_rows(x)[0].tolist() == [[127, 0, 2, 2, 0, -2]]
    assert (q8.quantize_weight(x.T)[0].astype(int) - q8.ZERO_POINT).T.tolist() == [[127, 0, 2, 2, 0, -2]]


@given(st.data(), st.integers(1, 40), st.sampled_from(BLOCKS))
@settings(max_examples=40, deadline=None)
def test_weights_come_back_within_half_a_step(data: st.DataObject, depth: int, block: int) -> None:
    w = rows_of(data, depth, 2) / 2  # so that 127 steps of a scale rounded up are no overflow
    u, scale = q8.quantize_weight(w, block)
    assert u.dtype == np.uint8 and u.max() <= 2 * q8.QMAX and u.shape == w.shape
    assert scale.shape == ((q8.block_count(depth, block), 2) if block else (2,))
    step = spread(np.atleast_2d(scale).T, block, depth).T.astype(np.float64)
    back = q8.dequantize_weight(u, scale, block)
    assert back.dtype == np.float32 and (np.abs((u.astype(int) - 127) * step - w) <= step * 0.5000001).all()
    sums = q8.column_sums(u, block)
    assert sums.dtype == np.int32 and (np.atleast_2d(sums).sum(0) == (u.astype(int) - 127).sum(0)).all()


def test_weights_that_cannot_be_quantized_are_compile_errors() -> None:
    with pytest.raises(CompileError, match="a weight holds NaN or Inf"):
        q8.quantize_weight(np.array([[np.inf]], np.float32))
    with pytest.raises(CompileError, match="depth 66001 overflows int32 sums; expected at most 66000"):
        q8.quantize_weight(np.zeros((66_001, 1), np.float32))
    with pytest.raises(CompileError, match="weight format 'q4' is unknown; expected one of q8-channel"):
        q8.block_size("q4")


def test_sums_of_the_greatest_depth_fit_int32() -> None:
    depth = q8.MAX_DEPTH
    assert 2 * q8.QMAX * q8.QMAX * depth < 2**31
    q = np.full((1, depth), -127, np.int8)
    u = np.full((depth, 1), 254, np.uint8)
    assert q8.matmul_ref(q, u)[0, 0] == -127 * 127 * depth
    assert q8.matmul_ref(q, u, np.array([[127]], np.int32))[0, 0] == -254 * 127 * depth


@given(st.integers(1, 70), st.sampled_from(BLOCKS), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_products_are_exact_integers(depth: int, block: int, with_zero: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.integers(-127, 128, (3, depth)).astype(np.int8)
    u = rng.integers(0, 255, (depth, 4)).astype(np.uint8)
    count = q8.block_count(depth, block)
    zero = rng.integers(-127, 128, (3, count)).astype(np.int32) if with_zero else None
    found = q8.matmul_ref(q, u, zero, block).reshape(3, count, 4)
    for b in range(count):
        part = slice(b * block, (b + 1) * block) if block else slice(None)
        rows = q[:, part].astype(np.int64) - (0 if zero is None else zero[:, b:b + 1])
        assert (found[:, b] == rows @ (u[part].astype(np.int64) - 127)).all()


def test_a_rows_result_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((5, 48)).astype(np.float32)
    x[3] *= 30
    w = rng.standard_normal((48, 8)).astype(np.float32)
    graph = parse_graph("""graph @g(%x: f32[n, 48]) {
      const %w: u8[48, 8] = @w
      const %s: f32[8] = @s
      %q: i8[n, 48], %r: f32[n, 1], %t: i32[n, 1] = dynamic_quantize(%x)
      %y: f32[n, 8] = q8_linear(%q, %r, %t, %w, %s) {activation = "gelu"}
      %a: i32[n, 8] = q8_matmul(%q, %w)
      %z: f32[n, 8] = dequantize(%a, %r, %s)
      %v: f32[48, 8] = dequantize_weight(%w, %s)
      return %y, %z, %v
    }""", dict(zip("ws", q8.quantize_weight(w), strict=True)))
    together = interpret(graph, {"x": x})
    for row in range(5):
        alone = interpret(graph, {"x": x[row:row + 1]})
        assert all((a[0] == b[row]).all() for a, b in zip(alone[:2], together[:2], strict=True))
    exact = x.astype(np.float64) @ w
    assert np.linalg.norm(together[1] - exact) < 0.02 * np.linalg.norm(exact)
    np.testing.assert_allclose(together[2], w, atol=np.abs(w).max() / 127)
