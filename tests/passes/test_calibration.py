"""Inputs to calibrate on: what is taken, what is refused, and how much of it is used."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.errors import Error, InputError
from q8c.ir import Array, Graph
from q8c.passes.calibration import MAX_FEEDS, MAX_ROWS, Calibration, as_feeds, checked_feeds
from q8c.passes.manager import Report
from tests.passes.support import parse

IDS = np.arange(6).reshape(2, 3)


def graph() -> Graph:
    return parse("""
    graph @g(%ids: i64[batch, seq], %x: f32[batch, 8]) {
      const %table: f32[6, 8] = @table
      %e: f32[batch, seq, 8] = gather(%table, %ids)
      return %e, %x
    }""")


def feed(**changes: object) -> dict[str, object]:
    return {"ids": IDS, "x": np.ones((2, 8), np.float32)} | changes


@pytest.mark.parametrize(("given", "says"), [
    (feed(), "got one dict; put it into a list"),
    (5, "got int"),
    ([], "calibrate holds no feeds"),
    (iter(()), "calibrate holds no feeds"),
])
def test_what_is_no_iterable_of_feeds(given: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        as_feeds(given)


@pytest.mark.parametrize(("bad", "says"), [
    ([1, 2], "calibration feed 1: expected a dict of arrays by input name, got list"),
    ({"ids": IDS}, "calibration feed 1: input 'x' is missing"),
    (feed(idz=IDS), "calibration feed 1: the model has no input 'idz'; expected ids, x"),
    (feed(x=np.ones((2, 8))), "input 'x' is float64, expected float32"),
    (feed(ids=IDS + 0.5), "input 'ids' is float64, expected int64"),
    (feed(ids=IDS[0]), r"input 'ids' has the shape \[3\], expected i64\[batch, seq\]"),
    (feed(ids=IDS[:0], x=np.ones((0, 8), np.float32)), "calibration feed 1: all its arrays are empty"),
    (feed(ids=IDS[:1]), "calibration feed 1: input 'x': expected f32\\[batch, 8\\], got .*batch is 1"),
    (feed(ids=np.array([["a"]])), "input 'ids' is <U1, expected int64"),
])
def test_feeds_that_do_not_fit(bad: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        checked_feeds(graph(), (feed(), bad))  # type: ignore[arg-type]


def test_integers_of_another_width_and_arrays_of_any_layout_are_taken() -> None:
    [found] = checked_feeds(graph(), (feed(ids=np.asfortranarray(IDS.astype(np.uint8)),
                                           x=np.ones((2, 8), ">f4")[:, ::-1]),))
    assert found["ids"].dtype == np.int64 and np.array_equal(found["ids"], IDS)
    assert found["x"].dtype == np.float32 and found["x"].flags.c_contiguous


def rows_of(calibration: Calibration, report: Report | None = None) -> Array | None:
    """The rows of the gathered embeddings."""
    g = graph()
    value = g.nodes[0].output
    return calibration.rows(g, [value], report or Report()).get(value)


def test_rows_are_spread_over_the_feeds_and_bounded() -> None:
    many = tuple(feed(ids=np.full((2, 3), i // 10 % 6)) for i in range(10 * MAX_FEEDS))
    assert len(Calibration(many).inputs(graph())) == MAX_FEEDS
    rows = rows_of(Calibration(many))
    assert rows is not None and rows.shape[1] == 8 and len(np.unique(rows, axis=0)) == 6
    long = rows_of(Calibration((feed(ids=np.zeros((2, 5000), int)),)))
    assert long is not None and MAX_ROWS <= len(long) <= 2 * MAX_ROWS


def test_large_rows_lie_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple(feed(ids=np.full((2, 3), i)) for i in range(6))
    held = rows_of(Calibration(many))
    monkeypatch.setattr("q8c.ir.spill.LARGE", 1)
    mapped = rows_of(Calibration(many))
    assert held is not None and held.flags.writeable and mapped is not None and not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, held)


def test_rows_that_are_not_finite_say_nothing() -> None:
    g = graph()
    table = g.constants["table"].array()
    table[3, 2] = np.nan
    rows = Calibration((feed(),)).rows(g, [g.nodes[0].output], Report())[g.nodes[0].output]
    assert len(rows) == 5 and np.isfinite(rows).all()


def test_the_model_runs_once_for_all_who_ask() -> None:
    g = graph()
    calibration = Calibration((feed(),))
    first = calibration.rows(g, [g.nodes[0].output], Report())
    g.constants["table"].data = np.zeros((6, 8), np.float32)
    assert calibration.rows(g, [g.nodes[0].output], Report()) == first


def test_feeds_the_model_does_not_run_on_are_an_error_and_made_up_ones_a_reason() -> None:
    with pytest.raises(Error, match="index"):
        rows_of(Calibration((feed(ids=IDS + 9),)))
    g = graph()
    batch, seq = g.inputs[0].shape
    g.assume_equal(batch, 17)
    g.assume_equal(seq, 19)
    report = Report()
    assert Calibration().rows(g, [g.nodes[0].output], report) == {}
    assert "nothing is calibrated, give inputs to calibrate on: no sizes were found" in report.declines[0].text
