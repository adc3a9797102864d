"""The 8-bit arithmetic that an already quantized file prescribes, as ONNX defines it.

Scales and zero points broadcast like operands of elementwise ops. No kernel computes these ops: passes turn them into
products of q8c's own formats, or write them out.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q8c.ir.graph import Array
from q8c.ir.ops.elementwise import cast
from q8c.ir.ops.registry import AttrSpec, OpDef, Operands, register
from q8c.ir.types import DType, TensorType


def _quantize_linear(o: Operands) -> Sequence[TensorType]:
    x, scale, zero, to = o.type(0), o.type(1), o.types[2], o.attrs["to"]
    o.expect(x.dtype is DType.f32 and scale.dtype is DType.f32, "expected (f32, f32)")
    o.expect(to.is_int and (zero is None or zero.dtype is to), f"expected a zero point of type {to}")
    o.broadcast(*(t.shape for t in (x, scale, zero) if t is not None))
    return [TensorType(to, x.shape)]


def quantize_linear(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """round(x / scale) + zero, or `zero_first` round(x / scale + zero), cut to the integer type's range; the quotient
    first loses its `dropped` lowest bits."""
    x, scale, zero = (*args, None)[:3]
    start = np.float32(0) if zero is None else zero.astype(np.float32)
    with np.errstate(all="ignore"):
        steps = _without_bits(np.asarray(x / scale), attrs["dropped"])
        return [cast(np.rint(steps + start) if attrs["zero_first"] else np.rint(steps) + start, attrs["to"])]


def _without_bits(x: Array, dropped: int) -> Array:
    """Floats rounded to fewer bits, ties to even; one at the end of the range becomes infinite."""
    bits = x.view(np.uint32)
    step = np.uint32(1 << dropped)
    return np.asarray((bits + (step // 2 - 1 + (bits // step & 1)) & ~(step - 1)).view(np.float32) if dropped else x)


def _dequantize_linear(o: Operands) -> Sequence[TensorType]:
    q, scale, zero = o.type(0), o.type(1), o.types[2]
    o.expect(q.dtype.is_int and scale.dtype is DType.f32, "expected (integers, f32)")
    o.expect(zero is None or zero.dtype is q.dtype, "expected a zero point of the integers' type")
    o.broadcast(*(t.shape for t in (q, scale, zero) if t is not None))
    return [TensorType(DType.f32, q.shape)]


def dequantize_linear(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """(q - zero) * scale."""
    q, scale, zero = (*args, None)[:3]
    steps = q.astype(np.float32)
    return [np.asarray((steps if zero is None else steps - zero.astype(np.float32)) * scale, dtype=np.float32)]


def _matmul_integer(o: Operands) -> Sequence[TensorType]:
    a, b = o.type(0), o.type(1)
    for t, zero in ((a, o.types[2]), (b, o.types[3])):
        o.expect(t.dtype in (DType.u8, DType.i8) and t.rank >= 2, "expected 8-bit matrices")
        if zero is not None:
            o.expect(zero.dtype is t.dtype, "expected zero points of the operands' types")
            o.broadcast(t.shape, zero.shape)
            wider = zip(t.shape[::-1], zero.shape[::-1], strict=False)
            o.expect(zero.rank <= t.rank and not any(d == 1 != z for d, z in wider),
                     "expected zero points that make no operand larger")
    o.same(a.shape[-1], b.shape[-2])
    return [TensorType(DType.i32, (*o.broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))]


def matmul_integer(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """The product of a - a_zero and b - b_zero, exact in int32."""
    wide = [x.astype(np.float64) if zero is None else x.astype(np.float64) - zero
            for x, zero in zip(args[:2], (*args[2:], None, None)[:2], strict=True)]
    return [np.matmul(*wide).astype(np.int32)]  # float64 is exact here, and much faster


register(OpDef("quantize_linear", "x scale zero?", _quantize_linear, quantize_linear,
               {"to": AttrSpec("dtype"), "dropped": AttrSpec("int", 0), "zero_first": AttrSpec("bool", False)}))
register(OpDef("dequantize_linear", "q scale zero?", _dequantize_linear, dequantize_linear))
register(OpDef("matmul_integer", "a b a_zero? b_zero?", _matmul_integer, matmul_integer))
