"""Weights that are multiples of a step already keep it."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import q8

RNG = np.random.default_rng(2)
NORMAL = RNG.standard_normal((96, 40)).astype(np.float32)
SCALES = RNG.uniform(1e-3, 1e-2, 40).astype(np.float32)


def steps(low: int, high: int, deviation: float = 30) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.clip(np.rint(RNG.normal(0, deviation, (96, 40))), low, high).astype(np.int64)


def test_ordinary_weights_have_no_steps() -> None:
    assert not q8.has_own_steps(NORMAL) and not q8.has_own_blocks(NORMAL, 32)
    assert not q8.has_own_steps(np.zeros((8, 4), np.float32)) and not q8.has_own_steps(np.zeros((0, 4), np.float32))


@pytest.mark.parametrize("scale", [np.float32(0.0123), SCALES], ids=["tensor", "columns"])
@pytest.mark.parametrize("factor", [1, np.float32(0.37)])
def test_integers_times_a_scale_come_back(scale: np.float32, factor: float) -> None:
    integers = steps(-127, 127)
    w = integers.astype(np.float32) * scale * factor
    u, found = q8.quantize_weight(w)
    np.testing.assert_array_equal(u.astype(int) - q8.ZERO_POINT, integers)
    np.testing.assert_allclose(found, np.broadcast_to(scale * factor, 40), rtol=3e-7)
    assert q8.has_own_steps(w) and not q8.has_own_blocks(w, 32)


@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("most", [-128, 128])
def test_one_step_more_on_either_side_is_exact(most: int, block: int) -> None:
    integers = steps(-100, 100)
    integers[5::32] = most
    integers[6::32] = -np.sign(most) * 127
    u, scale = q8.quantize_weight(integers.astype(np.float32), block)
    np.testing.assert_array_equal(q8.dequantize_weight(u, scale, block), integers)
    assert (scale == np.sign(most)).all() and u.max() == 255
    rows = np.full((1, len(integers)), -127, np.int8)
    np.testing.assert_array_equal(q8.matmul_ref(rows, u, None, block).sum(-2 if block else 0).reshape(-1),
                                  -127 * (u.astype(int) - q8.ZERO_POINT).sum(0))


def test_one_step_too_many_is_cut_off() -> None:
    integers = steps(-100, 100)
    integers[5] = -128
    integers[6] = 128
    u, scale = q8.quantize_weight(integers.astype(np.float32))
    np.testing.assert_array_equal(u.astype(int) - q8.ZERO_POINT, np.maximum(integers, -127))
    assert (scale == 1).all()


def test_columns_far_beyond_the_range_get_a_scale_of_their_own() -> None:
    integers = steps(-60, 60)
    integers[:40, 0] = 200
    u, scale = q8.quantize_weight(integers.astype(np.float32))
    assert scale[0] == pytest.approx(200 / 127) and (scale[1:] == 1).all()
    np.testing.assert_array_equal(u[:, 1:].astype(int) - q8.ZERO_POINT, integers[:, 1:])


@pytest.mark.parametrize("most", [7, 127], ids=["four bits", "eight bits"])
def test_blocks_of_steps(most: int) -> None:
    integers = steps(-most, most, deviation=most / 3)
    scale = RNG.uniform(1e-3, 1e-2, (3, 40)).astype(np.float32)
    w = integers.astype(np.float32) * np.repeat(scale, 32, axis=0)
    assert not q8.has_own_steps(w) and q8.has_own_blocks(w, 32)
    u, found = q8.quantize_weight(w, 32)
    np.testing.assert_allclose(q8.dequantize_weight(u, found, 32), w, rtol=1e-6, atol=1e-9)
