"""A run of many phases is made of several functions, and gives the same."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import q8c
from q8c.codegen import threads
from tests.models import model

STEPS = 20


@pytest.mark.parametrize("part", [1, 3, 7])
def test_phases_in_several_functions(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = []
    for i in range(STEPS):  # a transpose is a phase of its own
        nodes += [helper.make_node("Transpose", [f"v{i}"], [f"t{i}"], perm=[1, 0]),
                  helper.make_node("Add", [f"t{i}", "one"], [f"v{i + 1}"])]
    proto = model(nodes, {"v0": ("n", "n")}, {f"v{STEPS}": None}, {"one": np.ones((), np.float32)})
    monkeypatch.setattr(threads, "PART", part)
    path = q8c.compile(proto, tmp_path / "m.q8c")
    x = np.arange(90 * 90, dtype=np.float32).reshape(90, 90)
    for count in (1, 2, 4):
        session = q8c.load(path, threads=count)
        for _ in range(20):
            np.testing.assert_array_equal(session.run(None, {"v0": x})[0], x + STEPS)
