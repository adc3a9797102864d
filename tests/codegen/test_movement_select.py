"""Kernels that write to or find places, and products of plain types, against the reference."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from q8c.codegen.frame import DETAIL, STATUS
from q8c.ir.types import DType
from tests.codegen.jit import both_widths, runnable_tiers
from tests.codegen.kernels import NODE, check_kernel, compiled, loop_text

RANDOM = np.random.default_rng(3)


def numbers(dtype: str, *shape: int) -> NDArray[Any]:
    return RANDOM.integers(-9 if dtype[0] != "u" else 0, 9, shape).astype(DType[dtype].numpy)


@pytest.mark.parametrize("dtype", ["u8", "f16", "f32", "i64"])
@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_nd(dtype: str, reduction: str) -> None:
    text = f"""graph @g(%x: {dtype}[a, 5, c], %i: i64[n, 2], %u: {dtype}[n, c]) {{
      %y: {dtype}[a, 5, c] = scatter_nd(%x, %i, %u) {{reduction = "{reduction}"}} return %y }}"""
    for a, c, n in ((3, 1, 40), (2, 33, 9), (4, 16, 0), (1, 0, 3)):
        places = np.stack([RANDOM.integers(-a, a, n), RANDOM.integers(-5, 5, n)], axis=-1)
        check_kernel(text, x=numbers(dtype, a, 5, c), i=places, u=numbers(dtype, n, c))


def test_a_place_out_of_range_is_reported() -> None:
    text = """graph @g(%x: f32[n], %i: i64[m, 1], %u: f32[m]) {
      %y: f32[n] = scatter_nd(%x, %i, %u) return %y }"""
    x, u = numbers("f32", 4), numbers("f32", 2)
    for wrong in (4, -5, 2**62):
        kernel = compiled(runnable_tiers()[0], text)
        frame = np.zeros(8, np.int64)
        kernel(1, frame, x=x, i=np.array([[0], [wrong]]), u=u)
        assert (frame[STATUS], frame[DETAIL]) == (NODE + 1, wrong)


@pytest.mark.parametrize("dtype", ["u8", "f16", "f32", "i64"])
@pytest.mark.parametrize("largest", ["true", "false"])
def test_top_k(dtype: str, largest: str) -> None:
    text = f"""graph @g(%x: {dtype}[a, n, c]) {{
      %y: i64[a, k, c] = top_k(%x) {{k = k, axis = 1, largest = {largest}}} return %y }}""".replace(" k", " 3").replace(
        "[a, k", "[a, 3")
    for a, n, c in ((2, 3, 1), (1, 40, 17), (3, 7, 0)):
        x = numbers(dtype, a, n, c)
        if dtype[0] == "f" and x.size:
            x[0, 1, 0] = np.nan
        check_kernel(text, x=x)


@pytest.mark.parametrize("dtype", ["u8", "f32", "i64"])
def test_gather_elements(dtype: str) -> None:
    text = f"""graph @g(%x: {dtype}[a, b, c], %i: i64[a, m, c]) {{
      %y: {dtype}[a, m, c] = gather_elements(%x, %i) {{axis = 1}} return %y }}"""
    for a, b, c, m in ((2, 5, 3, 8), (1, 1, 17, 2), (2, 3, 4, 0)):
        check_kernel(text, x=numbers(dtype, a, b, c), i=RANDOM.integers(-b, b, (a, m, c)))


@pytest.mark.parametrize(("axis", "indices"), [(2, "i64[1, m, k]"), (2, "i32[a, m, k]"), (1, "i64[1, k, m]"),
                                               (1, "i32[a, k, 1]"), (2, "i64[a, 1, k]")])
def test_gather_elements_by_broadcast_indices(axis: int, indices: str) -> None:
    shape = "a, m, k" if axis == 2 else "a, k, m"
    text = f"""graph @g(%x: f32[{"a, m, b" if axis == 2 else "a, b, m"}], %i: {indices}) {{
      %y: f32[{shape}] = gather_elements(%x, %i) {{axis = {axis}, shape = ({shape})}} return %y }}"""
    for a, b, m, k in ((2, 5, 3, 8), (3, 9, 35, 21), (1, 1, 17, 40), (2, 3, 4, 0)):
        env = {"a": a, "m": m, "k": k}
        dtype, dims = indices.rstrip("]").split("[")
        where = tuple(env[d] if d in env else 1 for d in dims.split(", "))
        x = numbers("f32", *((a, m, b) if axis == 2 else (a, b, m)))
        check_kernel(text, x=x, i=RANDOM.integers(-b, b, where, DType[dtype].numpy))


@pytest.mark.parametrize("dtype", ["u8", "i32", "i64", "f64"])
def test_products_of_plain_types(dtype: str) -> None:
    text = f"""graph @g(%x: {dtype}[a, 1, r, k], %w: {dtype}[b, k, n]) {{
      %y: {dtype}[a, b, r, n] = matmul(%x, %w) return %y }}"""
    for a, b, r, k, n in ((2, 3, 2, 5, 4), (1, 1, 1, 1, 35), (1, 2, 3, 0, 4)):
        check_kernel(text, x=numbers(dtype, a, 1, r, k), w=numbers(dtype, b, k, n))


@pytest.mark.parametrize("dtype", ["u8", "i16", "u32", "i64"])
def test_bits(dtype: str) -> None:
    lines = "\n".join(f"%{op}: {dtype}[n] = {op}(%x, %y)" for op in ("bit_and", "bit_or", "bit_xor", "shift_left",
                                                                    "shift_right"))
    names = ["bit_and", "bit_or", "bit_xor", "shift_left", "shift_right", "bit_not"]
    text = loop_text({"x": f"{dtype}[n]", "y": f"{dtype}[n]"}, f"{lines}\n%bit_not: {dtype}[n] = bit_not(%x)",
                     dict.fromkeys(names, f"{dtype}[n]"))
    bounds = np.iinfo(DType[dtype].value)
    x = RANDOM.integers(bounds.min, bounds.max, 300, dtype=DType[dtype].numpy, endpoint=True)
    y = np.resize(np.array([0, 1, 7, 8, 31, 32, 63, 64, 100] + [-1] * (bounds.min < 0)), 300).astype(x.dtype)
    for tier in both_widths():
        kernel = compiled(tier, text)
        for found, expected in zip(kernel(1, x=x, y=y), kernel.expected(x=x, y=y), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("source", "to"), [("f32", "i32"), ("i64", "f64"), ("f16", "u16"), ("bool", "u8"),
                                            ("i16", "f16")])
def test_bitcast(source: str, to: str) -> None:
    text = loop_text({"x": f"{source}[n]"}, f"%y: {to}[n] = bitcast(%x) {{to = {to}}}", {"y": f"{to}[n]"})
    x = RANDOM.integers(0, 2, 37).astype(np.bool_) if source == "bool" else numbers(source, 37)
    for tier in both_widths():
        kernel = compiled(tier, text)
        (y,), (expected,) = kernel(1, x=x), kernel.expected(x=x)
        np.testing.assert_array_equal(y.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("dtype", ["u8", "f16", "f32", "i64"])
@pytest.mark.parametrize("attrs", ["", "exclusive = true, ", "exclusive = true, reverse = true, "])
def test_running_products(dtype: str, attrs: str) -> None:
    for axis, shape in ((0, "n, 17"), (1, "3, n")):
        text = f"""graph @g(%x: {dtype}[{shape}]) {{
          %y: {dtype}[{shape}] = cumprod(%x) {{{attrs}axis = {axis}}} return %y }}"""
        for n in (0, 1, 5):
            check_kernel(text, x=RANDOM.integers(1, 3, (n, 17) if axis == 0 else (3, n)).astype(DType[dtype].numpy))
