"""`q8c run`, `check` and `bench`: what they print, where inputs come from, what they refuse."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import q8c
from q8c.cli.feeds import read_npz, write_npz
from tests import models
from tests.cli.support import Cli

BUDGET = 0.02  # tests/test_compile.py says why


@pytest.fixture
def inputs(tmp_path: Path, mlp: Path) -> Path:
    """Inputs and ONNX Runtime's outputs in one file, as `check` takes them."""
    x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    [y] = models.onnxruntime_outputs(onnx.load(mlp), {"x": x})
    path = tmp_path / "inputs.npz"
    with open(path, "wb") as file:
        write_npz(file, {"in:x": x, "out:y": y})
    return path


def test_run_prints_and_keeps_the_outputs(cli: Cli, compiled: Path, inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "y.npz"
    text = cli.good("run", compiled, "-i", inputs, "-o", output, "-t", "1")
    assert text.startswith("y: float32[64, 16]\n[[")
    with np.load(inputs) as given, np.load(output) as kept:
        assert np.array_equal(kept["y"], q8c.load(compiled)(x=given["in:x"])["y"])


def test_run_as_json(cli: Cli, compiled: Path, inputs: Path) -> None:
    found = json.loads(cli.good("run", compiled, "-i", inputs, "--json", "-t", "2"))
    facts = found["outputs"]["y"]
    assert (found["threads"], facts["dtype"], facts["shape"]) == (2, "float32", [64, 16])
    assert facts["min"] <= facts["mean"] <= facts["max"]


def test_json_has_no_nan(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "nan.npz", x=np.full((1, 32), np.nan, np.float32))
    text = cli.good("run", compiled, "-i", tmp_path / "nan.npz", "--json")
    assert json.loads(text, parse_constant=pytest.fail)["outputs"]["y"]["max"] is None


def test_made_up_inputs_have_the_sizes_asked_for_and_are_always_the_same(cli: Cli, compiled: Path) -> None:
    text = cli.good("run", compiled, "-s", "rows=3")
    assert "float32[3, 16]" in text and cli.good("run", compiled, "-s", "rows=3") == text
    assert "float32[0, 16]" in cli.good("run", compiled, "-s", "rows=0")


def test_made_up_ids_lie_in_the_table(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bert.onnx"
    onnx.save(models.bert(tmp_path), path)
    cli.good("compile", path)
    assert "float32[2, 40, 48]" in cli.good("run", path.with_suffix(".q8c"), "-s", "seq=40", "-s", "batch=2")
    assert "float32[4, 32, 48]" in cli.good("run", path.with_suffix(".q8c"))


@pytest.mark.parametrize(("words", "says"), [
    (["-s", "rows"], "--size expected NAME=N, got 'rows'"),
    (["-s", "rows=-1"], "--size expected NAME=N"),
    (["-s", "rows=1e9"], "--size expected NAME=N"),
    (["-s", "cols=4"], "no free size is called cols; the model has rows"),
    (["-s", "rows=4", "-i", "x.npz"], "--size and --set are for made-up inputs"),
    (["-i", "none.npz"], "cannot read none.npz: No such file"),
])
def test_wrong_words(cli: Cli, compiled: Path, words: list[str], says: str) -> None:
    assert says in cli.bad(2, "run", compiled, *words)


def test_feeds_that_do_not_fit(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    path = tmp_path / "feed.npz"
    x = np.zeros((2, 32), np.float32)
    for arrays, says in [({"z": x}, "lacks 'x' and has the unknown 'z'"), ({"x": x.astype(float)}, "must be float32"),
                         ({"x": x[0]}, "2 dimensions"), ({"x": x[:, :3]}, "32"), ({}, "lacks 'x'")]:
        np.savez(path, **arrays)
        assert says in cli.bad(1, "run", compiled, "-i", path)
    with open(path, "wb") as file:
        np.save(file, x)
    assert "one array without a name" in cli.bad(2, "run", compiled, "-i", path)
    np.savez(path, x=np.array([None], dtype=object))
    assert "cannot read" in cli.bad(2, "run", compiled, "-i", path)


def test_a_size_no_memory_is_for(cli: Cli, compiled: Path) -> None:
    line = cli.bad(1, "run", compiled, "-s", "rows=99999999999999")
    assert "memory" in line or "too large" in line


def test_an_output_that_cannot_be_written(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    assert "cannot write" in cli.bad(1, "run", compiled, "-o", tmp_path / "no" / "y.npz")


def test_check_against_onnxruntime_the_interpreter_and_kept_outputs(
        cli: Cli, compiled: Path, mlp: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*words: object) -> tuple[str, float]:
        found = json.loads(cli.good("check", *words, "--json"))
        return found["reference"], found["outputs"]["y"]["relative_l2"]

    text = cli.good("check", compiled, mlp, "-s", "rows=32")
    assert "error against fp32 (ONNX Runtime " in text and "cosine" in text and "32x16" in text
    source, kept = measured(compiled, "-i", inputs)
    assert source == "outputs in inputs.npz" and 0 < kept <= BUDGET
    source, run = measured(compiled, mlp, "-s", "rows=64")
    assert source.startswith("ONNX Runtime ") and 0 < run <= BUDGET
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    source, interpreted = measured(compiled, mlp, "-s", "rows=64")
    assert source == "reference interpreter" and abs(interpreted - run) < 1e-5


def test_check_of_what_cannot_be_compared(cli: Cli, compiled: Path, mlp: Path, tmp_path: Path) -> None:
    assert "against what?" in cli.bad(2, "check", compiled)
    other = tmp_path / "other.onnx"
    proto = models.model([helper.make_node("Identity", ["x"], ["z"])], {"x": ("rows", 32)}, {"z": ("rows", 32)})
    onnx.save(proto, other)
    assert "no output 'y', it has z" in cli.bad(2, "check", compiled, other)
    onnx.save(models.mlp((32, 17)), other)
    assert "of the same model" in cli.bad(2, "check", compiled, other)
    onnx.save(models.mlp((31, 16)), other)
    assert "ONNX Runtime refuses the inputs" in cli.bad(1, "check", compiled, other)
    assert "ONNX Runtime refuses" in cli.bad(1, "check", compiled, tmp_path / "none.onnx")


def test_bench(cli: Cli, compiled: Path, mlp: Path) -> None:
    text = cli.good("bench", compiled, "-m", mlp, "-n", "5", "-t", "1", "-s", "rows=4")
    assert text.startswith("5 runs in turn, 1 thread, x[4, 32]\n") and "ONNX Runtime fp32" in text
    found = json.loads(cli.good("bench", compiled, "-n", "5", "--json"))
    [(name, figures)] = found["seconds"].items()
    assert name.startswith("q8c ") and 0 < figures["p10"] <= figures["median"] <= figures["p90"]


def test_onnx_files_are_compiled_into_the_cache(cli: Cli, mlp: Path, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q8C_CACHE", str(tmp_path / "cache"))
    assert "float32[2, 16]" in cli.good("run", mlp, "-s", "rows=2")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert "ONNX Runtime" in cli.good("check", mlp) and "ONNX Runtime fp32" in cli.good("bench", mlp, "-n", "1")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_arrays_of_any_name_and_kind_come_back(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "file": np.arange(3), "a b/c:0": np.array(1.5), "é\n": np.zeros((0, 2), np.bool_), "allow_pickle": np.ones(1),
        "..": np.asfortranarray(np.ones((2, 3), ">f4"))}
    path = tmp_path / "a.npz"
    with open(path, "wb") as file:
        write_npz(file, arrays)
    found = read_npz(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_inputs_of_another_kind_are_refused(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    text, one = tmp_path / "inputs.txt", tmp_path / "one.npy"
    text.write_text("rows of 32")
    np.save(one, np.zeros(3))
    assert "holds no arrays; expected an .npz" in cli.bad(2, "run", compiled, "-i", text)
    assert "holds one array without a name" in cli.bad(2, "run", compiled, "-i", one)
