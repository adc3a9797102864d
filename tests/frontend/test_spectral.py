"""Fourier transforms of lengths that vary; those that do not are among the standard's own tests."""
from __future__ import annotations

import numpy as np
import pytest

from tests.frontend.support import F32, compare, model, node, normal


@pytest.mark.parametrize(("parts", "onesided"), [(1, 0), (1, 1), (2, 0)])
def test_a_length_that_varies(parts: int, onesided: int) -> None:
    proto = model([node("DFT", "x  axis", onesided=onesided)], {"x": (F32, ["b", "n", 3, parts])}, {"y": F32},
                  {"axis": np.array(1)}, opset=20)
    compare(proto, *({"x": normal(2, n, 3, parts)} for n in (1, 6, 7)), atol=1e-5)
