"""Reductions over any axes and scans along one, against the reference."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from q8c.ir.types import DType
from tests.codegen.jit import both_widths, runnable_tiers
from tests.codegen.kernels import check_kernel, compiled
from tests.codegen.test_movement import graph

EPS = 2.0**-24
DTYPES = ["f32", "f16", "i64", "i8", "bool"]
AXES = {(0,): "b, c", (1,): "a, c", (2,): "a, b", (0, 1): "c", (1, 2): "a", (0, 2): "b", (0, 1, 2): "", (): "a, b, c"}


def values(dtype: str, *shape: int) -> NDArray[Any]:
    x = np.random.default_rng(1).integers(-3, 4, shape)
    return x.astype(DType[dtype].numpy)


def shown(axes: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, axes))})"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["sum", "mean", "max", "min", "prod"])
def test_reduce(op: str, dtype: str) -> None:
    """Small integers, so that float sums are exact in any order; means and products round."""
    x = values(dtype, 3, 7, 37)
    x[x == 0] = op == "prod"
    for axes in AXES if (op, dtype) == ("sum", "f32") else [(1,), (0, 2)]:
        text = graph({"x": f"{dtype}[a, b, c]"}, f"{dtype}[{AXES[axes]}]", f"reduce_{op}",
                     f"{{axes = {shown(axes)}, keepdims = false}}")
        if op in ("sum", "max", "min") or dtype[0] != "f":
            check_kernel(text, x=x)
            continue
        for tier in both_widths():
            kernel = compiled(tier, text)
            (y,), (expected,) = kernel(2, x=x), kernel.expected(x=x)
            np.testing.assert_allclose(y, expected, rtol={"f16": 1e-3, "f32": 2e-6}[dtype])


def test_float_sums_round_within_their_budget_and_alike_everywhere() -> None:
    """One rounding for every element that goes into a lane, 6 for the tree."""
    x = np.random.default_rng(2).normal(size=(5, 300, 70)).astype(np.float32)
    for axes, result in AXES.items():
        attrs = f"{{axes = {shown(axes)}, keepdims = false}}"
        text = graph({"x": "f32[a, b, c]"}, f"f32[{result}]", "reduce_sum", attrs)
        bits = set()
        for tier in runnable_tiers():
            kernel = compiled(tier, text)
            for threads in (1, 2):
                y, = kernel(threads, x=x)
                bits.add(y.tobytes())
        assert len(bits) == 1
        terms = np.prod([x.shape[a] for a in axes]) / (64 if 2 in axes else 1) + 300
        bound = terms * EPS * np.abs(x.astype(np.float64)).sum(axes)
        assert (np.abs(y - x.astype(np.float64).sum(axes)) <= bound).all()


def test_extremes_keep_nan() -> None:
    x = np.random.default_rng(3).normal(size=(3, 5, 20)).astype(np.float32)
    x[1, 2, 3] = np.nan
    x[2, :, 4] = -np.inf
    for op in ("max", "min"):
        for axes in ((1,), (2,), (0, 2)):
            check_kernel(graph({"x": "f32[a, b, c]"}, f"f32[{AXES[axes]}]", f"reduce_{op}",
                               f"{{axes = {shown(axes)}, keepdims = false}}"), x=x)


@pytest.mark.parametrize("op", ["argmax", "argmin"])
@pytest.mark.parametrize("dtype", ["f32", "i64", "bool"])
def test_arguments(op: str, dtype: str) -> None:
    """The first of equals; NaN beats everything."""
    for shape in ((3, 50, 37), (2, 1, 16), (1, 5, 1)):
        x = values(dtype, *shape)
        if dtype == "f32" and shape[1] == 50:
            x[1, 2:, 3] = np.nan
            x[2, 2, :], x[2, 5, :] = -np.inf, np.inf
        for axis in range(3):
            result = ", ".join(d for n, d in enumerate("abc") if n != axis)
            attrs = f"{{axes = ({axis}), keepdims = false}}"
            check_kernel(graph({"x": f"{dtype}[a, b, c]"}, f"i64[{result}]", op, attrs), x=x)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["f32", "i64", "i32", "u8"])
def test_cumsum(axis: int, dtype: str) -> None:
    x = values(dtype, 3, 5, 19)
    for exclusive in ("false", "true"):
        for reverse in ("false", "true"):
            check_kernel(graph({"x": f"{dtype}[a, b, c]"}, f"{dtype}[a, b, c]", "cumsum",
                        f"{{axis = {axis}, exclusive = {exclusive}, reverse = {reverse}}}"), x=x)
