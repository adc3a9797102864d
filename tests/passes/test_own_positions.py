"""Positions counted from the length of a cache become each sequence's own."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import Graph, clone, interpret
from q8c.ir.cache import find_cache
from q8c.ir.feeds import random_feeds
from q8c.passes.keep_cache import KeepCache
from q8c.passes.manager import Report, run_passes
from q8c.passes.own_positions import OwnPositions
from tests.passes.support import compare, parse

SIZES = {"b": 2, "s": 3, "past": 4}
PLACES = """%first: i64[1] = sizes() {values = (past)}
      %new: i64[s] = iota() {size = s, dtype = i64}
      %place: i64[s] = add(%first, %new)"""
LATER = """%all: i64[past + s] = iota() {size = past + s, dtype = i64}
      %place: i64[s] = slice(%all) {starts = (past), sizes = (s), steps = (1)}"""
ROTATED = """const %frequency: f32[1, 4, 1] = @frequency
      %row: i64[1, 1, s] = reshape(%place) {shape = (1, 1, s)}
      %at: f32[1, 1, s] = cast(%row) {to = f32}
      %angle: f32[1, 4, s] = matmul(%frequency, %at)
      %turned: f32[1, s, 4] = transpose(%angle) {perm = (0, 2, 1)}
      %cos: f32[1, s, 4] = cos(%turned)
      %sin: f32[1, s, 4] = sin(%turned)
      %r: f32[b, s, 16] = rotary(%x, %cos, %sin) {heads = 2, head_size = 8, rotary_size = 8}"""
LEARNED = """const %table: f32[20, 16] = @table
      %e: f32[s, 16] = gather(%table, %place) {axis = 0}
      %r: f32[b, s, 16] = add(%x, %e)"""
IDS = """const %table: f32[20, 16] = @table
      %row: i64[1, s] = reshape(%place) {shape = (1, s)}
      %ids: i64[b, s] = broadcast_to(%row) {shape = (b, s)}
      %r: f32[b, s, 16] = gather(%table, %ids) {axis = 0}"""


def decoder(body: str, mask: str = "") -> Graph:
    """A graph with queries and keys %r of tokens %x."""
    rng = np.random.default_rng(0)
    return parse(f"""graph @g(%x: f32[b, s, 16], %k: f32[b, 2, past, 8], %v: f32[b, 2, past, 8]) {{
      {body}
      %rs: f32[b, s, 2, 8] = reshape(%r) {{shape = (b, s, 2, 8)}}
      %rt: f32[b, 2, s, 8] = transpose(%rs) {{perm = (0, 2, 1, 3)}}
      %k2: f32[b, 2, past + s, 8] = concat(%k, %rt) {{axis = 2}}
      %v2: f32[b, 2, past + s, 8] = concat(%v, %rt) {{axis = 2}}
      %y: f32[b, s, 16] = attention(%r, %k2, %v2{mask}) {{
        heads = 2, kv_heads = 2, head_size = 8, scale = 0.5, causal = true}}
      return %y, %k2, %v2
    }}""", {"frequency": rng.random((1, 4, 1), np.float32), "table": rng.random((20, 16), np.float32)})


def passed(graph: Graph) -> Report:
    """The report of the pass, behind the one that finds the cache. Results must stay without a state."""
    before = clone(graph)
    report = run_passes(graph, [KeepCache(), OwnPositions()])
    compare(before, graph, random_feeds(before, sizes=SIZES), 0)
    return report


@pytest.mark.parametrize("used", [ROTATED, LEARNED, IDS], ids=["rotary", "learned", "ids"])
@pytest.mark.parametrize("places", [PLACES, LATER], ids=["added", "cut"])
def test_each_sequence_counts_its_own(places: str, used: str) -> None:
    graph = decoder(f"{places}\n      {used}")
    assert not passed(graph).declines
    cache = find_cache(graph)
    assert cache is not None and not cache.uniform
    # lengths as a state may say them: then a sequence's results are those it has alone
    [held] = [n for n in graph.nodes if n.op == "past_lengths"]
    feeds = random_feeds(graph, sizes=SIZES)
    together = clone(graph)
    lengths = together.constant(np.array([4, 1]), "said")
    [same] = [n for n in together.nodes if n.op == "past_lengths"]
    together.replace_uses(same.output, lengths)
    short = {"x": feeds["x"][1:], "k": feeds["k"][1:, :, :1], "v": feeds["v"][1:, :, :1]}
    np.testing.assert_allclose(interpret(together, feeds)[0][1:], interpret(graph, short)[0], rtol=0, atol=1e-6)
    assert held.output.users


def test_what_else_goes_by_the_length_stays() -> None:
    bias = f"""{PLACES}
      {LEARNED}
      %far: f32[s] = cast(%place) {{to = f32}}
      %m: f32[1, 1, s, 1] = reshape(%far) {{shape = (1, 1, s, 1)}}"""
    graph = decoder(bias, ", %m")
    report = passed(graph)
    assert not [note for note in report.rewrites if note.pass_name == OwnPositions.name]
    assert "it goes by the length of the cache, which is one for all" in str([note.text for note in report.declines])
    cache = find_cache(graph)
    assert cache is not None and cache.uniform


def test_a_model_without_such_positions_stays() -> None:
    graph = decoder("%r: f32[b, s, 16] = neg(%x)")
    assert [step.changed for step in run_passes(graph, [KeepCache(), OwnPositions()]).steps] == [True, False]
