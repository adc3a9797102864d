"""Q8 weights in 4 bits: where a column's numbers, or those of a block of it, lie close enough together.

Such a weight is kept as n, numbers below 16, and stands for u = n + offset. Offsets are `OFFSET` everywhere, so that
n = NIBBLE_ZERO is the weight 0, or one for each column, or block of it, so that 0 is some number below 16. This is how
4-bit weights of quantized files and of the q4 formats get 4 bits; the arithmetic is that of Q8.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from q8c.ir.graph import Array
from q8c.ir.q8 import ZERO_POINT

STEPS = 16
NIBBLE_ZERO = 8
OFFSET = ZERO_POINT - NIBBLE_ZERO
DEPTH_STEP = 8
"""Depths must be multiples of this: kernels take two groups of 4 steps of depth at a time."""


def narrow(u: Array, block: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int32] | None] | None:
    """(n, offsets) of a Q8 weight u8[depth, cols], or None where its numbers do not fit.

    n is u8[depth, cols], offsets i32[cols] or [blocks, cols] if `block`, None if they are all `OFFSET`.
    """
    depth = u.shape[0]
    if depth % DEPTH_STEP or not u.size:
        return None
    starts = np.arange(0, depth, block or depth)
    low, high = (f.reduceat(u, starts, axis=0).astype(np.int32) for f in (np.minimum, np.maximum))
    if low.min() >= OFFSET and high.max() < OFFSET + STEPS:
        return np.asarray(u - np.uint8(OFFSET)), None
    offsets = low.clip(ZERO_POINT - STEPS + 1, ZERO_POINT)
    if (low < offsets).any() or (high >= offsets + STEPS).any():
        return None
    offsets = offsets if block else offsets[0]
    return (u - _spread(offsets, depth, block)).astype(np.uint8), offsets


def widen(n: Array, offsets: Array | None, block: int = 0) -> NDArray[np.uint8]:
    """The Q8 weight [depth, cols] that `narrow` narrowed."""
    return np.asarray(n + (OFFSET if offsets is None else _spread(offsets, n.shape[0], block)), dtype=np.uint8)


def _spread(offsets: Array, depth: int, block: int) -> Array:
    """Offsets in a shape that broadcasts to [depth, cols]."""
    return np.repeat(offsets.astype(np.uint8), block, axis=0)[:depth] if block else offsets.astype(np.uint8)
