"""Ops that move elements without computing on them, and ops that make them from sizes."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q8c.errors import InputError
from q8c.ir.dims import compare, product
from q8c.ir.graph import Array
from q8c.ir.ops.registry import AttrSpec, OpDef, Operands, register
from q8c.ir.types import DType, TensorType


def normalize_axis(o: Operands, axis: int, rank: int) -> int:
    """The axis as a number in [0, rank)."""
    o.expect(-rank <= axis < rank, f"axis {axis} is outside rank {rank}")
    return axis % rank


def _reshape(o: Operands) -> Sequence[TensorType]:
    x, shape = o.type(0), o.attrs["shape"]
    o.same(x.size, product(shape))
    return [x.with_shape(shape)]


def _transpose(o: Operands) -> Sequence[TensorType]:
    x, perm = o.type(0), o.attrs["perm"]
    o.expect(sorted(perm) == list(range(x.rank)), f"perm {perm} is no permutation of rank {x.rank}")
    return [x.with_shape(x.shape[p] for p in perm)]


def _broadcast_to(o: Operands) -> Sequence[TensorType]:
    x, shape = o.type(0), o.attrs["shape"]
    o.expect(len(shape) >= x.rank, "the target's rank is smaller than the operand's")
    return [x.with_shape(o.broadcast(x.shape, shape))]


def _slice(o: Operands) -> Sequence[TensorType]:
    x, starts, sizes, steps = o.type(0), o.attrs["starts"], o.attrs["sizes"], o.attrs["steps"]
    o.expect(len(starts) == len(sizes) == len(steps) == x.rank, "starts, sizes and steps need one entry per axis")
    o.expect(0 not in steps, "a step is 0")
    for dim, start, size, step in zip(x.shape, starts, sizes, steps, strict=True):
        last = start + (size - 1) * step
        outside = compare(start, dim) in (0, 1) or compare(last, dim) in (0, 1) or compare(last, 0) == -1
        o.expect(size == 0 or not outside, f"start {start}, size {size}, step {step} leaves the axis of size {dim}")
    return [x.with_shape(sizes)]


def _concat(o: Operands) -> Sequence[TensorType]:
    first = o.type(0)
    axis = normalize_axis(o, o.attrs["axis"], first.rank)
    shape = list(first.shape)
    for t in o.types[1:]:
        o.expect(t is not None and t.dtype is first.dtype and t.rank == first.rank, "expected one type and rank")
        assert t is not None
        shape = [a + b if i == axis else o.same(a, b) for i, (a, b) in enumerate(zip(shape, t.shape, strict=True))]
    return [first.with_shape(shape)]


def _gather(o: Operands) -> Sequence[TensorType]:
    x, indices = o.type(0), o.type(1)
    o.expect(indices.dtype in (DType.i32, DType.i64), "expected i32 or i64 indices")
    axis = normalize_axis(o, o.attrs["axis"], x.rank)
    return [x.with_shape(x.shape[:axis] + indices.shape + x.shape[axis + 1:])]


def gather(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """numpy's take with ONNX's negative indices; raises InputError for an index out of range."""
    x, indices = args
    size = x.shape[attrs["axis"]]
    wrong = indices[(indices < -size) | (indices >= size)]
    if wrong.size:
        raise InputError(f"gather: index {wrong.flat[0]} is out of range [0, {size})")
    return [np.take(x, indices, axis=attrs["axis"])]


def _gather_nd(o: Operands) -> Sequence[TensorType]:
    x, indices = o.type(0), o.type(1)
    o.expect(indices.dtype is DType.i64 and indices.rank >= 1, "expected i64 indices of rank >= 1")
    depth, batch = indices.shape[-1], o.attrs["batch_dims"]
    o.expect(isinstance(depth, int) and 0 <= batch < min(x.rank, indices.rank) and batch + depth <= x.rank,
             "expected index tuples no longer than the rank")
    assert isinstance(depth, int)
    lead = [o.same(a, b) for a, b in zip(x.shape[:batch], indices.shape[:batch], strict=True)]
    return [x.with_shape((*lead, *indices.shape[batch:-1], *x.shape[batch + depth:]))]


def gather_nd(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """x[indices[..., 0], indices[..., 1], …] per batch; raises InputError for an index out of range."""
    x, indices = args
    batch, depth = attrs["batch_dims"], indices.shape[-1]
    sizes = np.array(x.shape[batch:batch + depth])
    if ((indices < -sizes) | (indices >= sizes)).any():
        raise InputError(f"gather_nd: an index is out of the range of {list(sizes)}")
    lead = tuple(np.arange(n).reshape([-1 if i == j else 1 for j in range(indices.ndim - 1)])
                 for i, n in enumerate(x.shape[:batch]))
    return [x[lead + tuple(np.moveaxis(indices, -1, 0))]]


def _gather_elements(o: Operands) -> Sequence[TensorType]:
    x, indices = o.type(0), o.type(1)
    o.expect(indices.dtype in (DType.i32, DType.i64), "expected i32 or i64 indices")
    o.expect(x.rank == indices.rank, "expected indices of the operand's rank")
    normalize_axis(o, o.attrs["axis"], x.rank)
    return [x.with_shape(o.broadcast(indices.shape, o.attrs["shape"] or indices.shape))]


def gather_elements(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """y[i, j, …] = x[indices[i, j, …], j, …] for axis 0, with the indices broadcast to `shape`, if that is given.

    Raises InputError for an index out of range.
    """
    x, indices = args
    indices = np.broadcast_to(indices, attrs["shape"] or indices.shape)
    axis = attrs["axis"] % x.ndim
    size = x.shape[axis]
    if ((indices < -size) | (indices >= size)).any():
        raise InputError(f"gather_elements: an index is out of range [0, {size})")
    near = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))
    return [np.take_along_axis(x[near], indices, axis=axis)]


def take_slice(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """x[start : start + size * step : step] on every axis."""
    index = []
    for start, size, step in zip(attrs["starts"], attrs["sizes"], attrs["steps"], strict=True):
        stop = start + size * step
        index.append(slice(start, stop if stop >= 0 else None, step) if size else slice(0, 0))
    return [args[0][tuple(index)]]


def _pad(o: Operands) -> Sequence[TensorType]:
    x, before, after = o.type(0), o.attrs["before"], o.attrs["after"]
    o.expect(len(before) == len(after) == x.rank, "before and after need one entry per axis")
    return [x.with_shape(b + d + a for b, d, a in zip(before, x.shape, after, strict=True))]


def _cumsum(o: Operands) -> Sequence[TensorType]:
    normalize_axis(o, o.attrs["axis"], o.type(0).rank)
    return [o.type(0)]


def cumsum(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """Running sums along an axis, without the own element if `exclusive`, from the end if `reverse`."""
    return _running(np.add, 0, args[0], attrs)


def cumprod(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """Running products along an axis, as `cumsum` has sums."""
    return _running(np.multiply, 1, args[0], attrs)


def _running(function: np.ufunc, start: int, x: Array, attrs: Mapping[str, Any]) -> Sequence[Array]:
    y = np.moveaxis(x, attrs["axis"], 0)
    y = y[::-1] if attrs["reverse"] else y
    with np.errstate(all="ignore"):
        total = function.accumulate(np.concatenate([np.full_like(y[:1], start), y]), axis=0, dtype=y.dtype)
    total = total[:len(y)] if attrs["exclusive"] else total[1:]
    return [np.ascontiguousarray(np.moveaxis(total[::-1] if attrs["reverse"] else total, 0, attrs["axis"]))]


_INTS, _DIMS, _AXIS = AttrSpec("ints"), AttrSpec("dims"), AttrSpec("int")

register(OpDef("reshape", "x", _reshape, lambda a, k: [a[0].reshape(k["shape"])], {"shape": _DIMS}))
register(OpDef("copy", "x", lambda o: [o.type(0)], lambda a, k: [a[0].copy()],
               doc="The same elements in memory of their own."))
register(OpDef("transpose", "x", _transpose, lambda a, k: [a[0].transpose(k["perm"])], {"perm": _INTS}))
register(OpDef("broadcast_to", "x", _broadcast_to,
               lambda a, k: [np.broadcast_to(a[0], np.broadcast_shapes(a[0].shape, k["shape"]))], {"shape": _DIMS}))
register(OpDef("slice", "x", _slice, take_slice, {"starts": _DIMS, "sizes": _DIMS, "steps": _INTS}))
register(OpDef("concat", "x *xs", _concat, lambda a, k: [np.concatenate(a, axis=k["axis"])], {"axis": _AXIS}))
register(OpDef("gather", "x indices", _gather, gather, {"axis": AttrSpec("int", 0)}))
register(OpDef("gather_elements", "x indices", _gather_elements, gather_elements,
               {"axis": AttrSpec("int", 0), "shape": AttrSpec("dims", ())},
               doc="One element along an axis for each index; other axes of the indices are no longer than x's."))
register(OpDef("gather_nd", "x indices", _gather_nd, gather_nd, {"batch_dims": AttrSpec("int", 0)}))
register(OpDef("pad", "x", _pad, lambda a, k: [
    np.pad(a[0], list(zip(k["before"], k["after"], strict=True)), constant_values=k["value"])],
    {"before": _DIMS, "after": _DIMS, "value": AttrSpec("float", 0.0)}))
for _name, _function in {"cumsum": cumsum, "cumprod": cumprod}.items():
    register(OpDef(_name, "x", _cumsum, _function, {
        "axis": _AXIS, "exclusive": AttrSpec("bool", False), "reverse": AttrSpec("bool", False)}))
register(OpDef("iota", "", lambda o: [TensorType(o.attrs["dtype"], (o.attrs["size"],))],
               lambda a, k: [np.arange(k["size"], dtype=k["dtype"].numpy)],
               {"size": AttrSpec("dim"), "dtype": AttrSpec("dtype", DType.i64)},
               doc="The integers 0, 1, … size - 1."))
register(OpDef("sizes", "", lambda o: [TensorType(DType.i64, (len(o.attrs["values"]),))],
               lambda a, k: [np.array(k["values"], dtype=np.int64)], {"values": _DIMS},
               doc="The given sizes as a vector."))
