"""From traces to tables: times, waits, rates and the trace file, and `q8c profile` as a whole."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import q8c
from q8c.frontend import import_onnx
from q8c.ir import Graph, parse_graph
from q8c.ir.dims import evaluate
from q8c.ir.work import label, total_work, work_of
from q8c.profile import chrome_trace, grouped, profile
from q8c.runtime.trace import Trace
from tests import models
from tests.cli.support import Cli

GRAPH = """
graph @g(%x: f32[n, 8], %ids: i64[n]) {
  const %table: f32[100, 8] = @table
  const %w: f32[8, 4] = @w
  %rows: f32[n, 8] = gather(%table, %ids) {axis = 0}
  %y: f32[n, 4] = linear(%x, %w) from "first", "second"
  %flat: f32[4*n] = reshape(%y) {shape = (4*n)}
  %z: f32[4*n] = neg(%flat)
  return %z, %rows
}
"""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    return q8c.compile(models.bert(folder).SerializeToString(), folder / "bert.q8c")


def graph() -> Graph:
    return parse_graph(GRAPH)


def trace(*stamps: list[tuple[int, int]], began: int = 0, ended: int = 0) -> Trace:
    """Stamps of each thread, in ticks of half a nanosecond."""
    ticks = np.array(stamps, np.int64)
    return Trace((3,), began, ended or began + 500, ticks)


TWO = [trace([(0, 0), (1000, 1400), (0, 0), (1500, 1600)], [(0, 0), (1000, 1200), (0, 0), (1500, 1700)], began=0),
       trace([(0, 0), (21000, 21400), (0, 0), (21500, 21600)], [(0, 0), (21000, 21200), (0, 0), (21500, 21700)],
             began=10_000)]


def test_work_counts_what_a_node_must_do() -> None:
    gather, linear, reshape, neg = (work_of(n) for n in graph().nodes)
    n = {"n": 3}
    assert evaluate(gather.bytes, n) == 3 * 8 + 2 * 3 * 8 * 4  # the rows picked, not the table
    assert (linear.kind, evaluate(linear.macs, n)) == ("f32", 3 * 8 * 4)
    assert (evaluate(linear.bytes, n), linear.weight_bytes) == (4 * (3 * 8 + 8 * 4 + 3 * 4), 4 * 8 * 4)
    assert (reshape.macs, reshape.bytes) == (0, 0)
    assert (neg.kind, evaluate(neg.bytes, n)) == ("", 2 * 4 * 12)
    assert [label(node) for node in graph().nodes] == ["gather", "linear 8x4", "reshape", "neg"]


def test_total_work_is_the_same_before_and_after_the_passes(bert: Path, tmp_path: Path) -> None:
    with q8c.load(bert) as session:
        final = total_work(parse_graph(session.artifact.ir()))
    imported = total_work(import_onnx(models.bert(tmp_path)))
    hidden, inner, tokens = models.HIDDEN, 70, 3 * 11
    sizes = {"batch": 3, "seq": 11}
    for total in (final, imported):
        assert evaluate(total.weight_macs, sizes) == 2 * tokens * (4 * hidden * hidden + 2 * hidden * inner)
        assert evaluate(total.attention_macs, sizes) == 2 * 2 * tokens * 11 * hidden
        assert total.weight_bytes == 2 * (4 * hidden * hidden + 2 * hidden * inner)


def test_causal_attention_counts_the_keys_it_sees() -> None:
    text = """graph @g(%q: f32[1, n, 8], %k: f32[1, m, 8]) {
      %y: f32[1, n, 8] = attention(%q, %k, %k) {heads = 2, kv_heads = 2, head_size = 4, scale = 1.0, causal = true}
      return %y }"""
    work = work_of(parse_graph(text).nodes[0])
    for n, m in ((1, 1), (4, 4), (3, 7)):
        seen = sum(m - n + i + 1 for i in range(n))
        assert evaluate(work.macs, {"n": n, "m": m}) == 2 * 2 * 4 * seen


def test_times_and_waits_add_up() -> None:
    found = profile(graph(), ["n"], [*TWO, trace([(0, 0), (1, 2), (0, 0), (3, 4)], began=90)][:2])
    assert [r.label for r in found.rows] == ["linear 8x4", "neg"] and found.rows[0].name == "first"
    linear, neg = found.rows
    assert linear.seconds == pytest.approx(150e-9) and neg.seconds == pytest.approx(75e-9)
    assert linear.wait == pytest.approx(100e-9) and neg.wait == pytest.approx(25e-9)
    assert found.seconds == pytest.approx(500e-9) and found.outside == pytest.approx(150e-9)
    assert (found.runs, found.threads, found.sizes) == (2, 2, {"n": 3})
    assert linear.floor is None and linear.share is None


def test_a_thread_that_misses_a_node_waits_behind_it() -> None:
    late = trace([(0, 0), (1000, 1400), (0, 0), (1400, 1500)], [(0, 0), (0, 0), (0, 0), (1420, 1500)])
    never = trace([(0, 0), (9000, 9400), (0, 0), (9400, 9500)], [(0, 0)] * 4, began=4000)
    linear, neg = profile(graph(), ["n"], [late, never]).rows
    assert linear.seconds == pytest.approx(100e-9) and linear.wait == pytest.approx((420 + 400) / 2 / 4 * 1e-9)
    assert neg.seconds == pytest.approx((90 + 50) / 2 / 2 * 1e-9) and neg.wait == pytest.approx(100 / 2 / 4 * 1e-9)


def test_runs_that_had_no_workers_are_left_out() -> None:
    alone = trace([(0, 0), (11_000, 11_001), (0, 0), (11_002, 11_003)], began=5000)
    assert profile(graph(), ["n"], [TWO[0], alone, TWO[1]]) == profile(graph(), ["n"], TWO)


def least(kind: str, macs: int, nbytes: int) -> float:
    """Of a machine with one multiply-add and a hundred bytes a nanosecond."""
    assert kind in ("f32", "") and bool(macs) == bool(kind)
    return max(macs, nbytes / 100) * 1e-9


def test_the_share_of_the_ceiling_is_that_of_the_least_time() -> None:
    linear, neg = profile(graph(), ["n"], TWO, least).rows
    assert linear.floor == pytest.approx(96e-9) and linear.share == pytest.approx(96 / 150)
    assert neg.floor == pytest.approx(0.96e-9)


def test_rows_of_one_kind_add_up() -> None:
    rows = profile(graph(), ["n"], TWO, least).rows
    (both,) = grouped([*rows[:1], *rows[:1]], "label")
    assert (both.name, both.count, both.macs) == ("linear 8x4", 2, 2 * rows[0].macs)
    assert both.seconds == 2 * rows[0].seconds and both.share == pytest.approx(rows[0].share)
    assert [r.name for r in grouped(rows, "op")] == ["linear", "neg"]


def test_the_trace_file_holds_every_slice_and_long_wait() -> None:
    made = json.loads(json.dumps(chrome_trace(graph(), ["n"], TWO, "model")))
    slices = [e for e in made["traceEvents"] if e["ph"] == "X"]
    assert len(slices) == 2 * (2 * 2 + 1)  # a wait of 50 ns is not worth a slice
    first = slices[0]
    assert (first["name"], first["tid"], first["ts"], first["dur"]) == ("linear 8x4", 0, 0, 0.2)
    assert first["args"] == {"node": "first", "multiply-adds": 96, "bytes": 272}
    assert [(e["ts"], e["dur"]) for e in slices if e["cat"] == "wait"] == [(0.1, 0.15), (10.1, 0.15)]
    assert {e["args"]["name"] for e in made["traceEvents"] if e["ph"] == "M"} == {"model", "thread 0", "thread 1"}


def test_the_verb(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = Cli(capsys)
    words = ["profile", bert, "-s", "batch=2", "-s", "seq=9", "-n", "3", "-t", "1", "--no-ceiling"]
    lines = cli.good(*words).splitlines()
    assert "1 thread, batch=2, seq=9" in lines[0] and lines[-1].endswith("outside of nodes")
    nodes = len(lines) - 3
    by_kernel = cli.good(*words, "--by", "kernel")
    assert "q8_linear 48x70" in by_kernel and 3 < len(by_kernel.splitlines()) - 3 < nodes
    output = tmp_path / "trace.json"
    found = json.loads(cli.good(*words, "--json", "--trace", output))
    assert len(found["rows"]) == nodes and found["runs"] == 3 and found["rows"][0]["floor"] is None
    assert len([e for e in json.loads(output.read_text())["traceEvents"] if e.get("cat") == "node"]) == nodes
    assert "cannot write" in cli.bad(2, *words, "--trace", tmp_path / "none" / "t.json")
    assert "no code for tier" in cli.bad(1, *words, "--tier", "avx9")
