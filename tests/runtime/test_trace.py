"""Runs timed node by node by the compiled code itself."""
from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import q8c
from q8c.runtime.trace import Trace, ticks_per_ns
from tests import models


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trace")
    return q8c.compile(models.bert(folder).SerializeToString(), folder / "bert.q8c")


@pytest.mark.parametrize("threads", [1, 2])
def test_every_node_is_timed_in_order(bert: Path, threads: int) -> None:
    feed = models.bert_feed(3, 17)
    with q8c.load(bert, threads=threads) as session:
        expected = session.run(None, feed)
        traces: list[Trace] = []
        session.watch(traces.append)
        for _ in range(3):
            np.testing.assert_array_equal(session.run(None, feed)[0], expected[0])
        session.watch(None)
        session.run(None, feed)
        nodes = session.artifact.manifest.model.nodes
        symbols = dict(zip(session.artifact.manifest.model.symbols, traces[0].symbols, strict=True))
    assert len(traces) == 3 and symbols == {"batch": 3, "seq": 17}
    for trace in traces:
        assert trace.ticks.shape == (threads, len(nodes), 2)
        for number, node in enumerate(nodes):
            assert (trace.ticks[:, number] == 0).all() == (node.op == "reshape")
        for thread in trace.ticks:
            stamps = thread[thread.any(axis=1)].ravel()
            assert (np.diff(stamps) >= 0).all()
    assert traces[0].last <= traces[1].first and traces[1].last <= traces[2].first


def test_a_trace_fits_the_time_of_its_run(bert: Path) -> None:
    traces: list[Trace] = []
    with q8c.load(bert, threads=1) as session:
        session.watch(traces.append)
        session.run(None, models.bert_feed(8, 40))
        time.sleep(0.05)
        start = time.perf_counter_ns()
        session.run(None, models.bert_feed(8, 40))
        end = time.perf_counter_ns()
    speed = ticks_per_ns(traces)
    assert 0.3 < speed < 10  # GHz
    assert start <= traces[1].began < traces[1].ended <= end
    assert (traces[1].last - traces[1].first) / speed <= (traces[1].ended - traces[1].began) * 1.01


def test_a_run_that_fails_has_no_trace(bert: Path) -> None:
    traces: list[Trace] = []
    with q8c.load(bert) as session:
        session.watch(traces.append)
        with pytest.raises(q8c.InputError):
            session.run(None, models.bert_feed(1, 4) | {"input_ids": np.full((1, 4), models.VOCABULARY)})
    assert not traces


def test_speed_of_the_counter() -> None:
    def trace(began: int, first: int, last: int, ended: int) -> Trace:
        return Trace((), began, ended, np.array([[[first, last], [0, 0]]]))

    assert ticks_per_ns([trace(1000, 50, 250, 1100)]) == 2.0
    assert ticks_per_ns([trace(1000, 50, 250, 1100), trace(1500, 0, 0, 1600), trace(2000, 3050, 3100, 2010)]) == 3.0
    with pytest.raises(ValueError, match="no node"):
        ticks_per_ns([trace(0, 0, 0, 1)])
