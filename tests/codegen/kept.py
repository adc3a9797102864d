"""Buffers of keys and values in 8 bits, taken apart."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def kept_rows(buffer: NDArray[np.uint8], batch: int, heads: int, capacity: int, size: int,
              keys: bool) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The rows [batch, heads, capacity, size] and scales [batch, heads, capacity] of a buffer, which is theirs."""
    parts = buffer.reshape(batch, heads, capacity * (size + 4))
    steps, scale = parts[..., :capacity * size].view(np.int8), parts[..., capacity * size:].view(np.float32)
    if keys:
        turned = steps.reshape(batch, heads, capacity // 16, size, 16).swapaxes(3, 4)
        return turned.reshape(batch, heads, capacity, size), scale
    return steps.reshape(batch, heads, capacity, size), scale
