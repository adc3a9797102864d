"""Rows that would lie whole pages apart are moved a cache line further."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from q8c.ir import parse_graph
from q8c.passes import pad_rows
from q8c.passes.pad_rows import PadRows
from q8c.passes.pipeline import Options
from q8c.runtime.session import load
from tests.decoder import compile_graph
from tests.passes.support import check

LOOP = """%y: f32[n, {cols}] = loop(%h) body(%a: f32[n, {cols}]) {{
            %b: f32[n, {cols}] = relu(%a)
            return %b
          }}"""


def text(cols: int = 1024, pitch: str = "", reader: str = LOOP, results: str = "%y") -> str:
    """A product and what reads it."""
    return f"""graph @g(%x: f32[n, 3]) {{
          const %w: f32[3, {cols}] = @w
          %h: f32[n, {cols}] = linear(%x, %w){pitch}
          {reader.format(cols=cols)}
          return {results}
        }}"""


@pytest.mark.parametrize("cols, pitch", [(1024, 1040), (3072, 3088)])
def test_rows_that_are_whole_pages(cols: int, pitch: int) -> None:
    check(PadRows(), text(cols), text(cols, f" {{pitch = {pitch}}}"))


@pytest.mark.parametrize("changes", [
    {"cols": 1023}, {"cols": 512}, {"results": "%y, %h"}, {"reader": "%y: f32[n, {cols}] = neg(%h)"},
    {"reader": LOOP + "\n%z: f32[n, {cols}] = neg(%h)", "results": "%y, %z"}])
def test_others_stay_as_they_are(changes: dict[str, object]) -> None:
    """Rows off the pages; what the caller is given, or others than loops read, is dense."""
    check(PadRows(), text(**changes), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("quantize", [False, True])
def test_results_are_the_same_bits(quantize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, rng = [], np.random.default_rng(1)
    data = {name: rng.normal(0, 0.2, shape).astype(np.float32)
            for name, shape in (("w", (32, 2048)), ("bias", (2048,)), ("v", (1024, 8)))}
    x = rng.normal(0, 1, (2, 19, 32)).astype(np.float32)
    for set_bytes in (1 << 40, 4096):
        monkeypatch.setattr(pad_rows, "SET_BYTES", set_bytes)
        graph = parse_graph("""graph @g(%x: f32[b, s, 32]) {
          const %w: f32[32, 2048] = @w
          const %bias: f32[2048] = @bias
          const %v: f32[1024, 8] = @v
          %p: f32[b, s, 2048] = matmul(%x, %w)
          %h: f32[b, s, 2048] = add(%p, %bias)
          %gate: f32[b, s, 1024] = slice(%h) {starts = (0, 0, 0), sizes = (b, s, 1024), steps = (1, 1, 1)}
          %up: f32[b, s, 1024] = slice(%h) {starts = (0, 0, 1000), sizes = (b, s, 1024), steps = (1, 1, 1)}
          %act: f32[b, s, 1024] = silu(%gate)
          %m: f32[b, s, 1024] = mul(%act, %up)
          %y: f32[b, s, 8] = matmul(%m, %v)
          return %y
        }""", data)
        path = compile_graph(graph, tmp_path / f"{set_bytes}.q8c", Options(quantize=quantize, balance=False))
        with load(path, threads=2) as session:
            assert ("pitch = 2064" in session.artifact.ir(0)) == (set_bytes == 4096)
            found.append(session.run(None, {"x": x})[0])
    assert np.array_equal(found[0], found[1])
