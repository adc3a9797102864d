"""Inputs made up from a model's signature."""
from __future__ import annotations

import textwrap

import numpy as np
import pytest

from q8c.errors import InputError
from q8c.ir import Graph, parse_graph
from q8c.ir.feeds import random_feeds, table_size, typical_feeds


def graph(text: str) -> Graph:
    return parse_graph(textwrap.dedent(text))


ENCODER = """
    graph @g(%ids: i64[batch, seq], %mask: i64[batch, seq], %types: i32[batch, seq]) {
      const %words: f32[50, 8] = @words
      const %kinds: f32[2, 8] = @kinds
      %flat: i64[batch*seq] = reshape(%ids) {shape = (batch*seq)}
      %w: f32[batch*seq, 8] = gather(%words, %flat)
      %wide: i64[batch, seq] = cast(%types) {to = i64}
      %k: f32[batch, seq, 8] = gather(%kinds, %wide)
      %m: f32[batch, seq] = cast(%mask) {to = f32}
      return %w, %k, %m
    }"""


def test_ids_come_from_their_tables_and_masks_are_one() -> None:
    g = graph(ENCODER)
    assert [table_size(v) for v in g.inputs] == [50, None, 2]
    feeds = typical_feeds(g)
    assert {n: (a.shape, a.dtype.name) for n, a in feeds.items()} == {
        "ids": ((4, 32), "int64"), "mask": ((4, 32), "int64"), "types": ((4, 32), "int32")}
    assert feeds["ids"].min() >= 0 and 25 < feeds["ids"].max() < 50
    assert set(feeds["types"].flat) == {0, 1} and set(feeds["mask"].flat) == {1}


def test_the_smallest_of_several_tables_counts() -> None:
    g = graph("""
    graph @g(%ids: i64[n]) {
      const %a: f32[9, 4] = @a
      const %b: f32[4, 7] = @b
      %x: f32[n, 4] = gather(%a, %ids)
      %y: f32[4, n] = gather(%b, %ids) {axis = 1}
      return %x, %y
    }""")
    assert table_size(g.inputs[0]) == 7


def test_a_table_is_found_behind_a_loop() -> None:
    g = graph("""
    graph @g(%ids: i32[n]) {
      const %a: f32[9, 4] = @a
      %wide: i64[n] = loop(%ids) body(%i: i32[n]) {
        %w: i64[n] = cast(%i) {to = i64}
        return %w
      }
      %x: f32[n, 4] = gather(%a, %wide)
      return %x
    }""")
    assert table_size(g.inputs[0]) == 9


@pytest.mark.parametrize(("inputs", "shapes"), [
    ("%x: f32[batch, 3, 16, 16]", [(1, 3, 16, 16)]),
    ("%x: f32[batch, 3, h, w]", [(1, 3, 128, 128)]),
    ("%x: f32[batch, seq, 48]", [(4, 32, 48)]),
    ("%x: f32[rows, 48]", [(128, 48)]),
    ("%x: f32[48]", [(48,)]),
    ("%ids: i64[batch, seq], %past: f32[batch, 2, past, 8]", [(4, 32), (4, 2, 0, 8)]),
    ("%ids: i64[batch, seq], %mask: i64[batch, past + seq], %past: f32[batch, 2, past, 8]",
     [(4, 32), (4, 32), (4, 2, 0, 8)]),
])
def test_sizes_are_those_of_a_small_batch(inputs: str, shapes: list[tuple[int, ...]]) -> None:
    first = inputs.split(":")[0]
    g = graph(f"graph @g({inputs}) {{\n  return {first}\n}}")
    assert [a.shape for a in typical_feeds(g).values()] == shapes


def test_sizes_may_be_stated_and_the_seed_decides() -> None:
    g = graph(ENCODER)
    feeds = typical_feeds(g, sizes={"seq": 5})
    assert feeds["ids"].shape == (4, 5)
    assert np.array_equal(feeds["ids"], typical_feeds(g, sizes={"seq": 5})["ids"])
    assert not np.array_equal(feeds["ids"], typical_feeds(g, seed=1, sizes={"seq": 5})["ids"])
    floats = typical_feeds(graph("graph @g(%x: f32[n, 500]) {\n  return %x\n}"))["x"]
    assert abs(floats.mean()) < 0.02 and abs(floats.std() - 1) < 0.02


@pytest.mark.parametrize(("assumption", "shape"), [
    (("batch*seq", "seq"), (1, 32)), (("batch*seq", "4"), (4, 1)), (("(seq + 15) // 48", "1"), (4, 48)),
    (("max(seq - 300, 0)", "seq - 300"), (4, 768))])
def test_only_sizes_that_assumptions_ask_for_are_unusual(assumption: tuple[str, str], shape: tuple[int, int]) -> None:
    """Where one must be larger than usual, it is much larger."""
    a, b = assumption
    g = graph(f"graph @g(%x: i64[batch, seq]) {{\n  assume {a} == {b}\n  return %x\n}}")
    assert typical_feeds(g)["x"].shape == shape


def test_assumptions_are_kept_where_any_sizes_do() -> None:
    g = graph(ENCODER)
    seq = g.inputs[0].shape[1]
    g.assume_equal(seq, 16)
    assert typical_feeds(g)["ids"].shape[1] == 16
    g.assume_equal(seq, 17)
    for make in (typical_feeds, random_feeds):
        with pytest.raises(InputError, match="no sizes were found that fit graph g .*; state sizes that do"):
            make(g)
