"""Lane operations of loops on scalars and 16-lane vectors of every element type, with the meaning of the references.

Integer division never traps: lanes whose divisor is 0 divide by 1 and give 0. f16 is computed in f32 and rounded
after every operation. f64 has exact arithmetic, but exp, log and the like have single precision there.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir
import numpy as np

from q8c.codegen import loop_math
from q8c.codegen.builder import F32, I32, Builder, Value, constant, element
from q8c.codegen.core import is_float
from q8c.codegen.loop_memory import bitcast, like, round_f16, scalar_type
from q8c.codegen.loop_pack import clip_step
from q8c.codegen.loop_program import Instr
from q8c.errors import CompileError
from q8c.ir.types import DType

Emit = Callable[[Builder, DType, Sequence[Value]], Value]


def emit_op(b: Builder, instr: Instr, types: Sequence[DType], args: Sequence[Value]) -> Value:
    """The instruction's value; `args` are all scalars or all vectors, `types` their element types.

    Raises CompileError for an op that has no code.
    """
    if instr.op == "cast":
        return cast(b, types[0], instr.dtype, args[0])
    if instr.op == "bitcast":
        return bitcast(b, types[0], instr.dtype, args[0])
    if instr.op in _SPECIAL:
        return _SPECIAL[instr.op](b, instr, types, args)
    emit = _OPS.get(instr.op)
    if emit is None:
        raise CompileError(f"loop: there is no code for the op {instr.op!r}")
    value = emit(b, types[-1], args)
    return round_f16(b, value) if instr.dtype is DType.f16 and instr.op not in _EXACT else value


def number(value: Any, dtype: DType, typ: ir.Type) -> Value:
    """A constant of an element type as the LLVM type `typ` (a scalar type or vector of it)."""
    plain = float(value) if dtype.is_float else int(value)
    return constant(typ, plain)


def is_unsigned(dtype: DType) -> bool:
    """Whether comparisons and division are unsigned."""
    return dtype is DType.bool or dtype.name.startswith("u")


def divide(b: Builder, dtype: DType, x: Value, y: Value) -> Value:
    """x / y; integers truncate, and what would trap gives 0."""
    if dtype.is_float:
        return b.ir.fdiv(x, y)
    bad = b.ucmp("==", y, 0)
    if not is_unsigned(dtype):
        smallest = number(np.iinfo(dtype.value).min, dtype, x.type)
        bad = b.or_(bad, b.and_(b.icmp("==", x, smallest), b.icmp("==", y, -1)))
    safe = b.select(bad, constant(y.type, 1), y)
    quotient = b.ir.udiv(x, safe) if is_unsigned(dtype) else b.ir.sdiv(x, safe)
    return b.select(bad, constant(x.type, 0), quotient)


def compare(b: Builder, op: str, dtype: DType, x: Value, y: Value) -> Value:
    """x op y as i1; False where a float is NaN."""
    if dtype.is_float:
        return b.fcmp(op, x, y)
    return b.ucmp(op, x, y) if is_unsigned(dtype) else b.icmp(op, x, y)


def extreme(b: Builder, op: str, dtype: DType, x: Value, y: Value) -> Value:
    """The larger (op `>`) or smaller (op `<`) of x and y; NaN if either is NaN."""
    best = b.select(compare(b, op, dtype, x, y), x, y)
    return b.select(b.is_nan(x), x, best) if dtype.is_float else best


def _shift(b: Builder, dtype: DType, x: Value, y: Value, left: bool) -> Value:
    """x shifted by y bits, all of them where y is negative or too large."""
    most = scalar_type(dtype).width - 1
    beyond = b.ucmp(">", y, most)
    if left:
        return b.select(beyond, constant(x.type, 0), b.shl(x, b.select(beyond, constant(y.type, 0), y)))
    if is_unsigned(dtype):
        return b.select(beyond, constant(x.type, 0), b.lshr(x, b.select(beyond, constant(y.type, 0), y)))
    return b.ashr(x, b.select(beyond, constant(y.type, most), y))


def _remainder(b: Builder, instr: Instr, types: Sequence[DType], args: Sequence[Value]) -> Value:
    (x, y), dtype = args, types[0]
    truncate = bool(instr.attr("truncate"))
    if dtype.is_float:
        value = loop_math.fmod(b, x, y)
        if not truncate:
            wrong = b.and_(b.fcmp("!=", value, 0.0), b.xor(b.fcmp("<", value, 0.0), b.fcmp("<", y, 0.0)))
            value = b.select(wrong, b.add(value, y), value)
        return round_f16(b, value) if dtype is DType.f16 else value
    zero = b.ucmp("==", y, 0)
    if is_unsigned(dtype):
        return b.select(zero, constant(x.type, 0), b.ir.urem(x, b.select(zero, constant(y.type, 1), y)))
    trivial = b.or_(zero, b.icmp("==", y, -1))
    value = b.select(trivial, constant(x.type, 0), b.ir.srem(x, b.select(trivial, constant(y.type, 1), y)))
    if truncate:
        return value
    wrong = b.and_(b.icmp("!=", value, 0), b.xor(b.icmp("<", value, 0), b.icmp("<", y, 0)))
    return b.select(wrong, b.ir.add(value, y), value)


def cast(b: Builder, source: DType, to: DType, x: Value) -> Value:
    """x converted as the reference does: floats saturate, NaN gives 0, integers wrap."""
    typ = like(x, scalar_type(to))
    if source is to:
        return x
    if to is DType.bool:
        return b.ir.fcmp_unordered("!=", x, constant(x.type, 0.0)) if source.is_float else b.ucmp("!=", x, 0)
    if source.is_float and to.is_float:
        return _between_floats(b, to, x, typ)
    if source.is_float:
        return _saturate(b, x, to, typ)
    if to.is_float:
        value = b.ir.uitofp(x, typ) if is_unsigned(source) else b.ir.sitofp(x, typ)
        return round_f16(b, value) if to is DType.f16 else value
    if scalar_type(to).width <= scalar_type(source).width:
        return x if x.type == typ else b.trunc(x, typ)
    return b.zext(x, typ) if is_unsigned(source) else b.sext(x, typ)


def _between_floats(b: Builder, to: DType, x: Value, typ: ir.Type) -> Value:
    if to is DType.f64:
        return b.ir.fpext(x, typ)
    single = x if x.type == typ else b.ir.fptrunc(x, typ)
    return round_f16(b, single) if to is DType.f16 else single


def _saturate(b: Builder, x: Value, to: DType, typ: ir.Type) -> Value:
    kind = "fptoui" if is_unsigned(to) else "fptosi"
    shown = [(f"v{t.count}" if isinstance(t, ir.VectorType) else "") + element(t).intrinsic_name for t in (typ, x.type)]
    return b.intrinsic(f"llvm.{kind}.sat.{shown[0]}.{shown[1]}", [x], typ)


def _negate(b: Builder, x: Value) -> Value:
    return b.ir.fneg(x) if is_float(x.type) else b.ir.neg(x)


def _absolute(b: Builder, dtype: DType, x: Value) -> Value:
    if dtype.is_float:
        return b.abs(x)
    return x if is_unsigned(dtype) else b.select(b.icmp("<", x, 0), b.ir.neg(x), x)


def _sign(b: Builder, dtype: DType, x: Value) -> Value:
    one, minus, zero = (number(n, dtype, x.type) for n in (1, 0 if is_unsigned(dtype) else -1, 0))
    below = b.select(compare(b, "<", dtype, x, zero), minus, x)
    return b.select(compare(b, ">", dtype, x, zero), one, below)


def _relu(b: Builder, dtype: DType, x: Value) -> Value:
    zero = number(0, dtype, x.type)
    return b.select(compare(b, ">", dtype, zero, x), zero, x)


def _reciprocal(b: Builder, x: Value) -> Value:
    return b.ir.fdiv(constant(x.type, 1.0), x)


def _rounding(name: str) -> Emit:
    return lambda b, t, a: b.intrinsic(f"llvm.{name}", a)


def _comparison(op: str) -> Emit:
    return lambda b, t, a: compare(b, op, t, *a)


def _math(name: str) -> Emit:
    return lambda b, t, a: loop_math.call(b, name, a[0])


_OPS: dict[str, Emit] = {
    "add": lambda b, t, a: b.add(*a), "sub": lambda b, t, a: b.sub(*a), "mul": lambda b, t, a: b.mul(*a),
    "div": lambda b, t, a: divide(b, t, *a), "fma": lambda b, t, a: b.intrinsic("llvm.fma", a),
    "min": lambda b, t, a: extreme(b, "<", t, *a), "max": lambda b, t, a: extreme(b, ">", t, *a),
    "neg": lambda b, t, a: _negate(b, *a), "abs": lambda b, t, a: _absolute(b, t, *a),
    "sign": lambda b, t, a: _sign(b, t, *a), "relu": lambda b, t, a: _relu(b, t, *a),
    "sqrt": _rounding("sqrt"), "floor": _rounding("floor"), "ceil": _rounding("ceil"), "round": _rounding("roundeven"),
    "reciprocal": lambda b, t, a: _reciprocal(b, *a),
    "rsqrt": lambda b, t, a: _reciprocal(b, b.intrinsic("llvm.sqrt", a)),
    "equal": _comparison("=="), "less": _comparison("<"), "less_equal": _comparison("<="),
    "greater": _comparison(">"), "greater_equal": _comparison(">="),
    "and": lambda b, t, a: b.and_(*a), "or": lambda b, t, a: b.or_(*a), "xor": lambda b, t, a: b.xor(*a),
    "not": lambda b, t, a: b.xor(a[0], 1), "is_nan": lambda b, t, a: b.is_nan(*a),
    "where": lambda b, t, a: b.select(*a), "and_bits": lambda b, t, a: b.and_(*a),
    "bits": lambda b, t, a: b.bitcast(a[0], like(a[0], I32)),
    "from_bits": lambda b, t, a: b.bitcast(a[0], like(a[0], F32)),
    "bit_and": lambda b, t, a: b.and_(*a), "bit_or": lambda b, t, a: b.or_(*a), "bit_xor": lambda b, t, a: b.xor(*a),
    "bit_not": lambda b, t, a: b.xor(a[0], -1),
    "shift_left": lambda b, t, a: _shift(b, t, a[0], a[1], left=True),
    "shift_right": lambda b, t, a: _shift(b, t, a[0], a[1], left=False),
    "rint_i32": lambda b, t, a: b.to_i32(*a), "r8_bytes": lambda b, t, a: clip_step(b, *a),
    **{name: _math(name) for name in loop_math.UNARY}}

_EXACT = frozenset({"where", "neg", "abs", "sign", "relu", "min", "max", "floor", "ceil", "round", "from_bits"})


def _gelu(b: Builder, instr: Instr, types: Sequence[DType], args: Sequence[Value]) -> Value:
    value = loop_math.gelu(b, args[0], tanh=instr.attr("approximate") == "tanh")
    return round_f16(b, value) if instr.dtype is DType.f16 else value


def _power(b: Builder, instr: Instr, types: Sequence[DType], args: Sequence[Value]) -> Value:
    if not instr.dtype.is_float:
        return loop_math.integer_power(b, args[0], args[1])
    value = loop_math.power(b, args[0], args[1])
    return round_f16(b, value) if instr.dtype is DType.f16 else value


_SPECIAL: dict[str, Callable[[Builder, Instr, Sequence[DType], Sequence[Value]], Value]] = {
    "mod": _remainder, "gelu": _gelu, "pow": _power}
