"""Weight packing: where a value lies, what padding holds, and the way back."""
from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from q8c.codegen import layout
from q8c.ir.q8 import ZERO_POINT

sizes = st.integers(1, 70)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes)
def test_q8_round_trip_and_places(depth: int, cols: int) -> None:
    weight = np.random.default_rng(depth * 100 + cols).integers(0, 255, (depth, cols)).astype(np.uint8)
    packed = layout.pack_q8(weight)
    assert packed.shape == (-(-cols // 16), -(-depth // 4), 16, 4) and packed.flags.c_contiguous
    assert (layout.unpack_q8(packed, depth, cols) == weight).all()
    k, n = depth - 1, cols - 1
    assert packed[n // 16, k // 4, n % 16, k % 4] == weight[k, n]
    padding = np.ones((packed.shape[1] * 4, packed.shape[0] * 16), bool)
    padding[:depth, :cols] = False
    assert (layout.unpack_q8(packed, *padding.shape)[padding] == ZERO_POINT).all()


@settings(max_examples=60, deadline=None)
@given(sizes, sizes)
def test_f32_round_trip_and_places(depth: int, cols: int) -> None:
    weight = np.random.default_rng(depth * 100 + cols).standard_normal((depth, cols)).astype(np.float32)
    packed = layout.pack_f32(weight)
    assert packed.shape == (-(-cols // 16), depth, 16) and packed.flags.c_contiguous
    assert (layout.unpack_f32(packed, depth, cols) == weight).all()
    assert packed[(cols - 1) // 16, depth - 1, (cols - 1) % 16] == weight[-1, -1]
    assert not layout.unpack_f32(packed, depth, packed.shape[0] * 16)[:, cols:].any()


@settings(max_examples=20, deadline=None)
@given(sizes)
def test_column_values_round_trip(cols: int) -> None:
    values = np.arange(1, cols + 1, dtype=np.float32)
    padded = layout.pad_cols(values)
    assert padded.shape[0] % 16 == 0 and padded.shape[0] - cols < 16 and not padded[cols:].any()
    assert (layout.unpad_cols(padded, cols) == values).all()
