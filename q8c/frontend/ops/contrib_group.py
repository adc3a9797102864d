"""ONNX Runtime's GroupQueryAttention: decoders' attention to keys and values that are kept, row by row of the batch.

What it computes is said in ONNX Runtime's docs/ContribOperators.md, what that leaves open in its
contrib_ops/cpu/bert/gqa_attention_base.h.
"""
from __future__ import annotations

from dataclasses import dataclass

from q8c.frontend.ops.contrib_attention import scale_of, split_heads
from q8c.frontend.ops.contrib_rotary import rotate
from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor, from_size
from q8c.ir.dims import Dim, Expr, dim_max
from q8c.ir.types import DType


@dataclass(frozen=True)
class Keys:
    """Keys and values [batch, heads, rows, size]; how many of them were there before the new ones, for each row of the
    batch [batch], and how many new ones are no padding; None: there were none before."""

    k: Tensor
    v: Tensor
    lengths: Tensor | None
    counts: Tensor | None


@importer("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(c: Call) -> list[Tensor | None]:
    """Causal attention with fewer heads of keys and values than of queries, and the present keys and values.

    Row b keeps as many keys as operand 5 says, whatever the size of the past: its new keys are put behind those, and
    its queries see no others. So a past may be padded, or be a buffer with room for more tokens than are kept, which
    the present then is too; it has as many rows as the past, or as operand 6 says if that is more.
    """
    heads, kv_heads = c.attr_int("num_heads"), c.attr_int("kv_num_heads")
    if c.has(12) or c.has(13) or c.outputs > 3:
        c.unsupported("scales of a quantized cache, or products of queries and keys as an output")
    dtype = c.input(0).dtype
    q, k, v = (c.builder.cast(t, DType.f32) for t in _parts(c, heads, kv_heads))
    lengths, counts, rows = _lengths(c, q.shape[2])
    if c.attr_int("do_rotary", 0):
        positions = c.optional(9) or _positions(c, q.shape[2], lengths)
        interleaved = bool(c.attr_int("rotary_interleaved", 0))
        cos, sin = (c.builder.cast(c.input(i), DType.f32) for i in (7, 8))
        q, k = (rotate(c, t, positions, cos, sin, interleaved) for t in (q, k))
    if lengths is not None:
        k, v = (c.emit("append", c.builder.cast(c.input(i), DType.f32), t, lengths, kv_heads=kv_heads,
                       head_size=int(str(t.shape[3])), rows=rows) for i, t in ((3, k), (4, v)))
    y = _attention(c, q, Keys(k, v, lengths, counts))
    return [c.builder.cast(t, dtype) for t in (y, k, v)]


def _parts(c: Call, heads: int, kv_heads: int) -> list[Tensor]:
    x = c.input(0)
    counts = (heads, kv_heads, kv_heads)
    if c.has(1):
        return [split_heads(c, c.input(i), n) for i, n in enumerate(counts)]
    width = x.shape[-1]
    if not isinstance(width, int) or width % sum(counts):
        c.fail(f"{x.type} does not split into {sum(counts)} heads")
    size = width // sum(counts)
    starts = (0, heads * size, (heads + kv_heads) * size)
    return [split_heads(c, c.builder.slice_axis(x, 2, start, n * size), n)
            for start, n in zip(starts, counts, strict=True)]


def _lengths(c: Call, seq: Dim) -> tuple[Tensor | None, Tensor | None, Dim]:
    """How many keys each row of the batch keeps, -1 where new ones find no room behind them, how many new ones are no
    padding, and how many keys the present holds; None without a past.

    A first prompt's rows may be shorter than the longest: they keep nothing all the same.
    """
    past = c.optional(3)
    if past is None:
        return None, None, seq
    both = past.shape[2] + seq
    total = c.input(6).known
    rows = both if total is None else dim_max(past.shape[2], _size(total.reshape(-1)[0]))
    if rows != both:
        c.builder.same(dim_max(rows, both), both)  # more keys than kept ones and new ones there cannot be
    last = c.builder.cast(c.builder.reshape(c.input(5), past.shape[:1]), DType.i64)
    kept = c.emit("max", c.emit("sub", last, from_size(seq - 1)), c.scalar(0, DType.i64))
    fits = c.emit("less_equal", kept, from_size(rows - seq))
    counts = c.emit("min", c.emit("add", last, c.scalar(1, DType.i64)), from_size(seq))
    return c.emit("past_lengths", past, c.emit("where", fits, kept, c.scalar(-1, DType.i64))), counts, rows


def _size(x: object) -> Dim:
    return x if isinstance(x, Expr) else int(str(x))


def _positions(c: Call, seq: Dim, lengths: Tensor | None) -> Tensor:
    """Where new tokens stand in their rows: [seq], or [batch, seq] behind those that are kept."""
    new = c.emit("iota", size=seq, dtype=DType.i64)
    return new if lengths is None else c.emit("add", c.builder.reshape(lengths, (lengths.shape[0], 1)), new)


def _attention(c: Call, q: Tensor, keys: Keys) -> Tensor:
    """The attention [batch, seq, heads * size]."""
    k, v = keys.k, keys.v
    heads, window, bias = q.shape[1], c.attr_int("local_window_size", -1), _bias(c, k.shape[2])
    scale, softcap = scale_of(c, q), c.attr_float("softcap", 0.0)
    return c.emit("attention", q, k, v, bias, None, keys.lengths, keys.counts, _sinks(c, heads), heads=heads,
                  kv_heads=k.shape[1], head_size=q.shape[3], scale=scale, softcap=softcap, causal=True,
                  window=max(window, 0))


def _sinks(c: Call, heads: Dim) -> Tensor | None:
    """One more score for the softmax of each head, if there are such."""
    if c.has(11):
        return c.builder.cast(c.builder.reshape(c.input(11), (heads,)), DType.f32)
    return c.builder.broadcast(c.scalar(0, DType.f32), (heads,)) if c.attr_int("smooth_softmax", 0) else None


def _bias(c: Call, keys: Dim) -> Tensor | None:
    """What is added to the scores, 0 for keys that only a buffer has room for."""
    bias = c.optional(10)
    if bias is None or bias.shape[3] == keys:
        return bias
    return c.emit("pad", bias, before=(0, 0, 0, 0), after=(0, 0, 0, keys - bias.shape[3]))
