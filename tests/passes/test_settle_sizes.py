"""Sizes that can only be one thing get the form of that thing."""
from __future__ import annotations

import pytest

from q8c.passes.canonicalize import Canonicalize
from q8c.passes.manager import run_passes
from q8c.passes.settle_sizes import SettleSizes
from tests.passes.support import check, parse

INPUTS = "%x: f32[batch, seq, 2], %k: f32[batch, past, 2], %m: {dtype}[batch, total]"
SIZES = {"batch": 2, "seq": 3, "past": 4, "total": 7}
ADDED = """graph @g({inputs}) {{
  {assume}%kx: f32[batch, past + seq, 2] = concat(%k, %x) {{axis = 1}}
  %w: f32[batch, {total}, 1] = reshape(%m) {{shape = (batch, {total}, 1)}}
  %y: f32[batch, past + seq, 2] = mul(%kx, %w)
  return %y
}}
"""


def test_a_size_taken_to_be_a_sum() -> None:
    inputs = INPUTS.format(dtype="f32")
    report = check(SettleSizes(), ADDED.format(inputs=inputs, total="total", assume="assume total == past + seq\n  "),
                   ADDED.format(inputs=inputs.replace("total", "past + seq"), total="past + seq", assume=""),
                   sizes=SIZES)
    assert "total of %m is past + seq" in str(report.rewrites[0])


# row `batch` and column `past + seq` of the mask, by tuples, and in the mask laid flat
TUPLES = """%row: i64[batch, past + seq] = broadcast_to(%rows) {shape = (batch, past + seq)}
  %col: i64[batch, past + seq] = broadcast_to(%cols) {shape = (batch, past + seq)}
  %row1: i64[batch, past + seq, 1] = reshape(%row) {shape = (batch, past + seq, 1)}
  %col1: i64[batch, past + seq, 1] = reshape(%col) {shape = (batch, past + seq, 1)}
  %at: i64[batch, past + seq, 2] = concat(%row1, %col1) {axis = 2}
  %y: i64[batch, past + seq] = gather_nd(%m, %at)"""
FLAT = """%flat: i64[batch*total] = reshape(%m) {shape = (batch*total)}
  %size: i64[1] = sizes() {values = (total)}
  %first: i64[batch, 1] = mul(%rows, %size)
  %at: i64[batch, past + seq] = add(%first, %cols)
  %y: i64[batch, past + seq] = gather(%flat, %at) {axis = 0}"""


@pytest.mark.parametrize("read", [TUPLES, FLAT], ids=["tuples", "flat"])
def test_a_size_as_far_as_it_is_read(read: str) -> None:
    inputs = INPUTS.format(dtype="i64")
    check([SettleSizes(), Canonicalize()], f"""graph @g({inputs}) {{
  %i: i64[batch] = iota() {{size = batch}}
  %rows: i64[batch, 1] = reshape(%i) {{shape = (batch, 1)}}
  %j: i64[past + seq] = iota() {{size = past + seq}}
  %cols: i64[1, past + seq] = reshape(%j) {{shape = (1, past + seq)}}
  {read}
  return %y
}}""", f"graph @g({inputs.replace('total', 'past + seq')}) {{ return %m }}", sizes=SIZES)


def test_a_mask_is_of_the_tokens_it_is_read_for() -> None:
    text = """graph @g(%ids: i64[batch, seq], %x: f32[batch, seq], %m: i64[others, total]{more}) {{
  %i: i64[batch] = iota() {{size = batch}}
  %row: i64[batch, 1] = reshape(%i) {{shape = (batch, 1)}}
  %rows: i64[batch, seq] = broadcast_to(%row) {{shape = (batch, seq)}}
  %j: i64[seq] = iota() {{size = seq}}
  %cols: i64[batch, seq] = broadcast_to(%j) {{shape = (batch, seq)}}
  %row1: i64[batch, seq, 1] = reshape(%rows) {{shape = (batch, seq, 1)}}
  %col1: i64[batch, seq, 1] = reshape(%cols) {{shape = (batch, seq, 1)}}
  %at: i64[batch, seq, 2] = concat(%row1, %col1) {{axis = 2}}
  %y: i64[batch, seq] = gather_nd(%m, %at)
  return %y
}}"""
    sizes = {"batch": 2, "seq": 3, "others": 2, "total": 3}
    check([SettleSizes(), Canonicalize()], text.format(more=""),
          "graph @g(%ids: i64[batch, seq], %x: f32[batch, seq], %m: i64[batch, seq]) { return %m }", sizes=sizes)
    floats = text.format(more=", %z: f32[others, total]")  # rows of a table may be more than are read
    assert not any(step.changed for step in run_passes(parse(floats), [SettleSizes()]).steps)


def test_a_mask_has_as_many_rows_as_it_is_reshaped_to() -> None:
    before = """graph @g(%x: f32[batch, seq], %m: i64[others, total]) {
  assume others*total == (others*total // batch)*batch
  %y: i64[batch, (others*total // batch)] = reshape(%m) {shape = (batch, (others*total // batch))}
  return %x, %y
}"""
    sizes = {"batch": 2, "seq": 3, "others": 2, "total": 5}
    check([SettleSizes(), Canonicalize()], before, """graph @g(%x: f32[batch, seq], %m: i64[batch, total]) {
  return %x, %m
}""", sizes=sizes)
    floats = before.replace("i64", "f32")
    assert not any(step.changed for step in run_passes(parse(floats), [SettleSizes()]).steps)


PASTS = """graph @g(%new: f32[b, 2, s, 4], %k: f32[b, 2, past, 4], %v: f32[b, 2, {other}, 4]) {{
  %keys: f32[b, 2, past + s, 4] = concat(%k, %new) {{axis = 2}}
  %values: f32[b, 2, {other} + s, 4] = concat(%v, %{new}) {{axis = 2}}
  return %keys{read}
}}"""


def test_pasts_that_grow_together_are_of_one_length() -> None:
    sizes = {"b": 1, "s": 2, "past": 3, "other": 3}
    values = ", %values"
    check(SettleSizes(), PASTS.format(other="other", new="new", read=values),
          PASTS.format(other="past", new="new", read=values), sizes=sizes)
    for text in (PASTS.format(other="other", new="new", read=""),  # not kept
                 PASTS.format(other="other", new="new2", read=values).replace(  # of tokens of its own
                     ") {", ", %new2: f32[b, 2, s2, 4]) {", 1).replace("+ s, 4] = concat(%v", "+ s2, 4] = concat(%v")):
        assert not any(step.changed for step in run_passes(parse(text), [SettleSizes()]).steps)


@pytest.mark.parametrize(("assume", "inputs"), [
    ("assume total == seq\n  ", INPUTS),  # no sum: the names are as good as each other
    ("assume total == past + seq\n  ", INPUTS + ", %z: f32[2*total]"),  # another input has to do with it
    ("assume total == past + seq + far\n  ", INPUTS.replace("%k", "%z: f32[far + 1], %k"))])
def test_a_size_that_stays(assume: str, inputs: str) -> None:
    text = f"graph @g({inputs.format(dtype='f32')}) {{\n  {assume}return %x\n}}"
    check(SettleSizes(), text, None, feeds=None, sizes={**SIZES, "far": 0} if "far" in inputs else {
        **SIZES, "total": 3 if "== seq" in assume else 7})
