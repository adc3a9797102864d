"""Images at places that follow from data, compared with ONNX Runtime."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from q8c.errors import CompileError, UnsupportedError
from q8c.frontend import import_onnx
from tests.frontend.support import F32, Array, compare, model, node, normal

PLACES: Array = np.concatenate([normal(2, 3, 5, 2), [[[[-1, 1]] * 5]] * 2], axis=1).astype(F32) * F32(1.3)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_images_at_places(mode: str, padding: str, corners: int) -> None:
    proto = model([node("GridSample", "x grid", mode=mode, padding_mode=padding, align_corners=corners)],
                  {"x": (F32, ["n", 3, "h", "w"]), "grid": (F32, ["n", "a", "b", 2])}, {"y": F32})
    compare(proto, *({"x": normal(2, 3, *size), "grid": PLACES} for size in ((6, 4), (2, 3))), runtime=True, rtol=1e-4,
            atol=1e-5)


def test_volumes_and_the_names_of_modes_before_opset_20() -> None:
    proto = model([node("GridSample", "x grid")], {"x": (F32, ["n", 2, 3, "h", 5]), "grid": (F32, ["n", 1, "a", 2, 3])},
                  {"y": F32})
    compare(proto, {"x": normal(1, 2, 3, 4, 5), "grid": normal(1, 1, 3, 2, 3)}, runtime=True, rtol=1e-4, atol=1e-5)
    for mode in ("bilinear", "bicubic"):
        old = model([node("GridSample", "x grid", mode=mode)],
                    {"x": (F32, [2, 3, 4, 6]), "grid": (F32, list(PLACES.shape))}, {"y": F32}, opset=16)
        compare(old, {"x": normal(2, 3, 4, 6), "grid": PLACES}, runtime=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("numbers", "attrs", "error", "message"), [
    (3, {}, CompileError, "expected 2 numbers for each place"),
    (2, {"mode": "area"}, UnsupportedError, "mode 'area' with padding 'zeros'")])
def test_what_is_no_sample_is_told(numbers: int, attrs: dict[str, Any], error: type[Exception], message: str) -> None:
    proto = model([node("GridSample", "x grid", **attrs)],
                  {"x": (F32, [1, 3, 4, 6]), "grid": (F32, [1, 2, 2, numbers])}, {"y": F32})
    with pytest.raises(error, match=message):
        import_onnx(proto)
