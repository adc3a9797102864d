"""How far a result is from its reference."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Error:
    """The distance of an array from its reference.

    `cosine` and `worst_cosine` are the mean and the least cosine between rows (last axis) of the two, 1 for equal rows
    and 0 where just one is all zero; `relative_l2` is |x - reference| / |reference| over all elements, 0 / 0 being 0;
    `max_abs` the largest difference. Elements that are the same infinity or both NaN count as equal; others that are
    not finite make the figures NaN or infinite.
    """

    cosine: float
    worst_cosine: float
    relative_l2: float
    max_abs: float


def error(result: NDArray[Any], reference: NDArray[Any]) -> Error:
    """The distance of `result` from `reference`, arrays of one shape."""
    if result.shape != reference.shape:
        raise ValueError(f"shapes differ: {result.shape} and {reference.shape}")
    x, r = (np.atleast_1d(a).astype(np.float64) for a in (result, reference))
    if not x.size:
        return Error(1.0, 1.0, 0.0, 0.0)
    equal = (x == r) | (np.isnan(x) & np.isnan(r))
    kept = ~equal | np.isfinite(x)
    x, r = np.where(kept, x, 0.0), np.where(kept, r, 0.0)
    with np.errstate(all="ignore"):
        difference, scale = np.linalg.norm(x - r), np.linalg.norm(r)
        relative = 0.0 if equal.all() else float(difference / scale)
        norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(r, axis=-1)
        cosines = np.einsum("...i,...i->...", x, r) / np.where(norms == 0, 1.0, norms)
    cosines = np.where(equal.all(axis=-1), 1.0, cosines)
    return Error(float(cosines.mean()), float(cosines.min()), relative, float(np.abs(x - r).max()))
