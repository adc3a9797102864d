"""What `pip install` leaves: one small package that runs compiled models with numpy and nothing else."""
from __future__ import annotations

import importlib.util
import json
import lzma
import os
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
MAX_INSTALLED = 1_000_000  # bytes that the run time may add to numpy, bytecode included
RUN_BARE = """
import importlib.util, sys
import numpy as np
import q8c
assert q8c.__file__.startswith(sys.prefix), q8c.__file__
for name in ("llvmlite", "onnx", "networkx", "onnxruntime"):
    assert importlib.util.find_spec(name) is None, name
model, feed, output = sys.argv[1:]
np.save(output, q8c.load(model)(x=np.load(feed))["y"])
"""
COMPILE_INSTALLED = """
import json, os, pickle, sys, traceback
sys.path += json.loads(sys.argv[1])
import q8c, q8c.compiler
from q8c.codegen.parallel import Generators
assert q8c.compiler.__file__.endswith("compiler.pack/compiler.py"), q8c.compiler.__file__
model, output, os.environ["Q8C_CACHE"] = sys.argv[2:]
q8c.compile(model, output, target="all")
assert q8c.load(model)(x=[[1.0] * 32] * 2)["y"].shape == (2, 48)
with Generators(1) as generators:  # whose processes compile nothing, and are never missed, if they cannot import
    assert pickle.load(generators._helpers[0]._process.stdout) == "ready"
try:
    q8c.compile(b"no model")
except q8c.CompileError as error:
    print([frame.line for frame in traceback.extract_tb(error.__traceback__) if "compiler.pack" in frame.filename][-1])
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is made from, so that building leaves nothing in the tree."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "q8c", folder / "q8c", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("passes", "runtime"):
        (folder / name).symlink_to(f"q8c/{name}")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    return built_wheel(source, tmp_path_factory.mktemp("wheel"))


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


def built_wheel(source: Path, folder: Path) -> Path:
    """The wheel pip makes of a folder or an archive of sources."""
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


def packed(wheel: Path) -> bytes:
    """The file in a wheel that holds the compiler."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read("q8c/compiler.pack")


def run(*words: str | Path) -> str:
    """What a command prints that is run outside the tree; it may leave bytecode behind, as it does for users."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=Path(words[0]).parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def test_wheel_holds_the_run_time_as_files_and_the_rest_as_one(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"q8c", f"q8c-{q8c.__version__}.dist-info"}
    assert {name.split("/")[1] for name in names if name.startswith("q8c/")} == {
        "__init__.py", "errors.py", "extras.py", "packed.py", "py.typed", "runtime", "compiler.pack"}
    inside = json.loads(lzma.decompress(packed(wheel)))
    sources = {path.relative_to(source / "q8c").as_posix() for path in (source / "q8c").rglob("*.py")}
    plain = {name.removeprefix("q8c/") for name in names if name.endswith(".py")}
    assert plain.isdisjoint(inside) and plain.union(inside) == sources


@pytest.mark.slow
def test_same_sources_are_packed_into_the_same_bytes(source: Path, wheel: Path, tmp_path: Path) -> None:
    """Also by way of the archive of sources, whatever the date."""
    subprocess.run([sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('dist')"],
                   cwd=source, check=True, capture_output=True)
    (archive,) = (source / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    (extracted,) = tmp_path.iterdir()
    for path in extracted.rglob("*.py"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert packed(wheel) == packed(built_wheel(extracted, tmp_path))


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
    run(bare / "python", "-c", RUN_BARE, path, feed, output)
    np.testing.assert_array_equal(np.load(output), q8c.load(path)(x=x)["y"])


def test_install_stays_small_when_its_verbs_have_run(bare: Path, tmp_path: Path) -> None:
    path = q8c.compile(linear_model(), tmp_path / "linear.q8c")
    assert "compile" in run(bare / "q8c", "--help")
    assert "y: float32[1, 48]" in run(bare / "q8c", "run", path, "-s", "rows=1")
    assert "q8_linear" in run(bare / "q8c", "inspect", path)
    assert json.loads(run(bare / "q8c", "bench", path, "-n", "1", "--json"))["runs"] == 1
    assert "q8_linear" in run(bare / "q8c", "profile", path)
    (packages,) = bare.parent.glob("lib/python*/site-packages")
    added = [bare / "q8c", *(path for top in packages.glob("q8c*") for path in (top, *top.rglob("*")))]
    assert any(path.suffix == ".pyc" for path in added)
    assert sum(path.stat().st_size for path in added) <= MAX_INSTALLED


@pytest.mark.slow
def test_compiles_from_the_packed_file_to_the_same_bytes(bare: Path, tmp_path: Path) -> None:
    """With this environment's packages behind the installed q8c."""
    model, ours, theirs = tmp_path / "linear.onnx", tmp_path / "ours.q8c", tmp_path / "theirs.q8c"
    onnx.save(linear_model(), model)
    q8c.compile(model, ours, target="all")
    others = json.dumps([path for path in sys.path if path.endswith("-packages")])
    printed = run(bare / "python", "-c", COMPILE_INSTALLED, others, model, theirs, tmp_path / "cache")
    assert printed.startswith("raise CompileError"), printed
    assert theirs.read_bytes() == ours.read_bytes()


def test_command_line_says_what_compiling_needs(bare: Path, tmp_path: Path) -> None:
    model = tmp_path / "linear.onnx"
    onnx.save(linear_model(), model)
    done = subprocess.run([bare / "q8c", "compile", model], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "pip install 'q8c[compile]'" in done.stderr
