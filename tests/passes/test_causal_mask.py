"""Masks that hide later keys and padding become what they mean; others stay, and why."""
from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest

from q8c.ir import Array, interpret
from q8c.ir.feeds import random_feeds
from q8c.ir.graph import Attr
from q8c.passes.fuse_attention import FuseAttention
from q8c.passes.manager import Report, run_passes
from tests.passes.support import compare, parse

LOWEST = float(np.finfo(np.float32).min)
SIZES = {"batch": 3, "past": 2, "seq": 4}
KEYS = "past + seq"
# positions of keys [keys] and, as a column, of queries [seq, 1]
POSITIONS = f"""%j: i64[{KEYS}] = iota() {{size = {KEYS}}}
  %i: i64[seq] = iota() {{size = seq}}
  const %zero: f32[] = 0.0
  const %low: f32[] = {LOWEST}
  %past: i64[1] = sizes() {{values = (past)}}
  %at: i64[seq] = add(%i, %past)
  %q: i64[seq, 1] = reshape(%at) {{shape = (seq, 1)}}"""
NEAR = f"""{POSITIONS}
  %near: bool[seq, {KEYS}] = less_equal(%j, %q)"""
PADDED = f"""{NEAR}
  %there: bool[batch, {KEYS}] = cast(%mask) {{to = bool}}
  %wide: bool[batch, 1, 1, {KEYS}] = reshape(%there) {{shape = (batch, 1, 1, {KEYS})}}
  %seen: bool[batch, 1, seq, {KEYS}] = and(%wide, %near)"""
FULL = f"f32[batch, 2, seq, {KEYS}]"


def attention(masks: str, masked: str, tail: str = "") -> str:
    """Attention of two heads of four; `masks` are made before, `masked` makes %m of the scores %s."""
    return f"""graph @g(%q4: f32[batch, 2, seq, 4], %k4: f32[batch, 2, {KEYS}, 4], %v4: f32[batch, 2, {KEYS}, 4],
    %mask: i64[batch, {KEYS}]) {{
  {masks}
  %kt: f32[batch, 2, 4, {KEYS}] = transpose(%k4) {{perm = (0, 1, 3, 2)}}
  %s: {FULL} = matmul(%q4, %kt)
  {masked}
  %w: {FULL} = softmax(%m) {{axis = 3}}
  {tail}
  %o: f32[batch, 2, seq, 4] = matmul(%{"n" if tail else "w"}, %v4)
  %t: f32[batch, seq, 2, 4] = transpose(%o) {{perm = (0, 2, 1, 3)}}
  %y: f32[batch, seq, 8] = reshape(%t) {{shape = (batch, seq, 8)}}
  return %y
}}"""


def fuse(text: str, constants: Mapping[str, Array] | None = None,
         tolerance: float = 1e-6) -> tuple[dict[str, Attr], list[str], Report]:
    """The attributes of the attention a text becomes, what its masks are, and the report. Results must stay: for
    sequences with padding on either side, and one that is all padding."""
    before, after = parse(text, constants), parse(text, constants)
    report = run_passes(after, [FuseAttention()])
    feeds = random_feeds(before, sizes=SIZES)
    feeds["mask"] = np.array([[1, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1], [0] * 6])
    [x], [y] = interpret(before, feeds), interpret(after, feeds)
    np.testing.assert_allclose(y, x, rtol=0, atol=tolerance)
    compare(before, after, {**feeds, "mask": np.ones((3, 6), np.int64)}, tolerance)
    [node] = [n for n in after.nodes if n.op == "attention"]
    assert "softmax" not in {n.op for n in after.nodes}
    return node.attrs, ["-" if v is None else v.name for v in node.inputs[3:]], report


def where(condition: str, fill: str = "low") -> str:
    """0 or the fill, added."""
    shape = "batch, 1, seq" if condition == "seen" else "seq"
    return f"""%add: f32[{shape}, {KEYS}] = where(%{condition}, %zero, %{fill})
  %m: {FULL} = add(%s, %add)"""


BUFFER = f"""const %tril: bool[1, 1, 9, 9] = @tril
  const %low: f32[] = {LOWEST}
  %near: bool[1, 1, seq, {KEYS}] = slice(%tril) {{starts = (0, 0, past, 0), sizes = (1, 1, seq, {KEYS}),
    steps = (1, 1, 1, 1)}}"""
TRIU = f"""{NEAR}
  %late: bool[seq, {KEYS}] = greater(%j, %q)
  %i1: i64[seq, 1] = reshape(%i) {{shape = (seq, 1)}}
  %upper: bool[seq, {KEYS}] = less(%i1, %j)
  %full: f32[seq, {KEYS}] = where(%upper, %low, %zero)
  %far: f32[seq, {KEYS}] = cast(%late) {{to = f32}}
  %add: f32[seq, {KEYS}] = mul(%full, %far)"""
INVERTED = f"""{POSITIONS}
  const %one: f32[] = 1.0
  %late: bool[seq, {KEYS}] = greater(%j, %q)
  %real: f32[batch, {KEYS}] = cast(%mask) {{to = f32}}
  %gone: f32[batch, {KEYS}] = sub(%one, %real)
  %pad: f32[batch, {KEYS}] = mul(%gone, %low)
  %pad4: f32[batch, 1, 1, {KEYS}] = reshape(%pad) {{shape = (batch, 1, 1, {KEYS})}}"""


# a window as decoders have it, and as encoders do
LAST = f"""{PADDED.replace('%seen', '%early')}
  const %three: i64[] = 3
  %start: i64[seq, 1] = sub(%q, %three)
  %late: bool[seq, {KEYS}] = greater(%j, %start)
  %seen: bool[batch, 1, seq, {KEYS}] = and(%early, %late)"""
CLOSE = f"""{POSITIONS}
  const %three: i64[] = 3
  %away: i64[seq, {KEYS}] = sub(%j, %q)
  %far: i64[seq, {KEYS}] = abs(%away)
  %close: bool[seq, {KEYS}] = less(%far, %three)"""


@pytest.mark.parametrize(("masks", "masked", "operands"), [
    (NEAR, where("near"), []),
    (NEAR, f"%m: {FULL} = where(%near, %s, %low)", []),
    (BUFFER, f"%m: {FULL} = where(%near, %s, %low)", []),
    (TRIU, f"%m: {FULL} = add(%s, %add)", []),
    (PADDED, where("seen"), ["-", "mask"]),
    (PADDED, f"%m: {FULL} = where(%seen, %s, %low)", ["-", "mask"]),
    (PADDED, f"""%a: {FULL} = where(%near, %s, %low)
  %m: {FULL} = where(%wide, %a, %low)""", ["-", "mask"]),
    (PADDED + "\n  const %weak: f32[] = -10000.0", f"%m: {FULL} = where(%seen, %s, %weak)", ["-", "mask"]),
    (INVERTED, f"""%add: f32[batch, 1, seq, {KEYS}] = where(%late, %low, %pad4)
  %m: {FULL} = add(%s, %add)""", ["-", "mask"]),
    (INVERTED, f"""%a: {FULL} = add(%s, %pad4)
  %add: f32[seq, {KEYS}] = where(%late, %low, %zero)
  %c: {FULL} = add(%a, %add)
  %m: {FULL} = max(%c, %low)""", ["-", "mask"])],
    ids=["added", "filled", "buffer", "triu", "padded", "padded-filled", "padded-twice", "padded-weakly", "inverted",
         "raised"])
def test_spellings(masks: str, masked: str, operands: list[str]) -> None:
    attrs, found, report = fuse(attention(masks, masked), {"tril": np.tri(9, dtype=bool)[None, None]})
    assert attrs["causal"] is True and attrs.get("spread", False) is bool(operands) and found == operands
    assert not report.declines


@pytest.mark.parametrize(("masks", "name", "expected", "operands"), [
    (LAST, "seen", {"causal": True, "window": 3, "spread": True}, ["-", "mask"]), (CLOSE, "close", {"window": 3}, [])])
def test_windows(masks: str, name: str, expected: dict[str, Attr], operands: list[str]) -> None:
    attrs, found, report = fuse(attention(masks, where(name)))
    assert {n: a for n, a in attrs.items() if n in ("causal", "window", "spread")} == expected and found == operands
    assert not report.declines


@pytest.mark.filterwarnings("error")
def test_the_lowest_number_twice_is_minus_infinity() -> None:
    masked = where("near").replace("%m:", "%a:") + f"\n  %m: {FULL} = add(%a, %add)"
    attrs, found, report = fuse(attention(NEAR, masked))
    assert attrs["causal"] is True and not found and not report.declines


def test_minus_infinity_needs_no_spreading() -> None:
    tail = f"""%nan: bool[batch, 2, seq, {KEYS}] = is_nan(%w)
  %n: {FULL} = where(%nan, %zero, %w)"""
    attrs, found, _ = fuse(attention(PADDED.replace(f"= {LOWEST}", "= -inf"), where("seen"), tail))
    assert attrs["causal"] is attrs["nan_to_zero"] is True and "spread" not in attrs and found == ["-", "mask"]


def test_a_mask_that_is_computed() -> None:
    masks = PADDED.replace("%there: bool[batch, past + seq] = cast(%mask) {to = bool}", f"""const %two: i64[] = 2
  %sum: i64[batch, {KEYS}] = cumsum(%mask) {{axis = 1}}
  %there: bool[batch, {KEYS}] = less(%sum, %two)""")
    _, _, report = fuse(attention(masks, where("seen")))
    assert "its mask is computed by cumsum" in str(report.declines[0])


@pytest.mark.parametrize(("masks", "masked", "reason"), [
    (NEAR.replace("less_equal(%j, %q)", "less(%j, %q)"), where("near"), "come 1 to inf before .* neither causal nor a"),
    (NEAR.replace("less_equal(%j, %q)", "greater_equal(%j, %q)"), where("near"), "keys that come -inf to 0 before"),
    (NEAR.replace("add(%i, %past)", "add(%i, %i)"), where("near"), "compares .* which is not how far before a query"),
    (NEAR.replace(str(LOWEST), "-5.0"), where("near"), "adds -5 to a key that comes later"),
    (PADDED.replace(str(LOWEST), "-10000.0"), where("seen"), "a query that sees no key would get weights that depend"),
    (PADDED.replace("and(%wide", "or(%wide"), where("seen"), "adds 0 to a key"),
    (PADDED.replace("and(%wide, %near)", "xor(%wide, %near)"), where("seen"), "adds 0 to a key"),
    (PADDED, f"""%a: f32[batch, 1, 1, {KEYS}] = where(%wide, %zero, %low)
  %b: f32[seq, {KEYS}] = where(%near, %zero, %low)
  %ab: f32[batch, 1, seq, {KEYS}] = add(%a, %b)
  %m: {FULL} = add(%s, %ab)""", r"depend on what its mask adds \(-inf, -3.40282e\+38\)"),
    (CLOSE.replace("less(%far", "greater(%far"), where("close"), "come -inf to -4 and 4 to inf before the query"),
    (CLOSE.replace("less(%far, %three", "less(%away, %three"), where("close"), "come -2 to inf before")])
def test_what_declines(masks: str, masked: str, reason: str) -> None:
    attrs, _, report = fuse(attention(masks, masked), tolerance=2.0**-10)  # -10000 and a score are rounded to that
    assert "causal" not in attrs
    assert re.search(reason, str(report.declines[0])), report.declines[0]


def test_buffers_that_are_no_triangle_decline() -> None:
    tril = np.tri(9, dtype=bool)[None, None].copy()
    tril[0, 0, 4, 2] = False
    text = attention(BUFFER, f"%m: {FULL} = where(%near, %s, %low)")
    attrs, _, report = fuse(text, {"tril": tril})
    assert "causal" not in attrs and "is read from the constant %tril" in str(report.declines[0])


def test_masks_of_padding_alone_stay_as_they_are() -> None:
    masks = PADDED.replace(f"%seen: bool[batch, 1, seq, {KEYS}] = and(%wide, %near)", "")
    attrs, found, report = fuse(attention(masks, f"%m: {FULL} = where(%wide, %s, %low)"))
    assert "causal" not in attrs and len(found) == 1 and not report.declines


def test_a_mask_for_no_queries() -> None:
    graph = parse("""graph @g(%q: f32[b, 2, 0, 4], %k: f32[b, 2, 5, 4], %v: f32[b, 2, 5, 4]) {
      const %mask: f32[0, 5] = @mask
      %kt: f32[b, 2, 4, 5] = transpose(%k) {perm = (0, 1, 3, 2)}
      %s: f32[b, 2, 0, 5] = matmul(%q, %kt)
      %m: f32[b, 2, 0, 5] = add(%s, %mask)
      %w: f32[b, 2, 0, 5] = softmax(%m) {axis = 3}
      %o: f32[b, 2, 0, 4] = matmul(%w, %v)
      %t: f32[b, 0, 2, 4] = transpose(%o) {perm = (0, 2, 1, 3)}
      %y: f32[b, 0, 8] = reshape(%t) {shape = (b, 0, 8)}
      return %y
    }""", {"mask": np.zeros((0, 5), np.float32)})
    run_passes(graph, [FuseAttention()])
    assert interpret(graph, random_feeds(graph, sizes={"b": 3}))[0].shape == (3, 0, 8)


GREATEST = """%top: f32[batch, 1, seq, 1] = reduce_max(%bias) {axes = (3), keepdims = true}
  %none: bool[batch, 1, seq, 1] = equal(%top, %never)"""
COUNTED = f"""const %one: f32[] = 1.0
  %ones: f32[batch, 1, seq, {KEYS}] = cast(%seen) {{to = f32}}
  %count: f32[batch, 1, seq, 1] = reduce_sum(%ones) {{axes = (3), keepdims = true}}
  %none: bool[batch, 1, seq, 1] = less(%count, %one)"""


@pytest.mark.parametrize(("test", "number", "zero"), [
    (GREATEST, "-inf", True), (GREATEST, "-1e30", False),  # the second is never so: all keys weigh alike
    (COUNTED, "-inf", True), (COUNTED, "-1e30", True), (COUNTED.replace("1.0", "2.0"), "-inf", False),
    (COUNTED.replace("cast(%seen)", "cast(%later)"), "-inf", False)])
def test_a_query_without_keys_has_zero_left_where_the_model_says_so(test: str, number: str, zero: bool) -> None:
    masks = f"""{PADDED}
  %later: bool[batch, 1, seq, {KEYS}] = not(%seen)
  const %never: f32[] = {number}
  %bias: f32[batch, 1, seq, {KEYS}] = where(%seen, %zero, %never)
  {test}"""
    text = attention(masks, f"%m: {FULL} = add(%s, %bias)").replace(
        "transpose(%o)", "transpose(%z)").replace("  %t: ", "  %z: f32[batch, 2, seq, 4] = where(%none, %zero, %o)\n  %t: ")
    graph = parse(text)
    run_passes(graph, [FuseAttention()])
    [node] = [n for n in graph.nodes if n.op == "attention"]
    assert node.attrs["causal"] and ("sinks" in [v.name for v in node.inputs if v is not None]) is zero
    feeds = random_feeds(graph, sizes=SIZES)
    feeds["mask"] = np.array([[1, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1], [0] * 6])
    found, wanted = interpret(graph, feeds)[0], interpret(parse(text), feeds)[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
