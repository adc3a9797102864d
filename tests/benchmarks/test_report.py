"""From figures to tables: statistics, ratios, the JSON's form, words of the command line."""
from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import common, encoder, kernels, models, peers, report
from benchmarks.cases import GROUPS
from benchmarks.common import BenchmarkError, Times, geometric_mean, ms
from benchmarks.models import Shape
from benchmarks.race import Figures

EXACT = np.ones((2, 4), np.float32)
FLOORS = {"cpu": {"seconds": 1e-3, "int8": "tiles", "attention": "halves", "level": "L3"},
          "amx-int8": {"seconds": 2e-3, "int8": "dots", "attention": "floats", "level": "L3"}}


def figures(milliseconds: float, outputs: Any = EXACT) -> Figures:
    times = Times(milliseconds / 1e3, milliseconds / 1e3, milliseconds / 500, 1e-4, 9)
    return Figures(times, 0.5, 100_000_000, [outputs])


def case(**engines: Figures) -> dict[str, Any]:
    named = {name.replace("_", "-"): found for name, found in engines.items()}
    return report.summarize({"model": "m", "shape": "1x8", "threads": 2}, named,
                            {n: peers.engine(n) for n in named}, "ort-fp32", FLOORS, {"q8c": "amx-int8"},
                            {"ct2-int8": "it crashed"})


@pytest.fixture
def result() -> dict[str, Any]:
    ceilings = {"threads": 2, "rates": [{"unit": "dots", "kind": "int8", "features": [], "macs": 4e11}],
                "levels": [{"name": "L1", "size": 1, "shared": False, "read": 1e11}]}
    entry = {"model": "m", "threads": 2, "name": "q8c", "title": "q8c", "int8": True}
    return {"schema": report.SCHEMA, "machine": {"cpu": "a CPU", "cores": 2, "load": 0.5}, "ceilings": {"2": ceilings},
            "engines": [entry | {"import": 0.1, "load": 0.02, "prepare": 3.0},
                        entry | {"title": "PyTorch fp32", "skipped": "torch not installed"}],
            "results": [case(q8c=figures(4), ort_fp32=figures(40), ort_int8=figures(10, EXACT * 1.1), ov=figures(8)),
                        case(q8c=figures(2), ort_fp32=figures(20), ort_int8=figures(10), ov=figures(16))]}


def test_times_are_medians_and_percentiles() -> None:
    assert Times.of([3.0]) == Times(3.0, 3.0, 3.0, 3.0, 1)
    times = Times.of([float(n) for n in range(100, -1, -1)])
    assert times == Times(50.0, 10.0, 90.0, 0.0, 101) and Times.of([1.0, 2.0]).median == 1.5
    with pytest.raises(ValueError, match="no run"):
        Times.of([])
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4) and math.isnan(geometric_mean([]))
    assert [ms(s) for s in (0.0000123, 0.001234, 0.0123, 0.1234, 1.234, 12.3)] == [
        "0.0123", "1.23", "12.3", "123", "1234", "12300"]


def test_ratios_are_to_the_best_peers_and_the_floors(result: dict[str, Any]) -> None:
    first, second = result["results"]
    assert first["best"] == {"peer": "ov", "int8": "ort-int8"} and second["best"] == dict.fromkeys(
        ("peer", "int8"), "ort-int8")
    assert first["engines"]["q8c"]["faster"] == {"peer": pytest.approx(2), "int8": pytest.approx(2.5)}
    assert first["engines"]["q8c"]["floors"] == {"cpu": pytest.approx(4), "tier": pytest.approx(2)}
    assert first["engines"]["ort-int8"]["error"]["relative_l2"] == pytest.approx(0.1, rel=1e-3)
    assert first["engines"]["q8c"]["error"]["relative_l2"] == 0 and "faster" not in first["engines"]["ov"]
    assert first["engines"]["ov"]["floors"] == {"cpu": pytest.approx(8)}


def test_errors_need_a_reference_of_the_same_shape() -> None:
    assert case(q8c=figures(1))["engines"]["q8c"]["error"] is None
    odd = case(q8c=figures(1, EXACT[:1]), ort_fp32=figures(2))
    assert odd["engines"]["q8c"]["error"] is None and odd["best"]["int8"] is None


def test_padding_has_no_error() -> None:
    spoiled = EXACT.copy()
    spoiled[1] = 7
    real = np.array([True, False])
    assert report.error([spoiled], [EXACT], real) == {"relative_l2": 0, "cosine": 1}
    assert report.error([spoiled], [EXACT])["relative_l2"] > 1  # type: ignore[index]


def test_lengths_of_a_ragged_batch() -> None:
    lengths = Shape(32, 128, 5).lengths
    assert len(lengths) == 32 and (min(lengths), max(lengths)) == (5, 128) and 25 < sum(lengths) / 32 < 35
    assert Shape(32, 128, 5).lengths == lengths and Shape(3, 7).tokens == 21 and Shape(1, 9, 2).lengths == [9]


def test_everything_is_told(result: dict[str, Any]) -> None:
    text = report.text(result)
    for words in ("a CPU, 2 cores", "2 threads: dots 400 GMAC/s; reads L1 100 GB/s",
                  "m 1x8, 2 threads: cpu floor 1.00 ms (tiles, halves, weights in L3)", "2.00x 2.50x int8",
                  "m, PyTorch fp32: torch not installed", "m 1x8, ct2-int8: it crashed"):
        assert words in text, text
    (line,) = [line for line in text.splitlines() if line.startswith("m, q8c")]
    assert line.split()[2:] == ["2", "3.16x", "2.00x", "3.54x", "2.50x", "1.41"]
    assert [line.split()[0] for line in text.splitlines()[5:9]] == ["q8c", "OpenVINO", "ONNX", "ONNX"]


def test_the_file_is_json_and_the_plot_a_picture(result: dict[str, Any], tmp_path: Path) -> None:
    result["results"][0]["engines"]["q8c"]["error"]["cosine"] = math.nan
    common.write_json(tmp_path / "new" / "f.json", result)
    read = json.loads((tmp_path / "new" / "f.json").read_text())
    assert read["results"][0]["engines"]["q8c"]["error"]["cosine"] is None and read["schema"] == report.SCHEMA
    pytest.importorskip("matplotlib")
    report.plot(result, tmp_path / "p.svg")
    assert "<svg" in (tmp_path / "p.svg").read_text()
    report.plot(result | {"results": []}, tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_words_of_the_command_line() -> None:
    assert encoder.shapes("1x16,8x5-128") == (Shape(1, 16), Shape(8, 128, 5)) and common.counts("1,2") == (1, 2)
    assert [str(s) for s in encoder.shapes("1x16,8x5-128")] == ["1x16", "8x5-128"]
    for text in ("", "1", "0x4", "1x2x3", "ax2", "1x16,", "2x9-8", "2x0-8", "2x-8"):
        with pytest.raises(argparse.ArgumentTypeError):
            encoder.shapes(text)
    for text in ("", "0", "1,", "-1", "x"):
        with pytest.raises(argparse.ArgumentTypeError):
            common.counts(text)
    args = encoder.arguments().parse_args(["-e", "q8c:weights=q8-block64+tier=avx2,ov", "-a", "q8c", "-a", "ov"])
    assert encoder.engines(args) == ["q8c:weights=q8-block64,tier=avx2", "ov", "q8c"]
    for words in ("nobody", "q8c:tier", "q8c:tier="):
        with pytest.raises(BenchmarkError):
            peers.engine(words)
    assert peers.engine("q8c:quantize=false").int8 is False and peers.engine("q8c").int8
    assert set(kernels.arguments().parse_args([]).threads) == {1}


def test_a_missing_model_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert encoder.main(["-m", str(tmp_path / "none.onnx")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("encoder.py: no model") and err.count("\n") == 1
    assert kernels.main(["--only", "linear,nothing"]) == 1
    assert "no group 'nothing'; expected some of linear, gemv" in capsys.readouterr().err


def test_a_kernel_is_measured_against_its_own_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.benchmarks.test_ceilings import MACHINE
    monkeypatch.setenv("Q8C_BENCH_CACHE", str(tmp_path))
    (first, *_) = GROUPS["linear"]()
    node = {"label": "q8_linear 8x8", "op": "q8_linear", "seconds": 1e-6, "macs": 500, "bytes": 1000}
    found = kernels.kernel(node, first, MACHINE, frozenset({"avx512vnni"}))
    assert found["wanted"] and found["shares"] == {
        "memory": pytest.approx(0.01), "tier": pytest.approx(0.5), "cpu": pytest.approx(0.0625)}
    assert set(kernels.kernel(node | {"op": "gather", "macs": 0}, first, MACHINE, frozenset())["shares"]) == {"memory"}


def test_the_shapes_of_weights_are_those_the_builder_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minilm
    monkeypatch.setenv("Q8C_BENCH_CACHE", str(tmp_path))
    config = models.BERT_BASE | {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
                                 "num_attention_heads": 2, "vocab_size": 30}
    folder = models.random_folder("tiny", config)
    assert models.random_folder("tiny", config) == folder
    built = minilm.build(folder)
    assert len(built.graph.initializer) > 20
