"""The rule driver."""
from __future__ import annotations

import pytest

from q8c.errors import CompileError
from q8c.ir import DType, Node, Value, verify
from q8c.passes.manager import Report
from q8c.passes.rules import Declined, Rewriter, Rules, rewrite, uniform
from tests.passes.support import normal_text, parse

TEXT = """
graph @g(%x: f32[b]) {
  %a: f32[b] = exp(%x) from "a"
  %c: f32[b] = neg(%a) from "c"
  %y: f32[b] = abs(%c) from "y"
  return %y
}
"""


def exp_to_two(r: Rewriter, node: Node) -> Value | None:
    """exp(x) -> sqrt(relu(x))."""
    return r.add("sqrt", r.add("relu", node.input(0)))


def relu_to_max(r: Rewriter, node: Node) -> Value | None:
    """relu(x) -> max(x, 0)."""
    return r.add("max", node.input(0), r.constant(0, DType.f32))


def give_up_late(r: Rewriter, node: Node) -> Declined:
    """Writes nodes and then declines."""
    r.add("exp", r.add("log", node.input(0)))
    return Declined("changed its mind")


def forget_sign(r: Rewriter, node: Node) -> Value | None:
    """abs(neg(x)) -> abs(x)."""
    inner = node.input(0).producer
    return r.from_nodes([inner, node]).add("abs", inner.input(0)) if inner and inner.op == "neg" else None


def run(rules: Rules, text: str = TEXT, explain: bool = False) -> tuple[str, Report]:
    graph, report = parse(text), Report()
    changed = rewrite(graph, rules, report, explain=explain)
    verify(graph)
    assert changed == (normal_text(graph) != normal_text(parse(text)))
    return normal_text(graph, sources=True), report


def test_new_nodes_are_visited_and_keep_name_and_source() -> None:
    text, _ = run({"exp": (exp_to_two,), "relu": (relu_to_max,)})
    assert text == """graph @g(%x: f32[b]) {
  const %c0: f32[] = 0.0
  %v0: f32[b] = max(%x, %c0) from "a"
  %v1: f32[b] = sqrt(%v0) from "a"
  %v2: f32[b] = neg(%v1) from "c"
  %v3: f32[b] = abs(%v2) from "y"
  return %v3 as "o0"
}
"""
    graph = parse(TEXT)
    rewrite(graph, {"exp": (exp_to_two,)}, Report())
    assert [n.output.name for n in graph.nodes] == ["relu", "a", "c", "y"]


def test_what_only_the_replaced_node_read_goes_with_it() -> None:
    text, report = run({"abs": (forget_sign,)}, explain=True)
    assert "neg" not in text and 'from "c", "y"' in text
    assert list(map(str, report.rewrites)) == ["pass: abs %y (from c): abs(neg(x)) -> abs(x)."]


def test_nodes_written_before_declining_are_dropped() -> None:
    text, report = run({"neg": (give_up_late,)})
    assert text == normal_text(parse(TEXT), sources=True)
    assert [d.text for d in report.declines] == ["changed its mind"]


def test_nodes_nobody_reads_are_dropped_unseen() -> None:
    text, _ = run({"sqrt": (give_up_late,)}, TEXT.replace("return", "%dead: f32[b] = sqrt(%a)\n  return"))
    assert "sqrt" not in text


def test_rules_that_undo_each_other_are_one_error() -> None:
    def flip(r: Rewriter, node: Node) -> Value | None:
        """neg(x) -> neg(x), for ever."""
        return r.add("neg", node.input(0))

    with pytest.raises(CompileError, match="neg %c .*: rules undo each other, the last was flip"):
        rewrite(parse(TEXT), {"neg": (flip,)}, Report())


def test_a_rule_that_gives_another_type_is_one_error() -> None:
    def wrong(r: Rewriter, node: Node) -> Value | None:
        """neg(x) -> is_nan(x)."""
        return r.add("is_nan", node.input(0))

    with pytest.raises(CompileError, match=r"neg %c \(c\): wrong gave bool\[b\] for f32\[b\]"):
        rewrite(parse(TEXT), {"neg": (wrong,)}, Report())


def test_uniform() -> None:
    graph = parse("""
        graph @g(%x: f32[2]) {
          const %a: f32[2] = 1.5
          const %b: f32[3] = [1.0, 2.0, 1.0]
          const %c: bool[] = true
          const %d: f32[2] = nan
          const %e: f32[0] = @e
          return %x
        }""")
    values = {name: uniform(value) for name, value in graph.constants.items()}
    assert values == {"a": 1.5, "b": None, "c": True, "d": None, "e": None} and uniform(graph.inputs[0]) is None
