"""The small native model as a file, compiled once."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from q8c.runtime.session import Session, load
from tests.runtime import native


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the model's file, with code for avx2 and some more weights."""
    return native.write(tmp_path_factory.mktemp("native") / "model.q8c", extra=[native.TABLE.repeat(100)])


@pytest.fixture
def session(artifact: Path) -> Iterator[Session]:
    """The model, on two threads."""
    with load(artifact, threads=2) as loaded:
        yield loaded
