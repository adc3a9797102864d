"""How equations between sizes are said."""
from __future__ import annotations

import pytest

from q8c.ir.dims import Dim, dim_max, dim_min, sym
from q8c.ir.relation import relation

N, M = sym("n"), sym("m")


@pytest.mark.parametrize(("a", "b", "text"), [
    (N, dim_min(512, N), "n <= 512"), (dim_max(1, N + M), N + M, "m + n >= 1"), (dim_min(N, M), M, "m <= n"),
    (N, M, "n == m"), (N, dim_min(4, M), "n == min(4, m)"), (2 * dim_min(4, N), N, "2*min(4, n) == n"),
    (N, 3, "n == 3")])
def test_bounds_are_said_as_such(a: Dim, b: Dim, text: str) -> None:
    assert relation(a, b) == text
