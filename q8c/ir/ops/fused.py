"""Fused ops: each is one kernel."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q8c.ir import q4, q8
from q8c.ir.dims import Dim, floordiv
from q8c.ir.graph import Array
from q8c.ir.ops import nn
from q8c.ir.ops.experts import by_expert, own_cols
from q8c.ir.ops.quantized import BLOCK, block_dim, expect_weight
from q8c.ir.ops.registry import OPS, AttrSpec, Level, OpDef, Operands, register
from q8c.ir.types import DType, TensorType

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")


GATE_COLS = 8
"""Columns of a gate's two halves take turns, so many of each: half a panel, so that any tile holds both."""
Q8_ROWS = frozenset({0, 1, 2, 7})
"""The operands of q8_linear that belong to rows; the others but the residual belong to columns."""
Q8_COUNTS = 11
"""The operand of q8_linear that says how many new tokens of each sequence are no padding."""


def activate(y: Array, activation: str) -> Array:
    """A linear op's activation applied by the elementwise op of that name."""
    if activation == "none":
        return y
    name, attrs = ("gelu", {"approximate": "tanh"}) if activation == "gelu_tanh" else (activation, {})
    if activation == "gelu":
        attrs = {"approximate": "none"}
    return OPS[name].reference([y], attrs)[0]


def gate(y: Array, gated: bool, activation: str) -> Array:
    """The activation of y, or, `gated`, of the first GATE_COLS of every 2 * GATE_COLS columns times the others."""
    if not gated:
        return activate(y, activation)
    halves = y.reshape(*y.shape[:-1], y.shape[-1] // (2 * GATE_COLS), 2, GATE_COLS)
    return (activate(halves[..., 0, :], activation) * halves[..., 1, :]).reshape(*y.shape[:-1], y.shape[-1] // 2)


def _finish(o: Operands, rows: TensorType, cols: Dim, bias: int, residual: int, ends: int) -> Sequence[TensorType]:
    own: Dim = own_cols(o, cols, ends)
    if o.attrs.get("gated", False):
        o.expect(isinstance(own, int) and own % (2 * GATE_COLS) == 0 and o.types[ends] is None,
                 f"expected columns of gates in turns of {GATE_COLS}, and no experts")
        own = floordiv(own, 2)
    result = TensorType(DType.f32, (*rows.shape[:-1], own))
    o.expect(o.attrs["activation"] in ACTIVATIONS, f"activation is none of {', '.join(ACTIVATIONS)}")
    bias_type, residual_type = o.types[bias], o.types[residual]
    if o.types[ends] is not None:
        o.expect(bias_type is None and residual_type is None and o.attrs["activation"] == "none",
                 "products of experts have neither bias nor activation nor residual")
    if bias_type is not None:
        o.expect(bias_type == TensorType(DType.f32, (cols,)), "expected the bias as f32[cols]")
    if residual_type is not None:
        o.expect(residual_type.dtype is DType.f32 and residual_type.rank == result.rank,
                 "expected the residual of the result's type")
        for a, b in zip(residual_type.shape, result.shape, strict=True):
            o.same(a, b)
    return [result]


def epilogue(y: Array, args: Sequence[Any], bias: int, residual: int, attrs: Mapping[str, Any]) -> Array:
    """activation(y + bias) + residual; the numbers say which operands these are, if given."""
    if len(args) > bias and args[bias] is not None:
        y = y + args[bias]
    y = gate(y, attrs.get("gated", False), attrs["activation"])
    return y + args[residual] if len(args) > residual and args[residual] is not None else y


def _q8_linear(o: Operands) -> Sequence[TensorType]:
    q, w = o.type(0), o.type(3)
    o.expect(q.dtype is DType.i8 and o.type(1).dtype is DType.f32 and o.type(2).dtype is DType.i32, "expected R8 rows")
    expect_weight(o, w, o.type(4))
    o.same(q.shape[-1], w.shape[0])
    rows = (*q.shape[:-1], block_dim(q.shape[-1], o.attrs["block"]))
    zero, sums = o.types[7], o.types[8]
    o.expect((zero is None) == (sums is None), "zero points and column sums go together")
    for t in (o.type(1), o.type(2), *([zero] if zero else [])):
        o.expect(t.shape == rows, f"expected scales, sums and zero points of shape [{', '.join(map(str, rows))}]")
    if sums is not None:
        kept = DType.i16 if o.attrs["block"] else DType.i32
        o.expect(sums == TensorType(kept, o.type(4).shape), f"expected one {kept} column sum per scale")
    o.expect(o.attrs["bits"] in (4, 8), "expected weights of 4 or 8 bits")
    if o.types[9] is not None:
        o.expect(o.attrs["bits"] == 4 and o.types[9] == TensorType(DType.u8, o.type(4).shape),
                 "expected one u8 offset per scale of weights of 4 bits")
    if o.types[Q8_COUNTS] is not None:
        o.expect(q.rank == 3 and o.types[Q8_COUNTS] == TensorType(DType.i64, q.shape[:1]) and o.types[10] is None,
                 "expected i64 counts [batch] of rows [batch, tokens, depth], and no experts")
    return _finish(o, q, w.shape[1], 5, 6, 10)


def q8_weight(args: Sequence[Any], attrs: Mapping[str, Any]) -> Array:
    """The Q8 weight of a q8_linear, which may be kept in 4 bits."""
    w, offsets = args[3], args[9] if len(args) > 9 else None
    return q4.widen(w, offsets, attrs["block"]) if attrs["bits"] == 4 else np.asarray(w)


def q8_linear(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """activation(dequantize(q8_matmul(q, w, zero)) + bias) + residual; with `ends`, of the columns of each expert for
    its rows. `counts`, how many new tokens of each sequence are no padding, change nothing here."""
    if len(args) > 10 and args[10] is not None:
        return [by_expert(args[:10], args[10], Q8_ROWS, lambda given: q8_linear(given, attrs)[0])]
    q, row_scale, _, _, col_scale, _, _, zero = (*args, None, None, None)[:8]
    acc = q8.matmul_ref(q, q8_weight(args, attrs), zero, attrs["block"])
    y = q8.dequantize(acc, row_scale, col_scale, attrs["block"])
    return [epilogue(y, args, 5, 6, attrs)]


def _linear(o: Operands) -> Sequence[TensorType]:
    x, w = o.type(0), o.type(1)
    o.expect(x.dtype is DType.f32 and w.dtype is DType.f32 and w.rank == 2,
             "expected (f32[..., depth], f32[depth, cols])")
    o.same(x.shape[-1], w.shape[0])
    return _finish(o, x, w.shape[1], 2, 3, 4)


def linear(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """activation(x @ w + bias) + residual in float; with `ends`, of the columns of each expert for its rows."""
    if len(args) > 4:
        return [by_expert(args[:4], args[4], {0}, lambda given: linear(given, attrs)[0])]
    y = nn.matmul(args[:2], {"transpose_b": False})[0]
    return [epilogue(y, args, 2, 3, attrs)]


def heads_of(o: Operands, index: int, count: int, size: int, offset: int) -> tuple[Dim, Dim]:
    """Batch and sequence of an operand [batch, seq, channels] with heads from a channel on, or, where they are split
    already, [batch, heads, seq, size]."""
    t = o.type(index)
    if t.rank == 4:
        o.expect(t.shape[1] == count and t.shape[3] == size and offset == 0, f"expected {count} heads of {size}")
        return t.shape[0], t.shape[2]
    o.expect(t.rank == 3, "expected heads as [batch, seq, channels] or [batch, heads, seq, size]")
    channels = t.shape[2]
    o.expect(isinstance(channels, int) and offset >= 0 and offset + count * size <= channels,
             f"{count} heads of {size} at offset {offset} do not fit the channels")
    return t.shape[0], t.shape[1]


def value_size(attrs: Mapping[str, Any]) -> int:
    """Channels of a head's value in an attention: as many as of a key, if not said."""
    return int(attrs["value_size"] or attrs["head_size"])


def attention_heads(attrs: Mapping[str, Any]) -> tuple[tuple[int, int, int], ...]:
    """Of q, k and v how many heads, of what size, from which channel on."""
    counts, size = (attrs["heads"], attrs["kv_heads"], attrs["kv_heads"]), attrs["head_size"]
    return tuple(zip(counts, (size, size, value_size(attrs)), attrs["offsets"], strict=True))


def attention_sizes(o: Operands) -> tuple[Dim, Dim, Dim]:
    """Batch, queries and keys of an attention whose first three operands are q, k and v."""
    heads, kv_heads = o.attrs["heads"], o.attrs["kv_heads"]
    o.expect(heads > 0 and kv_heads > 0 and heads % kv_heads == 0, "kv_heads must divide heads")
    o.expect(len(o.attrs["offsets"]) == 3, "expected three offsets")
    o.expect(o.attrs["window"] >= 0, "expected a window of at least 1 key, or 0 for none")
    q, k, v = (heads_of(o, i, *own) for i, own in enumerate(attention_heads(o.attrs)))
    return o.same(o.same(q[0], k[0]), v[0]), q[1], o.same(k[1], v[1])


def _attention(o: Operands) -> Sequence[TensorType]:
    batch, queries, keys = attention_sizes(o)
    heads, mask, key_mask, lengths, _, sinks = o.attrs["heads"], *o.types[3:8]
    expect_lengths(o, 6, batch)
    if mask is not None:
        o.expect(mask.rank == 4 and mask.dtype is DType.f32, "expected the mask as f32 of rank 4")
        o.broadcast(mask.shape, (batch, heads, queries, keys))
    if key_mask is not None:
        o.expect(key_mask.rank == 2, "expected the key mask as [batch or 1, keys]")
        o.broadcast(key_mask.shape, (batch, keys))
        o.same(key_mask.shape[1], keys)
    if lengths is not None:
        o.expect(o.attrs["causal"], "lengths go with causal attention")
        expect_lengths(o, 5, batch)
    if sinks is not None:
        o.expect(sinks == TensorType(DType.f32, (heads,)), "expected the sinks as f32[heads]")
        o.expect(not o.attrs["spread"], "with sinks no query is without a score")
    return [TensorType(DType.f32, (batch, queries, heads * value_size(o.attrs)))]


def expect_lengths(o: Operands, index: int, batch: Dim) -> None:
    """Check an optional operand that holds one length per sequence."""
    lengths = o.types[index]
    if lengths is not None:
        o.expect(lengths.dtype is DType.i64 and lengths.rank == 1, "expected lengths as i64[batch]")
        o.same(lengths.shape[0], batch)


def split_heads(x: Array, count: int, size: int, offset: int) -> Array:
    """The heads [batch, count, seq, size] of an operand that `heads_of` has accepted."""
    if x.ndim == 4:
        return x
    part = x[:, :, offset:offset + count * size]
    return np.asarray(part.reshape(*part.shape[:2], count, size).transpose(0, 2, 1, 3))


def attention(args: Sequence[Any], attrs: Mapping[str, Any],
              precision: type[np.floating[Any]] = np.float64) -> Sequence[Array]:
    """softmax(scale * q k^T + mask) v per head over the keys a query sees, in double precision if not told.

    With `softcap`, scores before the mask are softcap * tanh(scale * q k^T / softcap) (Gemma 2, arXiv 2408.00118).
    A key is not seen where `key_mask` is 0. Query i of sequence b stands at key lengths[b] + i, without lengths at
    i + (keys - queries): `causal` lets it see no later ones, and `window` only those less than so many keys away. A
    query that sees no key gets NaN; 0 with `nan_to_zero`, which does that for any weights that are NaN; with `spread`
    the mean of all values, if causal up to those the last query may see, whatever key mask and window. What no query
    sees adds nothing, even if it is NaN. `counts` says how many queries of each sequence are no padding, by which code
    may round in one way or another; it changes nothing here. With `sinks`, one number for each head, softmax is over
    that score too, whose weight goes nowhere (GPT-OSS; arXiv 2309.17453): a query that sees no key gets 0.
    """
    heads = attrs["heads"]
    q, k, v = (np.repeat(split_heads(x, *own).astype(precision), heads // own[0], axis=1)
               for x, own in zip(args[:3], attention_heads(attrs), strict=True))
    scores = np.matmul(q, k.transpose(0, 1, 3, 2)) * precision(attrs["scale"])
    if attrs["softcap"]:
        scores = np.tanh(scores / precision(attrs["softcap"])) * precision(attrs["softcap"])
    mask, key_mask, lengths, _, sinks = (*args[3:], *[None] * 5)[:5]
    if mask is not None:
        scores = scores + mask
    before = distances(scores.shape, lengths)
    near = before >= 0 if attrs["causal"] else np.ones(before.shape, bool)
    seen = near if key_mask is None else near & (key_mask != 0)[:, None, None]
    if attrs["window"]:
        seen = seen & (np.abs(before) < attrs["window"])
    if attrs["spread"]:
        blind = ~seen.any(-1, keepdims=True)
        scores, seen = np.where(blind, precision(0), scores), seen | blind & near[:, :, -1:]
    scores = np.where(seen, scores, precision(-np.inf))
    if sinks is None:
        weights = nn.softmax(scores, precision=precision)
    else:
        column = np.broadcast_to(sinks.astype(precision)[:, None, None], (*scores.shape[:3], 1))
        weights = nn.softmax(np.concatenate([scores, column], axis=-1), precision=precision)[..., :-1]
    if attrs["nan_to_zero"]:
        weights = np.where(np.isnan(weights), precision(0), weights)
    v = np.where(seen.any(-2, keepdims=True).swapaxes(-1, -2), v, precision(0))
    y = np.matmul(weights, v).transpose(0, 2, 1, 3)
    return [y.reshape(*y.shape[:2], heads * value_size(attrs)).astype(np.float32)]


def distances(shape: tuple[int, ...], lengths: Array | None) -> Array:
    """How far each key comes before each query, broadcasting to the scores' shape [batch, heads, queries, keys]."""
    queries, keys = shape[2:]
    first = np.array([keys - queries]) if lengths is None else lengths
    return np.asarray(first[:, None, None, None] + np.arange(queries)[:, None] - np.arange(keys))


def _loop(o: Operands) -> Sequence[TensorType]:
    body = o.node.body
    assert body is not None
    o.expect(len(body.inputs) == len(o.types), f"the body takes {len(body.inputs)} operands")
    for t, parameter in zip(o.types, body.inputs, strict=True):
        o.expect(t == parameter.type, f"the body expects %{parameter.name} as {parameter.type}")
    return [v.type for v in body.outputs]


def _run_body(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    raise AssertionError("the interpreter runs the body of a loop itself")


_LINEAR = {"activation": AttrSpec("str", "none"), "pitch": AttrSpec("int", 0)}
"""`pitch`, if not 0, is how many elements lie from one row of the result to the next."""

register(OpDef("q8_linear", "q row_scale row_sum w col_scale bias? residual? row_zero? col_sum? offset? ends? counts?",
               _q8_linear, q8_linear,
               {**_LINEAR, **BLOCK, "bits": AttrSpec("int", 8), "gated": AttrSpec("bool", False)}, Level.fused,
               doc="Q8 weight, perhaps kept in 4 bits, times R8 rows, dequantized, biased, activated, added, in "
                   f"registers; `gated`, the activation of {GATE_COLS} columns times the next {GATE_COLS}, and so on."))
register(OpDef("linear", "x w bias? residual? ends?", _linear, linear, _LINEAR, Level.fused))
ATTENTION = {
    "heads": AttrSpec("int"), "kv_heads": AttrSpec("int"), "head_size": AttrSpec("int"),
    "value_size": AttrSpec("int", 0), "scale": AttrSpec("float"),
    "causal": AttrSpec("bool", False), "nan_to_zero": AttrSpec("bool", False), "spread": AttrSpec("bool", False),
    "softcap": AttrSpec("float", 0.0), "window": AttrSpec("int", 0),
    "offsets": AttrSpec("ints", (0, 0, 0))}

register(OpDef("attention", "q k v mask? key_mask? lengths? counts? sinks?", _attention, attention, ATTENTION,
               Level.fused))
register(OpDef("loop", "*xs", _loop, _run_body, level=Level.fused, has_body=True,
               doc="One pass over rows: elementwise ops, and reductions, norms, softmax and dynamic_quantize over the "
                   "last axis. Its meaning is its body."))
