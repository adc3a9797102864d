"""Mixtures of experts, compiled: each expert works on its own tokens, and no token on another's result."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import q8c
from q8c.codegen.targets import TIERS, Tier
from q8c.errors import InputError
from q8c.ir import Array, interpret
from q8c.passes.pipeline import Options
from tests.codegen.jit import all_tiers, needs, runnable_tiers
from tests.decoder import compile_graph
from tests.experts import mixture
from tests.passes.support import parse

FAST = TIERS["amx-int8"].fast()
HIDDEN, INNER, EXPERTS, CHOSEN, TOKENS = 40, 24, 5, 2, 70
RNG = np.random.default_rng(0)
X = RNG.standard_normal((TOKENS, HIDDEN)).astype(np.float32)
IDS = np.where(RNG.random((TOKENS, CHOSEN)) < 0.7, 1, RNG.choice([0, 2, 4, -1, -5], (TOKENS, CHOSEN)))
SCORES = RNG.random((TOKENS, CHOSEN)).astype(np.float32)


def feed(tokens: slice = slice(None)) -> dict[str, Array]:
    """Tokens of which most go to expert 1, some to one expert twice, and none to expert 3."""
    return {"x": X[tokens], "id": IDS[tokens], "score": SCORES[tokens]}


def check(form: str, path: Path, options: Options, tier: Tier, error: float = 1e-5) -> None:
    """A token's bits are those it has alone, on any number of threads, and near what the final graph means."""
    graph = parse(mixture(form, HIDDEN, INNER, EXPERTS, CHOSEN))
    compile_graph(graph, path, options, tier)
    ops = [n.op for n in graph.nodes]
    assert all(n.attrs.get("bits") == 4 for n in graph.nodes if n.op == "q8_linear") or options.weights != "q4-block32"
    assert "matmul" not in ops and ops.count("q8_linear" if options.quantize else "linear") == 2
    found: list[Array] = []
    for threads in (1, 3):
        with q8c.load(path, threads=threads) as session:
            found += session.run(None, feed())
            for tokens in (slice(0, 1), slice(3, 9), slice(9, 9)):
                assert session.run(None, feed(tokens))[0].tobytes() == found[0][tokens].tobytes()
    assert found[0].tobytes() == found[1].tobytes()
    np.testing.assert_allclose(found[0], interpret(graph, feed())[0], rtol=0, atol=error * np.abs(found[0]).max())


@all_tiers
def test_int8_experts(tier: Tier, tmp_path: Path) -> None:
    check("columns", tmp_path / "m.q8c", Options(balance=False), tier)


def test_float_experts(tmp_path: Path) -> None:
    check("rows", tmp_path / "m.q8c", Options(quantize=False), runnable_tiers()[-1])


def test_experts_of_4_bits_in_blocks(tmp_path: Path) -> None:
    check("rows", tmp_path / "m.q8c", Options(weights="q4-block32"), runnable_tiers()[-1])


@needs(FAST)
def test_experts_of_rows_in_bfloat16(tmp_path: Path) -> None:
    check("rows", tmp_path / "m.q8c", Options(weights="q8-block32", balance=False), FAST, error=0.02)


def test_an_expert_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = compile_graph(parse(mixture("columns", HIDDEN, INNER, EXPERTS, CHOSEN)), tmp_path / "m.q8c",
                         Options(quantize=False), runnable_tiers()[0])
    with q8c.load(path) as session:
        for wrong in (EXPERTS, -EXPERTS - 1):
            with pytest.raises(InputError, match=f"{wrong}"):
                session.run(None, {**feed(), "id": np.where(IDS == 1, wrong, IDS)})
        assert session.run(None, feed())[0].shape == (TOKENS, HIDDEN)
