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


LOGITS = 10_000  # a last axis as long as this is a vocabulary; hidden states go to 8192
_CHUNK = 64      # rows of logits in double precision at a time


@dataclass(frozen=True)
class LogitError:
    """The distance of logits [..., classes] from their reference, as distributions.

    `kl` is the mean over rows of KL(reference || result) in nats, `top1` the share of rows whose largest element is the
    same. `nll` and `reference_nll` are the mean negative log likelihood in nats that result and reference give to what
    came next, None where that is not known.
    """

    kl: float
    top1: float
    nll: float | None = None
    reference_nll: float | None = None


def is_logits(name: str, shape: tuple[int, ...]) -> bool:
    """Whether an output is to be judged as logits: by its name, or because its last axis is a vocabulary's."""
    return bool(shape) and ("logits" in name.lower() or shape[-1] >= LOGITS)


def logit_error(result: NDArray[Any], reference: NDArray[Any], following: NDArray[Any] | None = None) -> LogitError:
    """The distance of logits from their reference, arrays of one shape [rows, classes].

    `following` holds the class that came next for each row, -1 where that is not known.
    """
    divergences, agreed, losses, reference_losses = [], [], [], []
    for start in range(0, len(result), _CHUNK):
        x, r = (_log_softmax(a[start:start + _CHUNK].astype(np.float64)) for a in (result, reference))
        with np.errstate(all="ignore"):
            divergences.append(np.where(r == -np.inf, 0.0, np.exp(r) * (r - x)).sum(axis=-1))
        agreed.append(x.argmax(axis=-1) == r.argmax(axis=-1))
        if following is not None:
            known = np.flatnonzero(following[start:start + _CHUNK] >= 0)
            classes = following[start:start + _CHUNK][known]
            losses.append(-x[known, classes])
            reference_losses.append(-r[known, classes])
    if not divergences:
        return LogitError(0.0, 1.0)
    found = [np.concatenate(a) for a in (losses, reference_losses) if a]
    means = [float(a.mean()) for a in found if a.size]
    return LogitError(float(np.concatenate(divergences).mean()), float(np.concatenate(agreed).mean()), *means)


def _log_softmax(x: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        shifted = x - x.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
