"""How far a result is from its reference."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Error:
    """The distance of an array from its reference.

    `cosine` and `worst_cosine` are the mean and the least cosine between rows (last axis) of the two; `relative_l2` is
    |x - reference| / |reference| over all elements; `max_abs` the largest difference. Where the reference is all zero,
    `relative_l2` is 0 if the result is too, else infinite.
    """

    cosine: float
    worst_cosine: float
    relative_l2: float
    max_abs: float


def error(result: NDArray[Any], reference: NDArray[Any]) -> Error:
    """The distance of `result` from `reference`, arrays of one shape; NaN where exactly one of them is not finite."""
    if result.shape != reference.shape:
        raise ValueError(f"shapes differ: {result.shape} and {reference.shape}")
    x, r = (np.atleast_1d(a).astype(np.float64) for a in (result, reference))
    if not x.size:
        return Error(1.0, 1.0, 0.0, 0.0)
    both = np.isnan(x) & np.isnan(r) | (x == r)
    x, r = np.where(both & ~np.isfinite(r), 0, x), np.where(both & ~np.isfinite(r), 0, r)
    with np.errstate(all="ignore"):
        difference = np.linalg.norm(x - r)
        scale = np.linalg.norm(r)
        norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(r, axis=-1)
        equal = (x == r).all(axis=-1)
        cosines = np.where(equal, 1.0, np.einsum("...i,...i->...", x, r) / np.where(equal, 1.0, norms))
        relative = float(difference / scale) if scale else (0.0 if difference == 0 else float("inf"))
    return Error(float(cosines.mean()), float(cosines.min()), relative, float(np.abs(x - r).max()))
