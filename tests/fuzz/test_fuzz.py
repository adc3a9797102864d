"""Random models give what ONNX's reference evaluator gives; `python -m tests.fuzz` runs more of them."""
from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fuzz.grow import ALL_STEPS, grow
from tests.fuzz.grower import Grown
from tests.fuzz.hostile import judge_hostile
from tests.fuzz.judge import Verdict, judge, shrink, text_of, verdict_on

PASSES, NATIVE, HOSTILE, CHUNK = 140, 18, 60, 20  # compiling to machine code takes ten times as long as the passes do
MOST_REFUSED = 0.08


def failures(verdicts: list[Verdict]) -> str:
    return "\n".join(f"seed {v.seed}: {v.outcome}: {v.why}" for v in verdicts if v.failed)


@pytest.mark.parametrize("start", range(0, PASSES, CHUNK))
def test_what_passes_leave_means_the_same(start: int) -> None:
    verdicts = [judge(seed, native=False)[0] for seed in range(start, start + CHUNK)]
    assert not failures(verdicts)
    assert sum(v.outcome == "refused" for v in verdicts) <= max(3, MOST_REFUSED * CHUNK)


@pytest.mark.parametrize("start", range(0, NATIVE, 6))
def test_compiled_code_gives_what_the_standard_says(start: int) -> None:
    verdicts = [judge(seed)[0] for seed in range(1000 + start, 1000 + start + 6)]
    assert not failures(verdicts)


def test_models_with_something_wrong_are_one_clear_error() -> None:
    verdicts = [judge_hostile(seed)[0] for seed in range(HOSTILE)]
    assert not failures(verdicts)
    assert {v.outcome for v in verdicts} == {"refused", "taken"}


def test_every_step_is_taken() -> None:
    taken = {node.op_type for seed in range(80) for node in grow(seed, False).nodes}
    assert len(taken) > 80 and len(ALL_STEPS) > 60, sorted(taken)


def test_a_wrong_result_is_found_and_shown() -> None:
    g = next(g for seed in range(20) if not (g := grow(seed, False)).special)
    grown = g.grown()
    assert verdict_on(grown, native=False) == ("equal", "")
    value = next(v for v in grown.outputs if v.name[0] == "v" and v.arrays[0].size and v.kind in "fi")
    value.arrays = [a + 1 for a in value.arrays]
    value.shadows = [a + 1 for a in value.shadows]
    outcome, why = verdict_on(Grown(0, grown.model, grown.feeds, grown.outputs, False), native=False)
    assert outcome == "wrong" and value.name in why
    model, reason = shrink(g, native=False)
    assert [o.name for o in model.graph.output] == [value.name] and reason.startswith("wrong")
    assert value.name in text_of(model)


def test_another_exception_than_an_error_of_q8c_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("tests.fuzz.judge.import_onnx", failing)
    verdict, g = judge(1, native=False)
    assert verdict.failed and verdict == replace(verdict, outcome="broken", why="KeyError: 'oops'")
