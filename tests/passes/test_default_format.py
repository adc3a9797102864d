"""The format of weights where none is asked for follows from what the graph does, not from its name."""
from __future__ import annotations

import pytest

from q8c.passes.default_format import format_for
from q8c.passes.fold_weights import FoldWeights
from q8c.passes.manager import Report
from tests.passes.support import parse

HEAD = """graph @g(%x: f32[b, s, 32], %past: f32[b, 1, p, 32]) {
  const %w: f32[32, 32] = @w
  %q: f32[b, s, 32] = matmul(%x, %w)
  %k: f32[b, 1, s, 32] = reshape(%x) {shape = (b, 1, s, 32)}
"""
ATTENTION = "heads = 1, kv_heads = 1, head_size = 32, scale = 0.5"


@pytest.mark.parametrize(("body", "expected"), [
    (f"%y: f32[b, s, 32] = attention(%q, %x, %x) {{{ATTENTION}}}\n return %y", "q8-channel"),
    (f"%y: f32[b, s, 32] = attention(%q, %x, %x) {{{ATTENTION}, causal = true}}\n return %y", "q8-block32"),
    ("%y: f32[b, 1, p + s, 32] = concat(%past, %k) {axis = 2}\n return %y, %q", "q8-block32"),
    ("%y: f32[b, 1, p + s, 32] = append(%past, %k) {kv_heads = 1, head_size = 32}\n return %y, %q", "q8-block32"),
    ("%y: f32[b, 1, p + s, 32] = concat(%k, %past) {axis = 2}\n return %y, %q", "q8-channel")])
def test_decoders_get_blocks(body: str, expected: str) -> None:
    graph = parse(f"{HEAD}  {body}\n}}")
    assert format_for(graph, "default") == expected and format_for(graph, "q8-block64") == "q8-block64"
    report = Report()
    FoldWeights().run(graph, report)
    assert [note.text.split(" as ")[1] for note in report.rewrites] == [expected]
