"""One step between the tree and the wheel: all but the run time becomes one file, q8c/compiler.pack.

Most who install q8c only run models, and for them a megabyte of compiler, and as much again of bytecode, is in the
way. `q8c/packed.py` makes the file and imports from it. In a clone and in an editable install there is no such file,
and the modules stand in their folders.
"""
from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PLAIN = {"__init__.py", "errors.py", "extras.py", "packed.py", "runtime"}  # in q8c/; what else is there is packed


class BuildPy(build_py):  # type: ignore[misc]  # setuptools has no types
    """Copies the modules, then packs all but the run time's."""

    def run(self) -> None:
        """Leaves in the build folder what the wheel is to hold."""
        super().run()
        if not self.editable_mode:
            pack(Path(self.build_lib, "q8c"))


def pack(package: Path) -> None:
    """Move all modules but PLAIN into compiler.pack."""
    names = [source.relative_to(package) for source in package.rglob("*.py")]
    names = [name for name in names if name.parts[0] not in PLAIN]
    sources = {name.as_posix(): (package / name).read_text(encoding="utf-8") for name in names}
    packed = runpy.run_path(str(package / "packed.py"))  # without importing q8c, which wants numpy
    (package / "compiler.pack").write_bytes(packed["pack"](sources))
    for name in names:
        (package / name).unlink()


setup(cmdclass={"build_py": BuildPy})
