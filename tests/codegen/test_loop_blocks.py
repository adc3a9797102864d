"""Rows quantized by blocks of columns: exact against `q8`, whatever the rows hold."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.codegen.loop_body import build_program
from q8c.codegen.loop_reads import reads_of
from q8c.errors import CompileError
from q8c.ir import parse_graph, q8
from tests.codegen.kernels import loop_text
from tests.codegen.test_loop_rows import rows_of, rows_text, run

COLS = [1, 33, 200, 1000]


def quantize(x: str, block: int, zero_point: bool, blocks: str) -> tuple[str, dict[str, str]]:
    """A dynamic_quantize by blocks in text, and the types of its results."""
    results = {"q": "i8[F]", "s": f"f32[rows, {blocks}]", "t": f"i32[rows, {blocks}]"}
    results.update({"z": f"i32[rows, {blocks}]"} if zero_point else {})
    left = ", ".join(f"%{n}: {t}" for n, t in results.items())
    return f"{left} = dynamic_quantize(%{x}) {{block = {block}, zero_point = {str(zero_point).lower()}}}", results


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_blocks_are_exact(block: int, zero_point: bool) -> None:
    rng = np.random.default_rng(1)
    for cols in COLS:
        text = rows_text(cols, *quantize("x", block, zero_point, str(-(-cols // block))))
        for rows in (0, 1, 9):
            x = rows_of(rng, rows, cols)
            x *= np.exp(2 * rng.normal(size=x.shape)).astype(np.float32)
            if rows > 2:
                x[0], x[1, 0], x[2, -1], x[3, cols // 2] = 0, np.nan, -np.inf, np.inf
                x[4:6] = np.abs(x[4:6]) * [[1], [-1]]
                x[6, :], x[7] = 1e-42, np.round(x[7] * 100) / 2  # denormals; ties
            got, expected = run(text, x=x)
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("zero_point", [False, True])
def test_blocks_of_a_row_length_known_at_run_time(zero_point: bool) -> None:
    text = rows_text("cols", *quantize("x", 64, zero_point, "(cols + 63) // 64"))
    for cols in (1, 20, 64, 100, 256, 300, 1000):
        x = rows_of(np.random.default_rng(2), 5, cols)
        got, expected = run(text, x=x)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_blocks_of_what_a_loop_computed() -> None:
    """GELU is kept for the quantizing pass; a norm is read back from its result."""
    rng = np.random.default_rng(3)
    x, w = rows_of(rng, 6, 320), rng.normal(size=320).astype(np.float32)
    quantized, results = quantize("y", 64, True, "5")
    for line in ("%y: f32[F] = gelu(%x)", "%y: f32[F] = layer_norm(%x, %w) {epsilon = 1e-5}"):
        (y, *got), _ = run(rows_text(320, f"{line} {quantized}", {"y": "f32[F]", **results}, "w"), x=x, w=w)
        alone, _ = run(rows_text(320, f"{line} {quantized}", results, "w"), x=x, w=w)
        for a, b, c in zip(got, alone, q8.quantize_rows_zero(y, 64), strict=True):
            np.testing.assert_array_equal(a, c)
            np.testing.assert_array_equal(b, c)


def test_nothing_in_a_loop_reads_blocks() -> None:
    lines, results = quantize("x", 32, False, "2")
    text = loop_text({"x": "f32[rows, 64]"}, lines.replace("[F]", "[rows, 64]")
                     + "%y: f32[rows, 64] = cast(%q) {to = f32}", {"y": "f32[rows, 64]"})
    body = parse_graph(text).nodes[0].body
    assert body is not None
    with pytest.raises(CompileError, match="quantized by blocks"):
        build_program(body, reads_of(body), [True], one_column=False)
