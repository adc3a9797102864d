"""What is read back is what was written, and nothing damaged, altered or foreign is ever taken."""
from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from q8c.errors import ArtifactError, Error, InputError
from q8c.runtime import header, strict_json
from q8c.runtime.artifact import Artifact
from q8c.runtime.header import VERSION, Header
from q8c.runtime.model import Model, Tensor
from q8c.runtime.sections import CHUNK
from q8c.runtime.session import load
from q8c.runtime.writer import Writer
from tests.runtime import native
from tests.runtime.files import manifest_of, save, with_junk, with_manifest

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_everything_comes_back(artifact: Path) -> None:
    opened = Artifact(artifact)
    assert opened.manifest.model == native.model()
    assert opened.ir() == "graph @g() {}\n"
    table = opened.constant("table")
    assert np.array_equal(table, native.TABLE) and table.dtype == np.float32 and not table.flags.writeable
    assert np.array_equal(opened.constant("extra0"), native.TABLE.repeat(100))
    made = native.image("avx2")
    assert opened.read(opened.image("avx2").section) == made.code
    assert opened.image("avx2").entries == made.symbols
    assert opened.weights_address % 64 == 0
    assert opened.sha256 == hashlib.sha256(artifact.read_bytes()).hexdigest()
    with pytest.raises(ArtifactError, match="no code for tier 'avx512-vnni'; it has avx2"):
        opened.image("avx512-vnni")
    with pytest.raises(ArtifactError, match="no constant 'nope'"):
        opened.constant("nope")


@pytest.mark.parametrize("array", [
    np.arange(6, dtype=">i4").reshape(2, 3), np.array(3.5), np.zeros((0, 4), np.int8), np.arange(24)[::-2],
    np.asfortranarray(np.arange(6.0, dtype=np.float16).reshape(2, 3)), np.array([True, False])],
    ids=["big-endian", "scalar", "empty", "strided", "fortran", "bool"])
def test_constants_of_every_kind_come_back(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    opened = Artifact(native.write(tmp_path / "m.q8c", extra=[array, array]))
    for name in ("extra0", "extra1"):
        assert np.array_equal(opened.constant(name), array)
        assert opened.constant(name).shape == array.shape
    assert all(c.offset % 64 == 0 for c in opened.manifest.parts[0].constants)


def test_a_file_cut_short_while_it_is_open_is_told_before_it_is_read(artifact: Path, tmp_path: Path) -> None:
    path = save(tmp_path, artifact.read_bytes())
    with load(path, threads=1) as session:
        feed = {t.name: np.zeros([2] * len(t.shape), t.dtype) for t in session.get_inputs()}
        os.truncate(path, 100)
        for use in (lambda: session.run(None, feed), lambda: session.artifact.sha256, session.artifact.ir):
            with pytest.raises(ArtifactError, match="cut short from [0-9]+ to 100 bytes while it was open; load"):
                use()


def test_sections_longer_than_a_chunk_are_hashed_in_chunks_on_threads(tmp_path: Path) -> None:
    path = native.write(tmp_path / "m.q8c", extra=[np.zeros(5 * CHUNK // 2, np.uint8), np.ones(CHUNK * 3, np.uint8)])
    assert len(Artifact(path).manifest.weights.sha256) == 6
    data = bytearray(path.read_bytes())
    for position in (header.PAGE + CHUNK, header.PAGE + 3 * CHUNK - 1, header.PAGE + 5 * CHUNK):
        data[position] ^= 1
        with pytest.raises(ArtifactError, match="weights section is damaged"):
            Artifact(save(tmp_path, bytes(data)))
        data[position] ^= 1
    Artifact(save(tmp_path, bytes(data)))


def test_a_flipped_bit_anywhere_is_noticed(artifact: Path, tmp_path: Path) -> None:
    data = artifact.read_bytes()
    manifest = Artifact(artifact).manifest
    part = manifest.parts[0]
    starts = [0, header.SIZE, *(s.offset for s in (manifest.weights, part.ir, part.images[0].section)),
              Header.unpack(data, len(data)).manifest_offset]
    rng = random.Random(5)
    places = {*range(header.SIZE), *(s + d for s in starts for d in (-1, 0, 1) if s + d >= 0), len(data) - 1,
              *(rng.randrange(len(data)) for _ in range(300))}
    for place in sorted(places):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        with pytest.raises(ArtifactError):
            load(save(tmp_path, bytes(changed)))


def test_a_file_cut_short_or_added_to_is_noticed(artifact: Path, tmp_path: Path) -> None:
    data = artifact.read_bytes()
    rng = random.Random(6)
    for length in {*range(0, 200, 7), header.PAGE, len(data) - 1, *(rng.randrange(len(data)) for _ in range(100))}:
        with pytest.raises(ArtifactError):
            load(save(tmp_path, data[:length]))
    for tail in (b"\0", b"\0" * 64, data):
        with pytest.raises(ArtifactError, match="added to"):
            load(save(tmp_path, data + tail))


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    for content, message in ((b"", "is empty"), (b"\x08\x07\x12\x07pytorch", "not a file compiled by q8c"),
                             (header.MAGIC, "cut short"), (os.urandom(5000), "not a file compiled by q8c")):
        with pytest.raises(ArtifactError, match=message) as caught:
            load(save(tmp_path, content))
        assert "\n" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path, "not a regular file"),
                          (tmp_path / "pipe", "not a regular file"), (Path("/dev/zero"), "not a regular file"),
                          (Path("/proc/self/cmdline"), "empty"), (Path("a\0b"), "null")):
        with pytest.raises(ArtifactError, match=message):
            load(path)


def test_another_version_says_so(artifact: Path, tmp_path: Path) -> None:
    data = bytearray(artifact.read_bytes())
    data[8] = VERSION + 1
    with pytest.raises(ArtifactError, match=f"format version {VERSION + 1}, this q8c reads version {VERSION}"):
        load(save(tmp_path, bytes(data)))


def test_a_pin_holds(artifact: Path) -> None:
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    assert load(artifact, sha256=digest.upper()).artifact.sha256 == digest
    with pytest.raises(ArtifactError, match=f"SHA-256 {digest}, expected 0000"):
        load(artifact, sha256="0" * 64)
    for wrong in ("abc", "g" * 64, digest + "\n"):
        with pytest.raises(ArtifactError, match="64 hexadecimal digits"):
            load(artifact, sha256=wrong)


def test_code_for_other_cpus_only(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q8c.runtime.cpu.features", lambda: frozenset({"sse4.2"}))
    with pytest.raises(ArtifactError, match="avx2 needs avx, avx2.*run it on a CPU with AVX2"):
        load(artifact)


Change = Callable[[Any], None]


def _set(*path: Any) -> Change:
    """Sets the member at path[:-1] to path[-1], of the first part where the whole has none of that name."""
    def change(manifest: Any) -> None:
        *parents, last, value = path if path[0] in manifest else ("parts", 0, *path)
        for step in parents:
            manifest = manifest[step]
        manifest[last] = value
    return change


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = ["+", value, 1]
    return value


CHANGES: dict[str, tuple[Change, str]] = {
    "weights beyond the end": (_set("weights", "size", 1 << 40), "hash for every"),
    "weights over code": (_set("weights", "offset", 1 << 20), "does not lie where it must"),
    "weights over the header": (_set("weights", "offset", 0), "does not lie where it must"),
    "code over weights": (lambda m: m["parts"][0]["images"][0]["section"].update(m["weights"]), "does not lie|entries"),
    "unaligned section": (_set("weights", "offset", 4097), "aligned to 64"),
    "negative size": (_set("ir", "size", -1), r"ir.size must be an integer in \[0"),
    "float size": (_set("ir", "size", 14.0), "ir.size must be an integer"),
    "bool size": (_set("ir", "size", True), "ir.size must be an integer"),
    "giant offset": (_set("ir", "offset", 1 << 62), "ir.offset must be an integer"),
    "constant beyond": (_set("constants", 1, "offset", 1 << 30), "constants.1..offset must be"),
    "constant too large": (_set("constants", 0, "nbytes", 80), "size of its dtype and shape"),
    "constant shape": (_set("constants", 0, "shape", [1 << 40] * 30), "size of its dtype and shape"),
    "constant dtype": (_set("constants", 0, "dtype", "object"), "dtype must be one of bool"),
    "constant twice": (_set("constants", 1, "name", "table"), "without duplicate names"),
    "entry beyond": (_set("images", 0, "entries", "q8c_run", 1 << 20), "entries.q8c_run must be"),
    "entry missing": (lambda m: m["parts"][0]["images"][0]["entries"].pop("q8c_launch"),
                      "entries must be an object with"),
    "unknown tier": (_set("images", 0, "tier", "avx10"), "tier must be one of amx-int8, avx512-vnni"),
    "tier of another type": (_set("images", 0, "tier", ["avx2"]), "tier must be one of"),
    "tier twice": (lambda m: m["parts"][0]["images"].append(m["parts"][0]["images"][0]), "duplicate names"),
    "feature unknown here": (_set("images", 0, "features", ["amx-time-travel"]), "amx-time-travel"),
    "no code": (lambda m: m["parts"][0]["images"].clear(), "does not lie|sections"),
    "frame too small": (_set("model", "frame", "size", 30), "frame must be the layout"),
    "frame moved": (_set("model", "frame", "dims", 24), "frame must be the layout"),
    "cost over no symbol": (_set("model", "cost", ["$", 2]), "none of the 2"),
    "program over no symbol": (_set("model", "dims", 0, ["$", 2]), "none of the 2"),
    "deep program": (_set("model", "dims", 0, _deep(100)), "levels"),
    "wide program": (_set("model", "slots", 0, ["+", *[1] * 10_000]), "parts"),
    "text of another rank": (_set("model", "inputs", 0, "text", []), "text must be 1 strings"),
    "input twice": (_set("model", "inputs", 1, "name", "ids"), "duplicate names"),
    "newline in a name": (_set("model", "inputs", 1, "name", "a\nb"), "control characters"),
    "count of no input": (_set("model", "counts", [[0, 2]]), r"counts.0..1. must be an integer in \[0, 1\]"),
    "count of no symbol": (_set("model", "counts", [[2, 0]]), r"counts.0..0. must be an integer in \[0, 1\]"),
    "count of what": (_set("model", "counts", [[0]]), r"counts.0. must be \[symbol, input\]"),
    "symbol nobody gives": (_set("model", "symbols", ["batch", "n", "m"]), "do not determine m"),
    "a further member": (_set("model", "extra", 1), "an object with the members"),
    "a missing member": (lambda m: m["parts"][0]["model"].pop("name"), "an object with the members"),
    "list for object": (_set("model", []), r"manifest.parts.0..model must be an object"),
    "rank 40": (_set("model", "inputs", 0, "shape", [1] * 40), "a list of at most 32"),
    "hash of another form": (_set("ir", "sha256", ["Z" * 64]), "64 hexadecimal digits"),
    "too many hashes": (lambda m: m["parts"][0]["ir"]["sha256"].append("0" * 64), "hash for every"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_altered_manifest_with_hashes_that_fit_is_refused(artifact: Path, tmp_path: Path, name: str) -> None:
    change, message = CHANGES[name]
    data = artifact.read_bytes()
    manifest = manifest_of(data)
    change(manifest)
    with pytest.raises(ArtifactError, match=message) as caught:
        load(save(tmp_path, with_manifest(data, strict_json.dumps(manifest))))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(("text", "message"), [
    (b"", "not valid JSON"), (b"[]", "must be an object"), (b"\xff\xfe", "not valid JSON"),
    (b"[" * 1_000_000, "nested too deeply"), (b'{"a":' * 200_000, "nested too deeply"),
    (b'{"a":1,"a":2}', "twice"), (b"[NaN]", "NaN"), (b"[-Infinity]", "Infinity"), (b"[1e999]", "out of range"),
    (b"[" + b"9" * 100_000 + b"]", "too long"), (b"{}x", "Extra data"), (b"[" + b" " * (17 << 20) + b"]", "longest"),
    (b'"\\ud800"', "must be an object")])
def test_a_manifest_that_abuses_json_is_refused(artifact: Path, tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        load(save(tmp_path, with_manifest(artifact.read_bytes(), text)))


@quick
@given(st.data())
def test_any_member_of_the_manifest_may_be_anything(artifact: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Loading raises nothing but the project's errors, and neither does planning a run where loading succeeds."""
    try:
        with load(save(tmp_path, with_junk(artifact.read_bytes(), data))) as session:
            ranks = [len(t.shape) for t in session.get_inputs()]
            session._open().runners[0].signature.plan(*((3,) * rank for rank in ranks))
    except Error as error:
        assert isinstance(error, (ArtifactError, InputError)) and "\n" not in str(error)


@quick
@given(st.binary(max_size=300))
def test_any_bytes_may_stand_for_the_manifest(artifact: Path, tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ArtifactError):
        load(save(tmp_path, with_manifest(artifact.read_bytes(), text)))


def test_weights_without_any_constant(tmp_path: Path) -> None:
    made = native.image()
    with Writer(tmp_path / "m.q8c") as writer:
        image = writer.image("avx2", (), made.code, made.symbols)
        empty = Model("empty", (), (Tensor("y", "float32", (0,), ("0",)),), ())
        writer.finish([writer.part(empty, (), [image], "")])
    opened = Artifact(tmp_path / "m.q8c")
    assert opened.manifest.weights.size == 0 and opened.ir() == ""
