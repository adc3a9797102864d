"""Local rules of movement and products: text before, text after, the same results."""
from __future__ import annotations

import pytest

from q8c.ir import parse_graph
from q8c.passes.canonicalize import Canonicalize
from q8c.passes.eliminate_dead_code import EliminateDeadCode
from q8c.passes.manager import run_passes
from tests.passes.support import check

CASES = {
    "reshape to the same shape": ("""
        graph @g(%x: f32[n, 4]) {
          %a: f32[n, 4] = reshape(%x) {shape = (n, 4)}
          %y: f32[n, 4] = abs(%a)
          return %y
        }""", """
        graph @g(%x: f32[n, 4]) {
          %y: f32[n, 4] = abs(%x)
          return %y
        }"""),
    "bias of heads": ("""
        graph @g(%x: f32[2*n, 6]) {
          const %b: f32[1, 2, 3] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
          %s: f32[n, 2, 2, 3] = reshape(%x) {shape = (n, 2, 2, 3)}
          %y: f32[n, 2, 2, 3] = add(%s, %b)
          return %y
        }""", """
        graph @g(%x: f32[2*n, 6]) {
          const %b: f32[6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
          %s: f32[2*n, 6] = add(%x, %b)
          %y: f32[n, 2, 2, 3] = reshape(%s) {shape = (n, 2, 2, 3)}
          return %y
        }"""),
    "bias of channels of all heads": ("""
        graph @g(%x: f32[n, 6]) {
          const %b: f32[3] = [1.0, 2.0, 3.0]
          %s: f32[n, 2, 3] = reshape(%x) {shape = (n, 2, 3)}
          %y: f32[n, 2, 3] = add(%s, %b)
          return %y
        }""", None),
    "product of depth zero": ("""
        graph @g(%x: f32[n, 0], %w: f32[0, m]) {
          %y: f32[n, m] = matmul(%x, %w)
          return %y
        }""", """
        graph @g(%x: f32[n, 0], %w: f32[0, m]) {
          const %c: f32[] = 0.0
          %y: f32[n, m] = broadcast_to(%c) {shape = (n, m)}
          return %y
        }"""),
    "an input that is returned": ("""
        graph @g(%x: f32[n, 4]) {
          %a: f32[n, 4] = reshape(%x) {shape = (n, 4)}
          %b: f32[n, 4] = transpose(%a) {perm = (0, 1)}
          return %b as "out"
        }""", """
        graph @g(%x: f32[n, 4]) {
          return %x as "out"
        }"""),
    "reshape of reshape": ("""
        graph @g(%x: f32[b, s, 12]) {
          %a: f32[b*s, 12] = reshape(%x) {shape = (b*s, 12)}
          %y: f32[b, s, 3, 4] = reshape(%a) {shape = (b, s, 3, 4)}
          return %y
        }""", """
        graph @g(%x: f32[b, s, 12]) {
          %y: f32[b, s, 3, 4] = reshape(%x) {shape = (b, s, 3, 4)}
          return %y
        }"""),
    "transpose of transpose": ("""
        graph @g(%x: f32[b, s, 3, 4]) {
          %a: f32[b, 3, s, 4] = transpose(%x) {perm = (0, 2, 1, 3)}
          %y: f32[b, 3, 4, s] = transpose(%a) {perm = (0, 1, 3, 2)}
          return %y
        }""", """
        graph @g(%x: f32[b, s, 3, 4]) {
          %y: f32[b, 3, 4, s] = transpose(%x) {perm = (0, 2, 3, 1)}
          return %y
        }"""),
    "transpose of axes of size 1": ("""
        graph @g(%x: f32[1, 1, s, 4]) {
          %y: f32[1, s, 1, 4] = transpose(%x) {perm = (0, 2, 1, 3)}
          return %y
        }""", """
        graph @g(%x: f32[1, 1, s, 4]) {
          %y: f32[1, s, 1, 4] = reshape(%x) {shape = (1, s, 1, 4)}
          return %y
        }"""),
    "two transposes that undo each other": ("""
        graph @g(%x: f32[b, s]) {
          %a: f32[s, b] = transpose(%x) {perm = (1, 0)}
          %b: f32[b, s] = transpose(%a) {perm = (1, 0)}
          %y: f32[b, s] = neg(%b)
          return %y
        }""", """
        graph @g(%x: f32[b, s]) {
          %y: f32[b, s] = neg(%x)
          return %y
        }"""),
    "PyTorch's spelling of transpose(-2, -1) over merged batch axes": ("""
        graph @g(%x: f32[b, 3, s, 4]) {
          %a: f32[3*b, s, 4] = reshape(%x) {shape = (b*3, s, 4)}
          %t: f32[3*b, 4, s] = transpose(%a) {perm = (0, 2, 1)}
          %y: f32[b, 3, 4, s] = reshape(%t) {shape = (b, 3, 4, s)}
          return %y
        }""", """
        graph @g(%x: f32[b, 3, s, 4]) {
          %y: f32[b, 3, 4, s] = transpose(%x) {perm = (0, 1, 3, 2)}
          return %y
        }"""),
    "a reduction whose axis is put back": ("""
        graph @g(%x: f32[b, s]) {
          %a: f32[b] = reduce_mean(%x) {axes = (-1), keepdims = false}
          %y: f32[b, 1] = reshape(%a) {shape = (b, 1)}
          return %y
        }""", """
        graph @g(%x: f32[b, s]) {
          %y: f32[b, 1] = reduce_mean(%x) {axes = (1), keepdims = true}
          return %y
        }"""),
    "a broadcast that the result does not need": ("""
        graph @g(%x: f32[b, s], %m: f32[b, 1]) {
          %a: f32[b, s] = broadcast_to(%m) {shape = (b, s)}
          %y: f32[b, s] = add(%x, %a)
          return %y
        }""", """
        graph @g(%x: f32[b, s], %m: f32[b, 1]) {
          %y: f32[b, s] = add(%x, %m)
          return %y
        }"""),
    "an expanded mask is computed small": ("""
        graph @g(%m: i64[b, s], %x: f32[b, 2, s, s]) {
          const %one: f32[1] = 1.0
          const %low: f32[] = -1e9
          %a: i64[b, 1, 1, s] = reshape(%m) {shape = (b, 1, 1, s)}
          %e: i64[b, 1, s, s] = broadcast_to(%a) {shape = (b, 1, s, s)}
          %f: f32[b, 1, s, s] = cast(%e) {to = f32}
          %i: f32[b, 1, s, s] = sub(%one, %f)
          %c: bool[b, 1, s, s] = cast(%i) {to = bool}
          %d: bool[b, 1, s, s] = cast(%c) {to = bool}
          %w: f32[b, 1, s, s] = where(%d, %low, %i)
          %y: f32[b, 2, s, s] = add(%x, %w)
          return %y
        }""", """
        graph @g(%m: i64[b, s], %x: f32[b, 2, s, s]) {
          const %one: f32[] = 1.0
          const %low: f32[] = -1e9
          %a: i64[b, 1, 1, s] = reshape(%m) {shape = (b, 1, 1, s)}
          %f: f32[b, 1, 1, s] = cast(%a) {to = f32}
          %i: f32[b, 1, 1, s] = sub(%one, %f)
          %c: bool[b, 1, 1, s] = cast(%i) {to = bool}
          %w: f32[b, 1, 1, s] = where(%c, %low, %i)
          %y: f32[b, 2, s, s] = add(%x, %w)
          return %y
        }"""),
    "batch axes that matmul broadcasts itself": ("""
        graph @g(%x: f32[b, 2, s, 4], %w: f32[1, 1, 4, 4]) {
          %a: f32[b, 2, 4, 4] = broadcast_to(%w) {shape = (b, 2, 4, 4)}
          %y: f32[b, 2, s, 4] = matmul(%x, %a)
          return %y
        }""", """
        graph @g(%x: f32[b, 2, s, 4], %w: f32[1, 1, 4, 4]) {
          %y: f32[b, 2, s, 4] = matmul(%x, %w)
          return %y
        }"""),
    "slices": ("""
        graph @g(%x: f32[b, 8]) {
          %a: f32[b, 8] = slice(%x) {starts = (0, 0), sizes = (b, 8), steps = (1, 1)}
          %c: f32[b, 4] = slice(%a) {starts = (0, 1), sizes = (b, 4), steps = (1, 2)}
          %y: f32[b, 2] = slice(%c) {starts = (0, 3), sizes = (b, 2), steps = (1, -2)}
          return %y
        }""", """
        graph @g(%x: f32[b, 8]) {
          %y: f32[b, 2] = slice(%x) {starts = (0, 7), sizes = (b, 2), steps = (1, -4)}
          return %y
        }"""),
    "slices that begin behind elements that may not be there": ("""
        graph @g(%x: f32[n]) {
          %a: f32[max(0, n - 1)] = slice(%x) {starts = (min(1, n),), sizes = (max(0, n - 1),), steps = (1,)}
          %y: f32[max(0, n - 2)] = slice(%a) {starts = (min(1, max(0, n - 1)),), sizes = (max(0, n - 2),), steps = (1,)}
          return %y
        }""", """
        graph @g(%x: f32[n]) {
          %y: f32[max(0, n - 2)] = slice(%x) {starts = (max(n - max(0, n - 2), 0),), sizes = (max(0, n - 2),), steps = (1,)}
          return %y
        }"""),
    "a slice that turns an axis round stays": ("""
        graph @g(%x: f32[b, 8]) {
          %y: f32[b, 8] = slice(%x) {starts = (0, 7), sizes = (b, 8), steps = (1, -1)}
          return %y
        }""", None),
    "concats": ("""
        graph @g(%x: f32[b, 2], %z: f32[b, 3], %o: f32[b, 0]) {
          %a: f32[b, 2] = concat(%x) {axis = 1}
          %c: f32[b, 5] = concat(%a, %z, %o) {axis = -1}
          %y: f32[b, 8] = concat(%z, %c) {axis = 1}
          return %y
        }""", """
        graph @g(%x: f32[b, 2], %z: f32[b, 3], %o: f32[b, 0]) {
          %y: f32[b, 8] = concat(%z, %x, %z) {axis = 1}
          return %y
        }"""),
    "padding by nothing": ("""
        graph @g(%x: f32[b, 2]) {
          %a: f32[b, 2] = pad(%x) {before = (0, 0), after = (0, 0)}
          %y: f32[b, 2] = exp(%a)
          return %y
        }""", """
        graph @g(%x: f32[b, 2]) {
          %y: f32[b, 2] = exp(%x)
          return %y
        }"""),
    "matrices that are repeated for every batch item": ("""
        graph @g(%x: f32[3*b, s, 4], %c: f32[3, 1, 5, 4], %z: f32[3*b, 2, 5]) {
          %w: f32[b, 3, 1, 5, 4] = broadcast_to(%c) {shape = (b, 3, 1, 5, 4)}
          %f: f32[3*b, 5, 4] = reshape(%w) {shape = (3*b, 5, 4)}
          %t: f32[3*b, 4, 5] = transpose(%f) {perm = (0, 2, 1)}
          %y: f32[3*b, s, 5] = matmul(%x, %t)
          %v: f32[3*b, 2, 4] = matmul(%z, %f)
          return %y, %v
        }""", """
        graph @g(%x: f32[3*b, s, 4], %c: f32[3, 1, 5, 4], %z: f32[3*b, 2, 5]) {
          %ct: f32[1, 3, 5, 4] = reshape(%c) {shape = (1, 3, 5, 4)}
          %t: f32[1, 3, 4, 5] = transpose(%ct) {perm = (0, 1, 3, 2)}
          %x4: f32[b, 3, s, 4] = reshape(%x) {shape = (b, 3, s, 4)}
          %y4: f32[b, 3, s, 5] = matmul(%x4, %t)
          %y: f32[3*b, s, 5] = reshape(%y4) {shape = (3*b, s, 5)}
          %cv: f32[1, 3, 5, 4] = reshape(%c) {shape = (1, 3, 5, 4)}
          %z4: f32[b, 3, 2, 5] = reshape(%z) {shape = (b, 3, 2, 5)}
          %v4: f32[b, 3, 2, 4] = matmul(%z4, %cv)
          %v: f32[3*b, 2, 4] = reshape(%v4) {shape = (3*b, 2, 4)}
          return %y, %v
        }"""),
    "indices that are broadcast": ("""
        graph @g(%x: f32[b, s, 7], %i: i64[s, 3]) {
          %w: i64[b, s, 3] = broadcast_to(%i) {shape = (b, s, 3)}
          %y: f32[b, s, 3] = gather_elements(%x, %w) {axis = 2}
          return %y
        }""", """
        graph @g(%x: f32[b, s, 7], %i: i64[s, 3]) {
          %r: i64[1, s, 3] = reshape(%i) {shape = (1, s, 3)}
          %y: f32[b, s, 3] = gather_elements(%x, %r) {axis = 2, shape = (b, s, 3)}
          return %y
        }"""),
    "slice of concat": ("""
        graph @g(%x: f32[b, p], %z: f32[b, s], %w: f32[b, 3]) {
          %c: f32[b, 3 + p + s] = concat(%x, %z, %w) {axis = 1}
          %a: f32[b, s] = slice(%c) {starts = (0, p), sizes = (b, s), steps = (1, 1)}
          %d: f32[1, p + s] = slice(%c) {starts = (1, 0), sizes = (1, p + s), steps = (1, 1)}
          %e: f32[b, 2] = slice(%c) {starts = (0, p + s), sizes = (b, 2), steps = (1, 2)}
          %f: f32[b, 2] = slice(%c) {starts = (0, p + s + -1), sizes = (b, 2), steps = (1, 1)}
          %g: f32[b, 1] = slice(%c) {starts = (0, p + s + 1), sizes = (b, 1), steps = (1, 1)}
          return %a, %d, %e, %f, %g
        }""", """
        graph @g(%x: f32[b, p], %z: f32[b, s], %w: f32[b, 3]) {
          %c: f32[b, 3 + p + s] = concat(%x, %z, %w) {axis = 1}
          %xz: f32[b, p + s] = concat(%x, %z) {axis = 1}
          %d: f32[1, p + s] = slice(%xz) {starts = (1, 0), sizes = (1, p + s), steps = (1, 1)}
          %e: f32[b, 2] = slice(%c) {starts = (0, p + s), sizes = (b, 2), steps = (1, 2)}
          %f: f32[b, 2] = slice(%c) {starts = (0, p + s + -1), sizes = (b, 2), steps = (1, 1)}
          %g: f32[b, 1] = slice(%w) {starts = (0, 1), sizes = (b, 1), steps = (1, 1)}
          return %z, %d, %e, %f, %g
        }"""),
}


def test_a_concat_that_doubles_over_and_over_stays_small() -> None:
    lines = [f"%c{i}: f32[{2 ** i}] = concat(%c{i - 1}, %c{i - 1}) {{axis = 0}}" for i in range(1, 41)]
    graph = parse_graph("graph @g(%c0: f32[1]) {\n" + "\n".join(lines) + "\nreturn %c40\n}")
    run_passes(graph, [Canonicalize(), EliminateDeadCode()])
    assert sum(len(n.inputs) for n in graph.nodes) <= 40 * 32


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    before, after = CASES[name]
    check([Canonicalize(), EliminateDeadCode()], before, after)
