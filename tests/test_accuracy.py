"""The measures of error that `q8c check` prints."""
from __future__ import annotations

import math

import numpy as np
import pytest

from q8c.accuracy import Error, error

EQUAL = Error(1.0, 1.0, 0.0, 0.0)


def test_known_distances() -> None:
    x, r = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32), np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)
    found = error(x, r)
    assert (found.cosine, found.worst_cosine, found.max_abs) == (0.5, 0.0, 1.0)
    assert math.isclose(found.relative_l2, math.sqrt(2 / 26))


def test_equal_arrays_have_no_error() -> None:
    for array in (np.zeros((2, 3)), np.ones(()), np.zeros((0, 4)), np.array([1, -2]), np.array([True, False]),
                  np.array([[np.nan, np.inf, -np.inf, 1.0]])):
        assert error(array, array) == EQUAL


def test_a_row_of_zeros_has_no_direction_in_common_with_another() -> None:
    found = error(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 2.0], [1.0, 1.0]]))
    assert (found.cosine, found.worst_cosine) == (0.5, 0.0)
    assert error(np.array([[1.0]]), np.array([[0.0]])).relative_l2 == math.inf


def test_lost_and_made_up_non_finite_elements_show() -> None:
    for x, r in ((1.0, np.nan), (np.nan, 1.0), (np.inf, 1.0), (1.0, np.inf), (np.inf, -np.inf)):
        found = error(np.array([x, 1.0]), np.array([r, 1.0]))
        assert not math.isfinite(found.max_abs) and not math.isfinite(found.relative_l2)


def test_large_values_do_not_overflow() -> None:
    x = np.full((2, 8), 3e38, np.float32)
    assert error(x, x) == EQUAL
    assert math.isclose(error(x, x / 2).relative_l2, 1.0, rel_tol=1e-6)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        error(np.zeros(3), np.zeros(4))
