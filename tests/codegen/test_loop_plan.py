"""What a loop decides before any code: merged axes, passes, what is kept where, shared kernels, refusals."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.codegen.loop import loop_kernel
from q8c.codegen.loop_plan import Kept, Plan
from q8c.codegen.loop_program import Program
from q8c.codegen.loop_schedule import make_plan
from q8c.codegen.loop_space import Space, broadcast_shape, broadcast_strides, dense_strides, rows_of
from q8c.codegen.module import new_module
from q8c.codegen.targets import TIERS
from q8c.errors import CompileError
from q8c.ir import parse_graph
from q8c.ir.dims import sym
from q8c.ir.types import DType
from tests.codegen.kernels import loop_text

B, S = sym("b"), sym("s")
FULL, ROW = "f32[b, s, 384]", "f32[b, s, 1]"
NORM = f"%z: {FULL} = add(%x, %r) %y: {FULL} = layer_norm(%z, %w, %w) {{epsilon = 1e-5}}"
QUANTIZE = "%q: i8[b, s, {0}], %t: f32[b, s, 1], %u: i32[b, s, 1] = dynamic_quantize(%{1})"


def plan_of(text: str) -> Plan:
    body = parse_graph(text).nodes[0].body
    assert body is not None
    return make_plan(body)


def op(plan: Plan, number: int) -> str:
    return plan.program.instrs[number].op


def test_dense_operands_merge_into_one_axis() -> None:
    dense = dense_strides((B, S, 384))
    assert Space((B, S, 384), (dense, dense)).merged() == Space((B * S * 384,), ((1,), (1,)))
    mask = broadcast_strides((B, 1, 1, S), 4)
    merged = Space((B, 12, S, S), (dense_strides((B, 12, S, S)), mask)).merged()
    assert merged.extents == (B, 12 * S, S) and merged.strides[1] == (S, 0, 1)


def test_broadcast_shape() -> None:
    assert broadcast_shape([(B, 1, S), (4, 1), ()]) == (B, 4, S)
    assert broadcast_shape([()]) == ()


def test_rows_are_cut_where_they_are_long_or_unknown() -> None:
    fixed = Space((B, 384), ((384, 1), (0, 1)))
    assert rows_of(fixed, 4096).outer == Space((B,), ((384,), (0,)))
    cut = rows_of(Space((S,), ((1,),)), 4096)
    assert cut.chunk == 4096 and cut.outer.extents == ((S + 4095) // 4096,)


def test_residual_norm_quantize_makes_four_passes_and_keeps_nothing_apart() -> None:
    """The sum is cheap enough to do again; the norm's result is read back where it was stored."""
    outputs = {"y": FULL, "q": "i8[b, s, 384]", "t": ROW, "u": "i32[b, s, 1]"}
    inputs = {"x": FULL, "r": FULL, "w": "f32[384]"}
    plan = plan_of(loop_text(inputs, NORM + QUANTIZE.format(384, "y"), outputs))
    assert [[op(plan, n) for n in p.reductions] for p in plan.passes] == [
        ["row_sum"], ["row_sum"], ["row_umax"], ["row_r8_sum"]]
    assert [p.results for p in plan.passes] == [(), (), (0,), (1,)]
    assert plan.scratch == 0 and list(plan.kept.values()) == [Kept(0)]
    assert plan.rows.outer.extents == (B * S,) and plan.sizes.dims == [B * S]


def test_softmax_keeps_its_exponentials_in_the_row_of_its_result() -> None:
    plan = plan_of(loop_text({"x": "f32[b, s]"}, "%y: f32[b, s] = softmax(%x)", {"y": "f32[b, s]"}))
    assert {op(plan, n): k for n, k in plan.kept.items()} == {"exp_nonpositive": Kept(0)} and plan.scratch == 0


def test_gelu_quantize_keeps_gelu_in_scratch() -> None:
    outputs = {"q": "i8[b, s, 1536]", "t": ROW, "u": "i32[b, s, 1]"}
    text = loop_text({"x": "f32[b, s, 1536]"}, "%y: f32[b, s, 1536] = gelu(%x)" + QUANTIZE.format(1536, "y"), outputs)
    plan = plan_of(text)
    assert {op(plan, n): k for n, k in plan.kept.items()} == {"gelu": Kept(None)} and plan.scratch == 1536 * 4
    node = parse_graph(text).nodes[0]
    kernel = loop_kernel(new_module("m"), TIERS["avx2"], node)
    assert kernel.scratch == 6144 and kernel.function.name.startswith("q8c_loop_gelu_quantize_1536_")
    assert kernel.function.name.endswith("__avx2")


def test_equal_expressions_are_computed_once() -> None:
    text = loop_text({"x": FULL}, f"""
        %a: {FULL} = exp(%x)
        %c: {FULL} = exp(%x)
        %y: {FULL} = add(%a, %c)""", {"y": FULL})
    assert sum(i.op == "exp" for i in plan_of(text).program.instrs) == 1


def test_equal_bodies_share_one_kernel() -> None:
    module, tier = new_module("m"), TIERS["avx512-vnni"]
    first = loop_text({"x": FULL, "r": FULL, "w": "f32[384]"}, NORM, {"y": FULL})
    renamed = first.replace("%z", "%sum").replace("%r", "%residual").replace("b, s", "rows")
    other = first.replace("1e-5", "1e-12")
    kernels = [loop_kernel(module, tier, parse_graph(t).nodes[0]) for t in (first, renamed, other)]
    assert kernels[0].function is kernels[1].function is not kernels[2].function
    assert kernels[0].sizes == (B * S,) and kernels[1].sizes == (sym("rows"),)


def test_a_single_node_is_a_loop_of_one() -> None:
    node = parse_graph("graph @g(%x: f32[b, 8]) { %y: f32[b, 8] = softmax(%x) return %y }").nodes[0]
    assert "softmax_8" in loop_kernel(new_module("m"), TIERS["avx2"], node).function.name


@pytest.mark.parametrize("lines", [
    "%y: f32[b, 8] = softmax(%x) {axis = 0}",
    "%y: f32[8, b] = transpose(%x) {perm = (1, 0)}",
    "%y: f32[b] = reduce_sum(%x) {axes = (1), keepdims = false}",
    "%y: f32[1, 8] = reduce_sum(%x) {axes = (0)}"])
def test_what_no_loop_can_do_is_refused(lines: str) -> None:
    result = lines.split(" =")[0].split(": ")[1]
    with pytest.raises(CompileError, match="cannot stand in the body of a loop"):
        plan_of(loop_text({"x": "f32[b, 8]"}, lines, {"y": result}))


def test_constants_of_several_numbers_are_refused() -> None:
    lines = "const %c: f32[2] = [1.0, 2.0] %y: f32[b, 2] = add(%x, %c)"
    with pytest.raises(CompileError, match="make it an operand"):
        plan_of(loop_text({"x": "f32[b, 2]"}, lines, {"y": "f32[b, 2]"}))


def test_numbers_are_kept_apart_by_their_bits() -> None:
    p = Program()
    assert p.constant(0.0, DType.f32) != p.constant(-0.0, DType.f32)
    assert p.constant(np.nan, DType.f32) == p.constant(np.nan, DType.f32)
