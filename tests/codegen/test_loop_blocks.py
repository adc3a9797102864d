"""Rows quantized by blocks of columns: exact against `q8`, whatever the rows hold."""
from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from q8c.codegen.bf16 import FEW_TOKENS
from q8c.codegen.loop_body import build_program
from q8c.codegen.loop_reads import reads_of
from q8c.codegen.targets import TIERS
from q8c.errors import CompileError
from q8c.ir import parse_graph, q8
from q8c.ir.memory import wide_pitch
from tests.codegen.jit import needs
from tests.codegen.kernels import compiled, loop_text
from tests.codegen.q8 import bfloat16
from tests.codegen.test_loop_rows import rows_of, rows_text, run

COLS = [1, 33, 200, 1000]
FAST = TIERS["amx-int8"].fast()


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


@needs(FAST)
@pytest.mark.parametrize("cols", [64, 300])
def test_wide_rows_are_bfloat16_where_products_are(cols: int) -> None:
    """Rows of sequences with few tokens are quantized all the same."""
    rng, blocks = np.random.default_rng(4), -(-cols // 32)
    counts = np.array([FEW_TOKENS + 1, 2, 20, FEW_TOKENS])[:, None, None]
    x = rng.normal(size=(4, 3, cols)).astype(np.float32) * np.exp(rng.normal(size=(4, 3, 1))).astype(np.float32)
    x[0, 1, -1] = np.nan
    results = {"q": f"i8[b, n, {cols}]", "s": f"f32[b, n, {blocks}]", "t": f"i32[b, n, {blocks}]",
               "z": f"i32[b, n, {blocks}]"}
    left = ", ".join(f"%{n}: {t}" for n, t in results.items())
    for given, few in (("", np.zeros(4, bool)), (", %counts", counts[:, 0, 0] <= FEW_TOKENS)):
        text = loop_text({"x": f"f32[b, n, {cols}]", "counts": "i64[b, 1, 1]"}, f"""%y: f32[b, n, {cols}] = gelu(%x)
            {left} = dynamic_quantize(%y{given}) {{block = 32, zero_point = true, wide = true}}""",
                         {"y": f"f32[b, n, {cols}]", **results})
        for tier, int8 in ((TIERS["amx-int8"], np.ones(4, bool)), (FAST, few)):
            for threads in (1, 2):
                y, wide, *numbers = compiled(tier, text)(threads, x=x, counts=counts)
                assert wide.shape == (4, 3, wide_pitch(cols))
                for got, expected in zip((wide[..., :cols], *numbers), q8.quantize_rows_zero(y, 32), strict=True):
                    np.testing.assert_array_equal(got[int8], np.asarray(expected)[int8])
                floats = bfloat16(np.pad(y, [(0, 0), (0, 0), (0, 32 * blocks - cols)]))
                rounded = wide[..., :64 * blocks].view(ml_dtypes.bfloat16).astype(np.float32)
                np.testing.assert_array_equal(rounded[~int8], floats[~int8])
