"""The body of a `loop` as a flat list of lane operations and reductions over a row.

Row ops of the IR are written here in terms of elementwise ones and reductions, each equal expression once:

    layer_norm   m = sum(x) / n,  c = x - m,  v = sum(c * c) / n,  y = c * (1 / sqrt(v + epsilon)) * scale + bias
    softmax      e = exp(x - max(x)),  y = e * (1 / sum(e))
    quantize     see `q8`: reductions for the scale (and zero point), then a product, rounded

A value is a vector (it varies along the columns) or one number per row.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from q8c.errors import CompileError
from q8c.ir import q8
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops import attributes, definition_of
from q8c.ir.types import DType

REDUCTIONS = frozenset({"row_sum", "row_prod", "row_max", "row_min", "row_umax", "row_any_max", "row_low", "row_high",
                        "row_poison", "row_r8_sum"})
"""`row_max` and `row_min` keep NaN; `row_any_max` of floats may lose it; `row_umax` compares bits as unsigned.
`row_low` and `row_high` are the extremes of the row and 0, and may lose NaN; `row_poison` is 0, or NaN if the row is
not finite. `row_r8_sum` adds bytes up in 32 bits.
"""
ABS_BITS = 0x7FFFFFFF
INF_BITS = 0x7F800000


@dataclass(frozen=True)
class Instr:
    """One operation. `args` are earlier instructions by number; `vector` says whether it varies along the columns."""

    op: str
    dtype: DType
    args: tuple[int, ...] = ()
    attrs: tuple[tuple[str, Any], ...] = ()
    vector: bool = False

    def attr(self, name: str) -> Any:
        """An attribute's value."""
        return dict(self.attrs)[name]


@dataclass
class Program:
    """Instructions in order of definition, and the ones that are results. With `one_column`, rows have one element."""

    one_column: bool = False
    instrs: list[Instr] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    _numbers: dict[Instr, int] = field(default_factory=dict)

    def _put(self, instr: Instr) -> int:
        if instr not in self._numbers:
            self._numbers[instr] = len(self.instrs)
            self.instrs.append(instr)
        return self._numbers[instr]

    def input(self, index: int, dtype: DType, vector: bool) -> int:
        """Operand `index` of the kernel."""
        return self._put(Instr("input", dtype, (), (("index", index),), vector))

    def constant(self, value: Any, dtype: DType) -> int:
        """A number (kept as bytes, so that -0.0 and NaN stay apart)."""
        return self._put(Instr("constant", dtype, (), (("bytes", dtype.numpy.type(value).tobytes()),)))

    def add(self, op: str, dtype: DType, *args: int, **attrs: Any) -> int:
        """A lane operation: a vector if any argument is one."""
        vector = any(self.instrs[a].vector for a in args)
        return self._put(Instr(op, dtype, args, tuple(sorted(attrs.items())), vector))

    def reduce(self, op: str, x: int, dtype: DType | None = None) -> int:
        """A reduction over the row, in x's element type unless told; a row of one element is its own result."""
        return self._put(Instr(op, dtype or self.dtype(x), (x,))) if self.spans(x) else x

    def columns(self, reciprocal: bool, dtype: DType, x: int) -> int:
        """The number of columns of x, or 1 over it, as a float."""
        op = "reciprocal_columns" if reciprocal else "columns"
        return self._put(Instr(op, dtype)) if self.spans(x) else self.constant(1, dtype)

    def spans(self, x: int) -> bool:
        """Whether x has more than one element per row."""
        return self.instrs[x].vector and not self.one_column

    def dtype(self, number: int) -> DType:
        """An instruction's element type."""
        return self.instrs[number].dtype

    def number(self, value: int | float, like: int) -> int:
        """A constant of the element type of another instruction."""
        return self.constant(value, self.dtype(like))


def build_program(body: Graph, vectors: Sequence[bool], one_column: bool) -> Program:
    """The program of a body whose operand i is a vector if vectors[i]; `one_column` says that rows have one element.

    Raises CompileError for an op that cannot stand in a loop, and for a constant that is not one number.
    """
    p = Program(one_column)
    known: dict[Value, int] = {}
    for index, (value, vector) in enumerate(zip(body.inputs, vectors, strict=True)):
        known[value] = p.input(index, value.dtype, vector)
    for value in body.constants.values():
        if value.type.size != 1:
            raise CompileError(f"constant {value!r} in the body of a loop: expected one number; make it an operand")
        known[value] = p.constant(value.array().reshape(-1)[0], value.dtype)
    for node in body.nodes:
        args = [None if v is None else known[v] for v in node.inputs]
        for value, number in zip(node.outputs, _lower(p, node, args), strict=True):
            known[value] = number
    p.outputs = [known[v] for v in body.outputs]
    return p


def can_loop(node: Node) -> bool:
    """Whether a node may stand in the body of a loop."""
    if definition_of(node).elementwise or node.op in ("layer_norm", "rms_norm", "dynamic_quantize"):
        return True
    if node.op == "softmax":
        return attributes(node)["axis"] in (-1, node.input(0).type.rank - 1)
    if node.op.startswith("reduce_"):
        attrs = attributes(node)
        rank = node.input(0).type.rank
        return bool(attrs["keepdims"]) and tuple(a % max(rank, 1) for a in attrs["axes"]) == (rank - 1,)
    return False


def _lower(p: Program, node: Node, args: Sequence[int | None]) -> Sequence[int]:
    if not can_loop(node):
        raise CompileError(f"{node}: this cannot stand in the body of a loop")
    attrs = attributes(node)
    present = [a for a in args if a is not None]
    if node.op in _ROW_OPS:
        return _ROW_OPS[node.op](p, present, attrs)
    if node.op.startswith("reduce_"):
        return [reduce(p, node.op[len("reduce_"):], present[0])]
    if node.op == "pow":
        return [_power(p, *present)]
    attrs.pop("to", None)
    return [p.add(node.op, node.output.dtype, *present, **attrs)]


def reduce(p: Program, kind: str, x: int) -> int:
    """The sum, mean, max, min or prod of a row, in x's element type."""
    dtype = p.dtype(x)
    if dtype is DType.bool:
        op = "row_min" if kind in ("min", "prod") else "row_max"
        return p.add("cast", dtype, p.reduce(op, p.add("cast", DType.u8, x)))
    if kind != "mean":
        return p.reduce(f"row_{kind}", x)
    if dtype.is_int:
        total = p.reduce("row_sum", p.add("cast", DType.i64, x))
        return p.add("cast", dtype, p.add("div", DType.i64, total, p.columns(False, DType.i64, x)))
    return _mean(p, x)


def _power(p: Program, x: int, exponent: int) -> int:
    """x**exponent; exponents that models write as constants need no logarithm."""
    dtype, instr = p.dtype(x), p.instrs[exponent]
    fixed = float(np.frombuffer(instr.attr("bytes"), dtype.numpy)[0]) if instr.op == "constant" else None
    square = p.add("mul", dtype, x, x) if fixed in (2, 3, 4) else x
    if fixed in (1, 2):
        return square
    if fixed in (3, 4):
        return p.add("mul", dtype, square, x if fixed == 3 else square)
    if fixed == -1 and dtype.is_float:
        return p.add("reciprocal", dtype, x)
    return p.add("pow", dtype, x, exponent)


def _mean(p: Program, x: int) -> int:
    dtype = p.dtype(x)
    return p.add("mul", dtype, p.reduce("row_sum", x), p.columns(True, dtype, x))


def _in_f32(function: Callable[[Program, Sequence[int], dict[str, Any]], Sequence[int]]) -> Callable[
        [Program, Sequence[int], dict[str, Any]], Sequence[int]]:
    """Half precision is widened around the whole op."""
    def lower(p: Program, args: Sequence[int], attrs: dict[str, Any]) -> Sequence[int]:
        if p.dtype(args[0]) is not DType.f16:
            return function(p, args, attrs)
        wide = [p.add("cast", DType.f32, a) for a in args]
        return [p.add("cast", DType.f16, y) for y in function(p, wide, attrs)]
    return lower


def _inverse_deviation(p: Program, x: int, epsilon: float) -> int:
    dtype = p.dtype(x)
    moment = _mean(p, p.add("mul", dtype, x, x))
    return p.add("rsqrt", dtype, p.add("add", dtype, moment, p.number(epsilon, x)))


def _layer_norm(p: Program, args: Sequence[int], attrs: dict[str, Any]) -> Sequence[int]:
    x, dtype = args[0], p.dtype(args[0])
    centered = p.add("sub", dtype, x, _mean(p, x))
    normal = p.add("mul", dtype, centered, _inverse_deviation(p, centered, attrs["epsilon"]))
    return [p.add("fma", dtype, normal, *args[1:]) if len(args) == 3 else p.add("mul", dtype, normal, args[1])]


def _rms_norm(p: Program, args: Sequence[int], attrs: dict[str, Any]) -> Sequence[int]:
    x, dtype = args[0], p.dtype(args[0])
    normal = p.add("mul", dtype, x, _inverse_deviation(p, x, attrs["epsilon"]))
    return [p.add("mul", dtype, normal, args[1])]


def _softmax(p: Program, args: Sequence[int], attrs: dict[str, Any]) -> Sequence[int]:
    x, dtype = args[0], p.dtype(args[0])
    e = p.add("exp", dtype, p.add("sub", dtype, x, p.reduce("row_any_max", x)))
    return [p.add("mul", dtype, e, p.add("reciprocal", dtype, p.reduce("row_sum", e)))]


def _dynamic_quantize(p: Program, args: Sequence[int], attrs: dict[str, Any]) -> Sequence[int]:
    return _quantize_zero(p, *args) if attrs["zero_point"] else _quantize(p, *args)


def _quantize(p: Program, x: int) -> Sequence[int]:
    """As `q8.quantize_rows`."""
    i32, f32 = DType.i32, DType.f32
    bits = p.add("and_bits", i32, p.add("bits", i32, x), p.constant(ABS_BITS, i32))
    absmax = p.reduce("row_umax", bits)
    finite = p.add("less", DType.bool, absmax, p.constant(INF_BITS, i32))
    largest = p.add("where", f32, finite, p.add("from_bits", f32, absmax), p.constant(0, f32))
    scale = _bounded_scale(p, p.add("div", f32, largest, p.constant(q8.QMAX, f32)))
    q, total = _bytes(p, x, p.add("reciprocal", f32, scale), p.constant(0, i32), finite)
    return [q, _shown_scale(p, finite, scale), total]


def _quantize_zero(p: Program, x: int) -> Sequence[int]:
    """As `q8.quantize_rows_zero`."""
    i32, f32 = DType.i32, DType.f32
    none, most = p.constant(0, f32), p.constant(q8.QMAX, f32)
    spans = p.spans(x)
    poison = p.reduce("row_poison", x) if spans else p.add("mul", f32, x, none)
    low = p.reduce("row_low", x) if spans else p.add("min", f32, x, none)
    high = p.reduce("row_high", x) if spans else p.add("max", f32, x, none)
    finite = p.add("equal", DType.bool, poison, none)
    low, high = (p.add("where", f32, finite, bound, none) for bound in (low, high))
    low_part, high_part = (p.add("div", f32, bound, p.constant(2 * q8.QMAX, f32)) for bound in (low, high))
    scale = _bounded_scale(p, p.add("sub", f32, high_part, low_part))
    inverse = p.add("reciprocal", f32, scale)
    offset = p.add("sub", f32, p.constant(-q8.QMAX, f32), p.add("mul", f32, low, inverse))
    offset = p.add("max", f32, p.add("min", f32, p.add("round", f32, offset), most), p.constant(-q8.QMAX, f32))
    zero_point = p.add("where", i32, finite, p.add("rint_i32", i32, offset), p.constant(0, i32))
    q, total = _bytes(p, x, inverse, zero_point, finite)
    return [q, _shown_scale(p, finite, scale), total, zero_point]


def _bytes(p: Program, x: int, inverse: int, zero_point: int, finite: int) -> tuple[int, int]:
    """The R8 bytes of a row and their sum."""
    steps = p.add("rint_i32", DType.i32, p.add("mul", DType.f32, x, inverse))
    q = p.add("r8_bytes", DType.i8, steps, zero_point, finite)
    return q, p.reduce("row_r8_sum", q, DType.i32) if p.spans(q) else p.add("cast", DType.i32, q)


def _bounded_scale(p: Program, scale: int) -> int:
    return p.add("max", DType.f32, scale, p.constant(q8.SCALE_FLOOR, DType.f32))


def _shown_scale(p: Program, finite: int, scale: int) -> int:
    return p.add("where", DType.f32, finite, scale, p.constant(np.nan, DType.f32))


_ROW_OPS: dict[str, Callable[[Program, Sequence[int], dict[str, Any]], Sequence[int]]] = {
    "layer_norm": _in_f32(_layer_norm), "rms_norm": _in_f32(_rms_norm), "softmax": _in_f32(_softmax),
    "dynamic_quantize": _dynamic_quantize}
