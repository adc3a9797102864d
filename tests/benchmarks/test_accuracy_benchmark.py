"""The benchmark of accuracy: the tables, the picture."""
from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import accuracy
from benchmarks.accuracy import Row

ROWS = [Row(f"q8c {f}", "q8c", {"cosine": 0.999, "relative_l2": e}, s)
        for f, e, s in (("q8-channel", 0.036, 0.004), ("q8-block32", 0.016, 0.009))]
ROWS.append(Row("OpenVINO int8", "OpenVINO", {"cosine": 0.99, "relative_l2": 0.05}, 0.02))


def test_tables() -> None:
    lines = accuracy.encoder_table(ROWS).splitlines()
    assert len(lines) == 4 and lines[1].split() == ["q8c", "q8-channel", "0.99900", "0.0360", "4.00"]
    figures = {"kl": 0.00143, "top1": 0.977, "nll": 3.25, "reference_nll": 3.24}
    assert accuracy.decoder_table([Row("q8c", "q8c", figures)]).splitlines()[1].split() == [
        "q8c", "0.00143", "97.7%", "3.2500", "3.2400"]


def test_the_picture_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        accuracy.plot(ROWS, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_engines_run_in_turn() -> None:
    order: list[str] = []
    medians = accuracy.interleaved([lambda: order.append("a"), lambda: order.append("b")], 3)
    assert order == ["a", "b"] * 5 and len(medians) == 2
