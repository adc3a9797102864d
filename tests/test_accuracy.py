"""The measures of error that `q8c check` prints."""
from __future__ import annotations

import math

import numpy as np
import pytest

from q8c.accuracy import Error, LogitError, error, is_logits, logit_error

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


def test_logits_as_distributions() -> None:
    r = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    x = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32)) + 7  # a shift changes nothing
    found = logit_error(x, r, np.array([0, -1]))
    assert math.isclose(found.kl, (0.5 * math.log(2) - 0.25 * math.log(2)) / 2, rel_tol=1e-6) and found.top1 == 0.5
    assert found.nll is not None and math.isclose(found.nll, math.log(4), rel_tol=1e-6)
    assert found.reference_nll is not None and math.isclose(found.reference_nll, math.log(2), rel_tol=1e-6)
    assert logit_error(r, r) == LogitError(0.0, 1.0) == logit_error(r[:0], r[:0])


def test_more_rows_than_are_looked_at_at_once() -> None:
    rng = np.random.default_rng(0)
    r, x = rng.standard_normal((2, 150, 40)).astype(np.float32)
    parts = [logit_error(x[i:i + 50], r[i:i + 50], np.zeros(50, int)) for i in (0, 50, 100)]
    whole = logit_error(x, r, np.zeros(150, int))
    assert math.isclose(whole.kl, sum(p.kl for p in parts) / 3) and math.isclose(
        whole.nll or 0, sum(p.nll or 0 for p in parts) / 3)


def test_masked_logits_are_not_a_difference_and_lost_ones_show() -> None:
    r = np.array([[0.0, -np.inf, 1.0]], np.float32)
    assert logit_error(r, r).kl == 0
    assert math.isnan(logit_error(np.full((1, 3), np.nan, np.float32), r).kl)


def test_what_is_taken_for_logits() -> None:
    assert is_logits("logits", (1, 3)) and is_logits("y", (1, 5, 50257)) and is_logits("start_logits", (4, 7))
    assert not is_logits("last_hidden_state", (1, 5, 1024)) and not is_logits("y", ())
