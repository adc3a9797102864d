"""Quantized ops of ONNX and of ONNX Runtime, as the 8-bit arithmetic they prescribe."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from q8c.frontend.ops.contrib import embed
from q8c.frontend.ops.contrib_attention import Operands, part, qkv_widths, self_attention
from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor, constant
from q8c.frontend.weights import FOUR_BITS, compute_type, type_name
from q8c.ir.types import DType

_FLOAT32 = 1  # ONNX's number of it
_DROPPED = {"FLOAT16": 13, "BFLOAT16": 16}
"""Lowest bits of a float32 that others do not have; beyond their range a quotient is cut to the integers' anyway."""


@importer("QuantizeLinear")
@importer("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(c: Call) -> Tensor:
    """round(x / scale) + zero point, cut to the type's range: per tensor, per slice of an axis, or per block of it.

    The quotient is of the scale's type. Of a scale that is computed, it is float32.
    """
    x, zero = c.input(0), c.optional(2)
    if zero is not None and type_name(c.weights.elem_type(c.node.input[2]) or 0) in FOUR_BITS:
        c.unsupported("results of four bits")
    stored = c.weights.elem_type(c.node.input[1]) or _FLOAT32
    precision = c.attr_int("precision", 0) or stored
    if precision not in (_FLOAT32, stored):
        c.unsupported("attribute precision")
    to = DType.u8 if zero is None else zero.dtype
    given = c.attr_int("output_dtype", 0)
    if given:
        to = compute_type(given, "output_dtype")
    scale, zero = (spread(c, t, x) for t in (c.input(1), zero))
    return c.emit("quantize_linear", c.builder.cast(x, DType.f32), scale, zero, to=to,
                  dropped=_DROPPED.get(type_name(precision), 0))


@importer("DequantizeLinear")
@importer("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(c: Call) -> Tensor:
    """(q - zero point) * scale: per tensor, per slice of an axis, or per block of it."""
    q = c.input(0)
    return c.emit("dequantize_linear", q, *(spread(c, t, q) for t in (c.input(1), c.optional(2))))


def spread(c: Call, t: Tensor | None, x: Tensor) -> Tensor | None:
    """Scales or zero points in a shape that broadcasts to that of x."""
    block = c.attr_int("block_size", 0)
    if block < 0:
        c.fail(f"block_size is {block}, expected 0 or more")
    if t is None or t.rank == 0 or t.shape == (1,):
        return t if t is None else c.builder.reshape(t, ())
    axis = c.axis(c.attr_int("axis", 1), x.rank)
    if not block:
        if t.rank != 1:
            c.fail(f"expected one scale per slice of axis {axis}, got {t.type}")
        c.builder.same(t.shape[0], x.shape[axis])
        return c.builder.reshape(t, tuple(x.shape[axis] if i == axis else 1 for i in range(x.rank)))
    size = x.shape[axis]
    if t.known is not None and not t.is_symbolic and isinstance(size, int):
        return constant(np.repeat(t.known, block, axis=axis)[(slice(None),) * axis + (slice(size),)], t.name)
    apart = c.builder.reshape(t, (*t.shape[:axis + 1], 1, *t.shape[axis + 1:]))
    wide = c.builder.broadcast(apart, (*t.shape[:axis + 1], block, *t.shape[axis + 1:]))
    whole = c.builder.reshape(wide, (*t.shape[:axis], t.shape[axis] * block, *t.shape[axis + 1:]))
    return c.builder.slice_axis(whole, axis, 0, size)


@importer("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(c: Call) -> list[Tensor]:
    """x in 255 steps from the least to the greatest element, 0 among them; the step; the zero point."""
    return list(quantize_whole(c, c.input(0)))


def quantize_whole(c: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, scale and zero point of DynamicQuantizeLinear."""
    axes = tuple(range(x.rank))
    zero = c.scalar(0, x)
    high = c.emit("max", c.emit("reduce_max", x, axes=axes, keepdims=False), zero)
    low = c.emit("min", c.emit("reduce_min", x, axes=axes, keepdims=False), zero)
    span = c.emit("where", c.emit("equal", high, low), c.scalar(1, x), c.emit("sub", high, low))
    scale = c.emit("div", span, c.scalar(255, x))
    start = c.emit("cast", c.emit("round", c.emit("neg", c.emit("div", low, scale))), to=DType.u8)
    return c.emit("quantize_linear", x, scale, start, to=DType.u8), scale, start


@importer("MatMulInteger", since=10)
def matmul_integer(c: Call) -> Tensor:
    """The int32 product of 8-bit matrices less their zero points."""
    return integer_product(c, c.input(0), c.input(1), c.optional(2), c.optional(3))


def integer_product(c: Call, a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    """numpy's matmul of integers, ranks of 1 included; zero points are per tensor, per row of a, per column of b."""
    left = c.builder.reshape(a, (1, a.shape[0])) if a.rank == 1 else a
    right = c.builder.reshape(b, (b.shape[0], 1)) if b.rank == 1 else b
    if a_zero is not None and a_zero.rank == 1:
        a_zero = c.builder.reshape(a_zero, () if a_zero.shape == (1,) else (a_zero.shape[0], 1))
    if b_zero is not None and b_zero.shape == (1,):
        b_zero = c.builder.reshape(b_zero, ())
    y = c.emit("matmul_integer", left, right, a_zero, b_zero)
    kept = y.shape[:-2] + (() if a.rank == 1 else y.shape[-2:-1]) + (() if b.rank == 1 else y.shape[-1:])
    return c.builder.reshape(y, kept)


def scaled_product(c: Call, a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
    """The float product of two operands given as (integers, scale, zero point); scales per tensor, row or column."""
    (a_q, a_scale, a_zero), (b_q, b_scale, b_zero) = a, b
    if a_q is None or b_q is None or a_scale is None or b_scale is None:
        c.fail("an operand or a scale is missing")
    if a_scale.rank == 1:
        a_scale = c.builder.reshape(a_scale, () if a_scale.shape == (1,) else (a_scale.shape[0], 1))
    if b_scale.shape == (1,):
        b_scale = c.builder.reshape(b_scale, ())
    y = c.builder.cast(integer_product(c, a_q, b_q, a_zero, b_zero), DType.f32)
    return c.emit("mul", y, c.emit("mul", a_scale, b_scale))


@importer("QLinearMatMul", since=10)
def qlinear_matmul(c: Call) -> Tensor:
    """The product of two quantized operands, quantized."""
    y = scaled_product(c, c.inputs[0:3], c.inputs[3:6])
    scale, zero = (c.builder.reshape(t, ()) if t.shape == (1,) else t for t in (c.input(6), c.input(7)))
    return c.emit("quantize_linear", y, scale, zero, to=zero.dtype)


@importer("QGemm", domain=MICROSOFT)
def q_gemm(c: Call) -> Tensor:
    """alpha A' B' + C for quantized A and B, C in int32 steps of that; quantized if there is a scale for that."""
    alpha, a = c.attr_float("alpha", 1.0), c.input(0)
    a = c.builder.transpose(a, (1, 0)) if c.attr_int("transA", 0) else a
    b, bias = c.input(3), c.optional(6)
    if c.attr_int("transB", 0):
        b = constant(np.ascontiguousarray(b.known.T), b.name) if b.known is not None else c.builder.transpose(b, (1, 0))
    scale = c.input(1) if alpha == 1 else c.emit("mul", c.input(1), c.scalar(alpha, DType.f32))
    y = scaled_product(c, (a, scale, c.optional(2)), (b, *c.inputs[4:6]))
    if bias is not None:
        steps = c.emit("mul", *(t if t.shape != (1,) else c.builder.reshape(t, ()) for t in (scale, c.input(4))))
        y = c.emit("add", y, c.emit("mul", c.builder.cast(bias, DType.f32), steps))
    if not c.has(7):
        return y
    scale, zero = (c.builder.reshape(t, ()) for t in (c.input(7), c.input(8)))
    return c.emit("quantize_linear", y, scale, zero, to=zero.dtype)


@importer("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(c: Call) -> Tensor:
    """The product of two quantized operands as float, plus a bias."""
    return _biased(c, scaled_product(c, (c.input(0), c.input(2), c.optional(4)),
                                     (c.input(1), c.input(3), c.optional(5))), 6)


@importer("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(c: Call) -> Tensor:
    """The product of a float operand, quantized as DynamicQuantizeLinear does, and a quantized one, plus a bias."""
    return _biased(c, scaled_product(c, quantize_whole(c, c.input(0)), (c.input(1), c.input(2), c.optional(3))), 4)


def _biased(c: Call, y: Tensor, index: int) -> Tensor:
    bias = c.optional(index)
    return y if bias is None else c.emit("add", y, bias)


@importer("QAttention", domain=MICROSOFT)
def q_attention(c: Call) -> list[Tensor | None]:
    """Attention of ONNX Runtime whose input and weights are quantized."""
    x, w, bias = c.input(0), c.input(1), c.input(2)
    parts = qkv_widths(c, w.shape[-1])
    projected = []
    for start, size in zip((0, parts[0], parts[0] + parts[1]), parts, strict=True):
        scale, zero = (t if t is None or t.rank == 0 or t.shape == (1,) else part(c, t, start, size)
                       for t in (c.input(4), c.optional(7)))
        y = scaled_product(c, (x, c.input(3), c.optional(6)), (part(c, w, start, size), scale, zero))
        projected.append(c.emit("add", y, part(c, bias, start, size)))
    return self_attention(c, projected, Operands(mask=5, past=8))


@importer("QEmbedLayerNormalization", domain=MICROSOFT)
def q_embed_layer_normalization(c: Call) -> list[Tensor | None]:
    """EmbedLayerNormalization whose tables and norm are quantized per tensor."""
    def float_of(index: int) -> Tensor:
        scale, zero = (c.builder.reshape(t, ()) for t in (c.input(index + 6), c.input(index + 11)))
        return c.emit("dequantize_linear", c.input(index), scale, zero)

    return embed(c, c.input(0), c.optional(1), (float_of(2), float_of(3), float_of(4) if c.has(4) else None),
                 (float_of(5), float_of(6)), c.optional(7), None)
