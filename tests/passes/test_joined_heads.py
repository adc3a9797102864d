"""Attention whose batch and heads are one axis on the way."""
from __future__ import annotations

from q8c.passes.fuse_attention import FuseAttention
from tests.passes.support import check


def test_batch_and_heads_of_a_cache_in_one_axis() -> None:
    """As Bloom is exported: heads split already are joined with the batch, and one mask of two is not."""
    check(FuseAttention(), """
    graph @g(%q: f32[b, 3, s, 8], %k: f32[b, 3, t, 8], %v: f32[b, 3, t, 8], %w: f32[3*b, 1, t], %m: f32[b, 1, s, t]) {
      %q3: f32[3*b, s, 8] = reshape(%q) {shape = (3*b, s, 8)}
      %k3: f32[3*b, t, 8] = reshape(%k) {shape = (3*b, t, 8)}
      %kt: f32[3*b, 8, t] = transpose(%k3) {perm = (0, 2, 1)}
      %v3: f32[3*b, t, 8] = reshape(%v) {shape = (3*b, t, 8)}
      %s3: f32[3*b, s, t] = matmul(%q3, %kt)
      %a3: f32[3*b, s, t] = add(%w, %s3)
      %a: f32[b, 3, s, t] = reshape(%a3) {shape = (b, 3, s, t)}
      %n: f32[b, 3, s, t] = add(%a, %m)
      %p: f32[b, 3, s, t] = softmax(%n)
      %p3: f32[3*b, s, t] = reshape(%p) {shape = (3*b, s, t)}
      %z3: f32[3*b, s, 8] = matmul(%p3, %v3)
      %z: f32[b, 3, s, 8] = reshape(%z3) {shape = (b, 3, s, 8)}
      %zt: f32[b, s, 3, 8] = transpose(%z) {perm = (0, 2, 1, 3)}
      %o: f32[b, s, 24] = reshape(%zt) {shape = (b, s, 24)}
      return %o
    }""", """
    graph @g(%q: f32[b, 3, s, 8], %k: f32[b, 3, t, 8], %v: f32[b, 3, t, 8], %w: f32[3*b, 1, t], %m: f32[b, 1, s, t]) {
      %w4: f32[b, 3, 1, t] = reshape(%w) {shape = (b, 3, 1, t)}
      %both: f32[b, 3, s, t] = add(%w4, %m)
      %o: f32[b, s, 24] = attention(%q, %k, %v, %both) {heads = 3, kv_heads = 3, head_size = 8, scale = 1.0}
      return %o
    }""", sizes={"b": 2, "s": 3, "t": 5}, tolerance=1e-6)


def test_a_mask_by_batch_of_heads_that_come_joined_declines() -> None:
    report = check(FuseAttention(), """
    graph @g(%q: f32[3*b, s, 8], %k: f32[3*b, t, 8], %v: f32[3*b, t, 8], %m: f32[b, 1, s, t]) {
      %kt: f32[3*b, 8, t] = transpose(%k) {perm = (0, 2, 1)}
      %s3: f32[3*b, s, t] = matmul(%q, %kt)
      %s: f32[b, 3, s, t] = reshape(%s3) {shape = (b, 3, s, t)}
      %a: f32[b, 3, s, t] = add(%s, %m)
      %p: f32[b, 3, s, t] = softmax(%a)
      %p3: f32[3*b, s, t] = reshape(%p) {shape = (3*b, s, t)}
      %z: f32[3*b, s, 8] = matmul(%p3, %v)
      return %z
    }""", None, sizes={"b": 2, "s": 3, "t": 5})
    assert "its mask f32[b, 1, s, t] is not for 3*b x 1 heads" in str(report.declines[0])


def test_one_cached_head_is_read_where_it_is_kept() -> None:
    """Not as rows [b * t, 8], which it could be seen as too: then the cache would be read by a reshape."""
    check(FuseAttention(), """
    graph @g(%q: f32[b, s, 16], %k: f32[b, 1, t, 8], %v: f32[b, 1, t, 8]) {
      %qs: f32[b, s, 2, 8] = reshape(%q) {shape = (b, s, 2, 8)}
      %qh: f32[b, 2, s, 8] = transpose(%qs) {perm = (0, 2, 1, 3)}
      %k5: f32[b, 1, 1, t, 8] = reshape(%k) {shape = (b, 1, 1, t, 8)}
      %kb: f32[b, 1, 2, t, 8] = broadcast_to(%k5) {shape = (b, 1, 2, t, 8)}
      %kh: f32[b, 2, t, 8] = reshape(%kb) {shape = (b, 2, t, 8)}
      %v5: f32[b, 1, 1, t, 8] = reshape(%v) {shape = (b, 1, 1, t, 8)}
      %vb: f32[b, 1, 2, t, 8] = broadcast_to(%v5) {shape = (b, 1, 2, t, 8)}
      %vh: f32[b, 2, t, 8] = reshape(%vb) {shape = (b, 2, t, 8)}
      %s: f32[b, 2, s, t] = matmul(%qh, %kh) {transpose_b = true}
      %p: f32[b, 2, s, t] = softmax(%s)
      %z: f32[b, 2, s, 8] = matmul(%p, %vh)
      %zt: f32[b, s, 2, 8] = transpose(%z) {perm = (0, 2, 1, 3)}
      %o: f32[b, s, 16] = reshape(%zt) {shape = (b, s, 16)}
      return %o
    }""", """
    graph @g(%q: f32[b, s, 16], %k: f32[b, 1, t, 8], %v: f32[b, 1, t, 8]) {
      %o: f32[b, s, 16] = attention(%q, %k, %v) {heads = 2, kv_heads = 1, head_size = 8, scale = 1.0}
      return %o
    }""", sizes={"b": 2, "s": 3, "t": 5}, tolerance=1e-6)
