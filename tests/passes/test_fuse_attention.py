"""Attention becomes one node: its scores, masks and sinks; what does not fit is declined with the reason."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir.feeds import random_feeds
from q8c.passes.fuse_attention import FuseAttention
from tests.passes.attention_text import ATTRS, HEADS, INPUTS, JOIN, RAW, SIZES, SOFTMAX, TOLERANCE, ZERO, fused, run
from tests.passes.support import check, parse


@pytest.mark.parametrize(("scores", "mask", "attrs"), [
    ("%masked: f32[b, 3, s, t] = matmul(%qh, %kt)", "", "scale = 1.0"),
    ("""const %root: f32[] = 2.0
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %masked: f32[b, 3, s, t] = div(%raw, %root)""", "", "scale = 0.5"),
    ("""const %half: f32[] = 0.5
        const %low: f32[] = -3e38
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %first: f32[b, 3, s, t] = add(%raw, %m)
        %kept: f32[b, 3, s, t] = where(%c, %first, %low)
        %masked: f32[b, 3, s, t] = mul(%kept, %half)""", """
        const %half: f32[] = 0.5
        const %low: f32[] = -3e38
        %m1: f32[b, 1, 1, t] = mul(%m, %half)
        %mask: f32[b, 1, 1, t] = where(%c, %m1, %low)""", "scale = 0.5"),
    ("""const %scale: f32[1] = [0.5]
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %scaled: f32[b, 3, s, t] = mul(%scale, %raw)
        %masked: f32[b, 3, s, t] = add(%scaled, %m)""", "#", "scale = 0.5"),
    ("""const %cap: f32[] = 4.0
        const %half: f32[] = 0.5
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %scaled: f32[b, 3, s, t] = mul(%raw, %half)
        %part: f32[b, 3, s, t] = div(%scaled, %cap)
        %bound: f32[b, 3, s, t] = tanh(%part)
        %capped: f32[b, 3, s, t] = mul(%bound, %cap)
        %masked: f32[b, 3, s, t] = add(%capped, %m)""", "#", "scale = 0.5, softcap = 4.0"),
    ("""const %root: f32[] = 0.5
        %qs: f32[b, 3, s, 8] = mul(%qh, %root)
        %ks: f32[b, 3, 8, t] = mul(%kt, %root)
        %raw: f32[b, 3, s, t] = matmul(%qs, %ks)
        %masked: f32[b, 3, s, t] = add(%m, %raw)""", "#", "scale = 0.25"),
    ("""const %zero: f32[1] = [0.0]
        const %low: f32[1] = [-inf]
        %bias: f32[b, 1, 1, t] = where(%c, %zero, %low)
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %masked: f32[b, 3, s, t] = add(%raw, %bias)""",
     """const %zero: f32[1] = [0.0]
        const %low: f32[1] = [-inf]
        %mask: f32[b, 1, 1, t] = where(%c, %zero, %low)""", "scale = 1.0"),
    ("""const %low: f32[] = -3.4028235e+38
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %masked: f32[b, 3, s, t] = where(%c, %raw, %low)""",
     """const %zero: f32[] = 0.0
        const %low: f32[] = -3.4028235e+38
        %mask: f32[b, 1, 1, t] = where(%c, %zero, %low)""", "scale = 1.0"),
    ("""const %low: f32[] = -inf
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %first: f32[b, 3, s, t] = add(%raw, %m)
        %masked: f32[b, 3, s, t] = where(%c, %low, %first)""",
     """const %low: f32[] = -inf
        %mask: f32[b, 1, 1, t] = where(%c, %low, %m)""", "scale = 1.0"),
    ("""%raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %first: f32[b, 3, s, t] = add(%raw, %m)
        %masked: f32[b, 3, s, t] = add(%first, %m)""",
     "%mask: f32[b, 1, 1, t] = add(%m, %m)", "scale = 1.0"),
    ("""%raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %masked: f32[b, 3, s, t] = sub(%raw, %m)""",
     """const %minus: f32[] = -1.0
        %mask: f32[b, 1, 1, t] = mul(%m, %minus)""", "scale = 1.0"),
    ("""const %low: f32[] = -3.4028235e+38
        const %infinite: f32[] = -inf
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %first: f32[b, 3, s, t] = max(%low, %raw)
        %hidden: f32[b, 3, s, t] = where(%c, %first, %infinite)
        %masked: f32[b, 3, s, t] = max(%hidden, %low)""",
     """const %zero: f32[] = 0.0
        const %low: f32[] = -3.4028235e+38
        const %infinite: f32[] = -inf
        %hidden: f32[b, 1, 1, t] = where(%c, %zero, %infinite)
        %mask: f32[b, 1, 1, t] = max(%hidden, %low)""", "scale = 1.0"),
])
def test_scales_and_masks(scores: str, mask: str, attrs: str) -> None:
    run(INPUTS + HEADS + scores + "\n" + SOFTMAX + JOIN, fused(mask, attrs))


def test_sizes_of_masks_that_go_by_another_name() -> None:
    """As PyTorch's newer exporter calls the sizes of every input."""
    inputs = INPUTS.replace("%m: f32[b, 1, 1, t]", "%m: f32[b, 1, 1, u]").replace(", %c: bool[b, 1, 1, t]", "") + "assume u == t\n"
    run(inputs + HEADS + RAW + """
      %masked: f32[b, 3, s, u] = add(%m, %raw)
      %p: f32[b, 3, s, u] = softmax(%masked)
    """ + JOIN, f"{inputs} %z: f32[b, s, 24] = attention(%q, %k, %v, %m) {{{ATTRS}, scale = 1.0}}\n return %z\n}}")


NAN = """  %weights: f32[b, 3, s, t] = softmax(%masked)
  %bad: bool[b, 3, s, t] = is_nan(%weights)
  %p: f32[b, 3, s, t] = where(%bad, %zero, %weights)
"""


def test_weights_that_are_nan_become_zero() -> None:
    before = INPUTS + HEADS + ZERO + RAW + "  %masked: f32[b, 3, s, t] = add(%raw, %m)\n" + NAN + JOIN
    run(before, fused("#", "scale = 1.0, nan_to_zero = true"))


SINKS = """
  %column: f32[b, 3, s, 1] = broadcast_to(%sink) {shape = (b, 3, s, 1)}
  %more: f32[b, 3, s, t + 1] = concat(%masked, %column) {axis = 3}
  %all: f32[b, 3, s, t + 1] = softmax(%more)
  %p: f32[b, 3, s, t] = slice(%all) {starts = (0, 0, 0, 0), sizes = (b, 3, s, t), steps = (1, 1, 1, 1)}
"""
MASKED = """
  %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
  %masked: f32[b, 3, s, t] = add(%raw, %m)"""


def test_a_column_that_is_left_out_is_a_sink_for_each_head() -> None:
    inputs = INPUTS.replace("%m:", "%sink: f32[1, 3, 1, 1], %m:")
    run(f"{inputs}{HEADS}{MASKED}{SINKS}{JOIN}", f"""{inputs}
  %sinks: f32[3] = reshape(%sink) {{shape = (3)}}
  %z: f32[b, s, 24] = attention(%q, %k, %v, %m, -, -, -, %sinks) {{{ATTRS}, scale = 1.0}}
  return %z
}}""")


def test_a_column_that_differs_by_query_is_no_sink() -> None:
    inputs = INPUTS.replace("%m:", "%sink: f32[1, 3, s, 1], %m:")
    report = run(f"{inputs}{HEADS}{MASKED}{SINKS}{JOIN}", None)
    assert ["last column f32[b, 3, s, 1] that is not a number for each head" in str(d) for d in report.declines] == [True]


def test_masks_are_computed_without_the_broadcasts_of_their_parts_and_once_for_all_layers() -> None:
    layer = """
      %raw{0}: f32[b, 3, s, t] = matmul(%qh, %kt)
      %masked{0}: f32[b, 3, s, t] = add(%raw{0}, %bias)
      %p{0}: f32[b, 3, s, t] = softmax(%masked{0})
      %zh{0}: f32[b, 3, s, 8] = matmul(%p{0}, %vh)
      %zt{0}: f32[b, s, 3, 8] = transpose(%zh{0}) {{perm = (0, 2, 1, 3)}}
      %z{0}: f32[b, s, 24] = reshape(%zt{0}) {{shape = (b, s, 24)}}
    """
    mask = """
      const %zero: f32[] = 0.0
      const %low: f32[] = -inf
    """
    run(INPUTS + HEADS + mask + """
      %wide: bool[b, 1, s, t] = broadcast_to(%c) {shape = (b, 1, s, t)}
      %bias: f32[b, 1, s, t] = where(%wide, %zero, %low)""" + layer.format(1) + layer.format(2) + """
      %z: f32[b, s, 24] = add(%z1, %z2)
      return %z
    }""", INPUTS + mask + f"""
      %mask: f32[b, 1, 1, t] = where(%c, %zero, %low)
      %z1: f32[b, s, 24] = attention(%q, %k, %v, %mask) {{{ATTRS}, scale = 1.0}}
      %z2: f32[b, s, 24] = attention(%q, %k, %v, %mask) {{{ATTRS}, scale = 1.0}}
      %z: f32[b, s, 24] = add(%z1, %z2)
      return %z
    }}""")


@pytest.mark.parametrize(("scores", "reason"), [
    ("""const %minus: f32[] = -0.5
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %first: f32[b, 3, s, t] = add(%raw, %m)
        %masked: f32[b, 3, s, t] = mul(%first, %minus)""", "the scores are scaled after a mask was applied"),
    ("""const %small: f32[] = 1e-35
        const %low: f32[] = -3e38
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %first: f32[b, 3, s, t] = where(%c, %raw, %low)
        %masked: f32[b, 3, s, t] = mul(%first, %small)""", "the scores are scaled after a mask was applied"),
    ("""const %low: f32[] = -9999.0
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %masked: f32[b, 3, s, t] = where(%c, %raw, %low)""",
     "masked scores become -9999.0, which is not the same as adding it"),
    ("""const %low: f32[] = -1e9
        %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %first: f32[b, 3, s, t] = where(%c, %raw, %low)
        %masked: f32[b, 3, s, t] = add(%first, %m)""",
     "masked scores become -1e+09, which weighs something beside what other masks make of them"),
    ("""%raw: f32[b, 3, s, t] = matmul(%qh, %kt)
        %masked: f32[b, 3, s, t] = where(%c, %raw, %m)""",
     "masked scores become None, which is not the same as adding it"),
])
def test_declines(scores: str, reason: str) -> None:
    report = run(INPUTS + HEADS + scores + "\n" + SOFTMAX + JOIN, None)
    assert [note.text for note in report.declines] == [reason]


def test_weights_that_are_returned_are_kept() -> None:
    before = INPUTS + HEADS + RAW.replace("raw", "masked") + SOFTMAX + JOIN.replace("return %z", "return %z, %p")
    assert [note.text for note in run(before, None).declines] == ["the weights are read elsewhere too"]


def test_the_node_stands_for_all_it_replaces() -> None:
    report = run(INPUTS + HEADS + RAW.replace("raw", "masked") + SOFTMAX + JOIN, fused("", "scale = 1.0"))
    assert report.rewrites[0].source == ("split", "weighted")
    assert report.rewrites[0].text == "3 heads of 8"


def test_a_row_whose_keys_are_all_masked_gives_what_it_gave() -> None:
    before = INPUTS + HEADS + ZERO + RAW + "  %masked: f32[b, 3, s, t] = add(%raw, %m)\n"
    rng = np.random.default_rng(5)
    feeds = {n: rng.standard_normal((2, 5, 24)).astype(np.float32) for n in "qkv"}
    feeds |= {"m": np.full((2, 1, 1, 5), -np.inf, np.float32), "c": np.zeros((2, 1, 1, 5), bool)}
    feeds["m"][1] = 0
    for weights, attrs in ((NAN, "scale = 1.0, nan_to_zero = true"), (SOFTMAX, "scale = 1.0")):
        text = before.replace(ZERO, "") if weights is SOFTMAX else before
        check(FuseAttention(), text + weights + JOIN, fused("#", attrs), feeds=feeds, tolerance=TOLERANCE)


@pytest.mark.parametrize("low", [-1e4, -1e9])
def test_a_number_in_place_of_scores_weighs_all_keys_alike_where_none_is_seen(low: float) -> None:
    masked = RAW + f"  const %low: f32[] = {low}\n  %masked: f32[b, 3, s, t] = where(%c, %raw, %low)\n"
    rng = np.random.default_rng(5)
    feeds = {n: 10 * rng.standard_normal((2, 5, 24)).astype(np.float32) for n in "qkv"}  # scores in the hundreds
    feeds |= {"m": np.zeros((2, 1, 1, 5), np.float32), "c": np.zeros((2, 1, 1, 5), bool)}
    feeds["c"][1, ..., 2:] = True
    mask = """const %zero: f32[] = 0.0
        const %low: f32[] = -1e+30
        %mask: f32[b, 1, 1, t] = where(%c, %zero, %low)"""
    check(FuseAttention(), INPUTS + HEADS + masked + SOFTMAX + JOIN, fused(mask, "scale = 1.0"), feeds=feeds,
          tolerance=TOLERANCE)


def test_rows_without_keys_become_zero_behind_the_joined_heads() -> None:
    emptied = SOFTMAX + """
      const %low: f32[] = -inf
      %top: f32[b, 1, 1, 1] = reduce_max(%m) {axes = (3)}
      %empty: bool[b, 1, 1, 1] = equal(%top, %low)
      %product: f32[b, 3, s, 8] = matmul(%p, %vh)
      %zh: f32[b, 3, s, 8] = where(%empty, %zero, %product)
      """ + JOIN.partition("\n")[2].partition("\n")[2]
    rng = np.random.default_rng(5)
    feeds = {n: rng.standard_normal((2, 5, 24)).astype(np.float32) for n in "qkv"}
    feeds |= {"m": np.full((2, 1, 1, 5), -np.inf, np.float32), "c": np.zeros((2, 1, 1, 5), bool)}
    feeds["m"][1, ..., 1:] = 0
    feeds["k"][1, 2] = np.nan  # what is no number stays none
    check(FuseAttention(), INPUTS + HEADS + ZERO + RAW + "  %masked: f32[b, 3, s, t] = add(%raw, %m)\n" + emptied,
          INPUTS + f"""
      const %zero: f32[] = 0.0
      const %low: f32[] = -inf
      %top: f32[b, 1, 1, 1] = reduce_max(%m) {{axes = (3)}}
      %empty: bool[b, 1, 1, 1] = equal(%top, %low)
      %y: f32[b, s, 24] = attention(%q, %k, %v, %m) {{{ATTRS}, scale = 1.0}}
      %test: bool[b, 1, 1] = reshape(%empty) {{shape = (b, 1, 1)}}
      %z: f32[b, s, 24] = where(%test, %zero, %y)
      return %z
    }}""", feeds=feeds, tolerance=TOLERANCE)


HIDDEN = """
  const %low: f32[] = -3.4028235e+38
  %raw: f32[b, 3, s, t] = matmul(%qh, %kt)
  %kept: f32[b, 3, s, t] = where(%c, %low, %raw)
  %weights: f32[b, 3, s, t] = softmax(%kept)
"""


def test_weights_that_become_zero_where_scores_are_hidden_are_left_to_a_sink() -> None:
    """As DeBERTa's softmax has them: 0 even for a query that sees no key."""
    feeds = random_feeds(parse(f"{INPUTS} return %q\n}}"), sizes=SIZES)
    feeds["c"] = np.array([[0, 1, 0, 1, 0], [1, 1, 1, 1, 1]], np.bool_).reshape(2, 1, 1, 5)
    check(FuseAttention(), f"{INPUTS}{HEADS}{ZERO}{HIDDEN}\n %p: f32[b, 3, s, t] = where(%c, %zero, %weights)\n{JOIN}",
          fused("""const %none: f32[] = -inf
            const %zero: f32[] = 0.0
            %mask: f32[b, 1, 1, t] = where(%c, %none, %zero)""", "scale = 1.0").replace("%mask)", "%mask, -, -, -, %sinks)").replace(
              "const %none", "const %sinks: f32[3] = [-1e+30, -1e+30, -1e+30]\n const %none"),
          feeds=feeds, tolerance=TOLERANCE)


def test_weights_that_become_zero_elsewhere_are_kept() -> None:
    report = run(f"{INPUTS}{HEADS}{ZERO}{HIDDEN}\n %p: f32[b, 3, s, t] = where(%c, %weights, %zero)\n{JOIN}", None)
    assert [note.text for note in report.declines] == ["its weights become 0 where no mask hides them"]
