"""The attention ops of ONNX Runtime's optimizer, written out as the products and softmax the attention pass fuses.

What the ops compute is said in ONNX Runtime's docs/ContribOperators.md.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor, constant, from_size
from q8c.ir.dims import Dim
from q8c.ir.types import DType


@importer("Attention", domain=MICROSOFT)
def attention(c: Call) -> list[Tensor | None]:
    """One product for q, k and v, attention, and the keys and values with the past before them: [2, batch, …]."""
    w = c.input(1)
    parts = qkv_widths(c, w.shape[-1])
    starts = [0, parts[0], parts[0] + parts[1]]
    bias = c.optional(2)
    projected = []
    for start, size in zip(starts, parts, strict=True):
        # three products, as the model had them before they were merged: they are merged again where that pays
        y = c.emit("matmul", c.input(0), part(c, w, start, size))
        projected.append(y if bias is None else c.emit("add", y, part(c, bias, start, size)))
    return self_attention(c, projected, Operands(mask=3, past=4, bias=5))


@dataclass(frozen=True)
class Operands:
    """Which operands of a self attention these are."""

    mask: int
    past: int
    bias: int | None = None


def self_attention(c: Call, projected: Sequence[Tensor], at: Operands) -> list[Tensor | None]:
    """What follows the projections [batch, seq, heads * size] of Attention and QAttention."""
    heads = c.attr_int("num_heads")
    q, k, v = (split_heads(c, t, heads) for t in projected)
    if c.attr_int("do_rotary", 0):
        c.unsupported("do_rotary, whose angles no operand says; RotaryEmbedding has them")
    if c.attr_int("past_present_share_buffer", 0):
        c.unsupported("a past that shares its memory with the present")
    past = c.optional(at.past)
    if past is not None:
        k, v = (c.emit("concat", c.builder.reshape(c.builder.slice_axis(past, 0, i, 1), past.shape[1:]), t, axis=2)
                for i, t in enumerate((k, v)))
    masks = [key_mask(c, c.optional(at.mask), q, k), None if at.bias is None else c.optional(at.bias)]
    if c.attr_int("unidirectional", 0):
        masks.append(causal_mask(c, q, k, 0 if past is None else past.shape[3]))
    y = attend(c, q, k, v, scale_of(c, q), masks)
    if c.outputs == 1:
        return [y]
    stacked = [c.builder.reshape(t, (1, *t.shape)) for t in (k, v)]
    return [y, c.emit("concat", *stacked, axis=0)]


def part(c: Call, x: Tensor, start: int, size: int) -> Tensor:
    """Some columns of an operand, taken at once where it is constant."""
    if x.known is not None and not x.is_symbolic:
        return constant(x.known[..., start:start + size], x.name)
    return c.builder.slice_axis(x, x.rank - 1, start, size)


def qkv_widths(c: Call, total: Dim) -> list[int]:
    """How many columns of the merged product are queries, keys and values."""
    if not isinstance(total, int):
        c.unsupported(f"weights of varying width {total}")
    sizes = c.attr_ints("qkv_hidden_sizes") or [total // 3] * 3
    if len(sizes) != 3 or sum(sizes) != total or min(sizes) <= 0:
        c.fail(f"qkv_hidden_sizes {sizes} do not add up to {total} columns")
    return sizes


@importer("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(c: Call) -> list[Tensor | None]:
    """Attention of projected queries, keys and values; the keys and values with the past before them; the scores.

    Keys and values may be packed in operand 1 [batch, keys, heads, 2, size], or queries too, in operand 0 [batch, seq,
    heads, 3, size].
    """
    if c.has(8) or c.has(9):
        c.unsupported("a past that shares its memory with the present")
    q, k, v = _projections(c, c.attr_int("num_heads"))
    causal = bool(c.attr_int("unidirectional", 0))
    if causal:  # where they are not, ONNX Runtime's own kernels differ about who sees what
        c.builder.same(q.shape[2], k.shape[2])
    for_keys, for_values = c.optional(6), c.optional(7)
    before: Dim = 0
    if for_keys is not None and for_values is not None:
        before = for_keys.shape[2]
        k, v = c.emit("concat", for_keys, k, axis=2), c.emit("concat", for_values, v, axis=2)
    masks = [key_mask(c, c.optional(4), q, k), c.optional(5)]
    if causal:
        masks.append(causal_mask(c, q, k, before))
    scores = masked_scores(c, q, k, scale_of(c, q), masks)
    return [weighted(c, scores, v), k, v, scores]


def _projections(c: Call, heads: int) -> list[Tensor]:
    """Queries, keys and values as [batch, heads, seq, size], with operand 3 added, their biases one after the other."""
    if c.input(0).rank == 3 and c.has(1) and c.has(2):
        return [t if t.rank == 4 else split_heads(c, t, heads) for t in (_biased(c, c.input(i), i) for i in range(3))]
    packed = c.input(1 if c.has(1) else 0)
    count = 2 if c.has(1) else 3
    if packed.rank != 5 or packed.shape[2:4] != (heads, count) or c.has(2):
        c.fail(f"expected [batch, seq, {heads}, {count}, size] where the values are no operand, got {packed.type}")
    if c.has(1) and c.has(3):
        c.unsupported("biases for packed keys and values")
    rows = (*packed.shape[:2], heads * packed.shape[4])
    found = [c.builder.reshape(c.builder.slice_axis(packed, 3, i, 1), rows) for i in range(count)]
    found = [c.input(0), *found] if c.has(1) else [_biased(c, t, i) for i, t in enumerate(found)]
    return [split_heads(c, t, heads) for t in found]


def _biased(c: Call, x: Tensor, index: int) -> Tensor:
    """A projection plus its part of operand 3."""
    bias = c.optional(3)
    if bias is None or x.rank == 4:
        return x
    width = c.input(0).shape[-1] if c.has(1) else x.shape[-1]
    return c.emit("add", x, c.builder.slice_axis(bias, 0, width * index, x.shape[-1]))


def split_heads(c: Call, x: Tensor, heads: int) -> Tensor:
    """[batch, heads, seq, size] of [batch, seq, heads * size]."""
    width = x.shape[-1]
    if x.rank != 3 or not isinstance(width, int) or heads <= 0 or width % heads:
        c.fail(f"{x.type} does not split into {heads} heads")
    return c.builder.transpose(c.builder.reshape(x, (*x.shape[:2], heads, width // heads)), (0, 2, 1, 3))


def scale_of(c: Call, q: Tensor) -> float:
    """The attribute, or 1 / sqrt(size of a head)."""
    size = q.shape[3]
    if not isinstance(size, int) or size == 0:
        c.unsupported(f"heads of varying size: {q.type}")
    return c.attr_float("scale", 0.0) or 1 / math.sqrt(size)


def attend(c: Call, q: Tensor, k: Tensor, v: Tensor, scale: float, masks: Sequence[Tensor | None]) -> Tensor:
    """softmax(scale * q k^T + masks) v with the heads joined: [batch, queries, heads * size]."""
    return weighted(c, masked_scores(c, q, k, scale, masks), v)


def masked_scores(c: Call, q: Tensor, k: Tensor, scale: float, masks: Sequence[Tensor | None]) -> Tensor:
    """scale * q k^T + masks."""
    scores = c.emit("matmul", q, c.builder.transpose(k, (0, 1, 3, 2)))
    scores = c.emit("mul", scores, c.scalar(scale, scores))
    for mask in masks:
        scores = scores if mask is None else c.emit("add", scores, mask)
    return scores


def weighted(c: Call, scores: Tensor, v: Tensor) -> Tensor:
    """softmax(scores) v with the heads joined."""
    y = c.builder.transpose(c.emit("matmul", c.emit("softmax", scores), v), (0, 2, 1, 3))
    return c.builder.reshape(y, (*y.shape[:2], y.shape[2] * y.shape[3]))


def key_mask(c: Call, mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """What to add to the scores for a mask of keys in any of its forms.

    [batch]: how many keys count, as in [3 * batch + 2], whose others say where sequences begin that are packed;
    [2 * batch]: behind the last that counts, then the first that counts, for each;
    [batch, keys], [batch, queries, keys]: not 0 where a key counts; [batch, 1, most, most]: the same, of which the
    queries' and keys' part is taken.
    """
    if mask is None:
        return None
    batch, _, queries, _ = q.shape
    keys = k.shape[2]
    if mask.rank == 1:
        return _filtered(c, _in_range(c, mask, batch, keys), q)
    if mask.rank == 4:
        mask = c.builder.slice_axis(c.builder.slice_axis(mask, 2, keys - queries, queries), 3, 0, keys)
    elif mask.rank == 3:
        mask = c.builder.reshape(mask, (mask.shape[0], 1, *mask.shape[1:]))
    elif mask.rank == 2:
        mask = c.builder.reshape(mask, (mask.shape[0], 1, 1, mask.shape[1]))
    else:
        c.fail(f"mask_index is {mask.type}, expected rank 1 to 4")
    keep = mask if mask.dtype is DType.bool else c.emit("greater", mask, c.scalar(0, mask))
    return _filtered(c, keep, q)


def _in_range(c: Call, limits: Tensor, batch: Dim, keys: Dim) -> Tensor:
    """Whether a key is below its row's limit, and not below its start where there are starts."""
    position = c.emit("iota", size=keys, dtype=limits.dtype)

    def column(start: Dim) -> Tensor:
        return c.builder.reshape(c.builder.slice_axis(limits, 0, start, batch), (batch, 1, 1, 1))

    if limits.shape[0] in (batch, batch * 3 + 2):
        return c.emit("less", position, column(0))
    if limits.shape[0] == batch * 2:
        return c.emit("and", c.emit("less", position, column(0)), c.emit("greater_equal", position, column(batch)))
    c.unsupported(f"mask_index {limits.type}; expected [batch], [2 * batch] or [3 * batch + 2]")


def _filtered(c: Call, keep: Tensor, like: Tensor) -> Tensor:
    filler = c.attr_float("mask_filter_value", -10000.0)
    return c.emit("where", keep, c.scalar(0, like), c.scalar(filler, like))


def causal_mask(c: Call, q: Tensor, k: Tensor, before: Dim, window: int = -1) -> Tensor:
    """-inf for keys behind the query, and for those `window` keys or more before it; the first query stands behind
    `before` keys."""
    queries, keys = q.shape[2], k.shape[2]
    row = c.builder.reshape(c.emit("iota", size=queries, dtype=DType.i64), (queries, 1))
    row = c.emit("add", row, from_size(before))
    column = c.emit("iota", size=keys, dtype=DType.i64)
    keep = c.emit("less_equal", column, row)
    if window > 0:
        near = c.emit("greater", column, c.emit("sub", row, c.scalar(window, DType.i64)))
        keep = c.emit("and", keep, near)
    return c.emit("where", keep, c.scalar(0, q), c.scalar(-math.inf, q))
