"""last_token: the interpreter's rows, whatever the padding, and no rows at all."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.codegen.targets import Tier, tier
from q8c.ir.graph import Array
from tests.codegen.jit import each_width
from tests.codegen.kernels import NODE, compiled


def text(dtype: str = "", lengths: bool = False) -> str:
    """A graph of one last_token with a mask of a type, and lengths."""
    mask = f", %m: {dtype}[batch, past + seq], %p: f32[past]" if dtype else ""
    operands = (", %m" if dtype else "") + (", %n" if lengths else "")
    return f"""graph @g(%x: f32[batch, seq, 21]{mask}{", %n: i64[batch]" if lengths else ""}) {{
  %y: f32[batch, 1, 21] = last_token(%x{operands})
  return %y }}"""


@each_width
@pytest.mark.parametrize(("dtype", "lengths"), [("", False), ("i64", False), ("f32", True), ("bool", True),
                                               ("i32", False)])
def test_rows_of_the_interpreter(tier: Tier, dtype: str, lengths: bool) -> None:
    run = compiled(tier, text(dtype, lengths))
    rng = np.random.default_rng(0)
    for batch, seq, past in ((5, 4, 3), (1, 1, 0), (3, 2, 6), (0, 1, 1)):
        feeds: dict[str, Array] = {"x": rng.standard_normal((batch, seq, 21)).astype(np.float32)}
        if dtype:
            mask = rng.integers(0, 2, (batch, past + seq))
            mask[:1] = 0
            feeds |= {"m": mask.astype(run.graph.inputs[1].dtype.numpy), "p": np.zeros(past, np.float32)}
        if lengths:
            feeds["n"] = rng.integers(0, past + 1, batch)
        wanted = run.expected(**feeds)[0]
        for threads in (1, 3):
            np.testing.assert_array_equal(run(threads, None, **feeds)[0], wanted)


@pytest.mark.parametrize("dtype", ["", "i64"])
def test_no_tokens_are_reported(dtype: str) -> None:
    run = compiled(tier("avx2"), text(dtype))
    frame = np.zeros(8, np.int64)
    feeds: dict[str, Array] = {"x": np.zeros((2, 0, 21), np.float32)}
    if dtype:
        feeds |= {"m": np.zeros((2, 0), np.int64), "p": np.zeros(0, np.float32)}
    run(1, frame, **feeds)
    assert frame[1] == 1 + NODE
