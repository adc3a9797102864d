"""Convolutions by groups of channels against the reference, the same bits on every tier."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.codegen.jit import both_widths
from tests.codegen.kernels import compiled

SHAPES: dict[str, tuple[int, int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    # groups, channels and outputs of each, kernel, strides, dilations
    "each channel": (5, 1, 1, (3, 3), (1, 1), (1, 1)), "outputs apart": (2, 3, 7, (2, 3), (2, 1), (1, 2)),
    "outputs together": (3, 2, 6, (9,), (1,), (2,)), "along a row": (2, 2, 4, (1, 8), (3, 1), (1, 1)),
    "three axes": (2, 1, 2, (2, 1, 2), (1, 2, 1), (1, 1, 2)), "many places": (1, 2, 1, (11,), (1,), (1,))}


@pytest.mark.parametrize("name", SHAPES)
def test_convolutions_of_groups(name: str) -> None:
    groups, channels, outputs, kernel, strides, dilations = SHAPES[name]
    sizes = [f"s{i}" for i in range(len(kernel))]
    counts = ", ".join(f"n{i}" for i in range(len(kernel)))
    shape = (groups * outputs, channels, *kernel)
    text = f"""graph @g(%x: f32[b, {groups * channels}, {", ".join(sizes)}], %w: f32{list(shape)},
                        %like: f32[{counts}]) {{
      %y: f32[b, {groups * outputs}, {counts}] = conv(%x, %w) {{groups = {groups}, strides = {_tuple(strides)},
        dilations = {_tuple(dilations)}, counts = ({counts})}}
      return %y }}"""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape).astype(np.float32)
    for batch, last in ((1, 1), (2, 37), (1, 150), (0, 5)):
        places = [*[3] * (len(kernel) - 1), last]
        size = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(places, strides, kernel, dilations, strict=True)]
        x = rng.standard_normal((batch, groups * channels, *size)).astype(np.float32)
        feed: dict[str, Any] = {"x": x, "w": w, "like": np.zeros(places, np.float32)}
        results = [compiled(tier, text)(threads, **feed)[0] for tier in both_widths() for threads in (1, 3)]
        expected = compiled(both_widths()[0], text).expected(**feed)[0]
        np.testing.assert_allclose(results[0], expected, rtol=0, atol=1e-5)
        assert all(y.tobytes() == results[0].tobytes() for y in results)


def _tuple(numbers: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, numbers))})"
