"""A small model and its compiled file, made once."""
from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import q8c
from tests import models
from tests.cli.support import Cli


@pytest.fixture(scope="session")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of 32 x 64 and 64 x 16."""
    path = tmp_path_factory.mktemp("cli") / "mlp.onnx"
    onnx.save(models.mlp((32, 64, 16)), path)
    return path


@pytest.fixture(scope="session")
def compiled(mlp: Path) -> Path:
    """The same, compiled for this CPU."""
    return q8c.compile(mlp)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a verb in this process."""
    return Cli(capsys)
