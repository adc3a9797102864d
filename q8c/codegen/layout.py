"""How weights lie in memory: panels of 16 columns, the same bytes for every CPU tier.

Q8 [depth, cols] becomes [panels][ceil(depth / 4)][16][4] u8: 64 bytes hold 4 steps of depth of 16 columns, one
register of `vpdpbusd`'s unsigned operand (and a row of an AMX B tile). float32 becomes [panels][depth][16].
Padding is the zero point in Q8 and 0 elsewhere, so that it adds nothing.
"""
from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from q8c.ir.q8 import ZERO_POINT

PANEL = 16
"""Columns of a panel."""
GROUP = 4
"""Steps of depth that one 32-bit lane holds."""

Scalar = TypeVar("Scalar", bound=np.generic)


def panels(cols: int) -> int:
    """How many panels hold `cols` columns."""
    return -(-cols // PANEL)


def groups(depth: int) -> int:
    """How many 4-byte groups hold `depth` bytes; an R8 row takes 4 * groups(depth) bytes."""
    return -(-depth // GROUP)


def _padded(values: NDArray[Scalar], shape: tuple[int, ...], fill: int) -> NDArray[Scalar]:
    out = np.full(shape, fill, values.dtype)
    out[tuple(slice(n) for n in values.shape)] = values
    return out


def pack_q8(weight: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A Q8 weight [depth, cols] as [panels, groups, 16, 4]."""
    depth, cols = weight.shape
    full = _padded(weight, (groups(depth) * GROUP, panels(cols) * PANEL), ZERO_POINT)
    parts = full.reshape(groups(depth), GROUP, panels(cols), PANEL)
    return np.ascontiguousarray(parts.transpose(2, 0, 3, 1))


def pack_q4(weight: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Weights [depth, cols] below 16, depth in steps of 8, as [panels, groups / 2, 16, 4]: as `pack_q8` has them, two
    and two groups in one byte's low and high half."""
    wide = pack_q8(weight)
    return np.ascontiguousarray((wide[:, ::2] & 15) | wide[:, 1::2] << 4)


def pack_f32(weight: NDArray[Scalar]) -> NDArray[Scalar]:
    """A float weight [depth, cols] as [panels, depth, 16]."""
    depth, cols = weight.shape
    full = _padded(weight, (depth, panels(cols) * PANEL), 0)
    return np.ascontiguousarray(full.reshape(depth, panels(cols), PANEL).transpose(1, 0, 2))


def pack_scales(scale: NDArray[Scalar]) -> NDArray[Scalar]:
    """Scales [cols] or [blocks, cols] as [panels, blocks, 16]."""
    return pack_f32(scale.reshape(-1, scale.shape[-1]))


def pack_sums(sums: NDArray[Any]) -> NDArray[Any]:
    """Column sums, i32 [cols] or i16 [blocks, cols], as [panels, blocks, 16], those in 32 bits split for a 16-bit
    multiplier.

    A sum s becomes the pair of i16 (s mod 256, floor(s / 256)), the first in the low half: s * z is then the dot
    product with (z, 256 z). Both fit because |s| <= 127 * 66000 < 2**23 and |z| <= 127.
    """
    return pack_scales(sums if sums.dtype == np.int16 else (sums & 0xFF) | (sums >> 8 << 16))


def pad_cols(values: NDArray[Scalar]) -> NDArray[Scalar]:
    """Per-column values [cols] (scale, bias, sums) padded with 0 to whole panels."""
    return _padded(values, (panels(values.shape[0]) * PANEL,), 0)
