"""The Q8 weight format and the R8 activation format, their bounds and their oracle.

Q8 (weights, offline): uint8 with zero point 127; column n of a [depth, cols] weight has one scale,
    scale = max(absmax / 127, SCALE_FLOOR),  u = clip(round_half_even(w / scale), -127, 127) + 127,
    w ~ scale * (u - 127).
R8 (activations, on the fly): int8 in [-127, 127], one scale per row,
    scale = max(absmax / 127, SCALE_FLOOR),  q = clip(round_half_even(x * (1 / scale)), -127, 127),
    x ~ scale * q,
with the row's sum of q beside it: sum q * (u - 127) = sum q * u - 127 * sum q, so the kernel multiplies u8 by s8.
A row that holds NaN or Inf has the scale NaN, so all its results are NaN and no other row's change. The scheme is
symmetric as in ggml's Q8_0; the number 127 appears nowhere else.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from q8c.errors import CompileError
from q8c.ir.graph import Array

QMAX = 127
ZERO_POINT = 127
SCALE_FLOOR = 2.0**-100  # keeps 1 / scale finite for rows of zeros and denormals, and scale products normal
MAX_DEPTH = 66_000       # 127 * 254 * depth < 2**31: the int32 accumulator cannot overflow below it


def quantize_weight(w: Array) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Q8 of a float weight [depth, cols]: (u8 [depth, cols], f32 scale [cols]).

    Raises CompileError for a weight that is not finite, or deeper than an int32 sum allows.
    """
    if w.shape[0] > MAX_DEPTH:
        raise CompileError(f"a weight of depth {w.shape[0]} overflows int32 sums; expected at most {MAX_DEPTH}")
    if not np.isfinite(w).all():
        raise CompileError("a weight holds NaN or Inf; expected finite numbers")
    absmax = np.abs(w).max(axis=0, initial=0.0).astype(np.float32)
    scale = np.maximum(absmax / np.float32(QMAX), np.float32(SCALE_FLOOR))
    q = np.clip(np.rint(w / scale), -QMAX, QMAX)
    return (q + ZERO_POINT).astype(np.uint8), scale


def dequantize_weight(u: Array, scale: Array) -> NDArray[np.float32]:
    """The float weight a Q8 weight stands for."""
    return np.asarray((u.astype(np.float32) - np.float32(ZERO_POINT)) * scale, dtype=np.float32)


def quantize_rows(x: Array) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """R8 of float rows [..., depth]: (i8 [..., depth], f32 scale [..., 1], i32 sum [..., 1])."""
    x = x.astype(np.float32)
    absmax = np.abs(x).max(axis=-1, keepdims=True, initial=0.0)
    finite = np.isfinite(absmax)
    scale = np.maximum(np.where(finite, absmax, 0) / np.float32(QMAX), np.float32(SCALE_FLOOR)).astype(np.float32)
    with np.errstate(all="ignore"):
        q = np.clip(np.rint(x * (np.float32(1) / scale)), -QMAX, QMAX)
    q = np.where(finite, q, 0).astype(np.int8)
    return q, np.where(finite, scale, np.float32("nan")), q.sum(axis=-1, keepdims=True, dtype=np.int32)


def matmul_ref(q: Array, u: Array) -> NDArray[np.int32]:
    """The exact int32 product of R8 rows [..., depth] and a Q8 weight [depth, cols]."""
    # float64 is exact here: every partial sum is an integer below 2**31
    return np.asarray(np.matmul(q.astype(np.float64), u.astype(np.float64) - ZERO_POINT)).astype(np.int32)
