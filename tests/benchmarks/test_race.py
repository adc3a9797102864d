"""Engines in processes of their own, on a tiny encoder: the peers that are installed, and what goes wrong with some."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import common, encoder, models, peers
from benchmarks.common import BenchmarkError
from benchmarks.models import Model, Shape
from benchmarks.race import Contestant, ended, race
from q8c.accuracy import error
from tests.benchmarks.test_ceilings import MACHINE

CONFIG = models.BERT_BASE | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                             "num_attention_heads": 2, "vocab_size": 100, "max_position_embeddings": 32}
WORST = {"fp32": 1e-5, "int8": 0.1, "qattention": 0.1, "ov": 0.02, "weights": 0.05}
"""Relative L2 by what the engine's name ends with: some times what the trained MiniLM shows."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    import minilm
    import onnx_graph
    folder = tmp_path_factory.mktemp("race")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("Q8C_BENCH_CACHE", str(folder))
        weights = models.random_folder("tiny", CONFIG)
    onnx_graph.save(minilm.build(weights), folder / "tiny.onnx")
    return Model("tiny", folder / "tiny.onnx", weights, (Shape(1, 8),), False)


@pytest.fixture(autouse=True)
def cache(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q8C_BENCH_CACHE", str(tiny.onnx.parent))


@pytest.mark.parametrize("name", [n for n in peers.ENGINES if n != "ort-fp32"])
def test_peers_compute_the_same(tiny: Model, name: str) -> None:
    engine, exact = peers.engine(name), peers.engine("ort-fp32")
    if engine.missing():
        pytest.skip(f"{engine.missing()[0]} is not installed")
    feed = tiny.feed(2, 7)
    expected = exact.load(exact.prepared(tiny), 1).bind(feed)()
    got = engine.load(engine.prepared(tiny), 1).bind(feed)()
    assert error(got[0], expected[0]).relative_l2 < WORST[name.rpartition("-")[2]]


def test_engines_take_turns(tiny: Model) -> None:
    contestants = [Contestant("ort-fp32"), Contestant("q8c")]
    dropped: dict[str, str] = {}
    with ended(contestants):
        for contestant in contestants:
            contestant.prepare(tiny)
            contestant.start(1)
        figures = race(contestants, tiny.feed(1, 8), 0.02, 2, dropped)
        nodes = contestants[1].ask("nodes", runs=3, seconds=0.1)["nodes"]
        figures |= race(contestants, {"input_ids": np.zeros((1, 8), np.int64)}, 0.02, 2, dropped)
    assert contestants[0]._process is None and contestants[1]._process is None
    for found in figures.values():
        assert 0 < found.times.p10 <= found.times.median <= found.times.p90 and found.times.runs > 3
        assert found.memory > 20e6 and found.outputs[0].shape == (1, 8, 64)
    assert contestants[1].facts["load"] < 5 and contestants[1].facts["facts"]["symbols"] == ["batch", "seq"]
    assert len([n for n in nodes if n["op"] == "q8_linear"]) == 8 and all(n["seconds"] > 0 for n in nodes)
    assert set(dropped) == {"ort-fp32", "q8c"} and "attention_mask" in dropped["q8c"]


def test_an_engine_that_dies_is_named(tiny: Model, tmp_path: Path) -> None:
    contestant = Contestant("ort-fp32")
    contestant.facts["path"] = str(tmp_path / "none.onnx")
    with pytest.raises(BenchmarkError, match="none.onnx"):
        contestant.start(1)
    contestant.end()
    contestant.prepare(tiny)
    contestant.start(1)
    assert contestant._process is not None
    contestant._process.kill()
    with ended([contestant]), pytest.raises(BenchmarkError, match="SIGKILL"):
        contestant.ask("time", warmups=0, runs=1, seconds=1)


def test_what_cannot_be_prepared_says_why(tiny: Model) -> None:
    nothing = Model("no weights", tiny.onnx, None, (), False)
    with pytest.raises(BenchmarkError, match=r"not installed|weights"):
        Contestant("ct2-int8").prepare(nothing)
    with pytest.raises(BenchmarkError, match="unknown"):
        Contestant("q8c:weights=q99").prepare(tiny)
    with pytest.raises(BenchmarkError, match=r"1000000 threads"):
        common.pin(1_000_000)


def test_the_whole_command(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(common, "ceilings", lambda threads: MACHINE.to_json())
    output = tmp_path / "f.json"
    words: list[Any] = ["-m", tiny.onnx, "-s", "1x6,2x3-8", "-t", "1", "-e", "ort-fp32,q8c,torch-fp32",
                        "--seconds", "0.02", "--rounds", "1", "-o", output, "--plot", tmp_path / "p.svg"]
    assert encoder.main([str(word) for word in words]) == 0
    text = capsys.readouterr().out
    assert "tiny 1x6, 1 thread: cpu floor" in text and "tiny, PyTorch fp32: " in text
    results = json.loads(output.read_text())["results"]
    assert [(r["shape"], r["tokens"]) for r in results] == [("1x6", 6), ("2x3-8", 11)]
    assert all(r["engines"]["q8c"]["error"]["relative_l2"] < 0.1 for r in results)
    assert set(results[0]["engines"]["q8c"]["floors"]) == {"cpu", "tier"} and results[0]["best"]["peer"] == "ort-fp32"
