"""Helper processes that generate code: the same bytes with and without them, and never missed."""
from __future__ import annotations

import sys
from collections import deque
from typing import Any

import pytest

from q8c.codegen import parallel
from q8c.codegen.generate import Generated
from q8c.codegen.parallel import Generators
from q8c.codegen.targets import TIERS
from q8c.errors import CompileError
from q8c.ir import Graph, parse_graph, print_graph
from q8c.passes.manager import Report
from q8c.passes.plan_memory import PlanMemory
from tests.codegen.jit import constant_offsets

TEXT = """
graph @g(%x: f32[n, 24], %r: f32[n, 40]) {
  const %w: f32[24, 40] = @w
  const %b: f32[40] = @b
  %h: f32[n, 40] = linear(%x, %w, %b, %r) {activation = "relu"}
  %y: f32[n, 40] = loop(%h) body(%h: f32[n, 40]) {
    %y: f32[n, 40] = softmax(%h) {axis = -1}
    return %y
  }
  return %y
}
"""
ALL = list(TIERS.values())


@pytest.fixture
def graph() -> Graph:
    made = parse_graph(TEXT)
    PlanMemory().run(made, Report())
    return made


def parts(made: Generated) -> Any:
    return made.tier, made.image, made.frame, made.parts


def generated(graph: Graph, generators: Generators) -> list[Any]:
    offsets = constant_offsets(graph)
    with generators:
        generators.begin(graph, ALL, offsets)
        made = generators.finish(graph, ALL, offsets)
    assert all(seconds > 0 for _, seconds in made)
    return [parts(one) for one, _ in made]


def test_a_helper_makes_the_same_bytes(graph: Graph) -> None:
    alone = generated(graph, Generators())
    assert [one[0] for one in alone] == ALL
    helper, done = parallel._Helper(), dict[str, Any]()
    try:
        helper.work(print_graph(graph), constant_offsets(graph), deque(ALL), done)
    finally:
        helper.end()
    assert [parts(done[tier.name][0]) for tier in ALL] == alone
    assert generated(graph, Generators(2)) == alone


def test_helpers_that_die_are_not_missed(graph: Graph) -> None:
    alone = generated(graph, Generators())
    generators = Generators(1)
    (helper,) = generators._helpers
    assert helper._process is not None
    helper._process.kill()
    assert generated(graph, generators) == alone
    assert helper._process.returncode is not None


@pytest.mark.parametrize("executable", ["", "/usr/sbin/uwsgi", "/nowhere/python3"])
def test_without_an_interpreter_there_are_no_helpers(graph: Graph, monkeypatch: pytest.MonkeyPatch,
                                                     executable: str) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    generators = Generators(2)
    assert not generators._helpers and len(generated(graph, generators)) == len(ALL)


def test_errors_are_those_of_this_process(graph: Graph) -> None:
    graph.nodes[-1].op = "layer_norm"
    with Generators(1) as generators, pytest.raises(CompileError, match="there is no kernel for layer_norm"):
        generators.begin(graph, ALL, {})
        generators.finish(graph, ALL, {})
