"""ONNX's Attention, written out as the products and softmax that the attention pass fuses."""
from __future__ import annotations

import math

from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, from_size
from q8c.ir.dims import Dim, compare
from q8c.ir.types import DType

_ATTRIBUTES = {"is_causal", "kv_num_heads", "left_window_size", "right_window_size",
               "q_num_heads", "qk_matmul_output_mode", "scale", "softcap",
               "softmax_precision"}


@importer("Attention", since=23)
def attention(c: Call) -> list[Tensor]:
    """softmax(softcap(scale * q k^T) + mask) v per head, the keys and values with the past before them, and the scores
    at the stage asked for: of the product, after softcap, with the mask, after softmax.

    A query whose keys are all masked gives zeros.
    """
    other = sorted({a.name for a in c.node.attribute} - _ATTRIBUTES)
    if other:
        c.unsupported(f"attribute {other[0]}")
    x = c.input(0)
    q = _heads(c, x, "q_num_heads")
    k = _with_past(c, _heads(c, c.input(1), "kv_num_heads"), 4)
    v = _with_past(c, _heads(c, c.input(2), "kv_num_heads"), 5)
    size = q.shape[3]
    if not isinstance(size, int) or not all(isinstance(t.shape[1], int) for t in (q, k, v)):
        c.unsupported(f"heads of varying number or size: {q.type}, {k.type}")
    given = c.attr("scale", "FLOAT")
    scale = 1 / math.sqrt(max(size, 1)) if given is None else c.attr_float("scale")
    scores = c.emit("matmul", q, c.builder.transpose(repeated(c, k, q.shape[1]), (0, 1, 3, 2)))
    scores = c.emit("mul", scores, c.scalar(scale, scores))
    stages = [scores]
    softcap = c.attr_float("softcap", 0.0)
    if softcap:
        cap = c.scalar(softcap, scores)
        scores = c.emit("mul", c.emit("tanh", c.emit("div", scores, cap)), cap)
    stages.append(scores)
    bias = _bias(c, q, k)
    if bias is not None:
        scores = c.emit("add", scores, bias)
    stages.append(scores)
    probabilities = c.emit("softmax", scores)
    y = c.emit("matmul", probabilities, repeated(c, v, q.shape[1]))
    stages.append(probabilities)
    if bias is not None and _may_mask_all(c):
        top = c.emit("reduce_max", bias, axes=(bias.rank - 1,), keepdims=True)
        empty = c.emit("equal", top, c.scalar(-math.inf, bias))
        y, stages[3] = (c.emit("where", empty, c.scalar(0, t), t) for t in (y, probabilities))
    if x.rank == 3:
        y = c.builder.transpose(y, (0, 2, 1, 3))
        y = c.builder.reshape(y, (*y.shape[:2], y.shape[2] * y.shape[3]))
    mode = c.attr_int("qk_matmul_output_mode", 0)
    if not 0 <= mode < len(stages):
        c.fail(f"qk_matmul_output_mode is {mode}, expected 0 to 3")
    return [y, k, v, stages[mode]]


def repeated(c: Call, x: Tensor, heads: Dim) -> Tensor:
    """Every head of keys or values once for each query head that reads it."""
    batch, own, seq, size = x.shape
    if own == heads:
        return x
    if not isinstance(own, int) or not isinstance(heads, int) or own == 0 or heads % own:
        c.fail(f"{own} heads of keys and values do not divide {heads} heads of queries")
    apart = c.builder.reshape(x, (batch, own, 1, seq, size))
    wide = c.builder.broadcast(apart, (batch, own, heads // own, seq, size))
    return c.builder.reshape(wide, (batch, heads, seq, size))


def _heads(c: Call, x: Tensor, attribute: str) -> Tensor:
    """[batch, heads, seq, size] of that, or of [batch, seq, heads * size]."""
    if x.rank == 4:
        return x
    heads = c.attr_int(attribute)
    width = x.shape[-1]
    if x.rank != 3 or not isinstance(width, int) or heads <= 0 or width % heads:
        c.fail(f"{x.type} does not split into {heads} heads")
    return c.builder.transpose(c.builder.reshape(x, (*x.shape[:2], heads, width // heads)), (0, 2, 1, 3))


def _with_past(c: Call, x: Tensor, index: int) -> Tensor:
    past = c.optional(index)
    return x if past is None else c.emit("concat", past, x, axis=2)


def _bias(c: Call, q: Tensor, k: Tensor) -> Tensor | None:
    """What is added to the scores: the mask, the causal mask, -inf for keys that are padding."""
    keys = c.emit("iota", size=k.shape[2], dtype=DType.i64)
    filled = c.optional(6)  # per batch, how many keys are not padding
    parts = [_mask(c, q, k)]
    causal, left, right = (c.attr_int(n, d) for n, d in (
        ("is_causal", 0), ("left_window_size", -1), ("right_window_size", -1)))
    right = 0 if causal and right != 0 else right
    if left >= 0 or right >= 0:
        rows = c.builder.reshape(c.emit("iota", size=q.shape[2], dtype=DType.i64), (q.shape[2], 1))
        rows = c.emit("add", rows, _offset(c, q, filled))
        if right >= 0:
            last = c.emit("add", rows, c.scalar(right, rows)) if right else rows
            parts.append(_masked(c, c.emit("less_equal", keys, last), q))
        if left >= 0:
            first = c.emit("sub", rows, c.scalar(left, rows)) if left else rows
            parts.append(_masked(c, c.emit("greater_equal", keys, first), q))
    if filled is not None:
        column = c.builder.reshape(filled, (filled.shape[0], 1, 1, 1))
        parts.append(_masked(c, c.emit("less", keys, column), q))
    total: Tensor | None = None
    for part in parts:
        if part is not None:
            total = part if total is None else c.emit("add", total, part)
    return total


def _offset(c: Call, q: Tensor, filled: Tensor | None) -> Tensor:
    """How many keys stand before the first query: the past, or what an outside cache holds."""
    past = c.optional(4)
    if past is not None:
        return from_size(past.shape[2])
    if filled is None:
        return c.scalar(0, DType.i64)
    column = c.builder.reshape(filled, (filled.shape[0], 1, 1, 1))
    return c.emit("sub", column, from_size(q.shape[2]))


def _masked(c: Call, keep: Tensor, like: Tensor) -> Tensor:
    return c.emit("where", keep, c.scalar(0, like), c.scalar(-math.inf, like))


def _mask(c: Call, q: Tensor, k: Tensor) -> Tensor | None:
    mask = c.optional(3)
    if mask is None:
        return None
    mask = _masked(c, mask, q) if mask.dtype is DType.bool else mask
    missing = k.shape[2] - mask.shape[-1]
    if c.opset < 24 or mask.shape[-1] == 1 or missing == 0 or compare(missing, 0) is None:
        return mask
    edge = [0] * (mask.rank - 1)
    return c.emit("pad", mask, before=(*edge, 0), after=(*edge, missing), value=-math.inf)


def _may_mask_all(c: Call) -> bool:
    """Whether a query may have no key left: never with a causal mask alone, where it sees itself."""
    return c.has(3) or c.has(6)
