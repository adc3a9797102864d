"""The pass manager: specs, order, verification, reports."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from q8c.errors import CompileError
from q8c.ir import Graph, TensorType
from q8c.ir.types import DType
from q8c.passes.manager import Pass, Report, Step, parse_passes, run_passes
from tests.passes.support import parse

TEXT = """
graph @g(%x: f32[n]) {
  %y: f32[n] = neg(%x) from "Neg_0"
  %z: f32[n] = abs(%y)
  return %z
}
"""


@dataclass(frozen=True)
class NegToAbs(Pass):
    """neg(x) becomes abs(x)."""

    name: ClassVar[str] = "neg-to-abs"

    def run(self, graph: Graph, report: Report) -> bool:
        changed = False
        for node in graph.nodes:
            if node.op == "neg":
                node.op = "abs"
                report.rewrote(node, "neg")
                changed = True
            else:
                report.decline(node, "it is no neg")
                report.decline(node, "it is no neg")
        return changed


@dataclass(frozen=True)
class Tuned(Pass):
    """Does nothing, with arguments of every kind."""

    name: ClassVar[str] = "tuned"
    lossy: ClassVar[bool] = True
    mode: str = "a"
    max_depth: int = 1
    ratio: float = 0.5
    fast: bool = False

    def run(self, graph: Graph, report: Report) -> bool:
        return False


@dataclass(frozen=True)
class Breaks(Pass):
    """Leaves a wrong type behind."""

    name: ClassVar[str] = "breaks"

    def run(self, graph: Graph, report: Report) -> bool:
        graph.nodes[0].output.type = TensorType(DType.i8, ())
        return True


@dataclass(frozen=True)
class Raises(Pass):
    """Fails with an error that is not q8c's."""

    name: ClassVar[str] = "raises"

    def run(self, graph: Graph, report: Report) -> bool:
        raise KeyError("oops")


AVAILABLE: dict[str, type[Pass]] = {p.name: p for p in (NegToAbs, Tuned, Breaks, Raises)}


def test_specs_name_passes_and_their_arguments() -> None:
    found = parse_passes(" neg-to-abs , tuned{mode=q8-channel, max-depth=3,ratio=.25,fast=true},tuned", AVAILABLE)
    assert found == (NegToAbs(), Tuned("q8-channel", 3, 0.25, True), Tuned())
    assert str(found[1]) == "tuned{mode=q8-channel,max-depth=3,ratio=0.25,fast=true}" and str(found[2]) == "tuned"
    assert parse_passes(",".join(map(str, found)), AVAILABLE) == found


@pytest.mark.parametrize("spec, message", [
    ("nope", "no pass 'nope'; expected one of breaks, neg-to-abs, raises, tuned"),
    ("tuned{depth=1}", "tuned has no argument 'depth'; expected mode, max-depth, ratio, fast"),
    ("neg-to-abs{a=1}", "neg-to-abs has no argument 'a'; expected none"),
    ("tuned{max-depth=x}", "max-depth expected int, got 'x'"),
    ("tuned{fast=1}", "fast expected bool, got '1'"),
    ("tuned{", "expected name or name{argument=value,...}, got 'tuned{'"),
    ("tuned tuned", "expected name"),
    ("", "the pass list is empty; expected some of breaks"),
])
def test_wrong_specs_say_what_there_is(spec: str, message: str) -> None:
    with pytest.raises(CompileError) as caught:
        parse_passes(spec, AVAILABLE)
    assert message in str(caught.value)


def test_the_report_keeps_steps_rewrites_and_each_decline_once() -> None:
    report = run_passes(parse(TEXT), [NegToAbs(), Tuned(), NegToAbs()])
    assert [(s.index, s.name, s.changed, s.nodes, s.lossy) for s in report.steps] == [
        (1, "neg-to-abs", True, 2, False), (2, "tuned", False, 2, True), (3, "neg-to-abs", False, 2, False)]
    assert all(s.seconds >= 0 for s in report.steps)
    assert list(map(str, report.rewrites)) == ["neg-to-abs: abs %y (from Neg_0): neg"]
    assert list(map(str, report.declines)) == ["neg-to-abs: abs %z: it is no neg",
                                               "neg-to-abs: abs %y (from Neg_0): it is no neg"]


def test_observers_see_the_input_and_every_step() -> None:
    seen: list[tuple[int, str, str]] = []

    def observe(graph: Graph, step: Step) -> None:
        seen.append((step.index, step.name, graph.nodes[0].op))

    run_passes(parse(TEXT), [Tuned(), NegToAbs()], observers=[observe])
    assert seen == [(0, "input", "neg"), (1, "tuned", "neg"), (2, "neg-to-abs", "abs")]


def test_a_broken_graph_is_reported_with_the_passes_already_run() -> None:
    with pytest.raises(CompileError) as caught:
        run_passes(parse(TEXT), [Tuned(), NegToAbs(), Breaks(), Tuned()])
    assert str(caught.value) == (
        "pass breaks left a graph that does not verify: abs %y (Neg_0): %y is stated as i8[] but the op gives f32[n]; "
        "passes already run: tuned, neg-to-abs")


def test_a_failing_pass_is_one_compile_error() -> None:
    with pytest.raises(CompileError) as caught:
        run_passes(parse(TEXT), [Raises()])
    assert str(caught.value) == "pass raises failed: KeyError: 'oops'; passes already run: none"
    assert isinstance(caught.value.__cause__, KeyError)
