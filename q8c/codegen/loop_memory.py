"""Elements of every IR type between memory and registers: scalars and 16 lanes, whole or with a masked tail.

bool is a byte 0 or 1 in memory and an i1 in registers; f16 is computed as f32 and rounded when stored (and after
every operation, see `loop_ops`).
"""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.builder import F32, F64, I1, I8, I16, I32, I64, LANES, Builder, Operand, Value
from q8c.ir.types import DType

F16 = ir.HalfType()

_REGISTER = {DType.bool: I1, DType.i8: I8, DType.u8: I8, DType.i16: I16, DType.u16: I16, DType.i32: I32,
             DType.u32: I32, DType.i64: I64, DType.u64: I64, DType.f16: F32, DType.f32: F32, DType.f64: F64}
_MEMORY = {**_REGISTER, DType.bool: I8, DType.f16: I16, DType.f64: I64}


def scalar_type(dtype: DType) -> ir.Type:
    """The LLVM type one element has in a register."""
    return _REGISTER[dtype]


def vector_type(dtype: DType) -> ir.Type:
    """The LLVM type 16 elements have in registers."""
    return lanes_of(_REGISTER[dtype])


def lanes_of(typ: ir.Type) -> ir.Type:
    """16 lanes of a scalar type."""
    return ir.VectorType(typ, LANES)


def like(value: Value, scalar: ir.Type) -> ir.Type:
    """`scalar`, or as many lanes of it as `value` has."""
    return ir.VectorType(scalar, value.type.count) if isinstance(value.type, ir.VectorType) else scalar


def round_f16(b: Builder, value: Value) -> Value:
    """The nearest half-precision number of each f32, still as f32."""
    return b.ir.fpext(b.ir.fptrunc(value, like(value, F16)), value.type)


def load_scalar(b: Builder, dtype: DType, address: Value) -> Value:
    """One element."""
    return _from_memory(b, dtype, b.load(_MEMORY[dtype], address))


def store_scalar(b: Builder, dtype: DType, value: Value, address: Value) -> None:
    """Store one element."""
    b.store(_to_memory(b, dtype, value), address)


def load_lanes(b: Builder, dtype: DType, address: Value, count: Operand | None = None) -> Value:
    """16 elements, or only the first `count`; the other lanes then read nothing and hold 0."""
    typ = lanes_of(_MEMORY[dtype])
    return _from_memory(b, dtype, b.load(typ, address) if count is None else b.load_tail(typ, address, count))


def store_lanes(b: Builder, dtype: DType, value: Value, address: Value, count: Operand | None = None) -> None:
    """Store 16 lanes, or only the first `count`."""
    stored = _to_memory(b, dtype, value)
    if count is None:
        b.store(stored, address)
    else:
        b.store_tail(stored, address, count)


def _from_memory(b: Builder, dtype: DType, value: Value) -> Value:
    if dtype is DType.bool:
        return b.ucmp("!=", value, 0)
    if dtype is DType.f16:
        return b.ir.fpext(b.bitcast(value, like(value, F16)), like(value, F32))
    if dtype is DType.f64:
        return b.bitcast(value, like(value, F64))
    return value


def _to_memory(b: Builder, dtype: DType, value: Value) -> Value:
    if dtype is DType.bool:
        return b.zext(value, like(value, I8))
    if dtype is DType.f16:
        return b.bitcast(b.ir.fptrunc(value, like(value, F16)), like(value, I16))
    if dtype is DType.f64:
        return b.bitcast(value, like(value, I64))
    return value


def bitcast(b: Builder, source: DType, to: DType, value: Value) -> Value:
    """The element type `to` of the same bits; both take as many bytes."""
    stored = _to_memory(b, source, value)
    return _from_memory(b, to, b.bitcast(stored, like(stored, _MEMORY[to])))
