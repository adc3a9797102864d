"""Sizes of one variable in their shortest form: the same numbers, in fewer letters."""
from __future__ import annotations

import random

import pytest

from q8c.ir.dims import Dim, dim_max, dim_min, evaluate, floordiv, sym
from q8c.ir.piecewise import shortened

N, M = sym("n"), sym("m")


def grown(rng: random.Random, leaf: Dim, depth: int) -> Dim:
    """Sums, minima and maxima, as slices of slices have them."""
    if not depth or rng.random() < 0.2:
        return rng.choice([leaf, rng.randint(-9, 9), leaf * rng.choice([-1, 2]) + rng.randint(-9, 9)])
    a, b = (grown(rng, leaf, depth - 1) for _ in range(2))
    return rng.choice([dim_max(a, b), dim_min(a, b), a + b, a - b])


@pytest.mark.parametrize("leaf", [N, floordiv(N + 1, 2)], ids=str)
def test_the_same_size_for_all_values(leaf: Dim) -> None:
    rng, shorter = random.Random(0), 0
    for _ in range(300):
        size = dim_max(0, grown(rng, leaf, 4))
        found = shortened(size)
        assert [evaluate(found, {"n": n}) for n in range(60)] == [evaluate(size, {"n": n}) for n in range(60)], size
        assert len(str(found)) <= len(str(size))
        shorter += found != size
    assert shorter > 30


def test_forms() -> None:
    assert shortened(dim_max(0, dim_min(N, 3) - 5)) == 0
    assert str(shortened(dim_min(5, N))) == "min(5, n)"


@pytest.mark.parametrize("size", [dim_min(N, M), dim_min(N * N, 4), dim_min(dim_max(N - 2, 1), 4000),
                                  dim_min(N // 2, 2) + N], ids=str)
def test_what_has_more_variables_or_reaches_far_stays(size: Dim) -> None:
    assert shortened(size) == size
