"""Reductions."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from q8c.ir.graph import Array
from q8c.ir.ops.movement import normalize_axis
from q8c.ir.ops.registry import AttrSpec, OpDef, Operands, register
from q8c.ir.types import DType, TensorType


def _reduced(o: Operands) -> tuple[Any, ...]:
    x = o.type(0)
    axes = {normalize_axis(o, a, x.rank) for a in o.attrs["axes"]}
    keep = o.attrs["keepdims"]
    return tuple(1 if i in axes else d for i, d in enumerate(x.shape) if keep or i not in axes)


def _reduce(o: Operands) -> Sequence[TensorType]:
    return [o.type(0).with_shape(_reduced(o))]


def _arg(o: Operands) -> Sequence[TensorType]:
    return [TensorType(DType.i64, _reduced(o))]


def _reference(function: Callable[..., Any]) -> Callable[[Sequence[Any], Mapping[str, Any]], Sequence[Array]]:
    def reference(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
        x = args[0]
        wide = x.astype(np.float64) if x.dtype.kind == "f" else x
        with np.errstate(all="ignore"):
            return [np.asarray(function(wide, axis=attrs["axes"], keepdims=attrs["keepdims"])).astype(x.dtype)]
    return reference


def _arg_reference(function: Callable[..., Any]) -> Callable[[Sequence[Any], Mapping[str, Any]], Sequence[Array]]:
    def reference(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
        x, axis = args[0], attrs["axes"][0]
        x = x if x.shape[axis] else np.zeros([1 if a == axis % x.ndim else d for a, d in enumerate(x.shape)], x.dtype)
        return [np.asarray(function(x, axis=axis, keepdims=attrs["keepdims"]), dtype=np.int64)]
    return reference


_ATTRS = {"axes": AttrSpec("ints"), "keepdims": AttrSpec("bool", True)}


def _extreme(function: Callable[..., Any], sign: int) -> Callable[..., Any]:
    """The largest (or smallest) elements; of none, the type's smallest (or largest) value, as the standard says."""
    def reduced(x: Array, axis: Any, keepdims: bool) -> Any:
        if x.dtype.kind == "f":
            return function(x, axis=axis, keepdims=keepdims, initial=sign * np.inf)
        if x.dtype.kind == "b":
            return function(x, axis=axis, keepdims=keepdims, initial=sign > 0)
        limits = np.iinfo(x.dtype)
        return function(x, axis=axis, keepdims=keepdims, initial=limits.max if sign > 0 else limits.min)
    return reduced


_REDUCE: dict[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "max": _extreme(np.max, -1),
                                          "min": _extreme(np.min, 1), "prod": np.prod}
for _name, _function in _REDUCE.items():
    register(OpDef(f"reduce_{_name}", "x", _reduce, _reference(_function), _ATTRS))
for _name, _function in {"argmax": np.argmax, "argmin": np.argmin}.items():
    register(OpDef(_name, "x", _arg, _arg_reference(_function), _ATTRS))
