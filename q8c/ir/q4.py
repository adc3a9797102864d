"""Q8 weights in 4 bits: where a column's numbers, or those of a block of it, lie close enough together.

Such a weight is kept as n, numbers below 16, and stands for u = n + offset. Offsets are `OFFSET` everywhere, so that
n = NIBBLE_ZERO is the weight 0, or one for each column, or block of it, so that 0 is some number below 16. Weights of
-7 to 8 steps become such of -8 to 7 with a negative scale, which is what they were where quantizers give the largest
weight the number -8. This is how 4-bit weights of quantized files get 4 bits; the arithmetic is that of Q8.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from q8c.ir.graph import Array
from q8c.ir.q8 import HALF_FLOOR, SCALE_FLOOR, ZERO_POINT

FORMAT = "q4-block32"
"""Names weights that `round_weight` rounds, which are then kept as those of a file that has 4 bits."""
KEPT_AS = "q8-block32"
STEPS = 16
NIBBLE_ZERO = 8
OFFSET = ZERO_POINT - NIBBLE_ZERO
DEPTH_STEP = 8
"""Depths must be multiples of this: kernels take two groups of 4 steps of depth at a time."""


class Narrow(NamedTuple):
    """`numbers` u8[depth, cols] below 16; `offsets` u8 and `sign` i8, 1 or -1, of each column, [cols], or of its
    blocks, [blocks, cols], None where they are all `OFFSET`, or 1."""

    numbers: NDArray[np.uint8]
    offsets: NDArray[np.uint8] | None
    sign: NDArray[np.int8] | None


def narrow(u: Array, block: int = 0) -> Narrow | None:
    """A Q8 weight u8[depth, cols] in 4 bits, or None where its numbers do not fit."""
    depth = u.shape[0]
    if depth % DEPTH_STEP or not u.size:
        return None
    starts = np.arange(0, depth, block or depth)
    low, high = (f.reduceat(u, starts, axis=0).astype(np.int32) for f in (np.minimum, np.maximum))
    turned = high >= OFFSET + STEPS
    if (np.where(turned, 2 * ZERO_POINT - high, low) >= OFFSET).all() and (
            np.where(turned, 2 * ZERO_POINT - low, high) < OFFSET + STEPS).all():
        if not turned.any():
            return Narrow(np.asarray(u - np.uint8(OFFSET)), None, None)
        sign = np.where(turned, -1, 1).astype(np.int8)
        sign = sign if block else sign[0]
        numbers = np.asarray(u - np.uint8(OFFSET))
        np.subtract(np.uint8(STEPS), numbers, out=numbers, where=_spread(sign < 0, depth, block))
        return Narrow(numbers, None, sign)
    offsets = low.clip(ZERO_POINT - STEPS + 1, ZERO_POINT).astype(np.uint8)
    if (low < offsets).any() or (high >= offsets.astype(np.int32) + STEPS).any():
        return None
    offsets = offsets if block else offsets[0]
    return Narrow(np.asarray(u - _spread(offsets, depth, block)), offsets, None)


def widen(n: Array, offsets: Array | None, block: int = 0) -> NDArray[np.uint8]:
    """The Q8 weight [depth, cols] that numbers below 16 and offsets stand for."""
    return np.asarray(n + (OFFSET if offsets is None else _spread(offsets, n.shape[0], block)), dtype=np.uint8)


def round_weight(w: Array, block: int) -> NDArray[np.float32]:
    """A float weight [depth, cols] rounded to 16 steps from 0 for each column and block of depth.

    The step is an eighth of the largest weight, whose side of 0 has the eight steps then, or a seventh of it and 7 on
    both sides, whichever leaves the smaller squared error; a half float where it is large enough for one.
    """
    w = w.astype(np.float32, copy=False)
    starts = np.arange(0, len(w), block)
    high, low = (f.reduceat(w, starts, axis=0) for f in (np.maximum, np.minimum))
    top, right = np.maximum(high, -low), high >= -low
    size = np.maximum(top, np.float32(SCALE_FLOOR))
    found, least = np.zeros_like(w), np.full(top.shape, np.inf, np.float32)
    for count in (STEPS // 2 - 1, STEPS // 2):
        scale = np.maximum(top / np.float32(count), np.float32(SCALE_FLOOR))
        with np.errstate(over="ignore"):
            halves = scale.astype(np.float16).astype(np.float32)
        scale = np.where((halves >= HALF_FLOOR) & np.isfinite(halves), halves, scale)
        first = np.where(right & (count == STEPS // 2), 1 - count, -count)
        last = np.where(right | (count < STEPS // 2), count, count - 1)
        steps = _spread(scale, len(w), block)
        y = np.clip(np.rint(w / steps), _spread(first, len(w), block), _spread(last, len(w), block)) * steps
        error = np.add.reduceat(((y - w) / steps) ** 2, starts, axis=0) * (scale / size) ** 2
        found = np.where(_spread(error < least, len(w), block), y, found)
        least = np.minimum(error, least)
    return np.asarray(found, dtype=np.float32)


def _spread(values: Array, depth: int, block: int) -> Array:
    """Values of columns or blocks in a shape that broadcasts to [depth, cols]."""
    return np.repeat(values, block, axis=0)[:depth] if block else values
