"""The importers, by op family; importing this package registers all of them."""
from __future__ import annotations

from q8c.frontend.ops import (
    attention,
    constants,
    contrib,
    contrib_attention,
    contrib_experts,
    contrib_group,
    contrib_rotary,
    conv,
    einsum,
    elementwise,
    fused,
    known,
    movement,
    nbits,
    nn,
    norm,
    pad,
    pool,
    qlinear,
    quantized,
    reduce,
    resize,
    sample,
    scatter,
    select,
    sequence,
    shape,
    spectral,
    unfold,
)

__all__ = ["attention", "constants", "contrib", "contrib_attention", "contrib_experts", "contrib_group",
           "contrib_rotary", "conv", "einsum", "elementwise", "fused", "known", "movement", "nbits", "nn", "norm",
           "pad", "pool", "qlinear", "quantized", "reduce", "resize", "sample", "scatter", "select", "sequence",
           "shape", "spectral", "unfold"]
