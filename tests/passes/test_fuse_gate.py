"""fuse-gate: text before and after, and equal results."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import Array, q8
from q8c.passes.fuse_gate import FuseGate
from tests.passes.support import check

BEFORE = """
    graph @g(%x: f32[b, s, 64]) {
      const %w: u8[64, 32] = @w
      const %k: f16[2, 32] = @k
      const %bias: f32[32] = @bias
      const %sum: i16[2, 32] = @sum
      %q: i8[b, s, 64], %r: f32[b, s, 2], %t: i32[b, s, 2], %z: i32[b, s, 2] = \
        dynamic_quantize(%x) {block = 32, zero_point = true}
      %h: f32[b, s, 32] = q8_linear(%q, %r, %t, %w, %k, %bias, -, %z, %sum) {block = 32}
      %one: f32[b, s, 16] = slice(%h) {starts = (0, 0, 0), sizes = (b, s, 16), steps = (1, 1, 1)}
      %other: f32[b, s, 16] = slice(%h) {starts = (0, 0, OTHER), sizes = (b, s, 16), steps = (1, 1, 1)}
      %act: f32[b, s, 16] = ACT
      %y: f32[b, s, 16] = OP(%act, %OF)
      return %y
    }"""


def changed(**words: str) -> str:
    """The text with such words in the places of those names."""
    text = BEFORE
    for name, word in {"OTHER": "16", "OP": "mul", **words}.items():
        text = text.replace(name, word)
    return text


def constants() -> dict[str, Array]:
    """A weight with what belongs to its columns."""
    rng = np.random.default_rng(0)
    w = rng.integers(0, 255, (64, 32)).astype(np.uint8)
    return {"w": w, "k": rng.uniform(0.5, 1, (2, 32)).astype(np.float16), "sum": q8.column_sums(w, 32),
            "bias": rng.standard_normal(32).astype(np.float32)}


@pytest.mark.parametrize(("act", "of", "name", "first"), [
    ("silu(%one)", "other", "silu", 0), ("gelu(%other) {approximate = \"tanh\"}", "one", "gelu_tanh", 1),
    ("sigmoid(%other)", "one", "sigmoid", 1)])
def test_halves_of_a_product_take_turns(act: str, of: str, name: str, first: int) -> None:
    data = constants()
    order = [16 * half + 8 * turn + n for turn in range(2) for half in (first, 1 - first) for n in range(8)]
    after = changed(ACT=act, OF=of).partition("      %h")[0] + f"""
      %y: f32[b, s, 16] = q8_linear(%q, %r, %t, %w, %k, %bias, -, %z, %sum)
        {{activation = "{name}", block = 32, gated = true}}
      return %y
    }}"""
    for n in data:
        after = after.replace(f"@{n}\n", f"@{n}2\n")
    turned = {f"{n}2": v[..., order] for n, v in data.items()}
    check(FuseGate(), changed(ACT=act, OF=of), after.replace(")\n        {", ") {"), constants=data | turned)


@pytest.mark.parametrize("words", [
    {"ACT": "silu(%one)", "OF": "other", "OP": "add"}, {"ACT": "silu(%one)", "OF": "one"},
    {"ACT": "silu(%one)", "OF": "other", "OTHER": "8"}, {"ACT": "exp(%one)", "OF": "other"}])
def test_what_is_no_gate_of_two_halves_stays(words: dict[str, str]) -> None:
    check(FuseGate(), changed(**words), None, constants=constants())
