"""Attention as exporters write it, part by part, and the node it becomes."""
from __future__ import annotations

from q8c.passes.fuse_attention import FuseAttention
from q8c.passes.manager import Report
from tests.passes.support import check

TOLERANCE = 1e-5  # scores and weights are no longer rounded to float32 in between
INPUTS = """
graph @g(%q: f32[b, s, 24], %k: f32[b, t, 24], %v: f32[b, t, 24], %m: f32[b, 1, 1, t], %c: bool[b, 1, 1, t]) {
"""
HEADS = """
  %q1: f32[b, s, 3, 8] = reshape(%q) {shape = (b, s, 3, 8)} from "split"
  %qh: f32[b, 3, s, 8] = transpose(%q1) {perm = (0, 2, 1, 3)}
  %k1: f32[b, t, 3, 8] = reshape(%k) {shape = (b, t, 3, 8)}
  %kt: f32[b, 3, 8, t] = transpose(%k1) {perm = (0, 2, 3, 1)}
  %v1: f32[b, t, 3, 8] = reshape(%v) {shape = (b, t, 3, 8)}
  %vh: f32[b, 3, t, 8] = transpose(%v1) {perm = (0, 2, 1, 3)}
"""
RAW = "  %raw: f32[b, 3, s, t] = matmul(%qh, %kt)\n"
ZERO = "  const %zero: f32[] = 0.0\n"
SOFTMAX = "  %p: f32[b, 3, s, t] = softmax(%masked)\n"
JOIN = """
  %zh: f32[b, 3, s, 8] = matmul(%p, %vh) from "weighted"
  %zt: f32[b, s, 3, 8] = transpose(%zh) {perm = (0, 2, 1, 3)}
  %z: f32[b, s, 24] = reshape(%zt) {shape = (b, s, 24)}
  return %z
}"""
ATTRS = "heads = 3, kv_heads = 3, head_size = 8"
SIZES = {"b": 2, "s": 3, "t": 5, "u": 5}


def fused(mask: str, attrs: str) -> str:
    """The text of one attention over the inputs."""
    return (f"{INPUTS}\n{mask}\n %z: f32[b, s, 24] = attention(%q, %k, %v{', %mask' if mask else ''}) "
            f"{{{ATTRS}, {attrs}}}\n return %z\n}}").replace("%mask", "%m" if mask == "#" else "%mask")


def run(before: str, after: str | None, tolerance: float = TOLERANCE) -> Report:
    """Check the pass on 2 batches of 3 queries and 5 keys."""
    return check(FuseAttention(), before, after, sizes=SIZES, tolerance=tolerance)
