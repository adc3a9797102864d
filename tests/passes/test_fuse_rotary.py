"""Every spelling of rotary positions becomes one op."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from q8c.ir import Array
from q8c.passes.fuse_rotary import FuseRotary
from tests.passes.support import check

# %q: two heads of eight channels, behind four others; %a: the angles of positions
HEADS = """%cut: f32[batch, seq, 16] = slice(%x) {starts = (0, 0, 4), sizes = (batch, seq, 16), steps = (1, 1, 1)}
  %split: f32[batch, seq, 2, 8] = reshape(%cut) {shape = (batch, seq, 2, 8)}
  %q: f32[batch, 2, seq, 8] = transpose(%split) {perm = (0, 2, 1, 3)}"""
ANGLES = """const %freq: f32[4] = [1.0, 0.3, 0.1, 0.03]
  %p: f32[batch, seq] = cast(%at) {to = f32}
  %p1: f32[batch, seq, 1] = reshape(%p) {shape = (batch, seq, 1)}
  %a: f32[batch, seq, 4] = mul(%p1, %freq)"""
TURNED = """{ANGLES}
  %c: f32[batch, seq, 4] = cos(%a)
  %s: f32[batch, seq, 4] = sin(%a)
  %y: f32[batch, seq, 16] = rotary(%x, %c, %s) {{heads = 2, head_size = 8, rotary_size = 8, offset = 4{more}}}
  %r: f32[batch, seq, 2, 8] = reshape(%y) {{shape = (batch, seq, 2, 8)}}
  {back}
  return %z"""
BACK = "%z: f32[batch, 2, seq, 8] = transpose(%r) {perm = (0, 2, 1, 3)}"
SIZES = {"batch": 2, "seq": 3}


def cut(name: str, x: str, start: int, size: int, lead: str = "batch, 2, seq", step: int = 1) -> str:
    """A slice of the last axis."""
    return (f"%{name}: f32[{lead}, {size}] = slice(%{x}) {{starts = (0, 0, 0, {start}), sizes = ({lead}, {size}), "
            f"steps = (1, 1, 1, {step})}}")


def wide(kind: str, lead: str = "batch, 1, seq") -> str:
    """cos or sin of the angles twice, with an axis for heads."""
    return f"""%{kind}8: f32[batch, seq, 8] = {kind}(%aa)
  %{kind}w: f32[{lead}, 8] = reshape(%{kind}8) {{shape = ({lead}, 8)}}"""


BOTH = "%aa: f32[batch, seq, 8] = concat(%a, %a) {axis = 2}"
HALVES = f"""{HEADS}
  {ANGLES}
  {BOTH}
  {wide("cos")}
  {wide("sin")}
  %direct: f32[batch, 2, seq, 8] = mul(%q, %cosw)
  {cut("low", "q", 0, 4)}
  {cut("high", "q", 4, 4)}
  %minus: f32[batch, 2, seq, 4] = neg(%high)
  %half: f32[batch, 2, seq, 8] = concat(%minus, %low) {{axis = 3}}
  %crossed: f32[batch, 2, seq, 8] = mul(%half, %sinw)
  %z: f32[batch, 2, seq, 8] = add(%direct, %crossed)
  return %z"""
SPLIT = f"""{HEADS}
  {ANGLES}
  %c: f32[batch, seq, 4] = cos(%a)
  %s: f32[batch, seq, 4] = sin(%a)
  %cw: f32[batch, 1, seq, 4] = reshape(%c) {{shape = (batch, 1, seq, 4)}}
  %sw: f32[batch, 1, seq, 4] = reshape(%s) {{shape = (batch, 1, seq, 4)}}
  {cut("low", "q", 0, 4)}
  {cut("high", "q", 4, 4)}
  %lc: f32[batch, 2, seq, 4] = mul(%cw, %low)
  %hs: f32[batch, 2, seq, 4] = mul(%high, %sw)
  %first: f32[batch, 2, seq, 4] = sub(%lc, %hs)
  %hc: f32[batch, 2, seq, 4] = mul(%high, %cw)
  %ls: f32[batch, 2, seq, 4] = mul(%low, %sw)
  %second: f32[batch, 2, seq, 4] = add(%hc, %ls)
  %z: f32[batch, 2, seq, 8] = concat(%first, %second) {{axis = 3}}
  return %z"""
BEFORE_HEADS = f"""{HEADS.splitlines()[0]}
{HEADS.splitlines()[1].replace("%split", "%q")}
  {ANGLES}
  {BOTH}
  {wide("cos", "batch, seq, 1")}
  {wide("sin", "batch, seq, 1")}
  %direct: f32[batch, seq, 2, 8] = mul(%q, %cosw)
  {cut("low", "q", 0, 4, "batch, seq, 2")}
  {cut("high", "q", 4, 4, "batch, seq, 2")}
  %minus: f32[batch, seq, 2, 4] = neg(%high)
  %half: f32[batch, seq, 2, 8] = concat(%minus, %low) {{axis = 3}}
  %crossed: f32[batch, seq, 2, 8] = mul(%half, %sinw)
  %z: f32[batch, seq, 2, 8] = add(%direct, %crossed)
  return %z"""
NEIGHBOURS = f"""{HEADS}
  {ANGLES}
  %a1: f32[batch, seq, 4, 1] = reshape(%a) {{shape = (batch, seq, 4, 1)}}
  %a2: f32[batch, seq, 4, 2] = broadcast_to(%a1) {{shape = (batch, seq, 4, 2)}}
  %aa: f32[batch, seq, 8] = reshape(%a2) {{shape = (batch, seq, 8)}}
  {wide("cos")}
  {wide("sin")}
  %direct: f32[batch, 2, seq, 8] = mul(%q, %cosw)
  {cut("even", "q", 0, 4, step=2)}
  {cut("odd", "q", 1, 4, step=2)}
  %minus: f32[batch, 2, seq, 4] = neg(%odd)
  %m1: f32[batch, 2, seq, 4, 1] = reshape(%minus) {{shape = (batch, 2, seq, 4, 1)}}
  %e1: f32[batch, 2, seq, 4, 1] = reshape(%even) {{shape = (batch, 2, seq, 4, 1)}}
  %pairs: f32[batch, 2, seq, 4, 2] = concat(%m1, %e1) {{axis = 4}}
  %half: f32[batch, 2, seq, 8] = reshape(%pairs) {{shape = (batch, 2, seq, 8)}}
  %crossed: f32[batch, 2, seq, 8] = mul(%half, %sinw)
  %z: f32[batch, 2, seq, 8] = add(%direct, %crossed)
  return %z"""
COMPLEX = f"""{HEADS}
  {ANGLES}
  %c: f32[batch, seq, 4] = cos(%a)
  %s: f32[batch, seq, 4] = sin(%a)
  %cw: f32[batch, 1, seq, 4, 1] = reshape(%c) {{shape = (batch, 1, seq, 4, 1)}}
  %sw: f32[batch, 1, seq, 4, 1] = reshape(%s) {{shape = (batch, 1, seq, 4, 1)}}
  %pairs: f32[batch, 2, seq, 4, 2] = reshape(%q) {{shape = (batch, 2, seq, 4, 2)}}
  %re: f32[batch, 2, seq, 4, 1] = slice(%pairs) {{starts = (0, 0, 0, 0, 0), sizes = (batch, 2, seq, 4, 1),
    steps = (1, 1, 1, 1, 1)}}
  %im: f32[batch, 2, seq, 4, 1] = slice(%pairs) {{starts = (0, 0, 0, 0, 1), sizes = (batch, 2, seq, 4, 1),
    steps = (1, 1, 1, 1, 1)}}
  %rc: f32[batch, 2, seq, 4, 1] = mul(%re, %cw)
  %is: f32[batch, 2, seq, 4, 1] = mul(%im, %sw)
  %first: f32[batch, 2, seq, 4, 1] = sub(%rc, %is)
  %ic: f32[batch, 2, seq, 4, 1] = mul(%im, %cw)
  %rs: f32[batch, 2, seq, 4, 1] = mul(%re, %sw)
  %second: f32[batch, 2, seq, 4, 1] = add(%ic, %rs)
  %both: f32[batch, 2, seq, 4, 2] = concat(%first, %second) {{axis = 4}}
  %z: f32[batch, 2, seq, 8] = reshape(%both) {{shape = (batch, 2, seq, 8)}}
  return %z"""


def graph(body: str, signature: str = "%x: f32[batch, seq, 20], %at: i64[batch, seq]") -> str:
    """A graph of some lines."""
    return f"graph @g({signature}) {{\n  {body}\n}}\n"


@pytest.mark.parametrize(("body", "more", "back"), [
    (HALVES, "", BACK), (SPLIT, "", BACK), (BEFORE_HEADS, "", "%z: none"),
    (NEIGHBOURS, ", interleaved = true", BACK), (COMPLEX, ", interleaved = true", BACK)],
    ids=["halves", "split", "before-heads", "neighbours", "complex"])
def test_spellings(body: str, more: str, back: str) -> None:
    after = TURNED.format(ANGLES=ANGLES, more=more, back=back if back == BACK else "")
    after = after if back == BACK else after.replace("%r:", "%z:")
    check(FuseRotary(), graph(body), graph(after), sizes=SIZES)


AT_ONCE = f"""{ANGLES}
  %c: f32[batch, seq, 4] = cos(%a)
  %s: f32[batch, seq, 4] = sin(%a)
  %cw: f32[batch, seq, 1, 4, 1] = reshape(%c) {{shape = (batch, seq, 1, 4, 1)}}
  %sw: f32[batch, seq, 1, 4, 1] = reshape(%s) {{shape = (batch, seq, 1, 4, 1)}}
  %pairs: f32[batch, seq, 2, 4, 2] = reshape(%x) {{shape = (batch, seq, 2, 4, 2)}}
  %re: f32[batch, seq, 2, 4, 1] = slice(%pairs) {{starts = (0, 0, 0, 0, 0), sizes = (batch, seq, 2, 4, 1),
    steps = (1, 1, 1, 1, 1)}}
  %im: f32[batch, seq, 2, 4, 1] = slice(%pairs) {{starts = (0, 0, 0, 0, 1), sizes = (batch, seq, 2, 4, 1),
    steps = (1, 1, 1, 1, 1)}}
  %rc: f32[batch, seq, 2, 4, 1] = mul(%re, %cw)
  %is: f32[batch, seq, 2, 4, 1] = mul(%im, %sw)
  %first: f32[batch, seq, 2, 4, 1] = sub(%rc, %is)
  %ic: f32[batch, seq, 2, 4, 1] = mul(%im, %cw)
  %rs: f32[batch, seq, 2, 4, 1] = mul(%re, %sw)
  %second: f32[batch, seq, 2, 4, 1] = add(%ic, %rs)
  %both: f32[batch, seq, 2, 4, 2] = concat(%first, %second) {{axis = 4}}
  %z: f32[batch, seq, 2, 1, 8] = reshape(%both) {{shape = (batch, seq, 2, 1, 8)}}
  return %z"""


def test_heads_and_pairs_that_one_reshape_deals_out_and_one_joins() -> None:
    """As in Llama's reference code, whose heads of keys get one more axis, in which they are repeated."""
    signature = "%x: f32[batch, seq, 16], %at: i64[batch, seq]"
    after = TURNED.format(ANGLES=ANGLES, more=", interleaved = true",
                          back="%z: f32[batch, seq, 2, 1, 8] = reshape(%r) {shape = (batch, seq, 2, 1, 8)}")
    check(FuseRotary(), graph(AT_ONCE, signature), graph(after.replace(", offset = 4", ""), signature), sizes=SIZES)


def test_reshapes_stay_one_where_nothing_is_turned() -> None:
    check(FuseRotary(), graph(AT_ONCE.replace("sub(", "add("), "%x: f32[batch, seq, 16], %at: i64[batch, seq]"), None,
          sizes=SIZES)


ONE = """const %bias: f32[8] = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 5.0, 6.0]
  %cut: f32[batch, seq, 8] = slice(%x) {starts = (0, 0, 4), sizes = (batch, seq, 8), steps = (1, 1, 1)}
  %sum: f32[batch, seq, 8] = add(%cut, %bias)"""


def test_one_head_that_a_reshape_splits_off() -> None:
    body = HALVES.replace(HEADS, f"""{ONE}
  %q: f32[batch, 1, seq, 8] = reshape(%sum) {{shape = (batch, 1, seq, 8)}}""").replace("batch, 2", "batch, 1")
    angles, product = ANGLES.rsplit("\n", 1)
    after = TURNED.format(ANGLES=f"{angles}\n  {ONE}\n{product}", more="", back=BACK)
    for old, new in (("batch, 2", "batch, 1"), ("seq, 2,", "seq, 1,"), ("seq, 16", "seq, 8"), ("(%x, %c", "(%sum, %c"),
                     ("heads = 2", "heads = 1"), (", offset = 4", "")):
        after = after.replace(old, new)
    check(FuseRotary(), graph(body), graph(after), sizes=SIZES)


FEWER = ANGLES.replace("[4]", "[2]").replace("[1.0, 0.3, 0.1, 0.03]", "[1.0, 0.1]").replace("seq, 4]", "seq, 2]")
PARTIAL = f"""{HEADS}
  {FEWER}
  %aa: f32[batch, seq, 4] = concat(%a, %a) {{axis = 2}}
  {wide("cos").replace(", 8", ", 4")}
  {wide("sin").replace(", 8", ", 4")}
  {cut("t", "q", 0, 4)}
  {cut("rest", "q", 4, 4)}
  %direct: f32[batch, 2, seq, 4] = mul(%t, %cosw)
  {cut("low", "t", 0, 2)}
  {cut("high", "t", 2, 2)}
  %minus: f32[batch, 2, seq, 2] = neg(%high)
  %half: f32[batch, 2, seq, 4] = concat(%minus, %low) {{axis = 3}}
  %crossed: f32[batch, 2, seq, 4] = mul(%half, %sinw)
  %turned: f32[batch, 2, seq, 4] = add(%direct, %crossed)
  %z: f32[batch, 2, seq, 8] = concat(%turned, %rest) {{axis = 3}}
  return %z"""


def test_channels_behind_those_turned_pass_through() -> None:
    after = TURNED.format(ANGLES=FEWER, more="", back=BACK).replace("seq, 4]", "seq, 2]")
    check(FuseRotary(), graph(PARTIAL), graph(after.replace("rotary_size = 8", "rotary_size = 4")), sizes=SIZES)


def test_channels_before_those_turned_are_no_part_of_them() -> None:
    angles, product = FEWER.rsplit("\n", 1)
    after = f"""{HEADS}
  {angles}
  {cut("rest", "q", 4, 4)}
  {cut("t", "q", 0, 4)}
{product}
  %c: f32[batch, seq, 2] = cos(%a)
  %s: f32[batch, seq, 2] = sin(%a)
  %y: f32[batch, seq, 8] = rotary(%t, %c, %s) {{heads = 2, head_size = 4, rotary_size = 4}}
  %r: f32[batch, seq, 2, 4] = reshape(%y) {{shape = (batch, seq, 2, 4)}}
  %turned: f32[batch, 2, seq, 4] = transpose(%r) {{perm = (0, 2, 1, 3)}}
  %z: f32[batch, 2, seq, 8] = concat(%rest, %turned) {{axis = 3}}
  return %z"""
    check(FuseRotary(), graph(PARTIAL.replace("concat(%turned, %rest)", "concat(%rest, %turned)")), graph(after),
          sizes=SIZES)


def tables() -> Mapping[str, Array]:
    """cos and sin of 16 positions, twice."""
    angle = np.arange(16)[:, None] * np.array([1.0, 0.3, 0.1, 0.03, 1.0, 0.3, 0.1, 0.03])
    return {"cos_table": np.cos(angle).astype(np.float32), "sin_table": np.sin(angle).astype(np.float32)}


TABLES = f"""const %cos_table: f32[16, 8] = @cos_table
  const %sin_table: f32[16, 8] = @sin_table
  {HEADS}
  %cos8: f32[batch, seq, 8] = gather(%cos_table, %at) {{axis = 0}}
  %cosw: f32[batch, 1, seq, 8] = reshape(%cos8) {{shape = (batch, 1, seq, 8)}}
  %sin8: f32[batch, seq, 8] = gather(%sin_table, %at) {{axis = 0}}
  %sinw: f32[batch, 1, seq, 8] = reshape(%sin8) {{shape = (batch, 1, seq, 8)}}
{HALVES[HALVES.index("  %direct"):]}"""


def test_tables_keep_one_of_equal_columns() -> None:
    halves = {name.replace("table", "half"): data[:, :4] for name, data in tables().items()}
    after = TURNED.format(ANGLES="""const %cos_half: f32[16, 4] = @cos_half
  const %sin_half: f32[16, 4] = @sin_half""", more="", back=BACK).replace(
        "= cos(%a)", "= gather(%cos_half, %at) {axis = 0}").replace("= sin(%a)", "= gather(%sin_half, %at) {axis = 0}")
    check(FuseRotary(), graph(TABLES), graph(after), sizes=SIZES, constants={**tables(), **halves})


def test_tables_whose_halves_differ_are_no_rotation() -> None:
    odd = {name: data + np.eye(16, 8, dtype=np.float32) for name, data in tables().items()}
    check(FuseRotary(), graph(TABLES), None, sizes=SIZES, constants=odd)


@pytest.mark.parametrize(("old", "new"), [
    ("concat(%minus, %low)", "concat(%low, %minus)"),  # turned the other way
    ("= add(%direct", "= sub(%direct"), ("neg(%high)", "abs(%high)"), ("concat(%a, %a)", "concat(%a, %b)")])
def test_what_is_no_rotation_stays(old: str, new: str) -> None:
    body = HALVES.replace("%aa:", "%b: f32[batch, seq, 4] = abs(%a)\n  %aa:")
    assert old in body
    check(FuseRotary(), graph(body.replace(old, new)), None, sizes=SIZES)


def test_numbers_that_differ_by_head_decline() -> None:
    body = HALVES.replace("mul(%q, %cosw)", "mul(%q, %cosh)").replace(
        "  %direct",
        "  const %h: f32[2, 1, 1] = [1.0, 2.0]\n  %cosh: f32[batch, 2, seq, 8] = mul(%cosw, %h)\n  %direct")
    report = check(FuseRotary(), graph(body), None, sizes=SIZES)
    assert ["is not one per position" in str(d) for d in report.declines] == [True]


def test_layers_share_cos_and_sin() -> None:
    second = HALVES[HALVES.index("%direct"):HALVES.index("  return")]
    for name in ("direct", "low", "high", "minus", "half", "crossed", "z"):
        second = second.replace(f"%{name}:", f"%{name}2:").replace(f"%{name},", f"%{name}2,").replace(
            f"%{name})", f"%{name}2)")
    body = HALVES.replace("  return %z", f"  {second}\n  return %z, %z2")
    check(FuseRotary(), graph(body), graph(TURNED.format(ANGLES=ANGLES, more="", back=BACK).replace(
        "  return %z", """%y2: f32[batch, seq, 16] = rotary(%x, %c, %s) {heads = 2, head_size = 8, rotary_size = 8,
    offset = 4}
  %r2: f32[batch, seq, 2, 8] = reshape(%y2) {shape = (batch, seq, 2, 8)}
  %z2: f32[batch, 2, seq, 8] = transpose(%r2) {perm = (0, 2, 1, 3)}
  return %z, %z2""")), sizes=SIZES)
