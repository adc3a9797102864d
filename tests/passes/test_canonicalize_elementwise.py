"""Local rules of elementwise ops: text before, text after, the same results."""
from __future__ import annotations

import pytest

from q8c.passes.canonicalize import Canonicalize
from q8c.passes.eliminate_dead_code import EliminateDeadCode
from tests.passes.support import check

CASES = {
    "arithmetic that does nothing": ("""
        graph @g(%x: f32[b, 2]) {
          const %zero: f32[1, 2] = 0.0
          const %one: f32[] = 1.0
          %a: f32[b, 2] = add(%zero, %x)
          %c: f32[b, 2] = mul(%one, %a)
          %d: f32[b, 2] = div(%c, %one)
          %e: f32[b, 2] = sub(%d, %zero)
          %f: f32[b, 2] = pow(%e, %one)
          %g: f32[b, 2] = cast(%f) {to = f32}
          %h: f32[b, 2] = neg(%g)
          %i: f32[b, 2] = neg(%h)
          %y: f32[b, 2] = exp(%i)
          return %y
        }""", """
        graph @g(%x: f32[b, 2]) {
          %y: f32[b, 2] = exp(%x)
          return %y
        }"""),
    "arithmetic that only broadcasts": ("""
        graph @g(%x: f32[1, 2]) {
          const %zero: f32[3, 2] = 0.0
          %y: f32[3, 2] = add(%x, %zero)
          return %y
        }""", """
        graph @g(%x: f32[1, 2]) {
          %y: f32[3, 2] = broadcast_to(%x) {shape = (3, 2)}
          return %y
        }"""),
    "constants stand on the right and are small": ("""
        graph @g(%x: f32[b, 2]) {
          const %c: f32[1, 1, 2] = [3.0, 5.0]
          const %d: f32[1, 1, 1] = 0.25
          %a: f32[1, b, 2] = mul(%c, %x)
          %y: f32[1, b, 2] = mul(%d, %a)
          %z: bool[1, b, 2] = less(%d, %y)
          return %y, %z
        }""", """
        graph @g(%x: f32[b, 2]) {
          const %c: f32[1, 1, 2] = [3.0, 5.0]
          const %d: f32[] = 0.25
          const %e: f32[] = 0.25
          %a: f32[1, b, 2] = mul(%x, %c)
          %y: f32[1, b, 2] = mul(%a, %d)
          %z: bool[1, b, 2] = greater(%y, %e)
          return %y, %z
        }"""),
    "a bias of more axes than it needs": ("""
        graph @g(%x: f32[b, s, 2]) {
          const %c: f32[1, 1, 2] = [3.0, 5.0]
          %y: f32[b, s, 2] = add(%c, %x)
          return %y
        }""", """
        graph @g(%x: f32[b, s, 2]) {
          const %c: f32[2] = [3.0, 5.0]
          %y: f32[b, s, 2] = add(%x, %c)
          return %y
        }"""),
    "division by a power of two": ("""
        graph @g(%x: f32[b]) {
          const %c: f32[] = 8.0
          const %d: f32[] = 3.0
          const %e: f32[] = 2e38
          %a: f32[b] = div(%x, %c)
          %f: f32[b] = div(%a, %d)
          %y: f32[b] = div(%f, %e)
          return %y
        }""", """
        graph @g(%x: f32[b]) {
          const %c: f32[] = 0.125
          const %d: f32[] = 3.0
          const %e: f32[] = 2e38
          %a: f32[b] = mul(%x, %c)
          %f: f32[b] = div(%a, %d)
          %y: f32[b] = div(%f, %e)
          return %y
        }"""),
    "reciprocal roots": ("""
        graph @g(%x: f32[b], %z: i64[b]) {
          const %one: f32[] = 1.0
          const %i: i64[] = 1
          %a: f32[b] = sqrt(%x)
          %c: f32[b] = div(%one, %a)
          %y: i64[b] = div(%i, %z)
          return %c, %y
        }""", """
        graph @g(%x: f32[b], %z: i64[b]) {
          const %i: i64[] = 1
          %c: f32[b] = rsqrt(%x)
          %y: i64[b] = div(%i, %z)
          return %c, %y
        }"""),
    "small powers": ("""
        graph @g(%x: f32[b]) {
          const %two: f32[1] = 2.0
          const %minus: f32[] = -1.0
          const %three: f32[] = 3.0
          %a: f32[b] = pow(%x, %two)
          %c: f32[b] = pow(%x, %minus)
          %d: f32[b] = pow(%x, %three)
          return %a, %c, %d
        }""", """
        graph @g(%x: f32[b]) {
          const %three: f32[] = 3.0
          %a: f32[b] = mul(%x, %x)
          %c: f32[b] = reciprocal(%x)
          %d: f32[b] = pow(%x, %three)
          return %a, %c, %d
        }"""),
    "relu and silu": ("""
        graph @g(%x: f32[b]) {
          const %zero: f32[] = 0.0
          const %k: f32[] = 1.702
          %a: f32[b] = max(%zero, %x)
          %c: f32[b] = sigmoid(%x)
          %d: f32[b] = mul(%c, %x)
          %e: f32[b] = mul(%x, %k)
          %f: f32[b] = sigmoid(%e)
          %g: f32[b] = mul(%x, %f)
          return %a, %d, %g
        }""", """
        graph @g(%x: f32[b]) {
          const %k: f32[] = 1.702
          %a: f32[b] = relu(%x)
          %d: f32[b] = silu(%x)
          %e: f32[b] = mul(%x, %k)
          %f: f32[b] = sigmoid(%e)
          %g: f32[b] = mul(%x, %f)
          return %a, %d, %g
        }"""),
    "boolean algebra": ("""
        graph @g(%p: bool[b], %q: bool[1], %i: i64[b]) {
          const %t: bool[1] = true
          const %f: bool[] = false
          const %k: i64[] = 4
          %a: bool[b] = and(%t, %p)
          %c: bool[b] = or(%a, %f)
          %d: bool[b] = xor(%c, %f)
          %e: bool[b] = not(%d)
          %g: bool[b] = not(%e)
          %h: bool[b] = and(%g, %g)
          %j: bool[b] = or(%h, %t)
          %l: bool[b] = less(%i, %k)
          %n: bool[b] = not(%l)
          return %h, %j, %n
        }""", """
        graph @g(%p: bool[b], %q: bool[1], %i: i64[b]) {
          const %k: i64[] = 4
          const %t: bool[] = true
          %j: bool[b] = broadcast_to(%t) {shape = (b)}
          %n: bool[b] = greater_equal(%i, %k)
          return %p, %j, %n
        }"""),
    "where": ("""
        graph @g(%p: bool[b], %x: f32[b], %z: f32[1]) {
          const %t: bool[1] = true
          const %f: bool[] = false
          %a: f32[b] = where(%t, %z, %x)
          %c: f32[b] = where(%f, %z, %x)
          %d: f32[b] = where(%p, %z, %z)
          %n: bool[b] = not(%p)
          %e: f32[b] = where(%n, %z, %x)
          return %a, %c, %d, %e
        }""", """
        graph @g(%p: bool[b], %x: f32[b], %z: f32[1]) {
          %a: f32[b] = broadcast_to(%z) {shape = (b)}
          %d: f32[b] = broadcast_to(%z) {shape = (b)}
          %e: f32[b] = where(%p, %x, %z)
          return %a, %x, %d, %e
        }"""),
    "casts that lose nothing": ("""
        graph @g(%x: f16[b], %i: i32[b], %j: i64[b]) {
          %a: f32[b] = cast(%x) {to = f32}
          %c: f16[b] = cast(%a) {to = f16}
          %d: i64[b] = cast(%i) {to = i64}
          %e: f32[b] = cast(%d) {to = f32}
          %f: f32[b] = cast(%j) {to = f32}
          %g: bool[b] = cast(%f) {to = bool}
          return %c, %e, %g
        }""", """
        graph @g(%x: f16[b], %i: i32[b], %j: i64[b]) {
          %e: f32[b] = cast(%i) {to = f32}
          %g: bool[b] = cast(%j) {to = bool}
          return %x, %e, %g
        }"""),
    "casts that lose something stay": ("""
        graph @g(%x: f32[b], %i: i64[b], %j: i32[b]) {
          %a: f16[b] = cast(%x) {to = f16}
          %c: f32[b] = cast(%a) {to = f32}
          %d: f32[b] = cast(%i) {to = f32}
          %e: i64[b] = cast(%d) {to = i64}
          %f: f64[b] = cast(%j) {to = f64}
          %g: u8[b] = cast(%f) {to = u8}
          %h: i32[b] = cast(%x) {to = i32}
          %k: bool[b] = cast(%h) {to = bool}
          return %c, %e, %g, %k
        }""", None),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    before, after = CASES[name]
    check([Canonicalize(), EliminateDeadCode()], before, after)
