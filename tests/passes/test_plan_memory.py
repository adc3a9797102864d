"""Slots: values that are alive together have different ones, and few are needed."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from q8c.ir import Array, Graph, Node, Value
from q8c.ir.dim_text import parse_dim
from q8c.ir.dims import evaluate
from q8c.ir.feeds import random_feeds
from q8c.ir.graph import view_root
from q8c.ir.interpret import bind_sizes, run_node
from q8c.ir.memory import slot_sizes
from q8c.passes.fuse_loops import FuseLoops
from q8c.passes.manager import run_passes
from q8c.passes.own_outputs import OwnOutputs
from q8c.passes.plan_memory import PlanMemory
from tests.passes.random_graphs import random_graph
from tests.passes.support import check, parse


def test_a_chain_needs_two_slots_and_writes_the_output_in_place() -> None:
    check(PlanMemory(), """
    graph @g(%x: f32[n, 4]) {
      %a: f32[n, 4] = abs(%x)
      %b: f32[n, 4] = exp(%a)
      %c: f32[n, 4] = neg(%b)
      %d: f32[n, 4] = tanh(%c)
      return %d
    }""", """
    graph @g(%x: f32[n, 4]) {
      %a: f32[n, 4] @0 = abs(%x)
      %b: f32[n, 4] @1 = exp(%a)
      %c: f32[n, 4] @0 = neg(%b)
      %d: f32[n, 4] = tanh(%c)
      return %d
    }""")


def test_a_view_has_its_sources_slot_and_keeps_it_alive() -> None:
    check(PlanMemory(), """
    graph @g(%x: f32[n, 4]) {
      %v: f32[4*n] = reshape(%x) {shape = (4*n)}
      %a: f32[4*n] = abs(%v)
      %w: f32[n, 4] = reshape(%a) {shape = (n, 4)}
      %b: f32[4*n] = exp(%v)
      %c: f32[4*n] = neg(%b)
      %d: f32[n, 4] = tanh(%w)
      %y: f32[n, 2, 2] = reshape(%d) {shape = (n, 2, 2)}
      return %y, %c
    }""", """
    graph @g(%x: f32[n, 4]) {
      %v: f32[4*n] = reshape(%x) {shape = (4*n)}
      %a: f32[4*n] @0 = abs(%v)
      %w: f32[n, 4] @0 = reshape(%a) {shape = (n, 4)}
      %b: f32[4*n] @1 = exp(%v)
      %c: f32[4*n] = neg(%b)
      %d: f32[n, 4] = tanh(%w)
      %y: f32[n, 2, 2] = reshape(%d) {shape = (n, 2, 2)}
      return %y, %c
    }""")


def test_an_output_that_is_read_again_has_no_slot() -> None:
    check(PlanMemory(), """
    graph @g(%x: f32[n, 4]) {
      %a: f32[n, 4] = abs(%x)
      %b: f32[n, 4] = exp(%a)
      %c: f32[n, 4] = neg(%b)
      return %a, %c
    }""", """
    graph @g(%x: f32[n, 4]) {
      %a: f32[n, 4] = abs(%x)
      %b: f32[n, 4] @0 = exp(%a)
      %c: f32[n, 4] = neg(%b)
      return %a, %c
    }""")


def test_results_of_one_node_never_share_even_if_nobody_reads_them() -> None:
    check(PlanMemory(), """
    graph @g(%x: f32[n, 4]) {
      %q: i8[n, 4], %s: f32[n, 1], %t: i32[n, 1] = dynamic_quantize(%x)
      %f: f32[n, 4] = cast(%q) {to = f32}
      return %f
    }""", """
    graph @g(%x: f32[n, 4]) {
      %q: i8[n, 4] @0, %s: f32[n, 1] @1, %t: i32[n, 1] @2 = dynamic_quantize(%x)
      %f: f32[n, 4] = cast(%q) {to = f32}
      return %f
    }""")


def test_the_slot_that_fits_best_is_taken() -> None:
    graph = parse("""
    graph @g(%x: f32[n, 64], %y: f32[n, 4]) {
      %big: f32[n, 64] = abs(%x)
      %small: f32[n, 4] = abs(%y)
      %join: f32[n, 1] = reduce_max(%big) {axes = (1)}
      %join2: f32[n, 4] = add(%small, %join)
      %little: f32[n, 4] = abs(%y)
      %large: f32[n, 64] = abs(%x)
      %end: f32[n, 1] = reduce_max(%large) {axes = (1)}
      %end2: f32[n, 4] = add(%little, %end)
      return %join2, %end2
    }""")
    run_passes(graph, [PlanMemory()])
    slots = {v.name: v.slot for v in graph.values()}
    assert (slots["large"], slots["little"]) == (slots["big"], slots["small"])


def test_sizes_are_the_largest_members_in_whole_lines_and_int8_rows_are_padded() -> None:
    graph = parse("""
    graph @g(%x: f32[n, 3, 5]) {
      %q: i8[n, 3, 5] @0, %s: f32[n, 3, 1] @1, %t: i32[n, 3, 1] @2 = dynamic_quantize(%x)
      %a: f32[n, 3, 1] @0 = abs(%s)
      %b: f32[n, 3, 5] @1 = mul(%x, %a)
      %c: f32[n, 3, 5] = mul(%b, %b)
      return %c
    }""")
    assert slot_sizes(graph) == [parse_dim(t) for t in ("(24*n + 63) // 64 * 64", "(60*n + 63) // 64 * 64",
                                                        "(12*n + 63) // 64 * 64")]
    assert slot_sizes(parse("graph @g(%x: f32[n]) {\n  return %x\n}")) == []


class Memory:
    """Runs a planned graph as the compiled code does: a slot holds what was written last."""

    def __init__(self, graph: Graph, feeds: Mapping[str, Array]) -> None:
        self.sizes = bind_sizes(graph, feeds)
        self.limits = [evaluate(s, self.sizes) for s in slot_sizes(graph)]
        self.held: dict[object, tuple[Value, Array]] = {v: (v, feeds[v.name]) for v in graph.inputs}
        self.held |= {v: (v, v.array()) for v in graph.constants.values()}

    def place(self, value: Value) -> object:
        """A slot's number, or the root of a value that has a place of its own."""
        return view_root(value) if value.slot is None else value.slot

    def read(self, value: Value) -> Array:
        """What a kernel finds where the value should be."""
        holder, data = self.held[self.place(value)]
        assert holder is view_root(value), f"{value!r} was overwritten by {holder!r}"
        return data.reshape([evaluate(d, self.sizes) for d in value.shape])

    def run(self, node: Node) -> None:
        """One node; its results are written before anything else is read."""
        if node.op == "reshape":
            return
        arguments = [None if v is None else self.read(v) for v in node.inputs]
        for value, data in zip(node.outputs, run_node(node, arguments, self.sizes), strict=True):
            assert value.slot is None or data.nbytes <= self.limits[value.slot]
            self.held[self.place(value)] = (value, data)
        assert [self.held[self.place(v)][0] for v in node.outputs] == node.outputs


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_nothing_alive_is_overwritten(seed: int, fused: bool) -> None:
    graph = random_graph(seed, 60)
    run_passes(graph, [*([FuseLoops()] if fused else []), OwnOutputs(), PlanMemory()])
    feeds = random_feeds(graph)
    memory = Memory(graph, feeds)
    for node in graph.nodes:
        memory.run(node)
    for value in graph.outputs:
        assert np.isfinite(memory.read(value)).all()
    written = sum(len(n.outputs) for n in graph.nodes if n.op != "reshape")
    assert len(slot_sizes(graph)) < written
