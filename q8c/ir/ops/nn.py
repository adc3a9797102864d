"""Matrix multiplication, normalization and softmax, as imported."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q8c.ir.graph import Array
from q8c.ir.ops.movement import normalize_axis
from q8c.ir.ops.registry import AttrSpec, OpDef, Operands, register
from q8c.ir.types import TensorType


def _matmul(o: Operands) -> Sequence[TensorType]:
    a, b = o.type(0), o.type(1)
    o.expect(a.rank >= 2 and b.rank >= 2, "expected operands of rank >= 2")
    o.expect(a.dtype is b.dtype, "expected one element type")
    depth, cols = (b.shape[-1], b.shape[-2]) if o.attrs["transpose_b"] else (b.shape[-2], b.shape[-1])
    o.same(a.shape[-1], depth)
    return [a.with_shape((*o.broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], cols))]


def matmul(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """Batched matrix product, accumulated in double precision for floats."""
    a, b = args
    b = np.swapaxes(b, -1, -2) if attrs["transpose_b"] else b
    if a.dtype.kind == "f":
        return [np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(a.dtype)]
    return [np.matmul(a, b)]


def softmax(x: Array, axis: int = -1, precision: type[np.floating[Any]] = np.float64) -> Array:
    """exp(x - max) / sum along an axis, in double precision if not told; a row of -inf gives NaN."""
    with np.errstate(all="ignore"):
        wide = x.astype(precision)
        e = np.exp(wide - wide.max(axis=axis, keepdims=True, initial=-np.inf))
        return np.asarray(e / e.sum(axis=axis, keepdims=True)).astype(x.dtype)


def layer_norm(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (Ba et al., arXiv 1607.06450)."""
    x, scale, bias = (*args, None)[:3]
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        centered = wide - wide.mean(-1, keepdims=True)
        y = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + attrs["epsilon"]) * scale
    return [(y if bias is None else y + bias).astype(x.dtype)]


def rms_norm(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis (Zhang and Sennrich, arXiv 1910.07467)."""
    x, scale = args
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        return [(wide / np.sqrt((wide**2).mean(-1, keepdims=True) + attrs["epsilon"]) * scale).astype(x.dtype)]


def _norm(o: Operands) -> Sequence[TensorType]:
    x = o.type(0)
    o.expect(x.rank >= 1 and x.dtype.is_float, "expected a float operand of rank >= 1")
    for t in o.types[1:]:
        if t is not None:
            o.expect(t.rank == 1 and t.dtype is x.dtype, "expected scale and bias as vectors of the same type")
            o.same(t.shape[0], x.shape[-1])
    return [x]


def _softmax(o: Operands) -> Sequence[TensorType]:
    o.expect(o.type(0).dtype.is_float, "expected a float operand")
    normalize_axis(o, o.attrs["axis"], o.type(0).rank)
    return [o.type(0)]


_EPSILON = {"epsilon": AttrSpec("float", 1e-5)}

register(OpDef("matmul", "a b", _matmul, matmul, {"transpose_b": AttrSpec("bool", False)}))
register(OpDef("layer_norm", "x scale bias?", _norm, layer_norm, _EPSILON))
register(OpDef("rms_norm", "x scale", _norm, rms_norm, _EPSILON))
register(OpDef("softmax", "x", _softmax, lambda a, k: [softmax(a[0], k["axis"])], {"axis": AttrSpec("int", -1)}))
