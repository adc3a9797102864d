"""Rules about index arithmetic: the masks and positions of exported graphs."""
from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest

from q8c.passes.canonicalize import Canonicalize
from q8c.passes.eliminate_dead_code import EliminateDeadCode
from q8c.passes.fold_constants import FoldConstants
from q8c.passes.manager import Report, run_passes
from q8c.passes.share_common import ShareCommon
from tests.passes.support import check, normal_text, parse

MASKS = {
    "dynamo: gather_nd over expanded arange, compared and maximized": """
        graph @g(%m: i64[b, s]) {
          const %zero: i64[] = 0
          const %true: bool[] = true
          const %low: f32[] = -1e9
          const %high: f32[] = 0.0
          %mask: bool[b, s] = cast(%m) {to = bool}
          %i: i64[b] = iota() {size = b}
          %j: i64[s] = iota() {size = s}
          %ib: i64[b, 1, 1] = reshape(%i) {shape = (b, 1, 1)}
          %ic: i64[b, 1, 1, 1] = reshape(%ib) {shape = (b, 1, 1, 1)}
          %jb: i64[1, 1, s] = reshape(%j) {shape = (1, 1, s)}
          %jq: i64[1, 1, s, 1] = reshape(%jb) {shape = (1, 1, s, 1)}
          %jk: i64[1, 1, 1, s] = reshape(%jb) {shape = (1, 1, 1, s)}
          %ge: bool[1, 1, s, 1] = greater_equal(%jq, %zero)
          %all: bool[1, 1, s, 1] = and(%true, %ge)
          %bi: i64[b, 1, 1, s] = broadcast_to(%ic) {shape = (b, 1, 1, s)}
          %bj: i64[b, 1, 1, s] = broadcast_to(%jk) {shape = (b, 1, 1, s)}
          %ti: i64[b, 1, 1, s, 1] = reshape(%bi) {shape = (b, 1, 1, s, 1)}
          %tj: i64[b, 1, 1, s, 1] = reshape(%bj) {shape = (b, 1, 1, s, 1)}
          %tuples: i64[b, 1, 1, s, 2] = concat(%ti, %tj) {axis = -1}
          %picked: bool[b, 1, 1, s] = gather_nd(%mask, %tuples)
          %both: bool[b, 1, s, s] = and(%all, %picked)
          %y: f32[b, 1, s, s] = where(%both, %high, %low)
          return %y
        }""",
    "legacy: gather from the flattened mask": """
        graph @g(%m: i64[b, s]) {
          const %zero: i64[] = 0
          const %true: bool[] = true
          const %low: f32[] = -1e9
          const %high: f32[] = 0.0
          %mask: bool[b, s] = cast(%m) {to = bool}
          %i: i64[b] = iota() {size = b}
          %j: i64[s] = iota() {size = s}
          %ic: i64[b, 1, 1, 1] = reshape(%i) {shape = (b, 1, 1, 1)}
          %jq: i64[1, 1, s, 1] = reshape(%j) {shape = (1, 1, s, 1)}
          %jk: i64[1, 1, 1, s] = reshape(%j) {shape = (1, 1, 1, s)}
          %lt: bool[1, 1, s, 1] = less(%jq, %zero)
          %nl: bool[1, 1, s, 1] = not(%lt)
          %all: bool[1, 1, s, 1] = and(%true, %nl)
          %size: i64[1] = sizes() {values = (s)}
          %row: i64[b, 1, 1, 1] = mul(%ic, %size)
          %at: i64[b, 1, 1, s] = add(%jk, %row)
          %flat: bool[b*s] = reshape(%mask) {shape = (b*s)}
          %picked: bool[b, 1, 1, s] = gather(%flat, %at) {axis = 0}
          %line: bool[b*s] = reshape(%picked) {shape = (b*s)}
          %back: bool[b, 1, 1, s] = reshape(%line) {shape = (b, 1, 1, s)}
          %both: bool[b, 1, s, s] = and(%all, %back)
          %wide: bool[b, 1, s, s] = broadcast_to(%both) {shape = (b, 1, s, s)}
          %y: f32[b, 1, s, s] = where(%wide, %high, %low)
          return %y
        }""",
}
CLEAN_MASK = """
    graph @g(%m: i64[b, s]) {
      const %low: f32[] = -1e9
      const %high: f32[] = 0.0
      %mask: bool[b, s] = cast(%m) {to = bool}
      %shaped: bool[b, 1, 1, s] = reshape(%mask) {shape = (b, 1, 1, s)}
      %small: f32[b, 1, 1, s] = where(%shaped, %high, %low)
      %y: f32[b, 1, s, s] = broadcast_to(%small) {shape = (b, 1, s, s)}
      return %y
    }"""


@pytest.mark.parametrize("name", MASKS)
def test_exporters_mask(name: str) -> None:
    check([Canonicalize(), FoldConstants(), Canonicalize(), EliminateDeadCode()], MASKS[name], CLEAN_MASK)


def test_a_causal_mask_keeps_its_comparison() -> None:
    check(Canonicalize(), """
        graph @g(%x: f32[b, s]) {
          %j: i64[s] = iota() {size = s}
          %q: i64[s, 1] = reshape(%j) {shape = (s, 1)}
          %le: bool[s, s] = less_equal(%j, %q)
          return %le
        }""", None)


def test_comparisons_known_for_all_sizes() -> None:
    check([Canonicalize(), EliminateDeadCode()], """
        graph @g(%x: f32[b, s]) {
          const %size: i64[] = 512
          %j: i64[s] = iota() {size = s}
          %n: i64[1] = sizes() {values = (s)}
          %inside: bool[s] = less(%j, %n)
          %outside: bool[s] = greater_equal(%j, %n)
          %top: i64[s] = max(%j, %n)
          %open: bool[s] = less(%j, %size)
          return %inside, %outside, %top, %open
        }""", """
        graph @g(%x: f32[b, s]) {
          const %true: bool[] = true
          const %false: bool[] = false
          const %size: i64[] = 512
          %j: i64[s] = iota() {size = s}
          %n: i64[1] = sizes() {values = (s)}
          %inside: bool[s] = broadcast_to(%true) {shape = (s)}
          %outside: bool[s] = broadcast_to(%false) {shape = (s)}
          %top: i64[s] = broadcast_to(%n) {shape = (s)}
          %open: bool[s] = less(%j, %size)
          return %inside, %outside, %top, %open
        }""")


def test_positions_become_a_slice_of_the_table() -> None:
    check([Canonicalize(), EliminateDeadCode()], """
        graph @g(%ids: i64[b, s]) {
          const %table: f32[512, 4] = @table
          const %positions: i64[1, 512] = @positions
          %p: i64[1, min(s, 512)] = slice(%positions) {starts = (0, 0), sizes = (1, min(s, 512)), steps = (1, 1)}
          %y: f32[1, min(s, 512), 4] = gather(%table, %p) {axis = 0}
          return %y
        }""", """
        graph @g(%ids: i64[b, s]) {
          const %table: f32[512, 4] = @table
          %a: f32[min(s, 512), 4] = slice(%table) {starts = (0, 0), sizes = (min(s, 512), 4), steps = (1, 1)}
          %y: f32[1, min(s, 512), 4] = reshape(%a) {shape = (1, min(s, 512), 4)}
          return %y
        }""", constants={"table": np.arange(2048, dtype=np.float32).reshape(512, 4),
                         "positions": np.arange(512, dtype=np.int64)[None]})


def test_positions_that_are_set_become_a_concatenation() -> None:
    """As exporters write y = empty(b, s, 5); y[..., :2] = a; y[..., 2:] = c, in one of two ways."""
    joined = """
        graph @g(%a: f32[b, s, 2], %c: f32[b, s, 3]) {
          %y: f32[b, s, 5] = concat(%a, %c) {axis = 2}
          return %y
        }"""
    check([Canonicalize(), EliminateDeadCode()], """
        graph @g(%a: f32[b, s, 2], %c: f32[b, s, 3]) {
          const %zero: f32[] = 0.0
          const %first: i64[2, 1] = [0, 1]
          const %last: i64[3, 1] = [2, 3, 4]
          %empty: f32[b, s, 5] = broadcast_to(%zero) {shape = (b, s, 5)}
          %turned: f32[5, s, b] = transpose(%empty) {perm = (2, 1, 0)}
          %at: f32[2, s, b] = transpose(%a) {perm = (2, 1, 0)}
          %ct: f32[3, s, b] = transpose(%c) {perm = (2, 1, 0)}
          %one: f32[5, s, b] = scatter_nd(%turned, %first, %at)
          %two: f32[5, s, b] = scatter_nd(%one, %last, %ct)
          %y: f32[b, s, 5] = transpose(%two) {perm = (2, 1, 0)}
          return %y
        }""", joined)
    places = """
          %i#: i64[b, s, #, 1] = broadcast_to(%ib) {shape = (b, s, #, 1)}
          %j#: i64[b, s, #, 1] = broadcast_to(%jb) {shape = (b, s, #, 1)}
          %k#: i64[b, s, #, 1] = broadcast_to(%kb#) {shape = (b, s, #, 1)}
          %at#: i64[b, s, #, 3] = concat(%i#, %j#, %k#) {axis = 3}"""
    check([Canonicalize(), EliminateDeadCode()], f"""
        graph @g(%a: f32[b, s, 2], %c: f32[b, s, 3]) {{
          const %zero: f32[] = 0.0
          const %kb2: i64[2, 1] = [0, 1]
          const %kb3: i64[3, 1] = [2, 3, 4]
          %empty: f32[b, s, 5] = broadcast_to(%zero) {{shape = (b, s, 5)}}
          %ii: i64[b] = iota() {{size = b}}
          %ib: i64[b, 1, 1, 1] = reshape(%ii) {{shape = (b, 1, 1, 1)}}
          %jj: i64[s] = iota() {{size = s}}
          %jb: i64[s, 1, 1] = reshape(%jj) {{shape = (s, 1, 1)}}{places.replace("#", "2")}{places.replace("#", "3")}
          %one: f32[b, s, 5] = scatter_nd(%empty, %at2, %a)
          %y: f32[b, s, 5] = scatter_nd(%one, %at3, %c)
          return %y
        }}""", joined)


@pytest.mark.parametrize("reduction, places", [("add", "[1, 2]"), ("none", "[1, 3]"), ("none", "[2, 1]"),
                                               ("none", "[1, 2]")])
def test_updates_in_the_middle(reduction: str, places: str) -> None:
    stays = reduction == "add" or places != "[1, 2]"
    check([Canonicalize(), EliminateDeadCode()], f"""
        graph @g(%x: f32[4, n], %u: f32[2, n]) {{
          const %places: i64[2, 1] = {places}
          %y: f32[4, n] = scatter_nd(%x, %places, %u) {{reduction = "{reduction}"}}
          return %y
        }}""", None if stays else """
        graph @g(%x: f32[4, n], %u: f32[2, n]) {
          %behind: f32[1, n] = slice(%x) {starts = (3, 0), sizes = (1, n), steps = (1, 1)}
          %before: f32[1, n] = slice(%x) {starts = (0, 0), sizes = (1, n), steps = (1, 1)}
          %y: f32[4, n] = concat(%before, %u, %behind) {axis = 0}
          return %y
        }""")


@pytest.mark.parametrize("positions", [[0, 1, 2, 9], [0, 2, 1, 3], [-1, 0, 1, 2]])
def test_indices_that_do_not_count_on_in_range_stay(positions: list[int]) -> None:
    graph = parse("""
        graph @g(%x: f32[4, 2]) {
          const %p: i64[4] = @p
          %y: f32[4, 2] = gather(%x, %p) {axis = 0}
          return %y
        }""", {"p": np.array(positions)})
    before = normal_text(graph)
    assert not Canonicalize().run(graph, Report()) and normal_text(graph) == before


def test_sums_that_may_wrap_around_are_not_compared() -> None:
    graph = parse("""
        graph @g(%x: f32[n]) {
          const %c: i64[] = 9223372036854775807
          const %d: i64[3] = @d
          %i: i64[n] = iota() {size = n}
          %sum: i64[n] = add(%i, %c)
          %y: bool[n] = less(%sum, %i)
          %j: i64[3] = iota() {size = 3}
          %z: bool[3] = less(%j, %d)
          return %y, %z
        }""", {"d": np.array([-2**63, 2**63 - 1, 0])})
    Canonicalize().run(graph, Report())
    assert [n.op for n in graph.nodes].count("less") == 2


def test_ten_thousand_nodes_take_seconds() -> None:
    lines = ["graph @g(%x0: f32[n, 4]) {", "const %zero: f32[] = 0.0", "const %c: f32[1, 4] = [1.0, 2.0, 3.0, 4.0]"]
    for i in range(2500):
        lines += [f"%a{i}: f32[n, 4] = add(%zero, %x{i})", f"%b{i}: f32[4, n] = transpose(%a{i}) {{perm = (1, 0)}}",
                  f"%c{i}: f32[n, 4] = transpose(%b{i}) {{perm = (1, 0)}}", f"%x{i + 1}: f32[n, 4] = mul(%c, %c{i})"]
    graph = parse("\n".join([*lines, "return %x2500", "}"]))
    start = perf_counter()
    run_passes(graph, [Canonicalize(), FoldConstants(), ShareCommon(), EliminateDeadCode()])
    assert len(graph.nodes) == 2500 and perf_counter() - start < 10


@pytest.mark.parametrize("op", ["add", "neg"])
def test_long_index_arithmetic_is_not_followed_for_ever(op: str) -> None:
    lines = ["graph @g(%x: f32[n]) {", "%i0: i64[n] = iota() {size = n}"]
    for i in range(3000):
        operands = f"%i{i}, %i{i}" if op == "add" else f"%i{i}"
        lines.append(f"%i{i + 1}: i64[n] = {op}({operands})" if i % 2 else f"%i{i + 1}: i64[n] = add(%i{i}, %i{i})")
    graph = parse("\n".join([*lines, "%y: bool[n] = less(%i3000, %i0)", "return %y", "}"]))
    start = perf_counter()
    Canonicalize().run(graph, Report())
    assert perf_counter() - start < 10
