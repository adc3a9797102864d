"""`q8c check` and what `q8c compile` is told and tells about error."""
from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import q8c
from q8c.accuracy import Error
from q8c.cli.check import error_rows
from q8c.cli.feeds import write_npz
from tests import models
from tests.cli.support import Cli

BUDGET = 0.02  # tests/test_compile.py says why
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def bigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model: logits of the next of 64 tokens from the last, with a mask among the inputs."""
    folder = tmp_path_factory.mktemp("bigram")
    weights = {"table": RNG.standard_normal((64, 32)).astype(np.float32),
               "w": RNG.standard_normal((32, 64)).astype(np.float32)}
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["e"], name="embed"),
             helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
             helper.make_node("Constant", [], ["axes"], value_ints=[2]),
             helper.make_node("Unsqueeze", ["m", "axes"], ["wide"]),
             helper.make_node("Mul", ["e", "wide"], ["masked"]),
             helper.make_node("MatMul", ["masked", "w"], ["logits"], name="head")]
    shape = ["batch", "seq"]
    graph = helper.make_graph(
        nodes, "bigram",
        [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape, 64])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()])
    path = folder / "bigram.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    q8c.compile(path)
    return path


def test_logits_are_compared_as_distributions(cli: Cli, bigram: Path, tmp_path: Path) -> None:
    ids = RNG.integers(0, 64, (2, 9))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    np.savez(tmp_path / "in.npz", input_ids=ids, attention_mask=mask)
    words = ["check", bigram.with_suffix(".q8c"), bigram, "-i", tmp_path / "in.npz"]
    found = json.loads(cli.good(*words, "--json"))["logits"]["logits"]
    [exact] = models.onnxruntime_outputs(onnx.load(bigram), {"input_ids": ids, "attention_mask": mask})
    logs = exact - np.log(np.exp(exact.astype(np.float64)).sum(-1, keepdims=True))
    known = [-logs[b, t, ids[b, t + 1]] for b, length in enumerate((9, 6)) for t in range(length - 1)]
    assert found["reference_nll"] == pytest.approx(np.mean(known), rel=1e-5)
    assert found["nll"] == pytest.approx(found["reference_nll"], rel=0.01)
    assert 0 < found["kl"] < 0.01 and found["top1"] > 0.85
    text = cli.good(*words)
    assert "given inputs" in text and "logits as logits: KL 0.00" in text and "next tokens' NLL" in text


def test_several_outputs_in_a_line_show_the_worst() -> None:
    errors = {f"present.{n}": Error(1 - n / 10, 1 - n / 5, n / 10, float(n)) for n in range(3)}
    _, line, note = error_rows(errors, dict.fromkeys(errors, "2x3"), everything=False).splitlines()
    assert line.split() == ["present.{0..2}", "2x3", "0.800000", "0.600000", "0.20000", "2"] and "-v" in note
    assert len(error_rows(errors, dict.fromkeys(errors, "2x3"), everything=True).splitlines()) == 4
    errors["present.1"] = Error(*[float("nan")] * 4)
    assert error_rows(errors, dict.fromkeys(errors, "2x3"), everything=False).splitlines()[1].count("nan") == 4


def test_masked_rows_do_not_count(cli: Cli, bigram: Path, tmp_path: Path) -> None:
    ids = RNG.integers(0, 64, (1, 8))
    mask = np.array([[1] * 5 + [0] * 3])
    [exact] = models.onnxruntime_outputs(onnx.load(bigram), {"input_ids": ids, "attention_mask": mask})
    with open(tmp_path / "in.npz", "wb") as file:
        write_npz(file, {"in:input_ids": ids, "in:attention_mask": mask,
                         "out:logits": exact + np.float32(7) * (mask == 0)[..., None]})
    found = json.loads(cli.good("check", bigram.with_suffix(".q8c"), "-i", tmp_path / "in.npz", "--json"))
    assert found["outputs"]["logits"]["max_abs"] < 1


def test_layers_are_listed_worst_first(cli: Cli, mlp: Path, compiled: Path, tmp_path: Path) -> None:
    found = json.loads(cli.good("check", compiled, mlp, "--layers", "--json"))["layers"]
    effects = [p["effect"] for p in found["products"]]
    assert effects == sorted(effects, reverse=True) and 0 < max(effects) <= found["total"] < BUDGET
    assert {tuple(p["nodes"])[0] for p in found["products"]} == {"matmul0", "matmul1"}
    assert all(30 < p["snr_db"] < 60 and p["format"] == "q8-channel" for p in found["products"])
    finer = json.loads(cli.good("check", compiled, mlp, "--layers", "--weights", "q8-block32", "--json"))["layers"]
    assert finer["total"] < found["total"] and {p["format"] for p in finer["products"]} == {"q8-block32"}
    text = cli.good("check", compiled, mlp, "--layers")
    assert "own noise dB" in text and "all together: relative L2 0.0" in text


def test_the_plot(cli: Cli, mlp: Path, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    cli.good("check", compiled, mlp, "--layers", "--plot", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "p.xyz" in cli.bad(2, "check", compiled, mlp, "--layers", "--plot", tmp_path / "p.xyz")


def test_no_plot_without_matplotlib(cli: Cli, mlp: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'q8c[plot]'" in cli.bad(1, "check", compiled, mlp, "--layers", "--plot", "p.png")


@pytest.mark.parametrize(("words", "says"), [
    (["--plot", "p.png"], "--plot goes with --layers"),
    (["--weights", "q8-block32"], "--weights goes with --layers"),
])
def test_words_that_go_together(cli: Cli, mlp: Path, compiled: Path, words: list[str], says: str) -> None:
    assert says in cli.bad(2, "check", compiled, mlp, *words)


def test_layers_need_the_onnx_file(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    x = np.ones((1, 32), np.float32)
    with open(tmp_path / "in.npz", "wb") as file:
        write_npz(file, {"x": x, "out:y": q8c.load(compiled)(x=x)["y"]})
    assert "give the ONNX file" in cli.bad(2, "check", compiled, "-i", tmp_path / "in.npz", "--layers")


def test_the_file_says_how_far_it_is_from_fp32(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.q8c"
    found = json.loads(cli.good("compile", mlp, "-o", output, "--json"))["error"]
    assert found["inputs"] == "made-up" and 0 < found["outputs"]["y"]["relative_l2"] < BUDGET
    assert "  error  y relative L2 0.0" in cli.good("inspect", output)
    cli.good("compile", mlp, "-o", output, "--no-quantize")
    assert "  error " not in cli.good("inspect", output)


def test_calibration_files(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "m.q8c", tmp_path / "feeds"
    folder.mkdir()
    words = ("compile", mlp, "-o", output, "--calibrate", folder)
    assert "holds no .npz files" in cli.bad(2, *words)
    for i in range(3):
        np.savez(folder / f"{i}.npz", x=RNG.standard_normal((20, 32)).astype(np.float32))
    assert "(on calibration inputs)" in cli.good(*words)
    assert "feeds=3" in cli.good("inspect", output)
    first = output.read_bytes()
    cli.good(*words)
    assert output.read_bytes() == first
    assert "feeds=1" in cli.good("compile", mlp, "-o", output, "--calibrate", folder / "1.npz") + cli.good(
        "inspect", output)
    np.savez(folder / "9.npz", z=np.zeros(3))
    assert "calibration feed 3: the model has no input 'z'; expected x" in cli.bad(1, *words)


def test_formats_chosen_under_a_bound(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.q8c"
    text = cli.good("compile", mlp, "-o", output, "--weights", "auto", "--max-error", "0.004", "-v")
    assert "0.004 allowed" in text and "choose-formats: " in text
    deep = tmp_path / "deep.onnx"
    onnx.save(models.mlp((32, 300, 24)), deep)
    assert re.search(r"formats 1 q8-\w+, 1 q8-\w+\n",
                     cli.good("compile", deep, "-o", output, "--weights", "auto", "--max-error", "0.0108"))
    found = json.loads(cli.good("compile", mlp, "-o", output, "--weights", "auto", "--max-error", "1e-9", "--json"))
    assert {p["form"] for p in found["products"]} == {"float"} and "stays float" in found["products"][0]["reason"]
    assert "goes with weights 'auto'" in cli.bad(2, "compile", mlp, "-o", output, "--max-error", "0.1")
    assert "expected a number above 0" in cli.bad(2, "compile", mlp, "--weights", "auto", "--max-error", "0")


def test_the_python_face(mlp: Path, tmp_path: Path) -> None:
    feeds = ({"x": RNG.standard_normal((20, 32)).astype(np.float32)} for _ in range(2))
    path = q8c.compile(mlp, tmp_path / "m.q8c", calibrate=feeds, balance=False)
    options = q8c.load(path).artifact.manifest.model.options
    assert (options["feeds"], options["balance"]) == (2, False)
    for bad in ([], {"x": np.zeros((2, 32))}, [{"x": np.zeros((2, 31), np.float32)}], [{"x": np.zeros((2, 32))}], 3):
        with pytest.raises(q8c.InputError):
            q8c.compile(mlp, tmp_path / "n.q8c", calibrate=bad)  # type: ignore[arg-type]
    assert not (tmp_path / "n.q8c").exists()
