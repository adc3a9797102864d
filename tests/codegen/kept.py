"""Buffers of keys and values in 8 bits, taken apart."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from q8c.ir import Array, q8


def kept_rows(buffer: NDArray[np.uint8], batch: int, heads: int, capacity: int, size: int,
              keys: bool) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The rows [batch, heads, capacity, size] and scales [batch, heads, capacity] of a buffer, which is theirs."""
    parts = buffer.reshape(batch, heads, capacity * (size + 4))
    steps, scale = parts[..., :capacity * size].view(np.int8), parts[..., capacity * size:].view(np.float32)
    if keys:
        turned = steps.reshape(batch, heads, capacity // 16, size, 16).swapaxes(3, 4)
        return turned.reshape(batch, heads, capacity, size), scale
    return steps.reshape(batch, heads, capacity, size), scale


def kept_buffer(x: Array, capacity: int, keys: bool) -> NDArray[np.uint8]:
    """The buffer that holds floats [batch, heads, tokens, size], and behind them, where no one may look, bytes that are
    NaN where they are taken for scales."""
    batch, heads, tokens, size = x.shape
    steps = np.full((batch, heads, capacity, size), -1, np.int8)
    scale = np.full((batch, heads, capacity), np.nan, np.float32)
    steps[:, :, :tokens], scale[:, :, :tokens] = q8.quantize_kept(x)
    if keys:
        steps = steps.reshape(batch, heads, capacity // 16, 16, size).swapaxes(3, 4)
    rows = [np.ascontiguousarray(a).view(np.uint8).reshape(batch, heads, -1) for a in (steps, scale)]
    return np.concatenate(rows, axis=2)
