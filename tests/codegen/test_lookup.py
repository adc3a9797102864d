"""lookup: the interpreter's bits from packed weights, and what indices are refused."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.codegen import layout
from q8c.codegen.kernels import kernel_for
from q8c.codegen.module import new_module
from q8c.codegen.targets import Tier, tier
from q8c.errors import CompileError
from q8c.ir import parse_graph, q8
from tests.codegen.jit import all_tiers
from tests.codegen.kernels import NODE, compiled

COLS = 37


def text(depth: int, block: int, dtype: str = "i64", scale: str = "f32") -> str:
    """A graph of one lookup, its weight an input."""
    blocks = f"{q8.block_count(depth, block)}, " if block else ""
    return f"""graph @g(%w: u8[{depth}, {COLS}], %s: {scale}[{blocks}{COLS}], %at: {dtype}[batch, seq]) {{
  %y: f32[batch, seq, {depth}] = lookup(%w, %s, %at) {{block = {block}}}
  return %y }}"""


@all_tiers
@pytest.mark.parametrize(("depth", "block", "dtype"), [(16, 0, "i32"), (96, 32, "i64"), (80, 64, "i64"),
                                                   (272, 128, "i64")])
def test_bits_of_the_interpreter(tier: Tier, depth: int, block: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((depth, COLS)).astype(np.float32) * (1e-9 if block == 64 else 1)
    w, s = q8.quantize_weight(weight.astype(np.float32), block)
    run = compiled(tier, text(depth, block, dtype, "f16" if s.dtype == np.float16 else "f32"))
    assert (s.dtype == np.float16) == (block in (32, 128))
    run.packed = {"w": layout.pack_q8(w), "s": layout.pack_scales(s)}
    for batch, seq in ((2, 40), (1, 1), (0, 3)):
        at = rng.integers(-COLS, COLS, (batch, seq)).astype(dtype.replace("i", "int"))
        [wanted] = run.expected(w=w, s=s, at=at)
        for threads in (1, 3):
            np.testing.assert_array_equal(run(threads, None, w=w, s=s, at=at)[0], wanted)


@pytest.mark.parametrize("index", [COLS, -COLS - 1, 2**62, -2**63])
def test_an_index_out_of_range_is_reported(index: int) -> None:
    run = compiled(tier("avx2"), text(32, 32, scale="f16"))
    w, s = q8.quantize_weight(np.ones((32, COLS), np.float32), 32)
    frame = np.zeros(8, np.int64)
    run.packed = {"w": layout.pack_q8(w), "s": layout.pack_scales(s)}
    run(1, frame, w=w, s=s, at=np.array([[1, index]]))
    assert frame[1:3].tolist() == [1 + NODE, index]


def test_a_depth_there_is_no_kernel_for() -> None:
    node = parse_graph(text(24, 0)).nodes[0]
    with pytest.raises(CompileError, match="no kernel for a depth of 24; expected a multiple of 16"):
        kernel_for(node)(new_module("m"), tier("avx2"), node)
