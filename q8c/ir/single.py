"""References in single precision, for runs that look at errors of parts in a hundred and should not take long.

The results differ from those of the double precision references by rounding only, a few parts in a million. Integer
products are taken on the numbers the integers stand for.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from q8c.ir import q8
from q8c.ir.graph import Array, Node
from q8c.ir.ops.experts import by_expert
from q8c.ir.ops.fused import Q8_ROWS, attention, epilogue, q8_weight
from q8c.ir.ops.nn import softmax
from q8c.ir.ops.packed import packed_attention
from q8c.ir.ops.registry import Reference

_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def erf(x: Array) -> Array:
    """The error function within 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    if x.dtype != np.float32:
        return np.asarray(erf(x.astype(np.float32)), dtype=x.dtype)
    size = np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * size)
    series = np.zeros_like(t)
    for c in _ERF:
        series = (series + np.float32(c)) * t
    with np.errstate(under="ignore", over="ignore"):
        return np.asarray(np.copysign(1 - series * np.exp(-size * size), x))


def _erf(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    return [erf(args[0])]


def _gelu(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    x = args[0]
    if attrs["approximate"] == "tanh":
        inner = np.tanh(x.dtype.type(np.sqrt(2 / np.pi)) * (x + x.dtype.type(0.044715) * x * x * x))
    else:
        inner = erf(x * x.dtype.type(np.sqrt(0.5)))
    return [np.asarray(x.dtype.type(0.5) * x * (1 + inner))]


def _matmul(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    return [product(args[0], np.swapaxes(args[1], -1, -2) if attrs["transpose_b"] else args[1])]


def _linear(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    if len(args) > 4:
        return [by_expert(args[:4], args[4], {0}, lambda given: _linear(given, attrs)[0])]
    return [epilogue(product(args[0], args[1]), args, 2, 3, attrs)]


def _q8_linear(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    if len(args) > 10 and args[10] is not None:
        return [by_expert(args[:10], args[10], Q8_ROWS, lambda given: _q8_linear(given, attrs)[0])]
    q, row_scale, _, _, col_scale, _, _, zero = (*args, None, None, None)[:8]
    block, w = attrs["block"], q8_weight(args, attrs)
    y = product(q8.dequantize_rows(q, row_scale, zero, block), q8.dequantize_weight(w, col_scale, block))
    return [epilogue(y, args, 5, 6, attrs)]


def product(a: Array, b: Array) -> Array:
    """a @ b in single precision, as one product of two matrices where b is one."""
    with np.errstate(all="ignore"):
        if b.ndim > 2:
            return np.asarray(np.matmul(a, b))
        return np.asarray((a.reshape(-1, a.shape[-1]) @ b).reshape(*a.shape[:-1], b.shape[-1]))


_SINGLE: dict[str, Reference] = {
    "attention": partial(attention, precision=np.float32), "erf": _erf, "gelu": _gelu, "linear": _linear,
    "matmul": _matmul, "packed_attention": partial(packed_attention, precision=np.float32), "q8_linear": _q8_linear,
    "softmax": lambda args, attrs: [softmax(args[0], attrs["axis"], np.float32)]}


def single(node: Node) -> Reference | None:
    """What `interpret(..., instead=single)` runs for a node."""
    return _SINGLE.get(node.op)
