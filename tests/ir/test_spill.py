"""Large arrays lie in files while nobody reads them."""
from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8c.ir import Array, spill
from q8c.ir.spill import LARGE, assembled, many_files, release, spilled
from tests.memory import resident


def test_small_arrays_stay_as_they_are() -> None:
    a = np.arange(10)
    assert spilled(a) is a
    release(a)
    assert a.tolist() == list(range(10))


@pytest.mark.parametrize("order", ["C", "F"])
def test_elements_stay_and_their_memory_goes(order: Any) -> None:
    whole = np.asarray(np.arange(LARGE, dtype=np.int32).reshape(4, -1), order=order)
    found = spilled(whole)
    before = resident()
    assert not found.flags.writeable and np.array_equal(found, whole)
    assert resident() - before > LARGE
    for part in (found, found.T, found.reshape(-1)):
        release(part)
    assert resident() - before < LARGE
    assert np.array_equal(found, whole)


def test_a_part_in_one_piece_is_released_and_others_are_left() -> None:
    found = spilled(np.ones((4, LARGE), np.uint8))
    assert found.sum() == 4 * LARGE
    before = resident()
    release(found[:, ::2])
    assert before - resident() < LARGE
    release(found[1])
    assert before - resident() > LARGE // 2
    assert found.sum() == 4 * LARGE


def test_without_room_for_files_arrays_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    a = np.zeros(LARGE, np.uint8)
    assert spilled(a) is a


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("rows", [10, 1000])
def test_arrays_are_made_some_rows_at_a_time(rows: int, room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    if not room:
        monkeypatch.setattr(tempfile, "TemporaryFile", full)
    monkeypatch.setattr(spill, "_AT_ONCE", LARGE // 4)
    whole, asked = np.arange(rows * 700, dtype=np.float32).reshape(rows, 7, 100), []

    def part(some: slice) -> Array:
        asked.append(whole[some].nbytes)
        return whole[some]

    found = assembled(rows, part)
    assert found.shape == whole.shape and np.array_equal(found, whole)
    assert found.flags.writeable == (rows == 10 or not room)
    assert max(asked) <= (whole.nbytes if rows == 10 else LARGE // 4)


def test_arrays_may_lie_in_more_files_than_are_usually_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        with many_files():
            found = [spilled(np.zeros(LARGE, np.uint8)) for _ in range(20)]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not any(a.flags.writeable for a in found)


def test_a_compilation_that_ends_leaves_another_its_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        first, second = many_files(), many_files()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        second.__exit__(None, None, None)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_files_lie_on_a_disk_unless_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(spill, "_ON_DISK", str(tmp_path))
    assert spill.folder() == str(tmp_path)
    monkeypatch.setattr(spill, "_ON_DISK", str(tmp_path / "nowhere"))
    assert spill.folder() is None
    monkeypatch.setattr(spill, "_ON_DISK", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/anywhere")
    assert spill.folder() is None
