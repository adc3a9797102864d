"""Scoring texts: windows, sums, and the whole on a small random decoder."""
from __future__ import annotations

import math
import sys
from pathlib import Path

import llama
import numpy as np
import perplexity
import pytest

from tests.examples.tiny_llama import TinyGguf
from tests.models import Array


def test_windows_overlap_by_a_token() -> None:
    assert [w[0].tolist() for w in perplexity.windows([1, 2, 3, 4, 5, 6], 3)] == [[1, 2, 3], [3, 4, 5], [5, 6]]
    assert [w[0].tolist() for w in perplexity.windows([1], 3)] == [[1]]


def test_every_token_but_the_first_is_scored_once() -> None:
    def sure_of_the_next(ids: Array) -> Array:
        """Probability 1/2 for the token after the last one's number, the rest shared by the other nine."""
        logits = np.full((1, ids.shape[1], 10), math.log(0.5 / 9), np.float32)
        np.put_along_axis(logits, (ids[..., None] + 1) % 10, math.log(0.5), axis=-1)
        return logits + 3

    found = perplexity.surprise(sure_of_the_next, [0, 1, 2, 3, 4, 5, 7], 3)
    assert found.tokens == 6
    assert found.total == pytest.approx(-5 * math.log(0.5) - math.log(0.5 / 9), rel=1e-6)
    assert math.isnan(perplexity.surprise(sure_of_the_next, [4], 3).mean)


def test_int8_is_close_to_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:
    text, empty = tmp_path / "text.txt", tmp_path / "empty.txt"
    text.write_text(" ".join(f"w{n * n % 54}" for n in range(40)))
    empty.write_text("")
    monkeypatch.setattr(llama, "Gguf", lambda path: TinyGguf())
    monkeypatch.setattr(sys, "argv", ["perplexity.py", str(text), str(empty), "--fp32", "--window", "16", "--gguf", "x",
                                      "--output", str(tmp_path / "tiny.q8c")])
    assert perplexity.main() == 0
    _, row, none = capsys.readouterr().out.splitlines()
    tokens, int8, _, fp32, _, difference = row.split()[1:]
    assert tokens == "40" and 1 < float(fp32) < 10 and abs(float(int8) - float(fp32)) < 0.05
    assert abs(float(difference.rstrip("%"))) < 5
    assert none.split()[1:3] == ["0", "nan"]


@pytest.mark.parametrize("text", ["1", "x", "nan", "2.5"])
def test_windows_of_no_use_are_refused(text: str, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["perplexity.py", "a.txt", "--window", text])
    with pytest.raises(SystemExit):
        perplexity.main()
    assert "is not a number of at least 2" in capsys.readouterr().err


def test_a_missing_text_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["perplexity.py", "nowhere.txt"])
    assert perplexity.main() == 1
    assert "nowhere.txt" in capsys.readouterr().err
