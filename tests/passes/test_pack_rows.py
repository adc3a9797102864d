"""Padding is left out where rows are computed by themselves, results where there are tokens stay the same bits."""
from __future__ import annotations

import textwrap

import numpy as np
import pytest

from q8c.errors import CompileError
from q8c.ir import Array, Graph, clone, interpret, print_graph
from q8c.passes.manager import Report, run_passes
from q8c.passes.pack_rows import PackRows
from tests.passes.support import normal_text, parse

HEAD = """graph @g(%ids: i64[batch, seq], %mask: i64[batch, seq]) {
  const %table: f32[9, 24] = @table
  const %w: f32[8, 24] = @w
  const %one: f32[] = 1.0
  const %low: f32[] = -3.4e38
  const %zero: f32[] = 0.0
"""
MASK = """
  %cast: f32[batch, seq] = cast(%mask) {to = f32}
  %sub: f32[batch, seq] = sub(%one, %cast)
  %mul: f32[batch, seq] = mul(%sub, %low)
  %m: f32[batch, 1, 1, seq] = reshape(%mul) {shape = (batch, 1, 1, seq)}
"""
HEADS = "{heads = 2, kv_heads = 2, head_size = 4, scale = 0.5, offsets = (0, 8, 16)}"
LONG = HEADS.replace("}", ", longest = seq}")
X = "%x: f32[batch, seq, 24] = gather(%table, %ids) {axis = 0}"
ATTENTION = f"%y: f32[batch, seq, 8] = attention(%x, %x, %x, %m) {HEADS}"
PACKED = f"""
  %rows: i64[1, tokens], %at: i64[tokens], %places: i64[batch, seq], %starts: i64[batch + 1] = packing(%mask) {{tokens = tokens}}
  %flat: i64[batch*seq] = reshape(%ids) {{shape = (batch*seq)}}
  %pids: i64[1, tokens] = gather(%flat, %rows) {{axis = 0}}
  %x: f32[1, tokens, 24] = gather(%table, %pids) {{axis = 0}}
  %y: f32[1, tokens, 8] = packed_attention(%x, %x, %x, %starts) {LONG}
"""
COUNT = HEAD.replace("  const", "  count tokens of %mask\n  const", 1)

MASKS = {
    "right": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]],
    "left": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]],
    "holes and other numbers": [[0, 7, 0, -1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]],
    "nothing": [[0] * 5] * 3}


def pack(graph: Graph, mask: str = "") -> Report:
    report = run_passes(graph, [PackRows(mask)])
    assert not PackRows(mask).run(graph, Report()), "a second run changes the graph again"
    return report


def check(before: str, after: str, ones: bool = False) -> Graph:
    """The text after, and the same bits where there are tokens, zeros elsewhere, in every output [batch, seq, ...]."""
    graph = parse(before)
    reference = clone(graph)
    report = pack(graph)
    expected = parse(after)
    assert normal_text(graph) == normal_text(expected), f"got:\n{print_graph(graph)}"
    assert report.rewrites and not report.declines
    compare(reference, graph, ones)
    return graph


def compare(reference: Graph, graph: Graph, ones: bool = False, **feeds: Array) -> None:
    for name, listed in MASKS.items():
        mask = np.array(listed)
        mask = (mask != 0).astype(np.int64) if ones else mask
        ids = np.random.default_rng(0).integers(0, 9, mask.shape)
        got = interpret(graph, {"ids": ids, "mask": mask, **feeds})
        with np.errstate(all="ignore"):  # a sequence of padding alone attends to it
            wanted = interpret(reference, {"ids": ids, "mask": (mask != 0).astype(np.int64), **feeds})
        for x, y in zip(wanted, got, strict=True):
            assert x.shape == y.shape and x.dtype == y.dtype
            rows = mask != 0 if y.shape[:2] == mask.shape else mask.any(axis=1)
            np.testing.assert_array_equal(y[rows], x[rows], err_msg=name)
            assert not y[~rows].any(), name


def test_embeddings_attention_and_rows_behind_it() -> None:
    check(f"""{HEAD}{MASK} {X} {ATTENTION}
      %z: f32[batch, seq, 24] = linear(%y, %w)
      %r: f32[batch, seq, 24] = add(%z, %x)
      return %r as "rows" }}""",
          f"""{COUNT}{PACKED}
      %z: f32[1, tokens, 24] = linear(%y, %w)
      %r: f32[1, tokens, 24] = add(%z, %x)
      %u: f32[batch, seq, 24] = unpack(%r, %places)
      return %u as "rows" }}""")


@pytest.mark.parametrize("mask", [
    "%b: bool[batch, seq] = cast(%mask) {to = bool} %r: bool[batch, 1, 1, seq] = reshape(%b) "
    "{shape = (batch, 1, 1, seq)} %m: f32[batch, 1, 1, seq] = where(%r, %zero, %low)",
    "%i: i64[batch, 1, 1, seq] = reshape(%mask) {shape = (batch, 1, 1, seq)} %c: f32[batch, 1, 1, seq] = cast(%i) "
    "{to = f32} %s: f32[batch, 1, 1, seq] = sub(%one, %c) %n: bool[batch, 1, 1, seq] = cast(%s) {to = bool} "
    "%m: f32[batch, 1, 1, seq] = where(%n, %low, %s)",
    "const %least: f32[] = -10000.0 %c: f32[batch, seq] = cast(%mask) {to = f32} %s: f32[batch, seq] = sub(%one, %c) "
    "%n: f32[batch, seq] = mul(%s, %least) %m: f32[batch, 1, 1, seq] = reshape(%n) {shape = (batch, 1, 1, seq)}"])
def test_masks_as_exporters_write_them(mask: str) -> None:
    check(f"{HEAD}{mask} {X} {ATTENTION} return %y }}",
          f"{COUNT}{PACKED} %u: f32[batch, seq, 8] = unpack(%y, %places) return %u }}")


def test_positions_and_what_a_sequence_has_once() -> None:
    head = HEAD.replace("%mask: i64[batch, seq]", "%mask: i64[batch, seq], %p: f32[9, 24], %s: f32[batch, 1, 24]")
    count = COUNT.replace("%mask: i64[batch, seq]", "%mask: i64[batch, seq], %p: f32[9, 24], %s: f32[batch, 1, 24]")
    before = f"""{head}{MASK} %e: f32[batch, seq, 24] = gather(%table, %ids) {{axis = 0}}
      %cut: f32[seq, 24] = slice(%p) {{starts = (0, 0), sizes = (seq, 24), steps = (1, 1)}}
      %f: f32[batch, seq, 24] = add(%e, %cut)
      %x: f32[batch, seq, 24] = mul(%f, %s)
      {ATTENTION} return %y }}"""
    x = "%x: f32[1, tokens, 24] = gather(%table, %pids) {axis = 0}"
    after = f"""{count}{PACKED.replace(x, '''%e: f32[1, tokens, 24] = gather(%table, %pids) {axis = 0}
      %cut: f32[seq, 24] = slice(%p) {starts = (0, 0), sizes = (seq, 24), steps = (1, 1)}
      %there: f32[tokens, 24] = gather(%cut, %at) {axis = 0}
      %f: f32[1, tokens, 24] = add(%e, %there)
      %wide: f32[batch, seq, 24] = broadcast_to(%s) {shape = (batch, seq, 24)}
      %lines: f32[batch*seq, 24] = reshape(%wide) {shape = (batch*seq, 24)}
      %own: f32[1, tokens, 24] = gather(%lines, %rows) {axis = 0}
      %x: f32[1, tokens, 24] = mul(%f, %own)''')}
      %u: f32[batch, seq, 8] = unpack(%y, %places) return %u }}"""
    graph = parse(before)
    reference = clone(graph)
    pack(graph)
    assert normal_text(graph) == normal_text(parse(after)), f"got:\n{print_graph(graph)}"
    rng = np.random.default_rng(1)
    compare(reference, graph, p=rng.normal(size=(9, 24)).astype(np.float32),
            s=rng.normal(size=(3, 1, 24)).astype(np.float32))


def test_pooling_reads_rows_where_they_were() -> None:
    """The mask applied to rows for a sum over positions stays with the sum."""
    pool = """
      %line: f32[batch, seq, 1] = reshape(%cast) {shape = (batch, seq, 1)}
      %kept: f32[batch, seq, 8] = mul(ROWS, %line)
      %sum: f32[batch, 8] = reduce_sum(%kept) {axes = (1), keepdims = false}
      return ROWS as "tokens", %sum as "sentence" }"""
    check(f"{HEAD}{MASK} {X} {ATTENTION} {pool.replace('ROWS', '%y')}",
          f"""{COUNT}{PACKED.replace("%flat:", "%cast: f32[batch, seq] = cast(%mask) {to = f32} %flat:")}
      %u: f32[batch, seq, 8] = unpack(%y, %places)
      {pool.replace('ROWS', '%u')}""", ones=True)


def test_a_fill_for_the_greatest_of_all_positions_is_not_lost() -> None:
    before = f"""{HEAD}{MASK} {X} {ATTENTION}
      %there: bool[batch, seq] = cast(%mask) {{to = bool}}
      %line: bool[batch, seq, 1] = reshape(%there) {{shape = (batch, seq, 1)}}
      %kept: f32[batch, seq, 8] = where(%line, %y, %low)
      %most: f32[batch, 8] = reduce_max(%kept) {{axes = (1), keepdims = false}}
      return %most }}"""
    graph = parse(before)
    reference = clone(graph)
    pack(graph)
    ids, mask = np.arange(15).reshape(3, 5) % 9, np.array(MASKS["left"])
    [wanted], [got] = interpret(reference, {"ids": ids, "mask": mask}), interpret(graph, {"ids": ids, "mask": mask})
    np.testing.assert_array_equal(got, wanted)


def test_a_mask_applied_to_embeddings_is_packed_with_them() -> None:
    packed = PACKED.replace("%x: f32[1, tokens, 24] =", "%e: f32[1, tokens, 24] =").replace("%flat:", """
      %pm: i64[batch*seq] = reshape(%mask) {shape = (batch*seq)}
      %pk: i64[1, tokens] = gather(%pm, %rows) {axis = 0}
      %b: bool[1, tokens] = cast(%pk) {to = bool}
      %cast: f32[1, tokens] = cast(%b) {to = f32}
      %flat:""").replace("%y:", """
      %line: f32[1, tokens, 1] = reshape(%cast) {shape = (1, tokens, 1)}
      %x: f32[1, tokens, 24] = mul(%e, %line)
      %y:""")
    check(f"""{HEAD}{MASK} %e: f32[batch, seq, 24] = gather(%table, %ids) {{axis = 0}}
      %line: f32[batch, seq, 1] = reshape(%cast) {{shape = (batch, seq, 1)}}
      %x: f32[batch, seq, 24] = mul(%e, %line)
      {ATTENTION} return %y }}""".replace("%cast: f32[batch, seq] = cast(%mask) {to = f32}",
                                          "%b: bool[batch, seq] = cast(%mask) {to = bool} "
                                          "%cast: f32[batch, seq] = cast(%b) {to = f32}"),
          f"{COUNT} {packed} %u: f32[batch, seq, 8] = unpack(%y, %places) return %u }}")


def test_quantized_rows_and_heads_split_before() -> None:
    split = "{heads = 2, kv_heads = 2, head_size = 4, scale = 0.5, causal = true}"
    before = f"""{HEAD}{MASK} %e: f32[batch, seq, 24] = gather(%table, %ids) {{axis = 0}}
      const %u8: u8[24, 8] = @u8
      const %scale: f32[8] = @scale
      %q: i8[batch, seq, 24], %rs: f32[batch, seq, 1], %sum: i32[batch, seq, 1] = dynamic_quantize(%e)
      %l: f32[batch, seq, 8] = q8_linear(%q, %rs, %sum, %u8, %scale)
      %r: f32[batch, seq, 2, 4] = reshape(%l) {{shape = (batch, seq, 2, 4)}}
      %t: f32[batch, 2, seq, 4] = transpose(%r) {{perm = (0, 2, 1, 3)}}
      %n: f32[batch, 2, seq, 4] = softmax(%t) {{axis = -1}}
      %y: f32[batch, seq, 8] = attention(%n, %t, %l, %m) {split}
      return %y }}"""
    after = f"""{COUNT}
      const %u8: u8[24, 8] = @u8
      const %scale: f32[8] = @scale
      {PACKED.split("%x: f32")[0]}
      %e: f32[1, tokens, 24] = gather(%table, %pids) {{axis = 0}}
      %q: i8[1, tokens, 24], %rs: f32[1, tokens, 1], %sum: i32[1, tokens, 1] = dynamic_quantize(%e)
      %l: f32[1, tokens, 8] = q8_linear(%q, %rs, %sum, %u8, %scale)
      %r: f32[1, tokens, 2, 4] = reshape(%l) {{shape = (1, tokens, 2, 4)}}
      %t: f32[1, 2, tokens, 4] = transpose(%r) {{perm = (0, 2, 1, 3)}}
      %n: f32[1, 2, tokens, 4] = softmax(%t) {{axis = -1}}
      %y: f32[1, tokens, 8] = packed_attention(%n, %t, %l, %starts) {split.replace("}", ", longest = seq}")}
      %u: f32[batch, seq, 8] = unpack(%y, %places)
      return %u }}"""
    check(before, after)


def test_heads_that_others_read_are_put_back_too() -> None:
    before = f"""{HEAD}{MASK} {X} {ATTENTION}
      %r: f32[batch, seq, 2, 4] = reshape(%y) {{shape = (batch, seq, 2, 4)}}
      %t: f32[batch, 2, seq, 4] = transpose(%r) {{perm = (0, 2, 1, 3)}}
      %k: f32[batch, seq, 2, 4] = transpose(%t) {{perm = (0, 2, 1, 3)}}
      return %k as "rows", %t as "heads" }}"""
    graph = parse(before)
    reference = clone(graph)
    pack(graph)
    ids, mask = np.arange(15).reshape(3, 5) % 9, np.array(MASKS["right"])
    wanted, got = interpret(reference, {"ids": ids, "mask": mask}), interpret(graph, {"ids": ids, "mask": mask})
    np.testing.assert_array_equal(got[0], wanted[0] * (mask != 0)[:, :, None, None])
    np.testing.assert_array_equal(got[1], wanted[1] * (mask != 0)[:, None, :, None])


def declined(text: str, mask: str = "") -> str:
    graph = parse(text)
    before = print_graph(graph)
    report = pack(graph, mask)
    assert print_graph(graph) == before and not report.rewrites
    note, = report.declines
    return note.text


SECOND = ATTENTION.replace("%y:", "%v:").replace("%m)", "%other)")
ALIKE = MASK.replace("%mask", "%ids").replace("%m:", "%other:").replace("%cast", "%c2").replace("%sub", "%s2").replace(
    "%mul", "%m2")
PLACE = """%i: i64[seq] = iota() {size = seq} %j: f32[seq] = cast(%i) {to = f32}
  %k: f32[batch, 1, 1, seq] = add(%mm, %j)"""


@pytest.mark.parametrize(("body", "reason"), [
    (f"{X} return %x", "there is no attention"),
    (f"{X} {ATTENTION.replace(', %m)', ')')} return %y", "its keys are not masked"),
    (f"{MASK.replace('%one, %cast', '%cast, %one')} {X} {ATTENTION} return %y",
     "its mask adds 3.4e+38 where %mask is 0, expected -10000 or less"),
    (f"{MASK.replace('reshape(%mul)', 'reshape(%sub)')} {X} {ATTENTION} return %y",
     "its mask adds 1 where %mask is 0, expected -10000 or less"),
    (f"{MASK.replace('sub(%one, %cast)', 'sub(%cast, %zero)')} {X} {ATTENTION} return %y",
     "its mask adds -3.4e+38 where %mask is 1, expected 0"),
    (f"{MASK.replace('%m:', '%mm:')} {PLACE.replace('%k', '%m')} {X} {ATTENTION} return %y",
     "its mask is not computed from %mask element by element (iota %i)"),
    (f"{MASK} %flat: f32[batch, 1] = reduce_max(%mul) {{axes = (1)}} %n: f32[batch, seq] = add(%mul, %flat) "
     "%o: f32[batch, 1, 1, seq] = reshape(%n) {shape = (batch, 1, 1, seq)} "
     f"{X} {ATTENTION.replace('%m)', '%o)')} return %y",
     "its mask is not computed from %mask element by element (reduce_max %flat)"),
    (f"{MASK} %o: f32[batch, 1, seq, 1] = reshape(%m) {{shape = (batch, 1, seq, 1)}} {X} "
     f"{ATTENTION.replace('%m)', '%o)')} return %y", "differs from head to head or from query to query"),
    (f"{MASK}{ALIKE} {X} {ATTENTION} {SECOND} return %y, %v", "its padding mask is %ids, that of others another"),
    (f"{MASK} {X} {ATTENTION} {SECOND.replace(', %other)', ')')} return %y, %v", "its keys are not masked"),
])
def test_reasons_not_to(body: str, reason: str) -> None:
    assert reason in declined(f"{HEAD}{body} }}")


def test_a_mask_by_name() -> None:
    text = f"{HEAD}{MASK} {X} {ATTENTION} return %y }}"
    assert "computed from mask, not from ids alone" in declined(text, "ids")
    graph = parse(text)
    assert pack(graph, "mask").rewrites
    with pytest.raises(CompileError, match="no input 'padding'; its inputs are ids, mask"):
        pack(parse(text), "padding")


def test_sizes_that_are_fixed_or_have_the_name() -> None:
    text = textwrap.dedent(f"{HEAD}{MASK} {X} {ATTENTION} return %y }}")
    for before, batch, seq in (("batch", "2", "seq"), ("seq", "batch", "5"), ("batch", "tokens", "seq")):
        fixed = text.replace("batch", batch).replace("seq", seq)
        graph = parse(fixed)
        reference = clone(graph)
        pack(graph)
        assert list(graph.counts) == ["tokens_1" if batch == "tokens" else "tokens"], before
        ids, mask = np.arange(10).reshape(2, 5) % 9, np.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0]])
        feeds = {"ids": ids, "mask": mask}
        [wanted], [got] = interpret(reference, feeds), interpret(graph, feeds)
        np.testing.assert_array_equal(got, wanted * mask[:, :, None])
