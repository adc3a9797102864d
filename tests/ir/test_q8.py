"""The Q8 and R8 formats: what rounding may cost, element by element, and rows and weights that are out of the way."""
from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q8c.errors import CompileError
from q8c.ir import Array, own_steps, parse_graph, q4, q8
from q8c.ir.interpret import interpret
from q8c.ir.single import single

RNG = np.random.default_rng(11)
HALF_STEP = 0.5 + 1e-4
"""Rounding is off by half a step, and x * (1 / scale), two roundings of numbers up to 254, by 1e-4 of one more."""
F32 = 2.0**-23
BLOCKS = sorted(q8.FORMATS.values())
ROWS: dict[str, Array] = {
    "normal": RNG.standard_normal(300),
    "positive": RNG.uniform(3, 4, 300),
    "constant": np.full(300, 2.5),
    "negative constant": np.full(300, -1e-3),
    "zeros": np.zeros(300),
    "denormals": RNG.uniform(-1e-40, 1e-40, 300),
    "outlier": np.where(np.arange(300) == 17, 1e30, RNG.standard_normal(300)),
    "largest": RNG.choice([-3.4e38, 3.4e38], 300),
    "gelu": np.maximum(RNG.standard_normal(300), -0.17),
}


def spread(per_block: Array, block: int, depth: int) -> Array:
    """What is given for each block, for each element: [..., blocks] to [..., depth]."""
    return np.repeat(per_block, block or depth, axis=-1)[..., :depth]


def allowed_rows(x: Array, scale: Array, block: int) -> Array:
    """How far each element of rows may be from what it is quantized to."""
    return HALF_STEP * spread(scale.astype(np.float64), block, x.shape[-1])


def test_scales_of_blocks_times_an_offset_are_exact() -> None:
    scale = np.exp(RNG.uniform(-60, 60, 1000)).astype(np.float32)
    rounded = q8.block_scale(scale)
    assert (np.abs(rounded - scale.astype(np.float64)) <= 2.0**-22 * scale).all()
    np.testing.assert_array_equal(rounded * np.float32(3 * q8.SUM_LIMIT), rounded.astype(np.float64) * 3 * q8.SUM_LIMIT)
    _, scales = q8.quantize_weight(RNG.standard_normal((70, 5)).astype(np.float32), 32)
    np.testing.assert_array_equal(scales, q8.block_scale(scales))


def test_scales_of_blocks_are_half_floats_where_those_are_near() -> None:
    scale = np.exp(RNG.uniform(np.log(q8.HALF_FLOOR), np.log(65_000), 1000)).astype(np.float32)
    scale[7] = q8.SCALE_FLOOR  # of a block of zeros
    halves = q8.block_scale(scale)
    assert halves.dtype == np.float16 and halves[7] > 0
    near = np.abs(halves.astype(np.float64) - scale) <= scale * np.where(scale < 2.0**-14, 2.0**-8, 2.0**-11)
    assert np.delete(near, 7).all()
    for other in (q8.HALF_FLOOR / 2, 1e5):
        assert q8.block_scale(np.append(scale, other)).dtype == np.float32
    assert q8.block_scale(scale, exact=True).dtype == np.float32
    assert q8.block_scale(halves.astype(np.float32), exact=True).tobytes() == halves.tobytes()


@pytest.mark.parametrize("depth", [1, 31, 64, 300])
def test_kept_rows_are_within_half_a_step_and_round_once(depth: int) -> None:
    named = np.stack([row[:depth] for row in ROWS.values()]).astype(np.float32)
    x = np.concatenate([named, np.exp(RNG.uniform(-60, 60, (500, 1))) * RNG.standard_normal((500, depth))])
    x = x.astype(np.float32)
    q, scale = q8.quantize_kept(x)
    assert (q.shape, scale.shape) == (x.shape, x.shape[:1]) and np.abs(q.astype(int)).max() <= q8.QMAX
    back = q8.round_kept(x)
    np.testing.assert_array_equal(back, q * scale[:, None].astype(np.float64))  # exact
    # rows reach 127 steps and the 2**-15 by which their scale is cut
    assert (np.abs(back - x.astype(np.float64)) <= (HALF_STEP + q8.QMAX * 2.0**-15) * scale[:, None]).all()
    again = q8.quantize_kept(back)
    np.testing.assert_array_equal(again[0], q)
    np.testing.assert_array_equal(again[1], scale)


def test_a_kept_row_that_is_not_finite_is_nan() -> None:
    x = np.stack([ROWS["normal"]] * 3).astype(np.float32)
    x[0, 5], x[2, 7] = np.nan, -np.inf
    back = q8.round_kept(x)
    assert np.isnan(back[[0, 2]]).all()
    np.testing.assert_array_equal(back[1], q8.round_kept(x[1]))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("depth", [1, 31, 33, 64, 300])
@pytest.mark.parametrize("zero_point", [False, True])
def test_rows_are_within_half_a_step(block: int, depth: int, zero_point: bool) -> None:
    x = np.stack([row[:depth] for row in ROWS.values()]).astype(np.float32)
    q, scale, sums, *zero = (q8.quantize_rows_zero if zero_point else q8.quantize_rows)(x, block)
    count = q8.block_count(depth, block)
    assert (q.shape, scale.shape, sums.shape) == (x.shape, (len(x), count), (len(x), count))
    assert np.abs(q.astype(int)).max() <= q8.QMAX and all(np.abs(z).max() <= q8.QMAX for z in zero)
    back = q8.dequantize_rows(q, scale, zero[0] if zero else None, block).astype(np.float64)
    assert (np.abs(back - x) <= allowed_rows(x, scale, block) + F32 * np.abs(x)).all()
    for b in range(count):
        part = slice(b * block, (b + 1) * block) if block else slice(None)
        assert np.array_equal(sums[:, b], q[:, part].sum(axis=1, dtype=np.int32))


@pytest.mark.parametrize("block", BLOCKS)
def test_zeros_are_exact_in_either_scheme(block: int) -> None:
    """Padding, ReLU and dropped elements are 0 and stay 0."""
    x = np.maximum(RNG.standard_normal((4, 100)), 0).astype(np.float32)
    for q, scale, _, *zero in (q8.quantize_rows(x, block), q8.quantize_rows_zero(x, block)):
        assert (q8.dequantize_rows(q, scale, zero[0] if zero else None, block)[x == 0] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_with_nan_or_inf_spoils_its_row_and_no_other(block: int, bad: float) -> None:
    x = RNG.standard_normal((3, 70)).astype(np.float32)
    u, w_scale = q8.quantize_weight(RNG.standard_normal((70, 5)).astype(np.float32), block)
    for quantize in (q8.quantize_rows, q8.quantize_rows_zero):
        good = product(x, u, w_scale, block, quantize)
        spoilt = x.copy()
        spoilt[1, 66] = bad
        y = product(spoilt, u, w_scale, block, quantize)
        assert np.isnan(y[1]).all() and np.array_equal(y[[0, 2]], good[[0, 2]])


def product(x: Array, u: Array, w_scale: Array, block: int, quantize: object) -> Array:
    """The oracle's product of float rows and a Q8 weight."""
    assert callable(quantize)
    q, scale, _, *zero = quantize(x, block)
    return q8.dequantize(q8.matmul_ref(q, u, zero[0] if zero else None, block), scale, w_scale, block)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("depth", [1, 33, 130])
def test_weights_are_within_half_a_step(block: int, depth: int) -> None:
    w = RNG.standard_normal((depth, 20)).astype(np.float32) * 10.0 ** RNG.integers(-6, 6, 20).astype(np.float32)
    w[:, 3] = 0
    w[:, 4] = 1e-42
    u, scale = q8.quantize_weight(w, block)
    assert scale.shape == ((q8.block_count(depth, block), 20) if block else (20,))
    assert u.dtype == np.uint8 and u.max() <= 2 * q8.ZERO_POINT and (u[:, 3] == q8.ZERO_POINT).all()
    step = spread(np.atleast_2d(scale).T.astype(np.float64), block, depth).T
    assert (np.abs(q8.dequantize_weight(u, scale, block) - w.astype(np.float64)) <= HALF_STEP * step).all()
    sums = np.atleast_2d(q8.column_sums(u, block))
    assert np.array_equal(sums.sum(axis=0), (u.astype(int) - q8.ZERO_POINT).sum(axis=0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_or_too_deep_are_refused(bad: float) -> None:
    with pytest.raises(CompileError, match="NaN or Inf"):
        q8.quantize_weight(np.array([[1, bad]], np.float32))
    with pytest.raises(CompileError, match="overflows int32"):
        q8.quantize_weight(np.zeros((q8.MAX_DEPTH + 1, 1), np.float32))
    with pytest.raises(CompileError, match="'q4' is unknown; expected one of q8-channel, q8-block32"):
        q8.block_size("q4")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150), st.sampled_from(BLOCKS), st.booleans(), st.integers(0, 2**32 - 1),
       st.floats(-20, 20), st.floats(0, 3))
def test_a_products_error_is_what_its_scales_allow(depth: int, block: int, zero_point: bool, seed: int, shift: float,
                                                   loud: float) -> None:
    """|y - x w| <= sum |dx| |w| + |x| |dw| + |dx| |dw|, with |dx| and |dw| half a step each."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((5, depth)) * 10 ** rng.normal(0, loud, depth) + shift).astype(np.float32)
    w = (rng.standard_normal((depth, 7)) * 10 ** rng.normal(0, loud, 7)).astype(np.float32)
    u, w_scale = q8.quantize_weight(w, block)
    quantize = q8.quantize_rows_zero if zero_point else q8.quantize_rows
    dx = allowed_rows(x, quantize(x, block)[1], block)
    dw = HALF_STEP * spread(np.atleast_2d(w_scale).T.astype(np.float64), block, depth).T
    size, weight = np.abs(x.astype(np.float64)), np.abs(w.astype(np.float64))
    rounding = 8 * F32 * (size + dx) @ (weight + dw)  # the oracle's float steps
    error = np.abs(product(x, u, w_scale, block, quantize) - x.astype(np.float64) @ w.astype(np.float64))
    assert (error <= dx @ weight + size @ dw + dx @ dw + rounding).all()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("zero_point", [False, True])
def test_single_precision_runs_agree_with_the_references(block: int, zero_point: bool) -> None:
    attrs = f"block = {block}, zero_point = {str(zero_point).lower()}"
    count = q8.block_count(70, block)
    blocks = f"f32[{count}, 24]" if block else "f32[24]"
    row = f"[n, {count}]"
    zero, extra = (f", %z: i32{row}", ", -, -, %z, %c") if zero_point else ("", "")
    graph = parse_graph(f"""
graph @g(%x: f32[n, 70]) {{
  const %u: u8[70, 24] = @u
  const %s: {blocks} = @s
  const %c: {blocks.replace('f32', 'i16' if block else 'i32')} = @c
  const %w: f32[24, 16] = @w
  const %b: f32[16] = @b
  %q: i8[n, 70], %rs: f32{row}, %sum: i32{row}{zero} = dynamic_quantize(%x) {{{attrs}}}
  %y: f32[n, 24] = q8_linear(%q, %rs, %sum, %u, %s{extra}) {{block = {block}, activation = "relu"}}
  %e: f32[n, 24] = erf(%y)
  %g: f32[n, 24] = gelu(%e) {{approximate = "none"}}
  %t: f32[n, 24] = gelu(%g) {{approximate = "tanh"}}
  %z1: f32[n, 16] = linear(%t, %w, %b) {{activation = "gelu"}}
  %z2: f32[n, 16] = matmul(%t, %w)
  %p: f32[n, 16] = softmax(%z1)
  %k: f32[1, n, 16] = reshape(%z2) {{shape = (1, n, 16)}}
  %a: f32[1, n, 16] = attention(%k, %k, %k) {{heads = 2, kv_heads = 2, head_size = 8, scale = 0.5, causal = true}}
  return %z1, %z2, %p, %a
}}""")
    u, scale = q8.quantize_weight(RNG.standard_normal((70, 24)).astype(np.float32), block)
    constants: dict[str, Array] = {"u": u, "s": scale, "c": q8.column_sums(u, block),
                                   "w": RNG.standard_normal((24, 16)), "b": RNG.standard_normal(16)}
    for value in graph.constants.values():
        value.data = constants[value.name].astype(value.dtype.numpy)
    x = (RNG.standard_normal((40, 70)) + 1).astype(np.float32)
    for fast, exact in zip(interpret(graph, {"x": x}, instead=single), interpret(graph, {"x": x}), strict=True):
        assert fast.dtype == exact.dtype == np.float32
        np.testing.assert_allclose(fast, exact, rtol=0, atol=5e-6 * np.abs(exact).max())


@pytest.mark.parametrize("steps", [False, True])
def test_large_weights_are_rounded_without_copies_and_to_the_same(steps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    w = RNG.standard_normal((64, 2**14)).astype(np.float32)
    if steps:
        w = q4.round_weight(w, 32)
    assert q8.has_few_steps(w, 32) is steps
    whole = q8.quantize_weight(w, 32)
    monkeypatch.setattr(own_steps, "_AT_ONCE", 10_000)
    tracemalloc.start()
    parts = q8.quantize_weight(w, 32)
    assert q8.steps_lost(w, *parts, 32) == 0 and q8.has_few_steps(w, 32) is steps
    sums = q8.column_sums(parts[0], 32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.75 * w.nbytes
    for a, b in zip(whole, parts, strict=True):
        assert a.tobytes() == b.tobytes()
    assert np.array_equal(sums, (whole[0].astype(np.int32) - q8.ZERO_POINT).reshape(2, 32, -1).sum(axis=1))
