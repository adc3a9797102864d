"""The Q8 weight formats and the R8 activation formats, their bounds and their oracle.

Q8 (weights, offline): uint8 with zero point 127. A weight [depth, cols] has one scale per column (`q8-channel`), or one
per column and block of 32, 64 or 128 steps of depth (`q8-block32` ...), the last block being what is left:
    scale = max(absmax / 127, SCALE_FLOOR),  u = clip(round_half_even(w / scale), -127, 127) + 127,
    w ~ scale * (u - 127).
Where weights are multiples of a step already, as those of a quantized file, the scale is that step if it is nearer,
and u may be 255: numbers of -127 to 128 steps, or with a negative scale of -128 to 127.
Scales of blocks are half floats wherever they fit (`block_scale`), and never have more than 22 bits of mantissa, so
that kernels may do without an instruction.
R8 (activations, on the fly): int8 in [-127, 127], blocks of a row as in the weight it meets, symmetric
    scale = max(absmax / 127, SCALE_FLOOR),  q = clip(round_half_even(x * (1 / scale)), -127, 127),
    x ~ scale * q,
or with a zero point, where all of [min(x, 0), max(x, 0)] is used:
    scale = max(max / 254 - min / 254, SCALE_FLOOR),  zero = clip(round_half_even(-127 - min * (1 / scale)), -127, 127),
    q = clip(round_half_even(x * (1 / scale)) + zero, -127, 127),  x ~ scale * (q - zero).
The sum of each block's q stands beside it, and the sums of a weight's columns beside the weight: the kernel multiplies
u8 by s8, and
    sum (q - zero) * (u - 127) = sum q * u - 127 * sum q - zero * sum (u - 127).
Keys and values that are kept from token to token may be rows of int8 too, symmetric, each with a scale of 16 bits of
mantissa, the largest not above that of R8: then scale * q is exact in float32, and rounding what is rounded already
changes no bit (`quantize_kept`).
A block that holds NaN or Inf has the scale NaN, so all results of its row are NaN and no other row's change. Blocks
and the symmetric scheme are those of ggml's Q8_0; the number 127 appears nowhere else.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from q8c.errors import CompileError, OptionError
from q8c.ir.graph import Array
from q8c.ir.own_steps import own_steps, shows_steps, strips

QMAX = 127
ZERO_POINT = 127
SCALE_FLOOR = 2.0**-100  # keeps 1 / scale finite for rows of zeros and denormals, and scale products normal
SUM_LIMIT = 2**22        # no block's sum reaches it: 254 * 128 * 128 < 2**22
HALF_FLOOR = 2.0**-17    # below it half floats have fewer than 8 bits, and the step would be off by half a percent
MAX_DEPTH = 66_000       # 254 * 128 * depth < 2**31: the int32 accumulator cannot overflow below it
STEPS_KEPT = 1e-5        # relative L2 that the rounding of scales explains
KEPT_SCALE_BITS = 0xFFFFFF00  # of a float32: 16 bits of mantissa times 7 are exact in 24

FORMATS = {"q8-channel": 0, "q8-block32": 32, "q8-block64": 64, "q8-block128": 128}
"""The weight formats by name: steps of depth that share a scale, 0 for all of them."""


def block_size(format: str) -> int:
    """Steps of depth that share a scale, 0 for all. Raises OptionError for an unknown format."""
    if format not in FORMATS:
        raise OptionError(f"weight format {format!r} is unknown; expected one of {', '.join(FORMATS)}")
    return FORMATS[format]


def block_count(depth: int, block: int) -> int:
    """How many scales `depth` steps have."""
    return -(-depth // block) if block else 1


def quantize_weight(w: Array, block: int = 0) -> tuple[NDArray[np.uint8], Array]:
    """Q8 of a float weight [depth, cols]: u8 [depth, cols], and scales: f32 [cols], or if `block`, f16 or f32
    [blocks, cols].

    Raises CompileError for a weight that is not finite, or deeper than an int32 sum allows.
    """
    if w.shape[0] > MAX_DEPTH:
        raise CompileError(f"a weight of depth {w.shape[0]} overflows int32 sums; expected at most {MAX_DEPTH}")
    parts = _blocks(w.astype(np.float32, copy=False), block, axis=0)
    absmax = np.maximum(parts.max(axis=1, initial=0.0), -parts.min(axis=1, initial=0.0))
    if not np.isfinite(absmax).all():
        raise CompileError("a weight holds NaN or Inf; expected finite numbers")
    scale = np.maximum(absmax / np.float32(QMAX), np.float32(SCALE_FLOOR))
    steps = own_steps(parts)
    if steps is not None:
        for columns in strips(parts):
            scale[:, columns] = _nearest(parts[..., columns], scale[:, columns], steps[:, columns])
    if block:
        scale = block_scale(scale, exact=steps is not None)
    most = QMAX if steps is None else QMAX + 1
    u = _rounded(parts, scale.astype(np.float32), most).reshape(-1, w.shape[1])[:w.shape[0]]
    return u, scale if block else scale[0]


def _rounded(parts: Array, scale: Array, most: int) -> NDArray[np.uint8]:
    """u8 of float blocks [blocks, steps, cols], -127 to `most` steps."""
    u = np.empty_like(parts, dtype=np.uint8)
    for columns in strips(parts):
        u[..., columns] = _numbers(parts[..., columns], scale[:, columns], most) + ZERO_POINT
    return u


def has_own_steps(w: Array) -> bool:
    """Whether the columns of a float weight [depth, cols] are multiples of a step already, each of its own."""
    return shows_steps(w.astype(np.float32, copy=False)[None])


def has_own_blocks(w: Array, block: int) -> bool:
    """Whether a float weight [depth, cols] is made of steps block by block, and its columns are not."""
    return shows_steps(w[None, :block].astype(np.float32, copy=False)) and not has_own_steps(w)


def steps_lost(w: Array, u: Array, scale: Array, block: int = 0) -> float:
    """How far a Q8 weight is, in relative L2, from a float weight [depth, cols] that was made of steps; 0 if that was
    not, or is kept but for the rounding of scales."""
    if not (has_own_blocks(w, block) if block else has_own_steps(w)):
        return 0.0
    off = size = 0.0
    for columns in strips(w[None]):
        part = w[:, columns]
        off += float(np.linalg.norm(dequantize_weight(u[:, columns], scale[..., columns], block) - part))**2
        size += float(np.linalg.norm(part))**2
    lost = (off / size)**0.5
    return lost if lost > STEPS_KEPT else 0.0


def has_few_steps(w: Array, block: int) -> bool:
    """Whether a float weight [depth, cols] is made of so few steps block by block that 4 bits hold their numbers."""
    parts = _blocks(w.astype(np.float32, copy=False), block, axis=0)
    steps = own_steps(parts)
    if steps is None:
        return False
    steps = np.where(steps > 0, steps, np.float32(1))
    for columns in strips(parts):
        numbers = np.rint(parts[..., columns] / steps[:, None, columns])
        if (numbers.max(axis=1, initial=0) - numbers.min(axis=1, initial=0) >= 16).any():
            return False
    return True


def _nearest(parts: Array, scale: Array, steps: Array) -> Array:
    """For each block the scale that leaves the least squared error: the step of its weights, that with the other sign,
    or the block's own."""
    def error(s: Array) -> Array:
        return np.asarray(((_numbers(parts, s, QMAX + 1) * s[:, None] - parts)**2).sum(axis=1))

    found = np.where(steps >= SCALE_FLOOR, steps, scale)
    least = error(found)
    for other in (-found, scale):
        left = error(other)
        found, least = np.where(left < least, other, found), np.minimum(left, least)
    return np.asarray(found, dtype=np.float32)


def _numbers(parts: Array, scale: Array, most: int) -> Array:
    """How many steps of a block's scale weights are, from -127 to `most`."""
    return np.asarray(np.clip(np.rint(parts / scale[:, None]), -QMAX, most))


def block_scale(scale: Array, exact: bool = False) -> Array:
    """Scales of blocks as they are kept: in f16, or if some are too small or too large, or lose anything where
    they are to be `exact`, in f32 with 22 bits of mantissa. Their products with 3 * SUM_LIMIT are exact in float32.

    A scale at SCALE_FLOOR is that of a block of zeros, for which any will do.
    """
    scale = np.ascontiguousarray(scale, np.float32)
    used = np.where(np.abs(scale) > SCALE_FLOOR, scale, np.float32(1))
    with np.errstate(over="ignore"):
        halves = used.astype(np.float16)
    lost, size = np.abs(halves.astype(np.float32) - used), np.abs(used)
    if (size >= HALF_FLOOR).all() and (lost <= size * np.float32(2.0**-20 if exact else 2.0**-8)).all():
        return halves
    return np.asarray(((scale.view(np.uint32) + 2) & ~np.uint32(3)).view(np.float32))


def dequantize_weight(u: Array, scale: Array, block: int = 0) -> NDArray[np.float32]:
    """The float weight a Q8 weight stands for."""
    spread = np.repeat(scale, block, axis=0)[:u.shape[0]] if block else scale
    return np.asarray((u.astype(np.float32) - np.float32(ZERO_POINT)) * spread, dtype=np.float32)


def column_sums(u: Array, block: int = 0) -> Array:
    """The sums of u - 127 down each column, i32 [cols], or per block i16 [blocks, cols], what a zero point is
    multiplied by: 128 steps have 16,256 at most."""
    sums = _blocks(u, block, axis=0).sum(axis=1, dtype=np.int32)
    starts = np.minimum(np.arange(len(sums) + 1) * (block or len(u)), len(u))
    sums -= ZERO_POINT * np.diff(starts).astype(np.int32)[:, None]
    return sums.astype(np.int16) if block else np.asarray(sums[0])


def quantize_rows(x: Array, block: int = 0) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """Symmetric R8 of float rows [..., depth]: (i8 [..., depth], f32 scale and i32 sum [..., blocks])."""
    parts = _blocks(x.astype(np.float32, copy=False), block, axis=-1)
    absmax = np.abs(parts).max(axis=-1, keepdims=True, initial=0.0)
    finite = np.isfinite(absmax)
    scale = np.maximum(np.where(finite, absmax, 0) / np.float32(QMAX), np.float32(SCALE_FLOOR)).astype(np.float32)
    with np.errstate(all="ignore"):
        q = np.clip(np.rint(parts * (np.float32(1) / scale)), -QMAX, QMAX)
    return _finish(q, scale, finite, x.shape)


def quantize_rows_zero(x: Array, block: int = 0) -> tuple[
        NDArray[np.int8], NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """R8 with a zero point: (i8 [..., depth], f32 scale, i32 sum and i32 zero point [..., blocks])."""
    parts = _blocks(x.astype(np.float32, copy=False), block, axis=-1)
    finite = np.isfinite(np.abs(parts).max(axis=-1, keepdims=True, initial=0.0))
    span = np.float32(2 * QMAX)
    with np.errstate(all="ignore"):
        low = np.where(finite, parts.min(axis=-1, keepdims=True, initial=0.0), np.float32(0))
        high = np.where(finite, parts.max(axis=-1, keepdims=True, initial=0.0), np.float32(0))
        scale = np.maximum(high / span - low / span, np.float32(SCALE_FLOOR)).astype(np.float32)
        inverse = np.float32(1) / scale
        zero = np.clip(np.rint(np.float32(-QMAX) - low * inverse), -QMAX, QMAX)
        q = np.clip(np.rint(parts * inverse) + zero, -QMAX, QMAX)
    return *_finish(q, scale, finite, x.shape), np.where(finite, zero, 0)[..., 0].astype(np.int32)


def dequantize_rows(q: Array, scale: Array, zero: Array | None = None, block: int = 0) -> NDArray[np.float32]:
    """The float rows that R8 rows stand for."""
    depth = q.shape[-1]

    def spread(per_block: Array) -> Array:
        return np.repeat(per_block, block, axis=-1)[..., :depth] if block else per_block

    steps = q.astype(np.float32) if zero is None else q.astype(np.float32) - spread(zero).astype(np.float32)
    return np.asarray(steps * spread(scale), dtype=np.float32)


def quantize_kept(x: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows of keys or values [..., size] as they are kept: (i8 [..., size], f32 scale [...])."""
    absmax = np.abs(x.astype(np.float32, copy=False)).max(axis=-1, keepdims=True, initial=0.0)
    finite = np.isfinite(absmax)
    scale = np.maximum(np.where(finite, absmax, 0) / np.float32(QMAX), np.float32(SCALE_FLOOR))
    scale = (np.ascontiguousarray(scale, np.float32).view(np.uint32) & np.uint32(KEPT_SCALE_BITS)).view(np.float32)
    with np.errstate(all="ignore"):
        q = np.clip(np.rint(x * (np.float32(1) / scale)), -QMAX, QMAX)
    return np.where(finite, q, 0).astype(np.int8), np.where(finite, scale, np.float32("nan"))[..., 0]


def round_kept(x: Array) -> NDArray[np.float32]:
    """The float rows [..., size] that kept rows of them stand for; NaN for one that is not finite."""
    q, scale = quantize_kept(x)
    return np.asarray(q * scale[..., None], dtype=np.float32)


def matmul_ref(q: Array, u: Array, zero: Array | None = None, block: int = 0) -> NDArray[np.int32]:
    """The exact int32 product of R8 rows [..., depth] and a Q8 weight [depth, cols]: [..., cols].

    With `block`, one product per block: [..., blocks, cols].
    """
    rows = _blocks(q.astype(np.float64), block, axis=-1)
    if zero is not None:
        rows = rows - zero[..., None]
        if block and q.shape[-1] % block:  # what pads the last block stands for 0
            rows[..., -1, q.shape[-1] % block:] = 0
    weight = _blocks(u.astype(np.float64) - ZERO_POINT, block, axis=0)
    # float64 is exact here: every partial sum is an integer below 2**31
    products = [(rows[..., b, :] @ weight[b]).astype(np.int32) for b in range(len(weight))]
    return np.stack(products, axis=-2) if block else products[0]


def dequantize(acc: Array, row_scale: Array, col_scale: Array, block: int = 0) -> NDArray[np.float32]:
    """float(acc) * (row_scale * col_scale), or for blocks (float(acc) * col_scale) * row_scale, added in order."""
    if not block:
        return np.asarray(acc.astype(np.float32) * (row_scale * col_scale), dtype=np.float32)
    total = np.zeros((*acc.shape[:-2], acc.shape[-1]), np.float32)
    for b in range(acc.shape[-2]):
        total += acc[..., b, :].astype(np.float32) * col_scale[b] * row_scale[..., b:b + 1]
    return total


def _blocks(x: Array, block: int, axis: int) -> Array:
    """x with an axis cut into blocks, the last one padded with 0: [..., blocks, block, ...]."""
    axis %= x.ndim
    depth = x.shape[axis]
    count, size = block_count(depth, block), block or depth
    if count * size != depth:
        x = np.pad(x, [(0, count * size - depth if i == axis else 0) for i in range(x.ndim)])
    return x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1:])


def _finish(q: Array, scale: Array, finite: Array, shape: tuple[int, ...]) -> tuple[
        NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """Blocks of q back in rows; NaN scales where a block was not finite; sums without what pads the last block."""
    depth = shape[-1]
    rows = np.where(finite, q, 0).astype(np.int8).reshape(*shape[:-1], q.shape[-2] * q.shape[-1])
    rows[..., depth:] = 0
    sums = rows.reshape(q.shape).sum(axis=-1, dtype=np.int32)
    return np.ascontiguousarray(rows[..., :depth]), np.where(finite, scale, np.float32("nan"))[..., 0], sums
