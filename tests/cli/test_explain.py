"""`q8c explain`: kernels and the nodes they stand for, and what was left alone."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from q8c.explain import read_notes
from q8c.passes.manager import Note
from tests import models
from tests.cli.support import Cli


def explained(cli: Cli, *words: object) -> dict[str, Any]:
    found = json.loads(cli.good("explain", *words, "--json"))
    assert isinstance(found, dict)
    return found


def test_a_compiled_file_tells_what_its_model_does(cli: Cli, mlp: Path, compiled: Path) -> None:
    found = explained(cli, mlp)
    assert found == explained(cli, compiled)
    kernels = [(k["op"], k["nodes"]) for k in found["kernels"]]
    assert [op for op, _ in kernels] == ["loop: dynamic_quantize", "q8_linear", "loop: gelu, mul, dynamic_quantize",
                                         "q8_linear"]
    assert kernels[1][1] == ["matmul0", "add0"] and kernels[3][1] == ["matmul1", "add1"]


def test_what_was_left_alone_has_a_reason(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "narrow.onnx"
    onnx.save(models.mlp((32, 64, 8)), path)
    left = [e for e in explained(cli, path)["left"] if e["pass_name"] == "fold-weights"]
    reason = "a weight of 64 x 8 is too small to pay for quantizing rows"
    assert left == [{"pass_name": "fold-weights", "reason": reason, "nodes": ["matmul1"]}]
    lines = cli.good("explain", path).splitlines()
    assert f"left alone by fold-weights: {reason} (matmul1)" in lines
    assert lines[:2] == ["1 of 2 matrix products are int8, in 1 kernel", f"  1 float: {reason} (matmul1)"]


def test_without_quantizing_products_are_float_kernels(cli: Cli, mlp: Path) -> None:
    ops = [k["op"] for k in explained(cli, mlp, "--no-quantize")["kernels"]]
    assert ops.count("linear") == 2 and "q8_linear" not in ops


def test_one_node(cli: Cli, mlp: Path) -> None:
    found = explained(cli, mlp, "add1")
    assert [k["nodes"] for k in found["kernels"]] == [["matmul1", "add1"]]
    assert [p["name"] for p in found["products"]] == ["matmul1"] and found["products"][0]["form"] == "int8"
    assert "a node with 'no such' in its name" in cli.bad(1, "explain", mlp, "no such")


@pytest.mark.parametrize("note", [Note("fold-weights", "matmul %y", ("dense: (a) from",), "too: small (it is)"),
                                  Note("merge-matmuls", "add %a b", (), "read as a whole")])
def test_notes_read_back(note: Note) -> None:
    assert read_notes([str(note), "no note"]) == [note]
