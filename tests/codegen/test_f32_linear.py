"""The float linear kernel: exact where floats are, within its error bound elsewhere, the same bits everywhere."""
from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from q8c.codegen import layout
from q8c.codegen.f32_linear import F32LinearSpec, emit_f32_linear
from q8c.codegen.targets import Tier
from q8c.errors import CompileError
from tests.codegen.jit import Loaded, aligned, both_widths, build, each_width, guarded
from tests.codegen.queues import Queues

Floats = NDArray[np.float32]
FUSED = F32LinearSpec(37, 53, bias=True, activation="relu", residual=True)


@cache
def kernel(tier: Tier, spec: F32LinearSpec) -> tuple[Loaded, str]:
    names: list[str] = []
    return build(tier, lambda module, tier: names.append(emit_f32_linear(module, tier, spec).name)), names[0]


def operands(spec: F32LinearSpec, rows: int, seed: int = 0) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    depth, cols = spec.depth, spec.cols
    shapes = {"a": (rows, depth), "w": (depth, cols), "bias": (cols,), "residual": (rows, cols)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def run(tier: Tier, spec: F32LinearSpec, x: dict[str, Floats], threads: int = 1) -> Floats:
    """y [rows, cols]; operands and result end at an unreadable page."""
    loaded, name = kernel(tier, spec)
    rows = x["a"].shape[0]
    y = guarded(np.full((rows, spec.cols), -7, np.float32))
    values: dict[str, NDArray[Any] | int] = {
        "a": guarded(x["a"]), "w": aligned(layout.pack_f32(x["w"])), "bias": aligned(layout.pad_cols(x["bias"])),
        "residual": guarded(x["residual"]), "ldr": spec.cols, "y": y, "ldy": spec.cols, "rows": rows,
        "threads": threads}
    queues = Queues(threads)
    calls = [[(values | {"queue": queues[t]})[param] for param, _ in spec.params] for t in range(threads)]
    workers = [threading.Thread(target=loaded, args=(name, *args)) for args in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return np.array(y)


def linear_ref(spec: F32LinearSpec, x: dict[str, Floats]) -> NDArray[np.float64]:
    wide = {name: v.astype(np.float64) for name, v in x.items()}
    y = wide["a"] @ wide["w"] + (wide["bias"] if spec.bias else 0)
    y = np.maximum(y, 0) if spec.activation == "relu" else y
    return np.asarray(y + wide["residual"] if spec.residual else y)


def bound(spec: F32LinearSpec, x: dict[str, Floats]) -> NDArray[np.float64]:
    """Higham's bound (Accuracy and Stability, 3.1): one rounding per term of the chain, bias and residual."""
    size = {name: np.abs(v).astype(np.float64) for name, v in x.items()}
    terms = size["a"] @ size["w"] + size["bias"] * spec.bias + size["residual"] * spec.residual
    return np.asarray((spec.depth + 2) * 2.0**-24 * terms)


@each_width
@pytest.mark.parametrize("spec", [FUSED, F32LinearSpec(64, 32), F32LinearSpec(515, 17, bias=True), F32LinearSpec(1, 1)])
def test_within_the_bound_of_its_sums(tier: Tier, spec: F32LinearSpec) -> None:
    for rows in (0, 1, 2, 3, 4, 5, 6, 7, 13, 29):
        x = operands(spec, rows, seed=rows)
        assert (np.abs(run(tier, spec, x) - linear_ref(spec, x)) <= bound(spec, x)).all()


@each_width
def test_integers_are_exact(tier: Tier) -> None:
    x = {name: np.rint(8 * v) for name, v in operands(FUSED, 26).items()}
    np.testing.assert_array_equal(run(tier, FUSED, x), linear_ref(FUSED, x))


def test_rows_threads_and_tiers_change_nothing() -> None:
    x = operands(FUSED, 31)
    whole = run(both_widths()[0], FUSED, x)
    for tier in both_widths():
        assert run(tier, FUSED, x, threads=3).tobytes() == whole.tobytes()
        for first, last in [(0, n) for n in range(1, 14)] + [(4, 5), (7, 20), (5, 31)]:
            part = {**x, "a": x["a"][first:last], "residual": x["residual"][first:last]}
            assert run(tier, FUSED, part).tobytes() == whole[first:last].tobytes()


@each_width
def test_a_nan_row_stays_one_row(tier: Tier) -> None:
    x = operands(FUSED, 9)
    good = run(tier, FUSED, x)
    x["a"][4, 11] = np.nan
    y = run(tier, FUSED, x)
    assert np.isnan(y[4]).all() and np.delete(y, 4, 0).tobytes() == np.delete(good, 4, 0).tobytes()


def test_impossible_specs_are_refused() -> None:
    with pytest.raises(CompileError, match="linear of 0 x 4: expected depth >= 1, cols >= 1"):
        F32LinearSpec(0, 4)
