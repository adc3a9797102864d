"""Weights leave memory once a pass is through with them."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import q4
from q8c.ir.spill import spilled
from q8c.passes.manager import run_passes
from q8c.passes.pipeline import Options, pipeline
from tests.memory import resident
from tests.passes.support import parse

DEPTH, COLS, LAYERS = 512, 1024, 3


@pytest.mark.parametrize("steps", [False, True])
def test_passes_leave_no_weights_in_memory(steps: bool) -> None:
    rng = np.random.default_rng(0)
    weights, constants, body, x = {}, "", "", "x"
    for i in range(LAYERS):
        for name, shape in ((f"g{i}", (DEPTH, COLS)), (f"u{i}", (DEPTH, COLS)), (f"d{i}", (COLS, DEPTH))):
            w = rng.standard_normal(shape).astype(np.float32)
            weights[name] = spilled(q4.round_weight(w, 32) if steps else w)
            constants += f"const %{name}: f32[{shape[0]}, {shape[1]}] = @{name}\n"
        body += f"""
            %a{i}: f32[n, {COLS}] = matmul(%{x}, %g{i})
            %b{i}: f32[n, {COLS}] = matmul(%{x}, %u{i})
            %m{i}: f32[n, {COLS}] = mul(%a{i}, %b{i})
            %y{i}: f32[n, {DEPTH}] = matmul(%m{i}, %d{i})
        """
        x = f"y{i}"
    graph = parse(f"graph @g(%x: f32[n, {DEPTH}]) {{ {constants} {body} return %{x} }}", weights)
    for value in graph.constants.values():
        value.data = weights[value.name]
    del weights
    for step in pipeline(Options()):
        before = resident()
        run_passes(graph, [step])
        assert resident() - before < 3 * DEPTH * COLS * 4, step.name
