"""Loops that read columns of a wider value where they lie: the bits of the same loop on values cut apart."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.codegen.targets import Tier
from tests.codegen.jit import each_width
from tests.codegen.kernels import compiled, loop_text

LEAD = "batch, seq"
RESULTS = {"q": f"i8[{LEAD}, 50]", "s": f"f32[{LEAD}, 2]", "t": f"i32[{LEAD}, 2]"}
OUT = ", ".join(f"%{n}: {t}" for n, t in RESULTS.items())


def cut(name: str, start: int) -> str:
    """50 of 120 columns."""
    return f"%{name}: f32[{LEAD}, 50] = slice(%x) {{starts = (0, 0, {start}), sizes = ({LEAD}, 50), steps = (1, 1, 1)}}"


GATE = f"""{cut("a", 3)}
    {cut("b", 61)}
    %g: f32[{LEAD}, 50] = silu(%a)
    %y: f32[{LEAD}, 50] = mul(%g, %b)"""
QUANTIZED = f"""{GATE}
    {OUT} = dynamic_quantize(%y) {{block = 32}}"""


@each_width
@pytest.mark.parametrize("quantized", [False, True])
def test_parts_of_a_wider_operand(tier: Tier, quantized: bool) -> None:
    wide, whole = {"x": f"f32[{LEAD}, 120]"}, {"a": f"f32[{LEAD}, 50]", "b": f"f32[{LEAD}, 50]"}
    outputs = RESULTS if quantized else {"y": f"f32[{LEAD}, 50]"}
    lines = QUANTIZED if quantized else GATE
    run = compiled(tier, loop_text(wide, lines, outputs))
    apart = compiled(tier, loop_text(whole, "\n".join(lines.split("\n")[2:]), outputs))
    rng = np.random.default_rng(0)
    for batch, seq in ((2, 5), (1, 1), (0, 2)):
        x = rng.standard_normal((batch, seq, 120)).astype(np.float32)
        parts = {n: np.ascontiguousarray(x[..., start:start + 50]) for n, start in (("a", 3), ("b", 61))}
        for threads in (1, 3):
            for got, same in zip(run(threads, None, x=x), apart(threads, None, **parts), strict=True):
                np.testing.assert_array_equal(got, same)


@each_width
def test_parts_of_which_one_is_reduced(tier: Tier) -> None:
    lines = f"""{cut("a", 0)}
    {cut("b", 70)}
    %m: f32[{LEAD}, 1] = reduce_max(%a) {{axes = (-1), keepdims = true}}
    %y: f32[{LEAD}, 50] = sub(%b, %m)
    %z: f32[{LEAD}, 50] = add(%y, %c)"""
    inputs = {"x": f"f32[{LEAD}, 120]", "c": "f32[50]"}
    run = compiled(tier, loop_text(inputs, lines, {"z": f"f32[{LEAD}, 50]"}))
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((3, 4, 120)).astype(np.float32), "c": rng.standard_normal(50).astype(np.float32)}
    np.testing.assert_array_equal(run(2, None, **feeds)[0], run.expected(**feeds)[0])
