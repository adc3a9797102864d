"""One step between the tree and the wheel: all but the run time becomes one file, q8c/compiler.zip.

Most who install q8c only run models, and for them a megabyte of compiler, and as much again of bytecode, is in the
way. `q8c/__init__.py` adds the file to the package's path and Python imports from it (zipimport). In a clone and in an
editable install there is no such file, and the modules stand in their folders.
"""
from __future__ import annotations

from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from setuptools import setup
from setuptools.command.build_py import build_py

PLAIN = {"__init__.py", "errors.py", "extras.py", "runtime"}  # in q8c/; what else is there goes into the file


class BuildPy(build_py):  # type: ignore[misc]  # setuptools has no types
    """Copies the modules, then packs all but the run time's."""

    def run(self) -> None:
        """Leaves in the build folder what the wheel is to hold."""
        super().run()
        if not self.editable_mode:
            pack(Path(self.build_lib, "q8c"))


def pack(package: Path) -> None:
    """Move all modules but PLAIN into compiler.zip, the same bytes for the same sources."""
    with ZipFile(package / "compiler.zip", "w") as archive:
        for source in sorted(package.rglob("*.py")):
            name = source.relative_to(package)
            if name.parts[0] not in PLAIN:
                entry = ZipInfo(name.as_posix())  # its date is 1980, whatever the file's is
                archive.writestr(entry, source.read_bytes(), ZIP_DEFLATED, 9)
                source.unlink()


setup(cmdclass={"build_py": BuildPy})
