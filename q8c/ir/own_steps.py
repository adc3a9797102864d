"""Weights that are multiples of a step already: a quantized file's integers times their scale."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from q8c.ir.graph import Array

MOST = 255        # steps from zero to the largest weight: a byte less a zero point
ROUNDING = 4e-7   # relative: an integer times a float32 scale, times a float32 factor
_SAMPLED = 8      # columns that are looked at first


def own_steps(parts: Array) -> NDArray[np.float32] | None:
    """The step that all weights of a block's column are multiples of, [blocks, cols]; 0 where there is none.

    `parts` is f32[blocks, steps of depth, cols]. None if no column looked at first has one, as in ordinary weights.
    The step is the least difference between the absolute values of a column: of dozens of weights on at most 255 steps
    some two are neighbours. Where that is wrong no step is found, or one that fits as well.
    """
    return _steps(parts) if shows_steps(parts) else None


def shows_steps(parts: Array) -> bool:
    """Whether any column looked at first, of the first block, has a step: a small part of `own_steps`' work."""
    if not parts.size:
        return False
    sample = parts[:1, :, ::max(1, parts.shape[2] // _SAMPLED)]
    return bool(_steps(sample).any())


def _steps(parts: Array) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        sizes = np.sort(np.abs(parts), axis=1)
        top = sizes[:, -1]
        gaps = np.diff(sizes, axis=1, prepend=np.float32(0))
        gaps[gaps <= top[:, None] / (2 * MOST)] = np.inf  # equal but for rounding
        count = np.rint(top / gaps.min(axis=1))
        step = top / count  # as exact as the largest weight tells
        off = np.abs(parts - np.rint(parts / step[:, None]) * step[:, None])
        fits = (count >= 1) & (count <= MOST) & (off <= ROUNDING * np.abs(parts)).all(axis=1)
        return np.where(fits, step, 0).astype(np.float32)
