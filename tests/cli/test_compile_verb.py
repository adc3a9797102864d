"""`q8c compile`: the file, the summary, what can be watched, and what is refused."""
from __future__ import annotations

import json
import os
import re
from pathlib import Path

import onnx
import pytest
from onnx import helper

import q8c
from q8c.codegen.targets import TIERS
from tests import models
from tests.cli.support import Cli, spawn


def test_the_summary_says_what_became_of_each_product(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.q8c"
    text = cli.good("compile", mlp, "-o", output)
    assert text.startswith(f"{output}: ") and "2 of 2 matrix products are int8, in 2 kernels\n" in text
    text = cli.good("compile", mlp, "-o", output, "--keep", "matmul1")
    assert "1 of 2 matrix products are int8, in 1 kernel\n    1 float: it was asked to stay float (matmul1)" in text
    text = cli.good("compile", mlp, "-o", output, "--no-quantize")
    assert "0 of 2 matrix products are int8\n    2 float: nothing was to be int8 (matmul0, matmul1)" in text


def test_the_summary_says_what_was_asked_for_in_vain(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    lines = cli.good("compile", mlp, "-o", tmp_path / "m.q8c", "--last-logits", "--kv-cache", "int8").splitlines()
    assert "  nothing is kept in 8 bits: no cache of keys and values grows in place" in lines
    assert "  logits of all tokens: no output is a product [batch, seq, columns] that shows logits" in lines


def test_products_that_are_too_far_off_stay_float(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.q8c"
    text = cli.good("compile", mlp, "-o", output, "--max-layer-error", "1e-6")
    assert "1 of 2 matrix products are int8, in 1 kernel" in text  # what a model is fed may be anything
    said = r"as q8-channel its results would be 0\.0\d+ off, 1e-06 is allowed \(--max-layer-error\) \(matmul1\)"
    assert re.search(f"1 float: {said}", text)
    assert re.search(f"left alone by fold-weights: {said}", cli.good("explain", output))
    cli.good("compile", mlp, "-o", output, "--max-layer-error", "inf")


def test_the_summary_as_json(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.q8c"
    found = json.loads(cli.good("compile", mlp, "-o", output, "--keep", "matmul1", "--target", "avx2", "--json"))
    assert found["path"] == str(output) and found["file_bytes"] == output.stat().st_size
    assert found["products"] == [{"name": "matmul0", "form": "int8", "reason": ""},
                                 {"name": "matmul1", "form": "float", "reason": "it was asked to stay float"}]
    assert found["model_weight_bytes"] == 4 * (32 * 64 + 64 + 64 * 16 + 16)
    assert list(found["code_bytes"]) == ["avx2"] and found["nodes"]["q8_linear"] == 1
    assert {"import", "passes", "error", "code for avx2", "write"} == set(found["seconds"])
    assert found["elapsed"] > max(found["seconds"].values())


def test_attention_is_told_from_what_could_not_be_quantized(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bert.onnx"
    onnx.save(models.bert(tmp_path), path)
    text = cli.good("compile", path)
    assert "12 of 16 matrix products are int8, in 8 kernels\n    4 float: attention is computed in float (" in text


def test_the_output_stands_beside_the_model(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    model = tmp_path / "some model.v1.onnx"
    model.write_bytes(mlp.read_bytes())
    cli.good("compile", model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["some model.v1.onnx", "some model.v1.q8c"]


def test_dumps_are_numbered_and_only_of_changes(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "dump"
    cli.good("compile", mlp, "-o", tmp_path / "m.q8c", "--dump-dir", folder, "--target", "avx2,avx512-vnni")
    names = sorted(p.name for p in folder.iterdir())
    graphs = [name for name in names if name.endswith(".q8ir")]
    assert graphs[0] == "00-input.q8ir" and graphs[-1].endswith("-plan-memory.q8ir")
    assert set(names) - set(graphs) == {f"{tier}.{kind}" for tier in ("avx2", "avx512-vnni") for kind in ("ll", "s")}
    texts = [(folder / name).read_text() for name in graphs]
    assert all(a != b for a, b in zip(texts, texts[1:], strict=False))
    assert "vpdpbusd" in (folder / "avx512-vnni.s").read_text() and "zmm" not in (folder / "avx2.s").read_text()
    assert "define i64 @q8c_run" in (folder / "avx2.ll").read_text().replace('@"q8c_run"', "@q8c_run")


def test_print_after_goes_to_stderr(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    done = cli("compile", mlp, "-o", tmp_path / "m.q8c", "--print-after", "fuse-linear", "--json")
    assert done.code == 0 and done.err.startswith("# after fuse-linear\ngraph @") and json.loads(done.out)
    done = cli("compile", mlp, "-o", tmp_path / "m.q8c", "--print-after", "all")
    assert done.err.count("# after ") > 4
    assert "there is no pass 'bogus'" in cli.bad(2, "compile", mlp, "--print-after", "bogus")


def test_verify_each(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    cli.good("compile", mlp, "-o", tmp_path / "m.q8c", "--verify-each")


def test_verbose_says_what_the_passes_did(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    done = cli("compile", mlp, "-o", tmp_path / "m.q8c", "-v")
    assert done.code == 0 and "  fuse-linear: q8_linear " in done.out


def test_wrong_options(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.q8c"
    for words, says in [
        (["--target", "sse2"], "unknown target 'sse2'; expected native, all, or some of avx2, avx-vnni, avx512-vnni"),
        (["--target", ""], "unknown target ''"),
        (["--weights", "q4"], "weight format 'q4' is unknown; expected"),
        (["--numerics", "exact"], "numerics 'exact' are unknown; expected fast or reproducible"),
        (["--keep", "nobody"], "'nobody'"),
        (["--shape", "x"], "expected NAME=SIZE,..., got 'x'"),
        (["--shape", "x=1,2,3"], "'x' cannot have the shape [1, 2, 3]: it has 2 dimensions"),
        (["--max-layer-error", "-1"], "the largest error of a layer is -1.0; expected a number above 0"),
    ]:
        assert says in cli.bad(2, "compile", mlp, "-o", output, *words)
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    assert "is a folder" in cli.bad(1, "compile", mlp, "-o", tmp_path)
    assert "does not exist" in cli.bad(1, "compile", mlp, "-o", tmp_path / "no" / "m.q8c")
    assert "is the model itself" in cli.bad(1, "compile", mlp, "-o", mlp)
    assert "is a folder" in cli.bad(1, "compile", tmp_path)
    assert "cannot read the model" in cli.bad(1, "compile", tmp_path / "none.onnx")
    assert mlp.stat().st_size > 1000


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"hello world\n", b"PK\3\4" * 50, os.urandom(1000)],
                         ids=["empty", "zeros", "text", "zip", "random"])
def test_what_is_not_onnx(cli: Cli, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert "ONNX" in cli.bad(1, "compile", path)
    assert list(tmp_path.iterdir()) == [path]


def test_all_that_is_unsupported_is_named_at_once(cli: Cli, tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", ["x"], ["a"], name="first"),
             helper.make_node("NonMaxSuppression", ["x"], ["b"], name="other")]
    path = tmp_path / "m.onnx"
    onnx.save(models.model(nodes, {"x": (4, 4)}, {"a": None, "b": None}), path)
    line = cli.bad(1, "compile", path)
    assert "Det" in line and "'first'" in line and "NonMaxSuppression" in line and "'other'" in line


def test_a_full_disk_leaves_what_was_there(mlp: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.q8c"
    output.write_bytes(b"before")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
    ignore = "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    done = spawn("compile", mlp, "-o", output, prelude=limit + ignore)
    assert done.returncode == 1 and done.stderr.startswith("q8c: cannot write ") and done.stderr.count("\n") == 1
    assert output.read_bytes() == b"before" and list(tmp_path.iterdir()) == [output]


def test_the_same_bytes_from_any_process_and_place(mlp: Path, tmp_path: Path) -> None:
    files = []
    for seed, place in (("1", "a"), ("2", "b/c")):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "mlp.onnx").write_bytes(mlp.read_bytes())
        done = spawn("compile", "mlp.onnx", "--target", "all", cwd=folder, prelude="", seed=seed)
        assert (done.returncode, done.stderr) == (0, "")
        files.append((folder / "mlp.q8c").read_bytes())
    assert files[0] == files[1]
    session = q8c.load(tmp_path / "a" / "mlp.q8c")
    assert [i.tier for i in session.artifact.manifest.parts[0].images] == list(TIERS)
