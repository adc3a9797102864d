"""The error that quantization made, as a compiled file tells it."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.errors import Error
from q8c.ir import Graph, clone
from q8c.measure import Measured, measured_from, quantization_error
from q8c.passes.fold_weights import FoldWeights
from q8c.passes.insert_dynamic_quantize import InsertDynamicQuantize
from q8c.passes.manager import run_passes
from tests.passes.support import parse

TEXT = """
    graph @g(%ids: i64[n]) {
      const %table: f32[20, 32] = @table
      const %w: f32[32, 48] = @w
      %x: f32[n, 32] = gather(%table, %ids)
      %y: f32[n, 48] = matmul(%x, %w)
      %z: i64[n] = add(%ids, %ids)
      return %y as "rows", %z as "twice"
    }"""


def graphs() -> tuple[Graph, Graph]:
    """Before and after quantization."""
    before = parse(TEXT)
    after = clone(before)
    run_passes(after, [FoldWeights(), InsertDynamicQuantize()])
    return before, after


def test_float_outputs_on_made_up_inputs_and_on_feeds() -> None:
    found = quantization_error(*graphs(), ())
    assert found is not None and found.inputs == "made-up" and list(found.outputs) == ["rows"]
    assert 0.001 < found.outputs["rows"]["relative_l2"] < 0.02 and found.outputs["rows"]["cosine"] > 0.9995
    given = quantization_error(*graphs(), ({"ids": np.arange(20)}, {"ids": np.arange(3)}))
    assert given is not None and given.inputs == "calibration" and given.outputs != found.outputs


def test_nothing_quantized_has_no_error_to_tell() -> None:
    before, _ = graphs()
    assert quantization_error(before, before, ()) is None


def test_made_up_inputs_that_do_not_fit_are_no_reason_to_fail_and_given_ones_are() -> None:
    before, after = graphs()
    for graph in (before, after):
        n = graph.inputs[0].shape[0]
        graph.assume_equal(n, 7)
        graph.assume_equal(n, 9)
    assert quantization_error(before, after, ()) is None
    with pytest.raises(Error):
        quantization_error(before, after, ({"ids": np.arange(7)},))


def test_notes_come_back_whole_or_not_at_all() -> None:
    outputs = {f"y{i}": {"relative_l2": 0.01, "cosine": 0.9999, "max_abs": 1.0} for i in range(5)}
    measured = Measured("made-up", outputs)
    assert measured_from({"error": {"inputs": "made-up", "outputs": outputs}}) == measured
    assert str(measured).endswith("cosine 0.99990; 3 more outputs (on made-up inputs)")
    for damaged in ({}, {"error": None}, {"error": 5}, {"error": {"inputs": "x"}}, {"error": {
            "inputs": "x", "outputs": {"y": 3}}}):
        assert measured_from(damaged) is None
