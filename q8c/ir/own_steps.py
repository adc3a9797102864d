"""Weights that are multiples of a step already: a quantized file's integers times their scale."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from q8c.ir.graph import Array

FEW = 15          # steps from the least to the greatest number of 4 bits
MOST = 255        # steps from zero to the largest weight: a byte less a zero point
ROUNDING = 4e-7   # relative: an integer times a float32 scale, times a float32 factor
_RARE = 16        # one column in so many
_SAMPLED = 8      # columns that are looked at first
_AT_ONCE = 1 << 20  # elements that are worked on together


def strips(parts: Array) -> Iterator[slice]:
    """Slices of the last axis of [blocks, steps of depth, cols], some columns each: large weights have no room for
    copies."""
    count = max(1, _AT_ONCE // max(1, parts.shape[0] * parts.shape[1]))
    for start in range(0, parts.shape[2], count):
        yield slice(start, start + count)


def own_steps(parts: Array) -> NDArray[np.float32] | None:
    """The step that all weights of a block's column are multiples of, [blocks, cols]; 0 where there is none.

    `parts` is f32[blocks, steps of depth, cols]. None if no column looked at first has one, as in ordinary weights.
    The step is the least difference between the absolute values of a column: of dozens of weights on at most 255 steps
    some two are neighbours. Where that is wrong no step is found, or one that fits as well. Columns without
    one, if all but a few have some, are looked at again for the few steps of 4 bits: 3 and 7 of them are no neighbours.
    """
    if not shows_steps(parts):
        return None
    steps = np.empty((parts.shape[0], parts.shape[2]), np.float32)
    for columns in strips(parts):
        steps[:, columns] = _steps(parts[..., columns])
    left = np.nonzero((steps == 0) & parts.any(axis=1))
    if 0 < left[0].size <= steps.size // _RARE:
        steps[left] = _few_steps(parts[left[0], :, left[1]])
    return steps


def shows_steps(parts: Array) -> bool:
    """Whether any column looked at first, of the first block, has a step: a small part of `own_steps`' work."""
    if not parts.size:
        return False
    sample = parts[:1, :, ::max(1, parts.shape[2] // _SAMPLED)]
    return bool(_steps(sample).any())


def _few_steps(rows: Array) -> NDArray[np.float32]:
    """The largest step of which all weights of a row [rows, depth] are multiples, at most `FEW`; 0 if there is none."""
    top, found = np.abs(rows).max(axis=1), np.zeros(len(rows), np.float32)
    for count in range(FEW, 0, -1):
        step = top / np.float32(count)
        off = np.abs(rows - np.rint(rows / step[:, None]) * step[:, None])
        found = np.where((off <= ROUNDING * np.abs(rows)).all(axis=1), step, found)
    return found


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
