"""Runs verbs in this process, or as a person would."""
from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from q8c.cli.main import main

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Done:
    """What a verb left."""

    code: int
    out: str
    err: str


class Cli:
    """Calls `main` and takes what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Done:
        self._capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as exit:
            assert isinstance(exit.code, int)
            code = exit.code
        out, err = self._capsys.readouterr()
        return Done(code, out, err)

    def good(self, *words: object) -> str:
        """What a verb printed that must go well and has nothing to say on stderr."""
        done = self(*words)
        assert (done.code, done.err) == (0, "")
        return done.out

    def bad(self, code: int, *words: object) -> str:
        """The line a verb must refuse with, without having printed anything else."""
        done = self(*words)
        assert (done.code, done.out) == (code, ""), done
        assert done.err.startswith("q8c: ") and done.err.endswith("\n") and done.err.count("\n") == 1, done.err
        return done.err


def spawn(*words: object, prelude: str = "", cwd: Path | None = None,
          seed: str = "0") -> subprocess.CompletedProcess[str]:
    """A verb in a process of its own, where a warning is an error; `prelude` is Python that runs first there, `seed`
    is that of Python's hashes."""
    code = f"import sys\n{prelude}\nfrom q8c.cli.main import main\nsys.exit(main())"
    return subprocess.run([sys.executable, "-W", "error", "-c", code, *map(str, words)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}, timeout=120, cwd=cwd)
