"""Ops of decoders: rotary positions, and keys and values appended to those that are kept."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q8c.errors import InputError
from q8c.ir import q8
from q8c.ir.graph import Array
from q8c.ir.ops.fused import expect_lengths, heads_of, split_heads
from q8c.ir.ops.registry import AttrSpec, Level, OpDef, Operands, register
from q8c.ir.types import DType, TensorType

KEPT_FORMATS = ("f32", "int8-keys", "int8-values")
"""How rows of keys and values are kept: as they are, or in 8 bits (`q8.quantize_kept`), keys in another order than
values (`q8c.ir.memory`)."""


def _rotary(o: Operands) -> Sequence[TensorType]:
    heads, size, rotated = o.attrs["heads"], o.attrs["head_size"], o.attrs["rotary_size"]
    o.expect(heads > 0 and 0 < rotated <= size and rotated % 2 == 0, "rotary_size must be even and at most head_size")
    batch, seq = heads_of(o, 0, heads, size, o.attrs["offset"])
    for index in (1, 2):
        t = o.type(index)
        o.expect(t.dtype is DType.f32 and t.rank == 3 and t.shape[2] == rotated // 2,
                 f"expected cos and sin as f32[batch or 1, seq, {rotated // 2}]")
        batch = batch if t.shape[0] == 1 else o.same(batch, t.shape[0])
        seq = o.same(seq, t.shape[1])
    return [TensorType(DType.f32, (batch, seq, heads * size))]


def rotary(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """Pairs (x, y) of a head's channels turned to (x cos - y sin, y cos + x sin) (Su et al., arXiv 2104.09864).

    Pair i is channels (i, i + rotary_size / 2), or (2i, 2i + 1) if `interleaved`; what lies behind rotary_size stays.
    Each product is rounded to float32 by itself.
    """
    x, cos, sin = args
    heads, size, rotated = attrs["heads"], attrs["head_size"], attrs["rotary_size"]
    turned = split_heads(x, heads, size, attrs["offset"]).copy()
    half = rotated // 2
    first, second = (slice(0, rotated, 2), slice(1, rotated, 2)) if attrs["interleaved"] else (
        slice(0, half), slice(half, rotated))
    a, b = turned[..., first].copy(), turned[..., second].copy()
    cos, sin = cos[:, None], sin[:, None]
    with np.errstate(all="ignore"):
        turned[..., first] = a * cos - b * sin
        turned[..., second] = b * cos + a * sin
    batch, _, seq, _ = turned.shape
    return [turned.transpose(0, 2, 1, 3).reshape(batch, seq, heads * size)]


def _append(o: Operands) -> Sequence[TensorType]:
    past, heads, size = o.type(0), o.attrs["kv_heads"], o.attrs["head_size"]
    o.expect(past.dtype is DType.f32 and past.rank == 4 and past.shape[1] == heads and past.shape[3] == size,
             f"expected what is kept as f32[batch, {heads}, past, {size}]")
    o.expect(o.attrs["format"] in KEPT_FORMATS, f"format is none of {', '.join(KEPT_FORMATS)}")
    batch, new = heads_of(o, 1, heads, size, o.attrs["offset"])
    batch = o.same(batch, past.shape[0])
    expect_lengths(o, 2, batch)
    rows = o.attrs["rows"]
    o.expect(rows == 0 or o.types[2] is not None, "room for other than past + new tokens goes with lengths")
    return [TensorType(DType.f32, (batch, heads, past.shape[2] + new if rows == 0 else rows, size))]


def append(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """What is kept with the new tokens behind it [batch, kv_heads, rows, size], where rows are past + new if not given.

    With lengths, the new tokens of sequence b stand from lengths[b] on; what lies behind them is as it was, or 0.
    Rows of all tokens are rounded as their format says. Raises InputError for a length outside
    [0, rows - new].
    """
    past, new, lengths = (*args, None)[:3]
    tokens = split_heads(new, attrs["kv_heads"], attrs["head_size"], attrs["offset"])
    if attrs["format"] != "f32":
        past, tokens = q8.round_kept(past), q8.round_kept(tokens)
    if lengths is None:
        return [np.concatenate([past, tokens], axis=2)]
    kept, seq = past.shape[2], tokens.shape[2]
    rows = attrs["rows"] or kept + seq
    present = np.concatenate([past, np.zeros_like(tokens)], axis=2)[:, :, :rows]
    for row, length in enumerate(lengths.tolist()):
        if not 0 <= length <= rows - seq:
            raise InputError(f"append: {length} tokens of sequence {row} are kept, expected 0 to {rows - seq}")
        present[row, :, length:length + seq] = tokens[row]
    return [present]


def _kept(o: Operands) -> Sequence[TensorType]:
    o.expect(o.type(0).rank == 4, "expected what is kept as f32[batch, heads, tokens, size]")
    return [o.type(0)]


def kept(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """What is kept, as it is."""
    return [args[0].copy()]


def _past_lengths(o: Operands) -> Sequence[TensorType]:
    past = o.type(0)
    o.expect(past.rank == 4, "expected what is kept as f32[batch, heads, past, size]")
    expect_lengths(o, 1, past.shape[0])
    return [TensorType(DType.i64, past.shape[:1])]


def past_lengths(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """The number of tokens kept of every sequence: as `given`, else all in `past`; -1 for `unknown`."""
    past, given = (*args, None)[:2]
    return [np.full(past.shape[0], -1 if attrs["unknown"] else past.shape[2]) if given is None else given]


def _new_counts(o: Operands) -> Sequence[TensorType]:
    past = o.type(0)
    o.expect(past.rank == 4, "expected what is kept as f32[batch, heads, past, size]")
    return [TensorType(DType.i64, past.shape[:1])]


def new_counts(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """The number of new tokens of every sequence: `tokens`."""
    return [np.full(args[0].shape[0], attrs["tokens"])]


def _last_token(o: Operands) -> Sequence[TensorType]:
    x, mask = o.type(0), o.types[1]
    o.expect(x.dtype is DType.f32 and x.rank == 3, "expected f32[batch, seq, channels]")
    if mask is not None:
        o.expect(mask.rank == 2, "expected a mask [batch, past + seq]")
        o.same(mask.shape[0], x.shape[0])
    expect_lengths(o, 2, x.shape[0])
    return [x.with_shape((x.shape[0], 1, x.shape[2]))]


def last_token(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """The row of each sequence's last token that is no padding [batch, 1, channels].

    Token i is padding where the mask is 0 at lengths[batch] + i, without lengths at i of its last columns; where all
    are, the last is taken. Raises InputError where there are no tokens.
    """
    x, mask, lengths = (*args, None, None)[:3]
    batch, tokens = x.shape[:2]
    if not tokens:
        raise InputError("last_token: there are no tokens")
    there = np.ones((batch, tokens), bool)
    if mask is not None:
        first = np.full(batch, mask.shape[1] - tokens) if lengths is None else lengths
        there = np.take_along_axis(mask, first[:, None] + np.arange(tokens), axis=1) != 0
    last = np.where(there.any(1), tokens - 1 - np.argmax(there[:, ::-1], axis=1), tokens - 1)
    return [x[np.arange(batch), last][:, None]]


_INT = AttrSpec("int")

register(OpDef("rotary", "x cos sin", _rotary, rotary, {
    "heads": _INT, "head_size": _INT, "rotary_size": _INT, "offset": AttrSpec("int", 0),
    "interleaved": AttrSpec("bool", False)}, Level.fused,
    doc="Rotary positions of heads [batch, seq, channels] from `offset` on, or [batch, heads, seq, size], as "
        "[batch, seq, heads * size]."))
register(OpDef("append", "past new lengths?", _append, append, {
    "kv_heads": _INT, "head_size": _INT, "offset": AttrSpec("int", 0), "in_place": AttrSpec("bool", False),
    "rows": AttrSpec("dim", 0), "format": AttrSpec("str", "f32")}, Level.fused,
    doc="New keys or values behind those of earlier tokens, heads split off, in 8 bits if their format says so. With "
        "in_place the earlier are not moved: operand and result are one buffer of the caller's, with room for more "
        "tokens. `rows`, if not 0, are those of the result."))
register(OpDef("kept", "present", _kept, kept, level=Level.fused,
               doc="A copy, without room for more tokens, of what an append in place keeps, for ops that read all of "
               "it."))
register(OpDef("last_token", "x mask? lengths?", _last_token, last_token, level=Level.fused,
               doc="The row of the last token of each sequence that is no padding."))
register(OpDef("past_lengths", "past given?", _past_lengths, past_lengths, {"unknown": AttrSpec("bool", False)},
               Level.fused, doc="How many tokens of each sequence are kept: as a state says that the model runs on; "
               "without one as `given`, or all, or -1 where that is `unknown`."))
register(OpDef("new_counts", "past", _new_counts, new_counts, {"tokens": AttrSpec("dim")}, Level.fused,
               doc="How many new tokens each sequence has that are no padding: as the run says; here all `tokens`."))
