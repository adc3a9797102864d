"""Heads: how `fuse-attention` reads queries, keys and values split, repeated and joined in many ways."""
from __future__ import annotations

import pytest

from tests.passes.attention_text import ATTRS, HEADS, INPUTS, JOIN, RAW, SOFTMAX, fused, run


def test_keys_moved_by_reshapes_to_three_axes_and_back() -> None:
    run(INPUTS + HEADS.replace("  %kt: f32[b, 3, 8, t] = transpose(%k1) {perm = (0, 2, 3, 1)}", """
      %kh: f32[b, 3, t, 8] = transpose(%k1) {perm = (0, 2, 1, 3)}
      %k3: f32[3*b, t, 8] = reshape(%kh) {shape = (3*b, t, 8)}
      %k3t: f32[3*b, 8, t] = transpose(%k3) {perm = (0, 2, 1)}
      %kt: f32[b, 3, 8, t] = reshape(%k3t) {shape = (b, 3, 8, t)}""") + RAW.replace("raw", "masked") + SOFTMAX + JOIN,
        fused("", "scale = 1.0"))


def one_axis(masked: str) -> str:
    """Attention by products over batch and heads in one axis; `masked` makes %m3 of the scores %s3."""
    return INPUTS + HEADS + f"""
      %q3: f32[3*b, s, 8] = reshape(%qh) {{shape = (3*b, s, 8)}}
      %k3: f32[3*b, 8, t] = reshape(%kt) {{shape = (3*b, 8, t)}}
      %v3: f32[3*b, t, 8] = reshape(%vh) {{shape = (3*b, t, 8)}}
      %s3: f32[3*b, s, t] = matmul(%q3, %k3)
      {masked}
      %p: f32[3*b, s, t] = softmax(%m3)
      %z3: f32[3*b, s, 8] = matmul(%p, %v3)
      %zh: f32[b, 3, s, 8] = reshape(%z3) {{shape = (b, 3, s, 8)}}
    """ + "\n".join(JOIN.splitlines()[2:])


def test_batch_and_heads_in_one_axis() -> None:
    """As torch.bmm is exported: the mask is added on four axes, between two reshapes."""
    run(one_axis("""
      %s4: f32[b, 3, s, t] = reshape(%s3) {shape = (b, 3, s, t)}
      %m4: f32[b, 3, s, t] = add(%s4, %m)
      %m3: f32[3*b, s, t] = reshape(%m4) {shape = (3*b, s, t)}"""), fused("#", "scale = 1.0"))


def test_a_mask_of_batch_and_heads_in_one_axis() -> None:
    """As DeBERTa adds what relative positions weigh: the axis is split."""
    run(one_axis("""
      %e: f32[b, 3, s, t] = exp(%full)
      %e3: f32[3*b, s, t] = reshape(%e) {shape = (3*b, s, t)}
      %r3: f32[3*b, s, t] = mul(%e3, %e3)
      %a3: f32[3*b, s, t] = add(%s3, %e3)
      %m3: f32[3*b, s, t] = add(%a3, %r3)""").replace("%c:", "%full: f32[b, 3, s, t], %c:"),
        fused("""
      %e: f32[b, 3, s, t] = exp(%full)
      %e3: f32[3*b, s, t] = reshape(%e) {shape = (3*b, s, t)}
      %r3: f32[3*b, s, t] = mul(%e3, %e3)
      %r4: f32[b, 3, s, t] = reshape(%r3) {shape = (b, 3, s, t)}
      %mask: f32[b, 3, s, t] = add(%e, %r4)""", "scale = 1.0").replace("%c:", "%full: f32[b, 3, s, t], %c:"))


def test_rows_in_windows() -> None:
    """As Swin's projections, of rows [batch, windows, seq]: the attention's batch is both."""
    run("""
    graph @g(%x: f32[b, 2, s, 24]) {
      %h: f32[2*b, s, 3, 8] = reshape(%x) {shape = (2*b, s, 3, 8)}
      %q: f32[2*b, 3, s, 8] = transpose(%h) {perm = (0, 2, 1, 3)}
      %kt: f32[2*b, 3, 8, s] = transpose(%h) {perm = (0, 2, 3, 1)}
      %m: f32[2*b, 3, s, s] = matmul(%q, %kt)
      %p: f32[2*b, 3, s, s] = softmax(%m)
      %zh: f32[2*b, 3, s, 8] = matmul(%p, %q)
      %zt: f32[2*b, s, 3, 8] = transpose(%zh) {perm = (0, 2, 1, 3)}
      %z: f32[b, 2, s, 24] = reshape(%zt) {shape = (b, 2, s, 24)}
      return %z
    }""", f"""
    graph @g(%x: f32[b, 2, s, 24]) {{
      %q: f32[2*b, s, 24] = reshape(%x) {{shape = (2*b, s, 24)}}
      %k: f32[2*b, s, 24] = reshape(%x) {{shape = (2*b, s, 24)}}
      %v: f32[2*b, s, 24] = reshape(%x) {{shape = (2*b, s, 24)}}
      %a: f32[2*b, s, 24] = attention(%q, %k, %v) {{{ATTRS}, scale = 1.0}}
      %z: f32[b, 2, s, 24] = reshape(%a) {{shape = (b, 2, s, 24)}}
      return %z
    }}""")


def windows(mask: str, attention: str) -> str:
    """Attention within two windows of each image, and its text as fused, given a mask of the windows' scores."""
    return f"""
    graph @g(%x: f32[2*b, s, 24], %m: f32[2, 1, s, s], %heads: f32[3, 1, 1]) {{
      {mask}
      {attention}
      return %z
    }}"""


def test_masks_of_windows_and_factors_of_heads() -> None:
    """As Swin adds a mask for each window of an image, and Swin v2 scales what each head's scores are."""
    run(windows("""
      %h: f32[2*b, s, 3, 8] = reshape(%x) {shape = (2*b, s, 3, 8)}
      %q: f32[2*b, 3, s, 8] = transpose(%h) {perm = (0, 2, 1, 3)}
      %kt: f32[2*b, 3, 8, s] = transpose(%h) {perm = (0, 2, 3, 1)}""", """
      %raw: f32[2*b, 3, s, s] = matmul(%q, %kt)
      %scaled: f32[2*b, 3, s, s] = mul(%raw, %heads)
      %each: f32[b, 2, 3, s, s] = reshape(%scaled) {shape = (b, 2, 3, s, s)}
      %masked: f32[b, 2, 3, s, s] = add(%each, %m)
      %p5: f32[b, 2, 3, s, s] = softmax(%masked)
      %p: f32[2*b, 3, s, s] = reshape(%p5) {shape = (2*b, 3, s, s)}
      %zh: f32[2*b, 3, s, 8] = matmul(%p, %q)
      %zt: f32[2*b, s, 3, 8] = transpose(%zh) {perm = (0, 2, 1, 3)}
      %z: f32[2*b, s, 24] = reshape(%zt) {shape = (2*b, s, 24)}"""), windows("""
      %h: f32[2*b, s, 3, 8] = reshape(%x) {shape = (2*b, s, 3, 8)}
      %q: f32[2*b, 3, s, 8] = transpose(%h) {perm = (0, 2, 1, 3)}
      %sq: f32[2*b, 3, s, 8] = mul(%q, %heads)
      %m5: f32[1, 2, 1, s, s] = reshape(%m) {shape = (1, 2, 1, s, s)}
      %wide: f32[b, 2, 1, s, s] = broadcast_to(%m5) {shape = (b, 2, 1, s, s)}
      %mask: f32[2*b, 1, s, s] = reshape(%wide) {shape = (2*b, 1, s, s)}""", f"""
      %z: f32[2*b, s, 24] = attention(%sq, %x, %x, %mask) {{{ATTRS}, scale = 1.0}}"""))


@pytest.mark.parametrize("size", ["s", "3"])
def test_the_sequence_before_the_batch(size: str) -> None:
    """As torch.nn.MultiheadAttention has it, q, k and v from one product; sizes alike must not hide that."""
    batch = "b" if size == "s" else size
    run(f"""
    graph @g(%x: f32[{size}, {batch}, 48]) {{
      %q: f32[{size}, {batch}, 24] = slice(%x) {{starts = (0, 0, 0), sizes = ({size}, {batch}, 24), steps = (1, 1, 1)}}
      %k: f32[{size}, {batch}, 24] = slice(%x) {{starts = (0, 0, 24), sizes = ({size}, {batch}, 24), steps = (1, 1, 1)}}
      %q1: f32[{size}, 3*{batch}, 8] = reshape(%q) {{shape = ({size}, 3*{batch}, 8)}}
      %qh: f32[3*{batch}, {size}, 8] = transpose(%q1) {{perm = (1, 0, 2)}}
      %k1: f32[{size}, 3*{batch}, 8] = reshape(%k) {{shape = ({size}, 3*{batch}, 8)}}
      %kt: f32[3*{batch}, 8, {size}] = transpose(%k1) {{perm = (1, 2, 0)}}
      %m: f32[3*{batch}, {size}, {size}] = matmul(%qh, %kt)
      %p: f32[3*{batch}, {size}, {size}] = softmax(%m)
      %zh: f32[3*{batch}, {size}, 8] = matmul(%p, %qh)
      %zt: f32[{size}, 3*{batch}, 8] = transpose(%zh) {{perm = (1, 0, 2)}}
      %z: f32[{size}, {batch}, 24] = reshape(%zt) {{shape = ({size}, {batch}, 24)}}
      return %z
    }}""".replace("3*3", "9"), f"""
    graph @g(%x: f32[{size}, {batch}, 48]) {{
      %q: f32[{batch}, {size}, 48] = transpose(%x) {{perm = (1, 0, 2)}}
      %k: f32[{batch}, {size}, 48] = transpose(%x) {{perm = (1, 0, 2)}}
      %v: f32[{batch}, {size}, 48] = transpose(%x) {{perm = (1, 0, 2)}}
      %a: f32[{batch}, {size}, 24] = attention(%q, %k, %v) {{{ATTRS}, scale = 1.0, offsets = (0, 24, 0)}}
      %z: f32[{size}, {batch}, 24] = transpose(%a) {{perm = (1, 0, 2)}}
      return %z
    }}""")


def test_values_of_another_size_than_keys() -> None:
    run("""
    graph @g(%q: f32[b, s, 24], %k: f32[b, t, 24], %v: f32[b, t, 15]) {""" + HEADS.split("%v1")[0] + """
      %masked: f32[b, 3, s, t] = matmul(%qh, %kt)
      %p: f32[b, 3, s, t] = softmax(%masked)
      %v1: f32[b, t, 3, 5] = reshape(%v) {shape = (b, t, 3, 5)}
      %vh: f32[b, 3, t, 5] = transpose(%v1) {perm = (0, 2, 1, 3)}
      %zh: f32[b, 3, s, 5] = matmul(%p, %vh)
      %zt: f32[b, s, 3, 5] = transpose(%zh) {perm = (0, 2, 1, 3)}
      %z: f32[b, s, 15] = reshape(%zt) {shape = (b, s, 15)}
      return %z, %zh
    }""", f"""
    graph @g(%q: f32[b, s, 24], %k: f32[b, t, 24], %v: f32[b, t, 15]) {{
      %z: f32[b, s, 15] = attention(%q, %k, %v) {{{ATTRS}, scale = 1.0, value_size = 5}}
      %zs: f32[b, s, 3, 5] = reshape(%z) {{shape = (b, s, 3, 5)}}
      %zh: f32[b, 3, s, 5] = transpose(%zs) {{perm = (0, 2, 1, 3)}}
      return %z, %zh
    }}""")


def test_batch_and_heads_that_are_told_apart_for_queries_only() -> None:
    run("""
    graph @g(%q: f32[b, s, 24], %k: f32[3*b, t, 8], %v: f32[3*b, t, 8]) {
      %q1: f32[b, s, 3, 8] = reshape(%q) {shape = (b, s, 3, 8)}
      %qh: f32[b, 3, s, 8] = transpose(%q1) {perm = (0, 2, 1, 3)}
      %q3: f32[3*b, s, 8] = reshape(%qh) {shape = (3*b, s, 8)}
      %m: f32[3*b, s, t] = matmul(%q3, %k) {transpose_b = true}
      %p: f32[3*b, s, t] = softmax(%m)
      %z: f32[3*b, s, 8] = matmul(%p, %v)
      return %z
    }""", """
    graph @g(%q: f32[b, s, 24], %k: f32[3*b, t, 8], %v: f32[3*b, t, 8]) {
      %k4: f32[b, 3, t, 8] = reshape(%k) {shape = (b, 3, t, 8)}
      %v4: f32[b, 3, t, 8] = reshape(%v) {shape = (b, 3, t, 8)}
      %a: f32[b, s, 24] = attention(%q, %k4, %v4) {heads = 3, kv_heads = 3, head_size = 8, scale = 1.0}
      %as: f32[b, s, 3, 8] = reshape(%a) {shape = (b, s, 3, 8)}
      %at: f32[b, 3, s, 8] = transpose(%as) {perm = (0, 2, 1, 3)}
      %z: f32[3*b, s, 8] = reshape(%at) {shape = (3*b, s, 8)}
      return %z
    }""")


def test_keys_that_lie_channel_by_channel_are_put_in_order() -> None:
    run("""
    graph @g(%q: f32[b, 3, s, 8], %k: f32[b, 3, 8, t], %v: f32[b, 3, t, 8]) {
      %c: f32[b, 3, 8, t] = abs(%k)
      %m: f32[b, 3, s, t] = matmul(%q, %c)
      %p: f32[b, 3, s, t] = softmax(%m)
      %z: f32[b, 3, s, 8] = matmul(%p, %v)
      return %z
    }""", """
    graph @g(%q: f32[b, 3, s, 8], %k: f32[b, 3, 8, t], %v: f32[b, 3, t, 8]) {
      %c: f32[b, 3, 8, t] = abs(%k)
      %ct: f32[b, 3, t, 8] = transpose(%c) {perm = (0, 1, 3, 2)}
      %a: f32[b, s, 24] = attention(%q, %ct, %v) {heads = 3, kv_heads = 3, head_size = 8, scale = 1.0}
      %as: f32[b, s, 3, 8] = reshape(%a) {shape = (b, s, 3, 8)}
      %z: f32[b, 3, s, 8] = transpose(%as) {perm = (0, 2, 1, 3)}
      return %z
    }""")


def test_a_batch_of_several_axes() -> None:
    run("""
    graph @g(%q: f32[b, 2, 3, s, 8], %k: f32[b, 2, 3, t, 8], %v: f32[b, 2, 3, t, 8]) {
      %m: f32[b, 2, 3, s, t] = matmul(%q, %k) {transpose_b = true}
      %p: f32[b, 2, 3, s, t] = softmax(%m)
      %z: f32[b, 2, 3, s, 8] = matmul(%p, %v)
      return %z
    }""", """
    graph @g(%q: f32[b, 2, 3, s, 8], %k: f32[b, 2, 3, t, 8], %v: f32[b, 2, 3, t, 8]) {
      %q4: f32[2*b, 3, s, 8] = reshape(%q) {shape = (2*b, 3, s, 8)}
      %k4: f32[2*b, 3, t, 8] = reshape(%k) {shape = (2*b, 3, t, 8)}
      %v4: f32[2*b, 3, t, 8] = reshape(%v) {shape = (2*b, 3, t, 8)}
      %a: f32[2*b, s, 24] = attention(%q4, %k4, %v4) {heads = 3, kv_heads = 3, head_size = 8, scale = 1.0}
      %as: f32[2*b, s, 3, 8] = reshape(%a) {shape = (2*b, s, 3, 8)}
      %at: f32[2*b, 3, s, 8] = transpose(%as) {perm = (0, 2, 1, 3)}
      %z: f32[b, 2, 3, s, 8] = reshape(%at) {shape = (b, 2, 3, s, 8)}
      return %z
    }""")


@pytest.mark.parametrize(("queries", "keys"), [("1", "b"), ("b", "1"), ("1", "3")])
def test_one_sequence_that_meets_many_is_not_fused(queries: str, keys: str) -> None:
    batch = queries if keys == "1" else keys
    report = run(f"""
    graph @g(%q: f32[{queries}, s, 8], %k: f32[{keys}, t, 8], %v: f32[{batch}, t, 8]) {{
      %m: f32[{batch}, s, t] = matmul(%q, %k) {{transpose_b = true}}
      %p: f32[{batch}, s, t] = softmax(%m)
      %z: f32[{batch}, s, 8] = matmul(%p, %v)
      return %z
    }}""", None)
    assert [note.text for note in report.declines] == [
        f"{queries} x 1 heads of queries meet {keys} x 1 of keys, {batch} x 1 of values"]


def test_no_heads_are_not_fused() -> None:
    report = run("""
    graph @g(%q: f32[b, 0, s, 8], %k: f32[b, 0, t, 8], %v: f32[b, 0, t, 8]) {
      %m: f32[b, 0, s, t] = matmul(%q, %k) {transpose_b = true}
      %p: f32[b, 0, s, t] = softmax(%m)
      %z: f32[b, 0, s, 8] = matmul(%p, %v)
      return %z
    }""", None)
    assert [note.text for note in report.declines] == ["it has no heads"]


def test_products_given_transposed() -> None:
    run(INPUTS + HEADS.replace("%kt: f32[b, 3, 8, t] = transpose(%k1) {perm = (0, 2, 3, 1)}",
                               "%kt: f32[b, 3, t, 8] = transpose(%k1) {perm = (0, 2, 1, 3)}")
        .replace("%vh: f32[b, 3, t, 8] = transpose(%v1) {perm = (0, 2, 1, 3)}",
                 "%vh: f32[b, 3, 8, t] = transpose(%v1) {perm = (0, 2, 3, 1)}")
        + "%masked: f32[b, 3, s, t] = matmul(%qh, %kt) {transpose_b = true}\n" + SOFTMAX
        + JOIN.replace("matmul(%p, %vh)", "matmul(%p, %vh) {transpose_b = true}"), fused("", "scale = 1.0"))


GROUPED = """graph @g(%q: f32[b, s, 32], %k: f32[b, s, 16], %v: f32[b, s, 16]) {
  %q1: f32[b, s, 4, 8] = reshape(%q) {shape = (b, s, 4, 8)}
  %qh: f32[b, 4, s, 8] = transpose(%q1) {perm = (0, 2, 1, 3)}
  %k1: f32[b, s, 2, 8] = reshape(%k) {shape = (b, s, 2, 8)}
  %k2: f32[b, 2, s, 8] = transpose(%k1) {perm = (0, 2, 1, 3)}
  %v1: f32[b, s, 2, 8] = reshape(%v) {shape = (b, s, 2, 8)}
  %v2: f32[b, 2, s, 8] = transpose(%v1) {perm = (0, 2, 1, 3)}
"""
REPEAT = """
  %{0}3: f32[b, {1}, s, 8] = reshape(%{0}2) {{shape = (b, {1}, s, 8)}}
  %{0}4: f32[b, 2, 2, s, 8] = broadcast_to(%{0}3) {{shape = (b, 2, 2, s, 8)}}
  %{0}h: f32[b, 4, s, 8] = reshape(%{0}4) {{shape = (b, 4, s, 8)}}
"""
GROUPED_END = """
  %masked: f32[b, 4, s, s] = matmul(%qh, %kh) {transpose_b = true}
  %p: f32[b, 4, s, s] = softmax(%masked)
  %zh: f32[b, 4, s, 8] = matmul(%p, %vh)
  %zt: f32[b, s, 4, 8] = transpose(%zh) {perm = (0, 2, 1, 3)}
  %z: f32[b, s, 32] = reshape(%zt) {shape = (b, s, 32)}
  return %z
}"""


def test_grouped_queries_do_not_repeat_keys_and_values() -> None:
    run(GROUPED + REPEAT.format("k", "2, 1") + REPEAT.format("v", "2, 1") + GROUPED_END, """
    graph @g(%q: f32[b, s, 32], %k: f32[b, s, 16], %v: f32[b, s, 16]) {
      %z: f32[b, s, 32] = attention(%q, %k, %v) {heads = 4, kv_heads = 2, head_size = 8, scale = 1.0}
      return %z
    }""")


def test_heads_repeated_in_another_order_are_read_as_they_were_made() -> None:
    repeats = REPEAT.format("k", "1, 2") + REPEAT.format("v", "1, 2")
    kept = [line for line in GROUPED.splitlines() if "%q1" not in line and "%qh" not in line]
    run(GROUPED + repeats + GROUPED_END, "\n".join(kept) + repeats + """
      %z: f32[b, s, 32] = attention(%q, %kh, %vh) {heads = 4, kv_heads = 4, head_size = 8, scale = 1.0}
      return %z
    }""")


def test_rotated_and_cached_heads_stay_split() -> None:
    """As decoders have it: queries and keys go through elementwise ops per head, keys and values behind a past."""
    head = ("graph @g(%q: f32[b, s, 32], %k: f32[b, s, 16], %v: f32[b, s, 16], "
            "%pk: f32[b, 2, p, 8], %pv: f32[b, 2, p, 8]) {")
    split = GROUPED[GROUPED.index("\n"):] + """
      %q2: f32[b, 4, s, 8] = tanh(%qh)
      %present_k: f32[b, 2, p + s, 8] = concat(%pk, %k2) {axis = 2}
      %present_v: f32[b, 2, p + s, 8] = concat(%pv, %v2) {axis = 2}
    """
    repeat = """
      %{0}3: f32[b, 2, 1, p + s, 8] = reshape(%present_{0}) {{shape = (b, 2, 1, p + s, 8)}}
      %{0}4: f32[b, 2, 2, p + s, 8] = broadcast_to(%{0}3) {{shape = (b, 2, 2, p + s, 8)}}
      %{0}h: f32[b, 4, p + s, 8] = reshape(%{0}4) {{shape = (b, 4, p + s, 8)}}
    """
    end = GROUPED_END.replace("%qh", "%q2").replace("s, s]", "s, p + s]").replace("return %z", "return %z, %present_k")
    run(head + split + repeat.format("k") + repeat.format("v") + end, head + split + """
      %z: f32[b, s, 32] = attention(%q2, %present_k, %present_v)
          {heads = 4, kv_heads = 2, head_size = 8, scale = 1.0}
      return %z, %present_k
    }""")


def test_one_head_of_keys_for_all_queries() -> None:
    run("""graph @g(%q: f32[b, s, 32], %k: f32[b, s, 8], %v: f32[b, s, 8]) {
      %q1: f32[b, s, 4, 8] = reshape(%q) {shape = (b, s, 4, 8)}
      %qh: f32[b, 4, s, 8] = transpose(%q1) {perm = (0, 2, 1, 3)}
      %kh: f32[b, 1, s, 8] = reshape(%k) {shape = (b, 1, s, 8)}
      %vh: f32[b, 1, s, 8] = reshape(%v) {shape = (b, 1, s, 8)}""" + GROUPED_END, """
    graph @g(%q: f32[b, s, 32], %k: f32[b, s, 8], %v: f32[b, s, 8]) {
      %z: f32[b, s, 32] = attention(%q, %k, %v) {heads = 4, kv_heads = 1, head_size = 8, scale = 1.0}
      return %z
    }""")


def test_results_read_per_head_are_split_off_again() -> None:
    run(INPUTS + HEADS + RAW.replace("raw", "masked") + SOFTMAX + """
      %zh: f32[b, 3, s, 8] = matmul(%p, %vh)
      %best: f32[b, 3, s, 1] = reduce_max(%zh) {axes = (3)}
      %zt: f32[b, s, 3, 8] = transpose(%zh) {perm = (0, 2, 1, 3)}
      %z: f32[b, s, 24] = reshape(%zt) {shape = (b, s, 24)}
      return %z, %best
    }""", INPUTS + f"""
      %z: f32[b, s, 24] = attention(%q, %k, %v) {{{ATTRS}, scale = 1.0}}
      %split: f32[b, s, 3, 8] = reshape(%z) {{shape = (b, s, 3, 8)}}
      %zh: f32[b, 3, s, 8] = transpose(%split) {{perm = (0, 2, 1, 3)}}
      %best: f32[b, 3, s, 1] = reduce_max(%zh) {{axes = (3)}}
      return %z, %best
    }}""")
