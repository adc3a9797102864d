"""From the body of a `loop` to a program: row ops in terms of elementwise ones and reductions.

    layer_norm   m = sum(x) / n,  c = x - m,  v = sum(c * c) / n,  y = c * (1 / sqrt(v + epsilon)) * scale + bias
    softmax      e = exp(x - max(x)),  y = e * (1 / sum(e))
    quantize     see `loop_quantize`
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from q8c.codegen.loop_program import BLOCK_RESULTS, Program
from q8c.codegen.loop_quantize import quantize
from q8c.codegen.loop_reads import Read, is_read
from q8c.errors import CompileError
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops import attributes, definition_of
from q8c.ir.types import DType


def build_program(body: Graph, reads: Sequence[Read], vectors: Sequence[bool], one_column: bool) -> Program:
    """The program of a body; what it reads is a vector where `vectors` says so; `one_column` says that rows have one
    element.

    Raises CompileError for an op that cannot stand in a loop, and for a constant that is not one number.
    """
    p = Program(one_column)
    known: dict[Value, int] = {}
    for index, (read, vector) in enumerate(zip(reads, vectors, strict=True)):
        known[read.value] = p.input(index, read.value.dtype, vector)
    for value in body.constants.values():
        if value.type.size != 1:
            raise CompileError(f"constant {value!r} in the body of a loop: expected one number; make it an operand")
        known[value] = p.constant(value.array().reshape(-1)[0], value.dtype)
    for node in body.nodes:
        if is_read(body, node):
            continue
        args = [None if v is None else known[v] for v in node.inputs]
        if any(a is not None and p.instrs[a].op in BLOCK_RESULTS for a in args):
            raise CompileError(f"{node}: rows quantized by blocks are results of a loop, nothing in it can read them")
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
    e = p.add("exp_nonpositive", dtype, p.add("sub", dtype, x, p.reduce("row_any_max", x)))
    return [p.add("mul", dtype, e, p.add("reciprocal", dtype, p.reduce("row_sum", e)))]


_ROW_OPS: dict[str, Callable[[Program, Sequence[int], dict[str, Any]], Sequence[int]]] = {
    "layer_norm": _in_f32(_layer_norm), "rms_norm": _in_f32(_rms_norm), "softmax": _in_f32(_softmax),
    "dynamic_quantize": quantize}
