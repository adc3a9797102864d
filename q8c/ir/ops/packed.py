"""Ops on packed rows: those tokens of a batch that a padding mask says are there, one sequence after the other.

What is [batch, seq, ...] padded is [1, tokens, ...] packed, so that axes keep their numbers: one sequence of all
tokens, in which `starts` says where each of the batch begins.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q8c.errors import InputError
from q8c.ir.graph import Array
from q8c.ir.ops.fused import ATTENTION, attention, attention_sizes, value_size
from q8c.ir.ops.registry import AttrSpec, Level, OpDef, Operands, register
from q8c.ir.types import DType, TensorType


def _packing(o: Operands) -> Sequence[TensorType]:
    mask, tokens = o.type(0), o.attrs["tokens"]
    o.expect(mask.rank == 2, "expected a mask [batch, seq]")
    return [TensorType(DType.i64, shape) for shape in ((1, tokens), (tokens,), mask.shape, (mask.shape[0] + 1,))]


def packing(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """Where tokens go: the row (batch * seq + position) of each, its position, the token of each row or -1, and where
    each sequence starts. Raises InputError if there are not as many tokens as the size says.
    """
    mask = args[0]
    there = np.asarray(mask != 0)
    rows = np.flatnonzero(there)
    if rows.size != attrs["tokens"]:
        raise InputError(f"packing: {rows.size} elements of the mask are not 0, expected {attrs['tokens']}")
    places = np.full(mask.size, -1)
    places[rows] = np.arange(rows.size)
    starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    found = (rows[None], rows % max(mask.shape[1], 1), places.reshape(mask.shape), starts)
    return [np.asarray(x, dtype=np.int64) for x in found]


def _unpack(o: Operands) -> Sequence[TensorType]:
    x, places = o.type(0), o.type(1)
    o.expect(x.rank >= 2 and x.shape[0] == 1, "expected packed rows [1, tokens, ...]")
    o.expect(places.dtype is DType.i64 and places.rank == 2, "expected places i64[batch, seq]")
    return [x.with_shape((*places.shape, *x.shape[2:]))]


def unpack(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """The rows [batch, seq, ...], zeros where there is no token."""
    x, places = args
    padded = np.concatenate([x[0], np.zeros((1, *x.shape[2:]), x.dtype)])
    return [padded[places]]


def _packed_attention(o: Operands) -> Sequence[TensorType]:
    batch, queries, keys = attention_sizes(o)
    o.expect(batch == 1, "expected packed rows [1, tokens, channels]")
    tokens = o.same(queries, keys)
    o.expect(o.type(3).dtype is DType.i64 and o.type(3).rank == 1, "expected starts i64[batch + 1]")
    return [TensorType(DType.f32, (1, tokens, o.attrs["heads"] * value_size(o.attrs)))]


def packed_attention(args: Sequence[Any], attrs: Mapping[str, Any],
                     precision: type[np.floating[Any]] = np.float64) -> Sequence[Array]:
    """`attention` of each sequence by itself."""
    q, k, v, starts = args
    plain = {name: value for name, value in attrs.items() if name != "longest"}
    parts = [attention([x[..., first:last, :] for x in (q, k, v)], plain, precision)[0]
             for first, last in zip(starts[:-1], starts[1:], strict=True) if first < last]
    empty = np.zeros((1, 0, attrs["heads"] * value_size(attrs)), np.float32)
    return [np.concatenate([empty, *parts], axis=1)]


register(OpDef("packing", "mask", _packing, packing, {"tokens": AttrSpec("dim")}, Level.fused,
               doc="Rows, positions, places and starts of the tokens where a mask is not 0."))
register(OpDef("unpack", "x places", _unpack, unpack, level=Level.fused,
               doc="Packed rows [1, tokens, ...] back in [batch, seq, ...], zeros where there is no token."))
register(OpDef("packed_attention", "q k v starts", _packed_attention, packed_attention,
               {**ATTENTION, "longest": AttrSpec("dim")}, Level.fused,
               doc="Attention within each sequence of packed rows; none is longer than `longest`."))
