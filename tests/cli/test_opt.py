"""`q8c opt`: passes on graphs as text, with and without constants, and on ONNX files."""
from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from q8c.ir import constant_data, parse_graph, print_graph
from q8c.passes.pipeline import PASSES
from tests.cli.support import Cli

SMALL = """\
graph @g(%x: f32[n, 4]) {
  const %two: f32[] = 2.0
  const %three: f32[] = 3.0
  %six: f32[] = mul(%two, %three)
  %y: f32[n, 4] = mul(%x, %six)
  return %y as "out"
}
"""
WITH_WEIGHT = """\
graph @g(%x: f32[n, 32]) {
  const %w: f32[32, 16] = @w
  %y: f32[n, 16] = matmul(%x, %w) from "layer"
  return %y as "out"
}
"""


@pytest.fixture
def weighted(tmp_path: Path) -> Path:
    """A graph text whose weight lies beside it."""
    path = tmp_path / "w.q8ir"
    path.write_text(WITH_WEIGHT)
    np.savez(tmp_path / "w.q8ir.npz", w=np.arange(512, dtype=np.float32).reshape(32, 16))
    return path


def test_every_pass_is_listed_with_what_it_does(cli: Cli) -> None:
    text = cli.good("opt", "--list")
    lines = re.sub(r"\n +", " ", text).splitlines()
    assert [line.split()[0] for line in lines] == sorted(PASSES) and max(map(len, text.splitlines())) <= 120
    assert all(len(line.split()) > 3 and line.endswith(".") for line in lines)


def test_text_to_text(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.q8ir"
    path.write_text(SMALL)
    text = cli.good("opt", path, "-p", "fold-constants,eliminate-dead-code")
    assert "= 6.0" in text and "mul(%two" not in text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SMALL.encode())))
    assert cli.good("opt", "-", "-p", "fold-constants,eliminate-dead-code") == text


def test_constants_lie_beside_the_text(cli: Cli, weighted: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.q8ir"
    assert cli.good("opt", weighted, "-p", "fold-weights", "-o", output) == ""
    with np.load(f"{output}.npz") as data:
        constants = {name: data[name] for name in data.files}
    graph = parse_graph(output.read_text(), constants)
    assert {a.dtype for a in constant_data(graph).values()} == {np.dtype(np.uint8), np.dtype(np.float32)}
    assert "dequantize_weight" in output.read_text()
    first = Path(f"{output}.npz").read_bytes()
    cli.good("opt", weighted, "-p", "fold-weights", "-o", output)
    assert Path(f"{output}.npz").read_bytes() == first
    cli.good("opt", output, "-p", "insert-dynamic-quantize", "-o", output)
    assert "q8_matmul" in output.read_text()


def test_no_constants_are_left_beside_a_text_without_any(cli: Cli, weighted: Path, tmp_path: Path) -> None:
    source = tmp_path / "g.q8ir"
    source.write_text(SMALL)
    cli.good("opt", source, "-p", "canonicalize", "-o", weighted)
    assert not Path(f"{weighted}.npz").exists()


def test_without_the_constants(cli: Cli, weighted: Path) -> None:
    Path(f"{weighted}.npz").unlink()
    assert cli.good("opt", weighted, "-p", "canonicalize,eliminate-dead-code") == WITH_WEIGHT
    line = cli.bad(1, "opt", weighted, "-p", "fold-weights")
    assert "pass fold-weights failed" in line and "%w: its data was not given" in line


def test_the_whole_pipeline_on_onnx_and_text_of_any_level(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    imported, final = tmp_path / "imported.q8ir", tmp_path / "final.q8ir"
    cli.good("opt", mlp, "-p", "canonicalize", "-o", imported)
    cli.good("opt", imported, "-o", final)
    assert "q8_linear" in final.read_text()
    text = cli.good("opt", mlp)
    assert text == final.read_text() == print_graph(parse_graph(text))


def test_arguments_of_passes_and_what_was_done(cli: Cli, weighted: Path) -> None:
    done = cli("opt", weighted, "-p", "fold-weights{format=q8-channel,keep=layer}", "-v")
    assert done.code == 0 and done.out == WITH_WEIGHT
    assert done.err == "# fold-weights: matmul %y (from layer): it was asked to stay float\n"


def test_watching(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "g.q8ir"
    path.write_text(SMALL)
    passes = "eliminate-dead-code,fold-constants,share-common,eliminate-dead-code"
    done = cli("opt", path, "-p", passes, "--print-after", "fold-constants,share-common", "--dump-dir", tmp_path / "d",
               "--verify-each")
    assert done.code == 0 and done.err.count("# after ") == 2
    dumped = sorted(p.name for p in (tmp_path / "d").iterdir())
    assert dumped == ["00-input.q8ir", "02-fold-constants.q8ir"]


@pytest.mark.parametrize(("text", "says"), [
    ("graph", "graph text, line 1"),
    ("", "graph text, line 1"),
    (SMALL.replace("mul(%x", "nul(%x"), "line 5"),
    (SMALL.replace("n, 4]) {", "n, 4) {"), "graph text, line"),
])
def test_what_is_wrong_with_text(cli: Cli, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "g.q8ir"
    path.write_text(text)
    assert says in cli.bad(1, "opt", path, "-p", "canonicalize")


@pytest.mark.parametrize(("passes", "says"), [
    ("bogus", "there is no pass 'bogus'"),
    ("", "the pass list is empty"),
    ("fold-weights{bits=4}", "no argument 'bits'"),
    ("fold-weights{format=q3}", "weight format 'q3'"),
    ("fold-weights{", "expected name"),
])
def test_what_is_wrong_with_passes(cli: Cli, tmp_path: Path, passes: str, says: str) -> None:
    path = tmp_path / "g.q8ir"
    path.write_text(SMALL)
    assert says in cli.bad(2, "opt", path, "-p", passes)


def test_files_that_do_not_fit(cli: Cli, weighted: Path, tmp_path: Path) -> None:
    beside = Path(f"{weighted}.npz")
    np.savez(beside, w=np.zeros((32, 15), np.float32))
    assert "%w" in cli.bad(1, "opt", weighted, "-p", "canonicalize")
    np.savez(beside, w=np.array([{}], dtype=object))
    assert "cannot read" in cli.bad(2, "opt", weighted, "-p", "canonicalize")
    beside.write_bytes(b"no zip")
    assert "expected an .npz" in cli.bad(2, "opt", weighted, "-p", "canonicalize")
    binary = tmp_path / "binary.q8ir"
    binary.write_bytes(bytes(range(256)))
    assert "is not text" in cli.bad(2, "opt", binary, "-p", "canonicalize")
    assert "none.q8ir: No such file" in cli.bad(1, "opt", tmp_path / "none.q8ir")
