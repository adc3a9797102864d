"""The verbs on a file whose branches inputs choose when it runs."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import q8c
from tests.cli.support import Cli
from tests.frontend.test_settings import merged


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("branches") / "merged.onnx"
    onnx.save(merged(), path)
    q8c.compile(path, target="avx2")
    return path


def test_compile_and_inspect_tell_of_each_part(cli: Cli, model: Path, tmp_path: Path) -> None:
    done = cli.good("compile", model, "-o", tmp_path / "m.q8c", "--target", "avx2", "--dump-dir", tmp_path / "dump")
    assert "where use_cache:" in done and "where not use_cache:" in done
    dumped = {str(path.relative_to(tmp_path / "dump")) for path in (tmp_path / "dump").rglob("*")}
    assert {"00-input.q8ir", "avx2.ll", "2/00-input.q8ir", "avx2-1.ll"} <= dumped
    compiled = tmp_path / "m.q8c"
    text = cli.good("inspect", compiled)
    assert text.index("where use_cache:") < text.index("where not use_cache:") < text.index("condition use_cache:")
    assert cli.good("inspect", "--ir", compiled).count("graph @") == 3
    found = json.loads(cli.good("compile", model, "-o", compiled, "--target", "avx2", "--json"))
    assert [part["when"] for part in found["parts"]] == ["use_cache", "not use_cache"]


def test_explain_tells_of_each_part(cli: Cli, model: Path) -> None:
    for path in (model, model.with_suffix(".q8c")):
        text = cli.good("explain", path)
        assert "where use_cache:\nno matrix products\n1 kernel\n" in text
        assert "concat" in text.split("where not use_cache:")[0]
        found = json.loads(cli.good("explain", path, "--json"))["parts"]
        assert [[kernel["op"] for kernel in part["kernels"]] for part in found] == [["concat"], ["loop: neg"]]


def test_a_branch_that_is_not_compiled_is_told(cli: Cli, tmp_path: Path) -> None:
    proto = merged()
    first = next(a.g for a in proto.graph.node[0].attribute if a.name == "else_branch")
    first.node[0].op_type = "Unique"
    onnx.save(proto, tmp_path / "m.onnx")
    reason = "not compiled where not use_cache: cannot compile 1 node of this model: Unique"
    assert reason in cli.good("compile", tmp_path / "m.onnx", "--target", "avx2")
    for found in (cli.good("explain", tmp_path / "m.onnx"), cli.good("explain", tmp_path / "m.q8c"),
                  cli.good("inspect", tmp_path / "m.q8c")):
        assert reason in found and "where use_cache:" in found
    found = json.loads(cli.good("explain", tmp_path / "m.q8c", "--json"))
    assert len(found["parts"]) == len(found["refused"]) == 1


def test_an_input_that_is_set_chooses_what_runs(cli: Cli, model: Path, tmp_path: Path) -> None:
    compiled, sizes = model.with_suffix(".q8c"), ("-s", "n=3", "-s", "past=2")
    for value, rows in (("true", 5), ("false", 3)):
        chosen = (*sizes, "--set", f"use_cache={value}")
        cli.good("run", compiled, *chosen, "-o", tmp_path / "y.npz")
        assert np.load(tmp_path / "y.npz")["y"].shape == (rows, 2)
        assert "1.000000" in cli.good("check", compiled, model, *chosen)
        profiled = json.loads(cli.good("profile", compiled, *chosen, "-n", "2", "--no-ceiling", "--json"))
        assert [row["op"] for row in profiled["rows"]] == ["concat" if rows == 5 else "loop"]
    assert "no input 'other' to set" in cli("run", compiled, "--set", "other=1").err
