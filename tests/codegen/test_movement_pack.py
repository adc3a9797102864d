"""Kernels that say where tokens are and put rows back, for masks of every kind, on every tier."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from q8c.codegen.frame import DETAIL, STATUS
from q8c.ir.dims import evaluate
from q8c.ir.types import DType
from tests.codegen.jit import both_widths, guarded
from tests.codegen.kernels import NODE, compiled
from tests.codegen.test_movement import graph, numbers

DTYPES = ["bool", "u8", "i32", "i64", "f16", "f32", "f64"]


def text(dtype: str) -> str:
    return f"""graph @g(%mask: {dtype}[batch, seq]) {{
      count tokens of %mask
      %rows: i64[1, tokens], %at: i64[tokens], %places: i64[batch, seq], %starts: i64[batch + 1] =
        packing(%mask) {{tokens = tokens}}
      return %rows, %at, %places, %starts }}"""


def check(dtype: str, mask: NDArray[Any]) -> None:
    for tier in both_widths():
        kernel = compiled(tier, text(dtype))
        frame = np.zeros(8, np.int64)
        for threads in (1, 3):
            for y, expected in zip(kernel(threads, frame, mask=mask), kernel.expected(mask=mask), strict=True):
                np.testing.assert_array_equal(y, expected)
        assert not frame.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_of_every_type(dtype: str) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (5, 37))
    mask[2] = 0
    check(dtype, mask.astype(DType[dtype].numpy))


def test_whatever_is_not_zero_is_there() -> None:
    check("f32", np.array([[0.0, -0.0, np.nan, np.inf, 1e-45, -3.0]], np.float32))
    check("i32", np.array([[0, -1, 2**31 - 1, 256, -(2**31)]], np.int32))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4), st.integers(0, 40), st.integers(0, 99))
def test_all_sizes(batch: int, seq: int, seed: int) -> None:
    check("i64", np.random.default_rng(seed).integers(0, 3, (batch, seq)))


@pytest.mark.parametrize("told", [0, 3, 4, 9, 20])
def test_a_mask_that_changed_is_reported_and_nothing_read_or_written_outside(told: int) -> None:
    """The run was planned for `told` tokens."""
    mask = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    for tier in both_widths():
        kernel = compiled(tier, text("i64"))
        outputs = [guarded(np.full(shape, 77, np.int64)) for shape in ((1, told), told, mask.shape, 6)]
        frame = np.zeros(8, np.int64)
        sizes = [evaluate(d, {"batch": 5, "seq": 4, "tokens": told}) for d in kernel.kernel.sizes]
        kernel.loaded("run", guarded(mask), *outputs, *sizes, frame, NODE, 0, 1)
        rows, at, places, starts = outputs
        assert (frame[STATUS], frame[DETAIL]) == (NODE + 1, 8)
        found = np.flatnonzero(mask)[:told]
        assert rows[0, :len(found)].tolist() == found.tolist() and not rows[0, len(found):].any()
        assert at.tolist() == (rows[0] % 4).tolist()
        assert places[places >= 0].tolist() == list(range(len(found)))
        assert (np.diff(starts) >= 0).all() and starts[0] == 0 and starts[-1] == len(found)


@pytest.mark.parametrize("dtype", ["u8", "f16", "f32", "i64"])
@pytest.mark.parametrize("row", ["", ", 1", ", 19", ", n", ", 3, n"])
def test_unpack(dtype: str, row: str) -> None:
    kernel_text = graph({"x": f"{dtype}[1, t{row}]", "places": "i64[b, s]"}, f"{dtype}[b, s{row}]", "unpack")
    rng = np.random.default_rng(0)
    for b, s, n, share in ((1, 1, 1, 1.0), (3, 7, 20, 0.5), (2, 40, 5, 0.0), (0, 3, 4, 0.5), (4, 9, 33, 1.0)):
        there = rng.random((b, s)) < share
        places = np.full((b, s), -1)
        places[there] = np.arange(there.sum())
        shape = [n if d == "n" else int(d) for d in row.split(", ") if d]
        x = numbers(dtype, 1, int(there.sum()), *shape)
        for tier in both_widths():
            kernel = compiled(tier, kernel_text)
            expected, = kernel.expected(x=x, places=places)
            for threads in (1, 3):
                y, = kernel(threads, x=x, places=places)
                np.testing.assert_array_equal(y, expected)
