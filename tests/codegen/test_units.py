"""Kernels that many models share: generated once, and no byte depends on what was compiled before."""
from __future__ import annotations

import functools
from dataclasses import fields, replace
from typing import Any

import llvmlite.ir as ir
import pytest

from q8c.codegen import loop, units
from q8c.codegen.attention_spec import AttentionSpec
from q8c.codegen.builder import Builder
from q8c.codegen.f32_linear import F32LinearSpec
from q8c.codegen.f32_matmul import F32MatmulSpec
from q8c.codegen.generate import Generated, generate
from q8c.codegen.module import new_module
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.targets import TIERS
from q8c.codegen.threads import LAUNCH, RUN, WORKER
from q8c.codegen.units import Unit, reachable, shared
from q8c.errors import CompileError
from q8c.ir import parse_graph
from q8c.passes.manager import Report
from q8c.passes.plan_memory import PlanMemory
from tests.codegen.jit import constant_offsets

TIER = TIERS["avx2"]
SOFTMAX = "softmax(%x) {axis = -1}"


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_shared", {})


def made(*ops: str) -> Generated:
    """The code of a graph that applies these ops to one input."""
    lines = [f"%y{n}: f32[n, 24] = loop(%x) body(%x: f32[n, 24]) {{\n%y: f32[n, 24] = {op}\nreturn %y\n}}"
             for n, op in enumerate(ops)]
    outputs = ", ".join(f"%y{n}" for n in range(len(ops)))
    graph = parse_graph("graph @g(%x: f32[n, 24]) {\n" + "\n".join(lines) + f"\nreturn {outputs}\n}}")
    PlanMemory().run(graph, Report())
    return generate(graph, TIER, constant_offsets(graph))


def test_what_was_compiled_before_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = made("tanh(%x)", SOFTMAX)
    monkeypatch.setattr(units, "_shared", {})
    made("exp(%x)", SOFTMAX)
    made("tanh(%x)")
    assert made("tanh(%x)", SOFTMAX) == alone
    assert alone.image.symbols.keys() == {RUN, WORKER, LAUNCH}


def test_a_known_kernel_is_not_generated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(SOFTMAX, SOFTMAX)
    assert len(first.parts) == 5  # the body, the loop, what threads do, what goes with calls, draw
    monkeypatch.setattr(loop, "emit_loop", None)
    assert made(SOFTMAX, SOFTMAX) == first
    with pytest.raises(TypeError):
        made("tanh(%x)")


def test_a_tier_has_its_own() -> None:
    for tier in (TIER, TIERS["avx512-vnni"], TIERS["amx-int8"], TIERS["amx-int8"].fast()):
        shared(Unit("caller", tier).module, ["q8c.nothing"], functools.partial(new_function, name="q8c.nothing"))
    assert len(units._shared) == 4


def test_what_fails_is_not_known_after() -> None:
    def fail(module: ir.Module) -> None:
        new_function(module, "q8c.broken")
        raise CompileError("no code for it")

    for _ in range(2):
        with pytest.raises(CompileError, match="no code for it"):
            shared(Unit("caller", TIER).module, ["q8c.broken"], fail)
    assert not units._shared


def test_the_latest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "KEPT_BYTES", 1)
    caller = Unit("caller", TIER)
    for name in ("q8c.one", "q8c.two"):
        shared(caller.module, [name], functools.partial(new_function, name=name))
    assert list(units._shared) == [(TIER, "q8c.two")]
    assert len(list(reachable(caller))) == 2, "what is forgotten is still there for who has asked for it"


def test_another_module_has_the_code_itself() -> None:
    module = new_module("plain")
    emit = functools.partial(new_function, name="q8c.one")
    first, = shared(module, ["q8c.one"], emit)
    assert shared(module, ["q8c.one"], emit) == [first]
    assert not first.is_declaration and not units._shared


def new_function(module: ir.Module, name: str) -> None:
    """A function that does nothing."""
    Builder(module, TIER, name, [], internal=True).ret()


SPECS: list[tuple[Any, dict[str, Any]]] = [
    (Q8LinearSpec(64, 32, block=32, bits=4), {
        "depth": 128, "cols": 33, "bias": True, "activation": "relu", "residual": True, "block": 64, "zero_point": True,
        "half": True, "bits": 8, "offsets": True, "streamed": True, "gated": True, "counted": True,
        "wide": True}),
    (F32LinearSpec(64, 32), {
        "depth": 65, "cols": 33, "bias": True, "activation": "relu", "residual": True, "streamed": True,
        "gated": True}),
    (F32MatmulSpec(2), {"batch_dims": 1, "transpose_b": True}),
    (AttentionSpec(4, 4, 32, 32, 0.5, (96, 96, 96), (0, 32, 64)),
     {"heads": 8, "kv_heads": 2, "head_size": 16, "value_size": 16, "scale": 0.25, "strides": (96, 96, 99),
      "offsets": (0, 32, 65), "mask": "", "causal": True, "nan_to_zero": True, "split": (False, True, False),
      "packed": True, "key_mask": "i64", "lengths": True, "counts": True, "sinks": True, "spread": True, "cached": True,
      "int8": True, "softcap": 50.0, "window": 9}),
]


@pytest.mark.parametrize(("spec", "others"), SPECS, ids=[type(spec).__name__ for spec, _ in SPECS])
def test_a_name_says_all_that_the_code_depends_on(spec: Any, others: dict[str, Any]) -> None:
    assert others.keys() == {field.name for field in fields(spec)}
    specs = [spec, *(replace(spec, **{name: value}) for name, value in others.items())]
    names = [s.symbol(TIER) if isinstance(s, AttentionSpec) else s.name for s in specs]
    assert len(set(names)) == len(names)
