"""Queries, keys and values that are parts of one tensor: what `fuse-attention` makes of them."""
from __future__ import annotations

from tests.passes.attention_text import ATTRS, JOIN, run


def test_slices_of_a_merged_projection_become_offsets() -> None:
    part = """
      %{0}: f32[b, s, 24] = slice(%x) {{starts = (0, 0, {1}), sizes = (b, s, 24), steps = (1, 1, 1)}}
      %{0}1: f32[b, s, 3, 8] = reshape(%{0}) {{shape = (b, s, 3, 8)}}
      %{0}h: f32[b, 3, s, 8] = transpose(%{0}1) {{perm = (0, 2, 1, 3)}}
    """
    run("graph @g(%x: f32[b, s, 72]) {" + part.format("q", 0) + part.format("k", 24) + part.format("v", 48) + """
      %masked: f32[b, 3, s, s] = matmul(%qh, %kh) {transpose_b = true}
      %p: f32[b, 3, s, s] = softmax(%masked)""" + JOIN, f"""
    graph @g(%x: f32[b, s, 72]) {{
      %z: f32[b, s, 24] = attention(%x, %x, %x) {{{ATTRS}, scale = 1.0, offsets = (0, 24, 48)}}
      return %z
    }}""")


def test_rows_of_batch_and_sequence_and_one_of_three_parts_in_front() -> None:
    """A projection [batch * seq, 3 * channels] that is split, moved and then taken apart."""
    part = """
      %{0}: f32[1, b, 3, s, 8] = slice(%t)
          {{starts = ({1}, 0, 0, 0, 0), sizes = (1, b, 3, s, 8), steps = (1, 1, 1, 1, 1)}}
      %{0}h: f32[b, 3, s, 8] = reshape(%{0}) {{shape = (b, 3, s, 8)}}
    """
    run("""graph @g(%x: f32[b*s, 72], %y: f32[b, s, 24]) {
      %a: f32[b, s, 3, 3, 8] = reshape(%x) {shape = (b, s, 3, 3, 8)}
      %t: f32[3, b, 3, s, 8] = transpose(%a) {perm = (2, 0, 3, 1, 4)}""" + part.format("q", 0) + part.format("k", 1)
        + part.format("v", 2) + """
      %masked: f32[b, 3, s, s] = matmul(%qh, %kh) {transpose_b = true}
      %p: f32[b, 3, s, s] = softmax(%masked)
      %zh: f32[b, 3, s, 8] = matmul(%p, %vh)
      %zt: f32[b, s, 3, 8] = transpose(%zh) {perm = (0, 2, 1, 3)}
      %z: f32[b*s, 24] = reshape(%zt) {shape = (b*s, 24)}
      return %z
    }""", f"""graph @g(%x: f32[b*s, 72], %y: f32[b, s, 24]) {{
      %q: f32[b, s, 72] = reshape(%x) {{shape = (b, s, 72)}}
      %k: f32[b, s, 72] = reshape(%x) {{shape = (b, s, 72)}}
      %v: f32[b, s, 72] = reshape(%x) {{shape = (b, s, 72)}}
      %a: f32[b, s, 24] = attention(%q, %k, %v) {{{ATTRS}, scale = 1.0, offsets = (0, 24, 48)}}
      %z: f32[b*s, 24] = reshape(%a) {{shape = (b*s, 24)}}
      return %z
    }}""")


def test_rows_that_are_the_first_of_more() -> None:
    """Queries, keys and values one behind the other, as torch's MultiheadAttention packs them with a batch of 1: that
    queries come first does not make them the whole."""
    packed = """
    graph @g(%x: f32[3, s, 1, 1, 24]) {
      %all: f32[3, s, 1, 24] = reshape(%x) {shape = (3, s, 1, 24)}
      %q1: f32[1, s, 1, 24] = slice(%all) {starts = (0, 0, 0, 0), sizes = (1, s, 1, 24), steps = (1, 1, 1, 1)}
      %k1: f32[1, s, 1, 24] = slice(%all) {starts = (1, 0, 0, 0), sizes = (1, s, 1, 24), steps = (1, 1, 1, 1)}"""
    run(packed + """
      %q2: f32[s, 3, 8] = reshape(%q1) {shape = (s, 3, 8)}
      %k2: f32[s, 3, 8] = reshape(%k1) {shape = (s, 3, 8)}
      %q: f32[3, s, 8] = transpose(%q2) {perm = (1, 0, 2)}
      %k: f32[3, s, 8] = transpose(%k2) {perm = (1, 0, 2)}
      %kt: f32[3, 8, s] = transpose(%k2) {perm = (1, 2, 0)}
      %m: f32[3, s, s] = matmul(%q, %kt)
      %p: f32[3, s, s] = softmax(%m)
      %z: f32[3, s, 8] = matmul(%p, %k)
      return %z
    }""", packed + f"""
      %q: f32[1, s, 24] = reshape(%q1) {{shape = (1, s, 24)}}
      %k: f32[1, s, 24] = reshape(%k1) {{shape = (1, s, 24)}}
      %v: f32[1, s, 24] = reshape(%k1) {{shape = (1, s, 24)}}
      %a: f32[1, s, 24] = attention(%q, %k, %v) {{{ATTRS}, scale = 1.0}}
      %h: f32[1, s, 3, 8] = reshape(%a) {{shape = (1, s, 3, 8)}}
      %t: f32[1, 3, s, 8] = transpose(%h) {{perm = (0, 2, 1, 3)}}
      %z: f32[3, s, 8] = reshape(%t) {{shape = (3, s, 8)}}
      return %z
    }}""")
