"""rotary: the interpreter's bits, for every layout and tier."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.codegen.targets import Tier
from q8c.ir.dims import evaluate
from q8c.ir.graph import Array
from tests.codegen.jit import each_width
from tests.codegen.kernels import compiled

X = {"wide": "batch, seq, 150", "split": "batch, 3, seq, 40"}


@each_width
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("layout, rotated, shared", [("wide", 40, "1"), ("split", 40, "batch"), ("wide", 18, "batch"),
                                                     ("split", 2, "1"), ("wide", 32, "1")])
def test_bits_of_the_interpreter(tier: Tier, interleaved: bool, layout: str, rotated: int, shared: str) -> None:
    offset = 17 if layout == "wide" else 0
    run = compiled(tier, f"""graph @g(%x: f32[{X[layout]}], %cos: f32[{shared}, seq, {rotated // 2}], \
%sin: f32[batch, seq, {rotated // 2}]) {{
      %y: f32[batch, seq, 120] = rotary(%x, %cos, %sin) {{heads = 3, head_size = 40, rotary_size = {rotated},
        offset = {offset}, interleaved = {str(interleaved).lower()}}}
      return %y }}""")
    rng = np.random.default_rng(0)
    for batch, seq in ((2, 5), (1, 1), (1, 0), (0, 3)):
        sizes = {"batch": batch, "seq": seq}
        feeds: dict[str, Array] = {
            v.name: rng.standard_normal([evaluate(d, sizes) for d in v.shape]).astype(np.float32)
            for v in run.graph.inputs}
        for threads in (1, 4):
            np.testing.assert_array_equal(run(threads, None, **feeds)[0], run.expected(**feeds)[0])
