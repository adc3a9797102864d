"""Weight packing: where a value lies, what padding holds, and the way back."""
from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from q8c.codegen import layout
from q8c.ir.q8 import MAX_DEPTH, ZERO_POINT

sizes = st.integers(1, 70)


def unpack_q8(packed: NDArray[np.uint8], depth: int, cols: int) -> NDArray[np.uint8]:
    """The weight [depth, cols] that `pack_q8` packed."""
    return np.ascontiguousarray(packed.transpose(1, 3, 0, 2).reshape(packed.shape[1] * 4, -1)[:depth, :cols])


def unpack_f32(packed: NDArray[np.float32], depth: int, cols: int) -> NDArray[np.float32]:
    """The weight [depth, cols] that `pack_f32` packed."""
    return np.ascontiguousarray(packed.transpose(1, 0, 2).reshape(depth, -1)[:, :cols])


@settings(max_examples=60, deadline=None)
@given(sizes, sizes)
def test_q8_round_trip_and_places(depth: int, cols: int) -> None:
    weight = np.random.default_rng(depth * 100 + cols).integers(0, 255, (depth, cols)).astype(np.uint8)
    packed = layout.pack_q8(weight)
    assert packed.shape == (-(-cols // 16), -(-depth // 4), 16, 4) and packed.flags.c_contiguous
    assert (unpack_q8(packed, depth, cols) == weight).all()
    k, n = depth - 1, cols - 1
    assert packed[n // 16, k // 4, n % 16, k % 4] == weight[k, n]
    padding = np.ones((packed.shape[1] * 4, packed.shape[0] * 16), bool)
    padding[:depth, :cols] = False
    assert (unpack_q8(packed, *padding.shape)[padding] == ZERO_POINT).all()


@settings(max_examples=60, deadline=None)
@given(sizes, sizes)
def test_f32_round_trip_and_places(depth: int, cols: int) -> None:
    weight = np.random.default_rng(depth * 100 + cols).standard_normal((depth, cols)).astype(np.float32)
    packed = layout.pack_f32(weight)
    assert packed.shape == (-(-cols // 16), depth, 16) and packed.flags.c_contiguous
    assert (unpack_f32(packed, depth, cols) == weight).all()
    assert packed[(cols - 1) // 16, depth - 1, (cols - 1) % 16] == weight[-1, -1]
    assert not unpack_f32(packed, depth, packed.shape[0] * 16)[:, cols:].any()


@settings(max_examples=20, deadline=None)
@given(sizes)
def test_column_values_round_trip(cols: int) -> None:
    values = np.arange(1, cols + 1, dtype=np.float32)
    padded = layout.pad_cols(values)
    assert padded.shape[0] % 16 == 0 and padded.shape[0] - cols < 16 and not padded[cols:].any()
    assert (padded[:cols] == values).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), sizes, st.integers(0, 2**32 - 1))
def test_sums_split_for_a_16_bit_multiplier(blocks: int, cols: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sums = rng.integers(-127 * MAX_DEPTH, 127 * MAX_DEPTH, (blocks, cols), endpoint=True).astype(np.int32)
    packed = layout.pack_sums(sums)
    assert packed.shape == (-(-cols // 16), blocks, 16)
    halves = packed.view(np.int16).reshape(*packed.shape, 2).astype(np.int64)
    together = unpack_f32((halves[..., 0] + 256 * halves[..., 1]).astype(np.float32), blocks, cols)
    assert (together == sums).all()
    assert (layout.pack_scales(sums[0].astype(np.float32))[-1, 0, (cols - 1) % 16] == sums[0, -1]).all()
    assert layout.pack_sums(sums.astype(np.int16)).tobytes() == layout.pack_scales(sums.astype(np.int16)).tobytes()
