"""Reductions along rows, and softmax, become what loops take."""
from __future__ import annotations

import pytest

from q8c.passes.reduce_rows import ReduceRows
from tests.passes.support import check

TOLERANCE = 1e-6  # the order of a sum may change


@pytest.mark.parametrize(("before", "after"), [
    ("%y: f32[b, s] = reduce_mean(%x) {axes = (-1), keepdims = false}",
     """%r: f32[b, s, 1] = reduce_mean(%x) {axes = (2), keepdims = true}
        %y: f32[b, s] = reshape(%r) {shape = (b, s)}"""),
    ("%y: f32[b, 1, 1] = reduce_max(%x) {axes = (2, -2)}",
     """%m: f32[b, 8*s] = reshape(%x) {shape = (b, 8*s)}
        %r: f32[b, 1] = reduce_max(%m) {axes = (1), keepdims = true}
        %y: f32[b, 1, 1] = reshape(%r) {shape = (b, 1, 1)}"""),
    ("%y: f32[] = reduce_prod(%x) {axes = (0, 1, 2), keepdims = false}",
     """%m: f32[8*b*s] = reshape(%x) {shape = (8*b*s)}
        %r: f32[1] = reduce_prod(%m) {axes = (0), keepdims = true}
        %y: f32[] = reshape(%r) {shape = ()}"""),
    ("%y: f32[b, s, 8] = softmax(%x) {axis = 1}",
     """%t: f32[b, 8, s] = transpose(%x) {perm = (0, 2, 1)}
        %m: f32[b, 8, s] = softmax(%t) {axis = 2}
        %y: f32[b, s, 8] = transpose(%m) {perm = (0, 2, 1)}"""),
])
def test_to_one_last_axis(before: str, after: str) -> None:
    frame = "graph @g(%x: f32[b, s, 8]) {{\n{}\nreturn %y\n}}"
    check(ReduceRows(), frame.format(before), frame.format(after), tolerance=TOLERANCE)


def test_rows_and_reductions_along_other_axes_stay() -> None:
    check(ReduceRows(), """
    graph @g(%x: f32[b, s, 8]) {
      %y: f32[b, s, 1] = reduce_sum(%x) {axes = (-1)}
      %z: f32[b, s, 8] = softmax(%x) {axis = 2}
      %v: f32[b, 8] = reduce_sum(%x) {axes = (1), keepdims = false}
      %w: f32[s] = reduce_sum(%x) {axes = (0, 2), keepdims = false}
      return %y, %z, %v, %w
    }""", None)
