"""The benchmark of decoders: who takes part in what, and what its shares are shares of."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import decoder, decoders
from benchmarks.common import Times
from benchmarks.decoder import OWN, OWN_LAST, REFERENCE, Case
from benchmarks.race import Figures
from q8c.ceilings import Reader
from q8c.passes.pipeline import Options
from tests.decoder import HEADS, HIDDEN, KV_HEADS, SIZES, TOKENS, compile_graph, decoder_graph

NAMES = [OWN, OWN_LAST, *decoders.ENGINES, decoders.READS]


class Fixed(decoder.Reads):
    """A file of so many bytes of weights and 10 for a token."""

    def __init__(self, weights: int) -> None:
        self._weights, self._token = weights, 10


def figures(seconds: float) -> Figures:
    return Figures(Times.of([seconds]), seconds, 10**6, [np.ones((1, 1, 4), np.float32)])


def test_engines_compute_what_they_are_made_for() -> None:
    def racing(case: Case) -> set[str]:
        return {name for name in NAMES if case.suits(name, NAMES)}

    assert racing(Case(1, 0, 128, last=True)) == {OWN_LAST, decoder.CHOOSES}
    assert racing(Case(1, 0, 128)) == {OWN, *decoders.ENGINES}
    assert racing(Case(1, 112, 1)) == {OWN, decoders.READS, *decoders.ENGINES}
    assert Case(1, 112, 1).suits(OWN_LAST, [OWN_LAST])


def test_tokens_are_measured_by_the_bandwidth_and_prompts_by_the_floor() -> None:
    engines = {OWN: figures(0.02), REFERENCE: figures(0.06)}
    reads = {OWN: Fixed(890), OWN_LAST: Fixed(2890)}  # the reader reads as much as the largest file
    found = decoder.summary(Case(1, 10, 1), 1, {**engines, decoders.READS: figures(0.015)}, 0.001, reads)
    assert found["bandwidth"] == pytest.approx(3000 / 0.015) and found["floor"] is None
    own, reference = found["engines"][OWN], found["engines"][REFERENCE]
    assert own["share"] == pytest.approx(1000 / 0.02 / (3000 / 0.015)) and reference["share"] is None
    assert reference["ratio"] == pytest.approx(3) and own["error"] == 0
    prompt = decoder.summary(Case(1, 0, 8), 1, engines, 0.001, reads)
    assert prompt["engines"][OWN]["share"] == pytest.approx(0.05) and prompt["bandwidth"] is None
    assert "0.0 GB/s" in decoder.case_text(found) and "of floor" in decoder.case_text(prompt)


def test_a_text_agrees_until_the_first_other_token() -> None:
    text = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    assert decoder.agreed(np.array([[1, 2, 0, 4], [0, 2, 3, 4], [1, 2, 3, 4]]), text) == [2, 0, 4]


def test_what_a_token_reads_is_as_large_as_the_file_says(tmp_path: Path) -> None:
    path = compile_graph(decoder_graph(layers=1), tmp_path / "x.q8c", Options(weights="q8-block32"))
    kv = KV_HEADS * sum(SIZES.values())
    # q, k and v in one; what attention goes into; the head
    products = [(HIDDEN, HIDDEN + kv), (HEADS * SIZES["v"], HIDDEN), (HIDDEN, -(-TOKENS // 16) * 16)]
    assert decoders.weight_bytes(path) == sum(depth * n + depth // 32 * 2 * n for depth, n in products)
    assert decoders.token_bytes(path) == 4 * kv


@pytest.mark.parametrize("threads", [1, 3])
def test_reading_is_in_whole_pieces(threads: int) -> None:
    read = Reader(100_000, threads)
    read()
    assert read.size % (1024 * threads) == 0 and 100_000 - 1024 * threads < read.size <= 100_000
