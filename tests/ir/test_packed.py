"""Ops on packed rows, and sizes that are counted: references, inference, text."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from q8c.errors import CompileError, InputError
from q8c.ir import clone, interpret, parse_graph, print_graph, verify
from q8c.ir.ops import OPS
from tests.ir.test_ops import run

PACKING = "%rows: i64[1, tokens], %at: i64[tokens], %places: i64[batch, seq], %starts: i64[batch + 1]"
TEXT = f"""graph @g(%x: f32[batch, seq, 3], %mask: i64[batch, seq]) {{
  assume seq == min(9, seq)
  count tokens of %mask
  {PACKING} = packing(%mask) {{tokens = tokens}}
  %flat: f32[batch*seq, 3] = reshape(%x) {{shape = (batch*seq, 3)}}
  %packed: f32[1, tokens, 3] = gather(%flat, %rows) {{axis = 0}}
  %back: f32[batch, seq, 3] = unpack(%packed, %places)
  return %rows, %at, %places, %starts, %back
}}
"""


@given(hnp.arrays(np.int64, st.tuples(st.integers(0, 4), st.integers(0, 9)), elements=st.integers(-1, 2)))
def test_rows_go_and_come_back(mask: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    x = np.arange(mask.size * 3, dtype=np.float32).reshape(*mask.shape, 3) + 1
    rows, at, places, starts, back = interpret(parse_graph(TEXT), {"x": x, "mask": mask})
    there = [(b, s) for b in range(mask.shape[0]) for s in range(mask.shape[1]) if mask[b, s] != 0]
    assert rows.tolist() == [[b * mask.shape[1] + s for b, s in there]] and at.tolist() == [s for _, s in there]
    assert [tuple(p) for p in np.argwhere(places >= 0)] == there
    assert places[places >= 0].tolist() == list(range(len(there))) and (places >= -1).all()
    assert np.diff(starts).tolist() == [sum(b == own for own, _ in there) for b in range(mask.shape[0])]
    np.testing.assert_array_equal(back, np.where((mask != 0)[:, :, None], x, 0))


def test_attention_stays_within_a_sequence() -> None:
    attrs: dict[str, Any] = {"heads": 2, "kv_heads": 1, "head_size": 3, "scale": 0.5, "causal": True,
                             "offsets": (1, 0, 2), "window": 3}
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 9, n)).astype(np.float32) for n in (7, 4, 5))
    starts = np.array([0, 4, 4, 9])
    y = run("packed_attention", q, k, v, starts, **attrs, longest=5)
    assert y.shape == (1, 9, 6)
    for first, last in ((0, 4), (4, 9)):
        alone = run("attention", *(x[:, first:last] for x in (q, k, v)), **attrs)
        np.testing.assert_array_equal(y[:, first:last], alone)


def test_a_wrong_number_of_tokens() -> None:
    with pytest.raises(InputError, match="2 elements of the mask are not 0, expected 3"):
        OPS["packing"].reference([np.array([[1, 0, 1]])], {"tokens": 3})


def test_counts_print_and_parse_and_are_checked() -> None:
    graph = parse_graph(TEXT)
    verify(graph)
    assert print_graph(graph) == TEXT and print_graph(clone(graph)) == TEXT
    assert clone(graph).counts["tokens"] is not graph.counts["tokens"]
    for old, new, problem in (("count tokens", "count seq", "seq is no name of a new size"),
                              ("count tokens", "count tokens of %mask count tokens", "tokens is no name of a new size"),
                              ("count tokens", "count max", "not a dimension|no name|identifier"),
                              ("of %mask", "%mask", "expected 'of'"), ("of %mask", "of %nobody", "%nobody is not def")):
        with pytest.raises(CompileError, match=problem):
            parse_graph(TEXT.replace(old, new, 1))
    with pytest.raises(CompileError, match="%flat is no input"):
        parse_graph(TEXT.replace("  %back", "  count more of %flat\n  %back"))
    graph.counts["tokens"] = graph.nodes[0].output
    with pytest.raises(CompileError, match="tokens counts %rows.*, which is no input"):
        verify(graph)


@pytest.mark.parametrize(("old", "new", "problem"), [
    ("= unpack(%packed", "= unpack(%flat", "expected packed rows"),
    ("unpack(%packed, %places)", "unpack(%packed, %rows)", "stated as|does not match|not assumed"),
    ("unpack(%packed, %places)", "unpack(%packed, %starts)", "expected places"),
    ("packing(%mask)", "packing(%x)", "expected a mask")])
def test_what_does_not_fit(old: str, new: str, problem: str) -> None:
    with pytest.raises(CompileError, match=problem):
        parse_graph(TEXT.replace(old, new))


@pytest.mark.parametrize(("q", "starts", "problem"), [
    ("f32[2, t, 24]", "i64[n]", "expected packed rows"), ("f32[1, t, 24]", "i32[n]", "expected starts"),
    ("f32[1, t, 20]", "i64[n]", "do not fit the channels")])
def test_attention_that_does_not_fit(q: str, starts: str, problem: str) -> None:
    with pytest.raises(CompileError, match=problem):
        parse_graph(f"""graph @g(%q: {q}, %s: {starts}) {{
          %y: f32[1, t, 8] = packed_attention(%q, %q, %q, %s) {{heads = 2, kv_heads = 2, head_size = 4, scale = 0.5,
            offsets = (0, 8, 16), longest = t}}
          return %y }}""")
