"""`q8c inspect` and `verify`: what a file holds, and whether its code is that of its graph."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import q8c
from q8c.cli.common import alike
from q8c.codegen.targets import TIERS
from q8c.ir import parse_graph, print_graph
from q8c.runtime import strict_json
from tests.cli.support import Cli
from tests.runtime.files import manifest_of, with_manifest


def test_inspect_for_people(cli: Cli, compiled: Path) -> None:
    text = cli.good("inspect", compiled)
    assert hashlib.sha256(compiled.read_bytes()).hexdigest() in text
    for line in ("  input  x: float32[rows, 32]", "  output y: float32[rows, 16]", "2 q8_linear", "weights=default"):
        assert line in text
    listed = cli.good("inspect", compiled, "--constants")
    assert listed.startswith(text.rstrip("\n")) and "\nw0.q8:q8" in listed or "q8:q8" in listed


def test_inspect_gives_the_graph(cli: Cli, compiled: Path) -> None:
    text = cli.good("inspect", compiled, "--ir")
    assert print_graph(parse_graph(text)) == text and "q8_linear" in text


def test_inspect_as_json(cli: Cli, compiled: Path) -> None:
    found = json.loads(cli.good("inspect", compiled, "--json", "--ir"))
    assert found["bytes"] == compiled.stat().st_size and found["text"].startswith("graph @")
    told = found["parts"][0]["model"]
    assert told["options"]["weights"] == "default" and told["tools"]["q8c"] == q8c.__version__


def test_names_that_differ_in_a_number_are_one_line() -> None:
    kept = [(f"past.{n}.{what}", "f32[b, past, 4]") for n in range(3, 6) for what in ("key", "value")]
    assert alike([("ids", "i64[b]"), *kept]) == {
        "ids": ["ids"], "past.{3..5}.key": ["past.3.key", "past.4.key", "past.5.key"],
        "past.{3..5}.value": ["past.3.value", "past.4.value", "past.5.value"]}
    apart = [("x1", "f32"), ("x2", "f32"), ("y1", "f32"), ("y2", "i64"), ("y3", "f32"),
             *((f"z{n}", "f32") for n in (1, 3, 5))]
    assert alike(apart) == {name: [name] for name, _ in apart}


def altered(path: Path, folder: Path, change: str) -> Path:
    """The file with one thing changed and all hashes made to fit, as a person who means harm would leave it."""
    data = bytearray(path.read_bytes())
    manifest = manifest_of(bytes(data))
    assert isinstance(manifest, dict)
    part = manifest["parts"][0]
    image = part["images"][0]
    if change == "code":
        start, size = image["section"]["offset"], image["section"]["size"]
        data[start + image["entries"]["q8c_run"] + 40] ^= 1
        image["section"]["sha256"] = [hashlib.sha256(data[start:start + size]).hexdigest()]
    elif change == "entry":
        image["entries"]["q8c_run"] += 16
    else:
        part["model"]["slots"].append(64)
        part["model"]["frame"]["size"] += 1
    changed = folder / f"{change}.q8c"
    changed.write_bytes(with_manifest(bytes(data), strict_json.dumps(manifest)))
    return changed


def test_verify_a_file_as_the_compiler_left_it(cli: Cli, mlp: Path, tmp_path: Path) -> None:
    path = q8c.compile(mlp, tmp_path / "all.q8c", target="all")
    assert cli.good("verify", path).splitlines() == [
        f"{tier}: the code is what this compiler makes of the graph" for tier in TIERS]
    assert json.loads(cli.good("verify", path, "--json"))["tiers"] == dict.fromkeys(TIERS, True)


@pytest.mark.parametrize("change", ["code", "entry", "slots"])
def test_altered_code_shows_and_is_not_run_when_rebuilt(cli: Cli, compiled: Path, tmp_path: Path, change: str,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q8C_CACHE", str(tmp_path / "cache"))
    path = altered(compiled, tmp_path, change)
    done = cli("verify", path)
    assert (done.code, done.err) == (1, "") and "THE CODE DIFFERS" in done.out
    x = np.ones((3, 32), np.float32)
    assert np.array_equal(q8c.load(path, rebuild=True)(x=x)["y"], q8c.load(compiled)(x=x)["y"])
