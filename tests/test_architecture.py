"""The walls of the house: who may import whom, and the few facts two rooms must state alike."""
from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "ir": {"ir", "errors"},
    "runtime": {"runtime", "errors"},
    "passes": {"passes", "ir", "errors"},
    "frontend": {"frontend", "ir", "errors"},
    "codegen": {"codegen", "ir", "errors"},
}
OUTSIDE = {"llvmlite": {"codegen", "describe.py"}, "onnx": {"frontend", "onnx_backend.py"}, "onnxruntime": {"cli"}}


def imported(path: Path) -> Iterator[str]:
    """Modules a file imports when it runs; those for type checkers only do not count."""
    tree = ast.parse(path.read_text())
    typing_only = {id(n) for b in ast.walk(tree) if isinstance(b, ast.If) and ast.unparse(b.test) == "TYPE_CHECKING"
                   for n in ast.walk(b)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module if node.module != "q8c" else f"q8c.{node.names[0].name}"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_lies_below(room: str) -> None:
    files = list((ROOT / "q8c" / room).rglob("*.py"))
    assert files
    for path in files:
        rooms = {m.split(".")[1] for m in imported(path) if m.startswith("q8c.")}
        assert rooms <= MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {rooms - MAY_IMPORT[room]}"


@pytest.mark.parametrize("package", OUTSIDE)
def test_heavy_packages_stay_in_their_rooms(package: str) -> None:
    for path in (ROOT / "q8c").rglob("*.py"):
        place = path.relative_to(ROOT / "q8c").parts[0]
        if any(m.split(".")[0] == package for m in imported(path)):
            assert place in OUTSIDE[package], f"{path.relative_to(ROOT)} imports {package}"


def test_importing_q8c_is_light() -> None:
    code = "import sys, q8c, q8c.runtime.session; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"llvmlite", "onnx", "networkx", "onnxruntime", "q8c.ir", "q8c.codegen"} & set(loaded)


def test_frame_is_the_same_in_code_and_run_time() -> None:
    from q8c.codegen import frame, targets
    from q8c.ir import memory
    from q8c.ir.dims import sym
    from q8c.ir.ops.decoder import KEPT_FORMATS
    from q8c.runtime import cpu, kept, model

    shape = ("$", 0)
    inputs = tuple(model.Tensor(n, "int64", (shape,), ("n",)) for n in "ab")
    theirs = model.Model("m", inputs, inputs[:1], ("n",), dims=(shape, 5), slots=(64, 64, 128), scratch=64).frame
    mine = frame.Frame(2, 1, (sym("n"), sym("m")), (64, 64, 128), 64)
    assert (mine.input(0), mine.output(0), mine.size(sym("n")), mine.slot(0), mine.slot(4)) == (
        theirs.inputs, theirs.outputs, theirs.dims, theirs.slots, theirs.size)
    assert (frame.STAMPS, frame.ARGUMENTS) == (model.FRAME_STAMPS, model.FRAME_ARGUMENTS)
    assert (frame.LENGTHS, frame.CAPACITY) == (frame.STAMPS + 1, frame.STAMPS + 2)  # as `session._FIXED` has them
    assert mine.size(memory.CAPACITY) == frame.CAPACITY and memory.CAPACITY not in frame.distinct([memory.CAPACITY])
    assert (kept.FORMATS, kept.TOKENS_BY_TURNS, kept.STEP) == (KEPT_FORMATS, memory.KEPT_TOKENS, memory.KEPT_STEP)
    assert set(targets.TIERS) == set(cpu.TIERS)


def test_links_at_the_top_lead_to_the_rooms() -> None:
    for name in ("passes", "runtime"):
        assert (ROOT / name).is_symlink() and (ROOT / name).resolve() == (ROOT / "q8c" / name).resolve()
