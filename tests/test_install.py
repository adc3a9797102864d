"""What `pip install` leaves: one small package that runs compiled models with numpy and nothing else."""
from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import q8c

ROOT = Path(__file__).parent.parent
MAX_INSTALLED = 1_000_000  # bytes that the run time may add to numpy
RUN_BARE = """
import importlib.util, sys
import numpy as np
import q8c
for name in ("llvmlite", "onnx", "networkx", "onnxruntime"):
    assert importlib.util.find_spec(name) is None, name
model, feed, output = sys.argv[1:]
np.save(output, q8c.load(model)(x=np.load(feed))["y"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy so that nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "q8c", source / "q8c", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("passes", "runtime"):
        (source / name).symlink_to(f"q8c/{name}")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and numpy in it, and nothing else; its bin folder."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (packages,) = folder.glob("lib/python*/site-packages")
    spec = importlib.util.find_spec("numpy")
    assert spec is not None and spec.origin is not None
    for part in Path(spec.origin).parent.parent.glob("numpy*"):
        (packages / part.name).symlink_to(part)
    return folder / "bin"


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def linear_model() -> onnx.ModelProto:
    """y = x w + b with x [rows, 32] and y [rows, 48]."""
    rng = np.random.default_rng(3)
    constants = {"w": rng.normal(size=(32, 48)), "b": rng.normal(size=48)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])]
    graph = helper.make_graph(
        nodes, "linear", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 48])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_wheel_holds_one_small_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    tops = {entry.filename.partition("/")[0] for entry in entries}
    assert tops == {"q8c", f"q8c-{q8c.__version__}.dist-info"}
    assert "q8c/py.typed" in {entry.filename for entry in entries}
    assert sum(entry.file_size for entry in entries) <= MAX_INSTALLED


def test_wheel_asks_for_numpy_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"q8c-{q8c.__version__}.dist-info/METADATA").decode()
    needed = [line for line in text.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert len(needed) == 1 and needed[0].startswith("Requires-Dist: numpy")


def test_compiled_file_runs_where_only_numpy_is(bare: Path, tmp_path: Path) -> None:
    path = q8c.compile(linear_model(), tmp_path / "linear.q8c")
    x = np.random.default_rng(4).normal(size=(5, 32)).astype(np.float32)
    feed, output = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(feed, x)
    done = subprocess.run([bare / "python", "-c", RUN_BARE, path, feed, output], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(output), q8c.load(path)(x=x)["y"])


def test_command_line_says_what_compiling_needs(bare: Path, tmp_path: Path) -> None:
    model = tmp_path / "linear.onnx"
    onnx.save(linear_model(), model)
    done = subprocess.run([bare / "q8c", "compile", model], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "pip install 'q8c[compile]'" in done.stderr
