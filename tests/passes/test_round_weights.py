"""Weights rounded to 4 bits are near, stay as they are when rounded again, and get 4 bits in memory."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import q8c
from q8c.compiler import compile_model
from q8c.errors import CompileError
from q8c.ir import q4, q8
from q8c.passes.manager import run_passes
from q8c.passes.pipeline import Options
from q8c.passes.round_weights import RoundWeights
from tests.models import mlp
from tests.passes.support import parse

W = np.random.default_rng(0).standard_t(4, (80, 24)).astype(np.float32)
W[:, 3], W[5, 4] = 0, 1e4
W[:, 5:8] *= np.array([1e-4, 1e-12, 1e6], np.float32)


def test_no_weight_moves_far() -> None:
    rounded = q4.round_weight(W, 32)
    for start in range(0, len(W), 32):
        part = slice(start, start + 32)
        top = np.abs(W[part]).max(axis=0)
        assert (np.abs(rounded[part] - W[part]) <= top / 7 * 0.501 + (np.abs(W[part]) > top * 0.9) * top / 8).all()
    spread = np.linalg.norm(rounded[:, 8:] - W[:, 8:]) / np.linalg.norm(W[:, 8:])
    assert 0.05 < spread < 0.12
    np.testing.assert_array_equal(q4.round_weight(-W, 32), -rounded)


def test_what_was_rounded_has_four_bits() -> None:
    rounded = q4.round_weight(W, 32)
    u, scale = q8.quantize_weight(rounded, 32)
    np.testing.assert_allclose(q8.dequantize_weight(u, scale, 32), rounded, rtol=1e-6)
    found = q4.narrow(u, 32)
    assert found is not None and found.offsets is None and found.sign is not None


def test_only_weights_of_products() -> None:
    graph = parse("""
    graph @g(%x: f32[n, 80]) {
      const %w: f32[80, 24] = @w
      const %odd: f32[24, 17] = @odd
      const %last: f32[17, 20] = @last
      const %scale: f32[80] = @scale
      %a: f32[n, 80] = mul(%x, %scale)
      %y: f32[n, 24] = matmul(%a, %w) from "first"
      %z: f32[n, 17] = matmul(%y, %odd)
      %t: f32[n, 20] = matmul(%z, %last) from "odd"
      return %t
    }""", {"w": W, "odd": W[:24, :17], "last": W[:17, :20], "scale": W[:, 0]})
    report = run_passes(graph, [RoundWeights()])
    assert [note.text for note in report.rewrites] == ["weight rounded to 4 bits"] * 2
    np.testing.assert_array_equal(graph.nodes[1].input(1).array(), q4.round_weight(W, 32))
    np.testing.assert_array_equal(graph.constants["last"].array(), W[:17, :20])
    assert "no multiple of 8" in report.declines[0].text


def test_a_model_in_four_bits(tmp_path: Path) -> None:
    proto = mlp((64, 96, 32))
    result = compile_model(proto, tmp_path / "m.q8c", options=Options(weights="q4-block32"))
    linears = [n for n in result.parts[0].graph.nodes if n.op == "q8_linear"]
    assert linears and all(n.attrs.get("bits") == 4 and len(n.inputs) < 10 for n in linears)
    measured = result.parts[0].measured
    assert measured is not None and 0.05 < measured.outputs["y"]["relative_l2"] < 0.15
    with pytest.raises(CompileError, match="q4-block16"):
        q8c.compile(proto, tmp_path / "n.q8c", weights="q4-block16")
