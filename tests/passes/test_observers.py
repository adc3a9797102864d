"""Printing, dumping and comparing results between passes."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from q8c.errors import CompileError
from q8c.ir import Graph, parse_graph
from q8c.passes.canonicalize import Canonicalize
from q8c.passes.eliminate_dead_code import EliminateDeadCode
from q8c.passes.manager import Pass, Report, run_passes
from q8c.passes.observers import dump_to, print_after, verify_each
from tests.passes.support import parse

TEXT = """
graph @g(%x: f32[n, 4]) {
  %a: f32[n, 4] = reshape(%x) {shape = (n, 4)}
  %y: f32[n, 4] = exp(%a)
  return %y
}
"""


@dataclass(frozen=True)
class Swap(Pass):
    """Replaces one op by another, which changes the results."""

    name: ClassVar[str] = "swap"
    old: str = "exp"
    new: str = "sqrt"

    def run(self, graph: Graph, report: Report) -> bool:
        for node in graph.nodes:
            if node.op == self.old:
                node.op = self.new
        return True


@dataclass(frozen=True)
class Round(Swap):
    """The same, allowed to."""

    name: ClassVar[str] = "round"
    lossy: ClassVar[bool] = True


def test_print_after_one_pass_or_all_that_changed_something() -> None:
    one: list[str] = []
    run_passes(parse(TEXT), [Canonicalize(), EliminateDeadCode()],
               observers=[print_after(["eliminate-dead-code"], one.append)])
    every: list[str] = []
    run_passes(parse(TEXT), [Canonicalize(), EliminateDeadCode()], observers=[print_after(["all"], every.append)])
    assert [t.split("\n")[0] for t in one] == ["# after eliminate-dead-code"]
    assert [t.split("\n")[0] for t in every] == ["# after input", "# after canonicalize"]
    assert "reshape" in every[0] and "reshape" not in every[1]
    parse_graph(every[1])  # the heading is a comment


def test_dump_writes_numbered_files_where_the_graph_changed(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    run_passes(parse(TEXT), [EliminateDeadCode(), Canonicalize(), Swap(new="log")], observers=[dump_to(folder)])
    assert sorted(p.name for p in folder.iterdir()) == ["00-input.q8ir", "02-canonicalize.q8ir", "03-swap.q8ir"]
    assert parse_graph((folder / "03-swap.q8ir").read_text()).nodes[0].op == "log"


def test_verify_each_names_the_pass_that_changed_a_result() -> None:
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    with pytest.raises(CompileError, match=r"pass swap changed output 'y': it differs by up to 1.09e\+03, expected"):
        run_passes(parse(TEXT), [Canonicalize(), Swap(), Canonicalize()], observers=[verify_each(feeds)])


def test_verify_each_sees_nan_appear() -> None:
    with pytest.raises(CompileError, match="new=log} changed output 'y': other elements are NaN or infinite"):
        run_passes(parse(TEXT.replace("exp", "neg")), [Swap("neg", "log")], observers=[verify_each()])


def test_verify_each_takes_the_results_of_a_lossy_pass_as_the_new_reference() -> None:
    run_passes(parse(TEXT), [Round(new="tanh"), Canonicalize()], observers=[verify_each()])
    with pytest.raises(CompileError, match="pass swap"):
        run_passes(parse(TEXT), [Round(new="tanh"), Swap("tanh", "exp")], observers=[verify_each()])
