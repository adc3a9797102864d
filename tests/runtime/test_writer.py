"""Files appear complete or not at all, the same calls give the same bytes, and memory stays bounded."""
from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8c.errors import ArtifactError
from q8c.runtime import atomic, writer
from q8c.runtime.artifact import Artifact
from q8c.runtime.memory import HUGE_PAGE
from q8c.runtime.model import Model, Tensor
from q8c.runtime.sections import constant_layout
from q8c.runtime.writer import Writer
from tests.runtime import native


def test_the_same_calls_give_the_same_bytes(artifact: Path, tmp_path: Path) -> None:
    again = native.write(tmp_path / "other name", extra=[native.TABLE.repeat(100)])
    assert again.read_bytes() == artifact.read_bytes()


def test_constants_lie_where_the_layout_says(tmp_path: Path) -> None:
    shapes = [("a", "uint8", (3,)), ("b", "float32", ()), ("c", "int8", (0, 5)), ("d", "float16", (64, 3)),
              ("e", "bool", (1,))]
    with Writer(tmp_path / "m") as writer:
        written = [writer.constant(name, np.zeros(shape, dtype)) for name, dtype, shape in shapes]
    assert written == constant_layout(shapes)


def test_a_new_file_takes_the_old_ones_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "m.q8c"
    path.write_bytes(b"old")
    with Writer(path) as writer:
        constant = writer.constant("a", np.zeros(3))
        assert path.read_bytes() == b"old"
        made = native.image()
        image = writer.image("avx2", (), made.code, made.symbols)
        writer.finish([writer.part(native.model(), [constant], [image], "")])
        assert path.read_bytes() == b"old"
    Artifact(path)
    assert os.listdir(tmp_path) == ["m.q8c"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_files_are_written_a_huge_page_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[tuple[int, int]] = []

    class Recorder(io.BytesIO):
        def write(self, data: Any, /) -> int:
            writes.append((self.tell(), memoryview(data).nbytes))
            return super().write(data)

    file = Recorder()
    monkeypatch.setattr(writer, "replacing", lambda path: nullcontext(file))
    native.write(tmp_path / "m", extra=[native.TABLE.repeat(n) for n in (1, 300_000, 500_000)])
    *blocks, rest, header = writes
    assert [place for place, size in blocks if size == HUGE_PAGE] == [n * HUGE_PAGE for n in range(len(blocks))]
    assert len(blocks) > 1 and rest[0] == len(blocks) * HUGE_PAGE and header[0] == 0
    (tmp_path / "m").write_bytes(file.getvalue())
    Artifact(tmp_path / "m")


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    native.write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    Artifact(tmp_path / "real")


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, None])
def test_nothing_is_left_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool,
                                         failure: type[BaseException] | None) -> None:
    if not nameless:
        monkeypatch.setattr(atomic, "_create", lambda folder, name: (os.open(name, os.O_CREAT | os.O_RDWR), False))
    path = tmp_path / "m.q8c"

    def write() -> None:
        with Writer(path) as writer:
            writer.constant("a", np.zeros(1000))
            if failure is not None:
                raise failure
    if failure is None:  # never finished
        write()
    else:
        with pytest.raises(failure):
            write()
    assert os.listdir(tmp_path) == []


def test_the_way_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isdir", lambda path: False)
    Artifact(native.write(tmp_path / "m.q8c"))
    assert os.listdir(tmp_path) == ["m.q8c"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, message in ((tmp_path / "no" / "m", "No such file"), (tmp_path / "folder", "Is a directory")):
        with pytest.raises(ArtifactError, match=f"cannot write .*{message}"):
            native.write(path)
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == []


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ArtifactError, match="there is something that is no regular file"):
            native.write(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


def test_a_full_disk(tmp_path: Path) -> None:
    script = """
        import resource, sys
        import numpy as np
        from q8c.errors import ArtifactError
        from q8c.runtime.writer import Writer
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
        try:
            with Writer(sys.argv[1]) as writer:
                writer.constant("a", np.zeros(500_000))
        except ArtifactError as error:
            assert "cannot write" in str(error) and "too large" in str(error), error
            print("refused")
    """
    done = _python(script, tmp_path / "m.q8c")
    assert done.communicate(timeout=60)[0] == b"refused\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_the_middle_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    script = """
        import sys
        import numpy as np
        from q8c.runtime.writer import Writer
        with Writer(sys.argv[1]) as writer:
            for i in range(1000000):
                writer.constant(f"a{i}", np.zeros(1000))
                if i == 10:
                    print("writing", flush=True)
    """
    process = _python(script, tmp_path / "m.q8c")
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert os.listdir(tmp_path) == []


def test_constants_pass_through_in_bounded_memory(tmp_path: Path) -> None:
    script = """
        import resource, sys
        import numpy as np
        from q8c.runtime.writer import Writer
        block = np.zeros(16 << 20, np.uint8)
        with Writer(sys.argv[1]) as writer:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for i in range(12):
                writer.constant(f"a{i}", block)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    kibibytes = int(_python(script, tmp_path / "m.q8c").communicate(timeout=60)[0])
    assert kibibytes < 8 << 10


@pytest.mark.parametrize(("described", "message"), [
    (Model("m", (Tensor("x", "float32", (("$", 0),), ("n",)),), (), ()), "none of the 0"),
    (Model("m", (Tensor("x", "float31", (), ()),), (), ()), "dtype"),
    (Model("m", (Tensor("x\n", "float32", (), ()),), (), ()), "control characters")])
def test_a_manifest_nobody_could_read_is_not_written(tmp_path: Path, described: Model, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        native.write(tmp_path / "m.q8c", described=described)
    assert os.listdir(tmp_path) == []


def test_constants_after_code_are_a_mistake(tmp_path: Path) -> None:
    with Writer(tmp_path / "m.q8c") as writer:
        writer.image("avx2", (), b"\xc3", {})
        with pytest.raises(ArtifactError, match="after code"):
            writer.constant("a", np.zeros(1))


def _python(script: str, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
