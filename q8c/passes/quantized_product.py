"""What quantizing does to a product: a float product's result with its rows and weight rounded, and how far it is."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q8c.ir import q8
from q8c.ir.graph import Array
from q8c.ir.ops.experts import by_expert
from q8c.ir.ops.registry import Reference
from q8c.ir.single import product

# A zero point costs two instructions per register of results and two per register of quantized elements, some 3 % of a
# layer; it must take this share off the rows' mean squared rounding error to be worth it.
MIN_GAIN = 0.2
SAMPLED = 64  # rows and columns of a product that tell its error


def zero_point_gain(rows: Array, block: int) -> float:
    """The share of the mean squared rounding error of rows that a zero point takes away.

    The error of rounding to steps of `scale` is scale^2 / 12 on average, so the scales tell.
    """
    if not rows.size:
        return 0.0
    starts = np.arange(0, rows.shape[1], block or rows.shape[1])
    high = np.maximum.reduceat(rows, starts, axis=1).clip(0, None).astype(np.float64)
    low = np.minimum.reduceat(rows, starts, axis=1).clip(None, 0).astype(np.float64)
    symmetric, asymmetric = np.maximum(high, -low), (high - low) / 2
    return float(1 - (asymmetric**2).sum() / max((symmetric**2).sum(), 1e-300))


def wants_zero_point(rows: Array, block: int) -> bool:
    """Whether rows like these get a zero point."""
    return zero_point_gain(rows, block) >= MIN_GAIN


def rounded_rows(x: Array, block: int, zero_point: bool) -> Array:
    """The float rows that x becomes as R8."""
    q, scale, _, *zero = (q8.quantize_rows_zero if zero_point else q8.quantize_rows)(x, block)
    return q8.dequantize_rows(q, scale, zero[0] if zero else None, block)


def rounded_weight(w: Array, block: int) -> Array:
    """The float weight [depth, cols] that w becomes as Q8."""
    return q8.dequantize_weight(*q8.quantize_weight(w, block), block)


def relative_error(rows: Array, w: Array, block: int) -> float:
    """|product of rounded operands - product| / |product|, on samples of rows [n, depth] and columns of w; 0 of none.

    Weights that are not finite have no such error; quantizing them is an error of its own.
    """
    x = rows[::max(len(rows) // SAMPLED, 1)]
    w = np.ascontiguousarray(w[:, ::max(w.shape[1] // SAMPLED, 1)])
    if not x.size or not np.isfinite(w).all():
        return 0.0
    exact = x @ w
    noise = rounded_rows(x, block, wants_zero_point(rows, block)) @ rounded_weight(w, block) - exact
    power = float((exact.astype(np.float64)**2).sum())
    return math.sqrt(float((noise.astype(np.float64)**2).sum()) / power) if power else 0.0


def quantized_product(block: int, zero_point: bool) -> Reference:
    """What to run for a float product with a constant weight, or of experts, to see it quantized."""

    def reference(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
        x, w = args[0], args[1].reshape(args[1].shape[-2:])
        rounded = [rounded_rows(x, block, zero_point),
                   rounded_weight(w.T if attrs.get("transpose_b", False) else w, block)]
        if len(args) > 2:
            return [by_expert(rounded, args[2], {0}, lambda own: product(own[0], own[1]))]
        return [product(rounded[0], rounded[1])]

    return reference
