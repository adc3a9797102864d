"""QLinear ops of ONNX Runtime, against itself."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from q8c.frontend import import_onnx
from q8c.ir import interpret
from tests.frontend.support import F32, Array, integers, model, node

DOMAIN = "com.microsoft"
MICROSOFT = [helper.make_opsetid(DOMAIN, 1)]
U8, I32 = np.uint8, np.int32
STEPS: dict[str, Array] = {"sa": np.array(0.02, F32), "za": np.array(120, U8), "sb": np.array(0.03, F32),
                           "zb": np.array(130, U8), "sy": np.array(0.05, F32), "zy": np.array(100, U8)}


@pytest.mark.parametrize(("op", "names", "attrs"), [
    ("QLinearAdd", "a sa za b sb zb sy zy", {}), ("QLinearMul", "a sa za b sb zb sy zy", {}),
    ("QLinearSigmoid", "a sa za sy zy", {}), ("QLinearSoftmax", "a sa za sy zy", {"axis": -1, "opset": 13}),
    ("QLinearLeakyRelu", "a sa za sy zy", {"alpha": 0.1}), ("QLinearWhere", "c a sa za b sb zb sy zy", {}),
    ("QLinearConcat", "sy zy a sa za b sb zb", {"axis": 1}),
    ("QGemm", "a sa za w sb zb bias sy zy", {"transB": 1, "alpha": 2.0})])
def test_ops_between_quantized_values(op: str, names: str, attrs: Mapping[str, Any]) -> None:
    """ONNX Runtime's own kernels round in other places: one step apart at most."""
    feeds = {n: integers(6, 40, low=0, high=256, dtype=U8, seed=i) for i, n in enumerate("ab") if n in names.split()}
    constants = STEPS | {"w": integers(8, 40, low=0, high=256, dtype=U8, seed=5), "bias": integers(8, dtype=I32),
                         "c": integers(6, 40, low=0, high=2, dtype=np.bool_)}
    if op == "QLinearSoftmax":
        constants |= {"sy": np.array(1 / 256, F32), "zy": np.array(0, U8)}
    if op == "QGemm":
        constants["sy"] = np.array(0.5, F32)
    proto = model([node(op, names, domain=DOMAIN, **attrs)], {n: (U8, ["n", 40]) for n in feeds}, {"y": U8},
                  {n: a for n, a in constants.items() if n in names.split()}, opset_imports=MICROSOFT)
    got = interpret(import_onnx(proto), feeds)[0]
    wanted = np.asarray(onnxruntime.InferenceSession(proto.SerializeToString()).run(None, dict(feeds))[0])
    assert got.dtype == wanted.dtype and len(np.unique(wanted)) > 2
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul", "QLinearAveragePool"])
def test_ties_between_quantized_values(op: str) -> None:
    """Steps of powers of 2 are exact, so that half of the results lie between two steps."""
    pool = op == "QLinearAveragePool"
    attrs: dict[str, Any] = {"kernel_shape": [2, 1]} if pool else {}
    constants: dict[str, Array] = {"s": np.array(0.25, F32), "z": np.array(0, U8), "zy": np.array(3, U8),
                                   "sy": np.array(0.25 if pool else 0.5, F32)}
    made = node(op, "x s z sy zy" if pool else "x s z x s z sy zy", domain=DOMAIN, **attrs)
    proto = model([made], {"x": (U8, ["n", 1, 8, 4])}, {"y": U8}, constants, opset_imports=MICROSOFT)
    x = {"x": integers(3, 1, 8, 4, low=0, high=60, dtype=U8)}
    wanted = np.asarray(onnxruntime.InferenceSession(proto.SerializeToString()).run(None, dict(x))[0])
    np.testing.assert_array_equal(interpret(import_onnx(proto), x)[0], wanted)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("attrs", [None, {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]},
                                   {"kernel_shape": [2, 2], "pads": [1] * 4, "count_include_pad": 1}], ids=str)
def test_means_of_quantized_images(attrs: dict[str, Any] | None, last: int) -> None:
    """Channels last or not; one step apart at most."""
    x = integers(2, *((7, 7, 3) if last else (3, 7, 7)), low=0, high=256, dtype=U8)
    op = "QLinearGlobalAveragePool" if attrs is None else "QLinearAveragePool"
    proto = model([node(op, "a sa za sy zy", domain=DOMAIN, channels_last=last, **attrs or {})],
                  {"a": (U8, ["n", *x.shape[1:]])}, {"y": U8},
                  {n: STEPS[n] for n in ("sa", "za", "zy")} | {"sy": np.array(0.01, F32)}, opset_imports=MICROSOFT)
    got = interpret(import_onnx(proto), {"a": x})[0]
    wanted = np.asarray(onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"a": x})[0])
    assert got.dtype == U8 and len(np.unique(wanted)) > 2
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1
