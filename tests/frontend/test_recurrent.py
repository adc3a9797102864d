"""Recurrent networks of a fixed number of steps against ONNX Runtime."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx.helper import make_node

from q8c.errors import UnsupportedError
from q8c.frontend import import_onnx
from q8c.ir import interpret
from tests.frontend.support import F32, compare, load, model, node, normal

STEPS, BATCH, DEPTH, HIDDEN = 3, 2, 4, 5
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {}), ("RNN", {"direction": "reverse", "activations": ["Relu"]}), ("GRU", {}),
    ("GRU", {"direction": "bidirectional", "linear_before_reset": 1}), ("GRU", {"clip": 0.3}), ("LSTM", {}),
    ("LSTM", {"direction": "bidirectional"}), ("LSTM", {"direction": "reverse", "input_forget": 1})]


def network(op: str, steps: int | str, attrs: dict[str, Any], full: bool) -> Any:
    """A model of one network; `full` has lengths, states to begin with and, of an LSTM, peepholes."""
    ways, rows = 2 if attrs.get("direction") == "bidirectional" else 1, GATES[op] * HIDDEN
    constants = {"w": normal(ways, rows, DEPTH), "r": normal(ways, rows, HIDDEN), "b": normal(ways, 2 * rows)}
    inputs: dict[str, Any] = {"x": (F32, [steps, "n", DEPTH])}
    operands = ["x", "w", "r", "b"]
    if full:
        inputs["lengths"] = (np.dtype(np.int32), ["n"])
        states = ["h", "c"][:2 if op == "LSTM" else 1]
        inputs |= {s: (F32, [ways, "n", HIDDEN]) for s in states}
        operands += ["lengths", *states]
        if op == "LSTM":
            constants["p"] = normal(ways, 3 * HIDDEN)
            operands.append("p")
    outputs = ["y", "yh", "yc"][:3 if op == "LSTM" else 2]
    return model([node(op, " ".join(operands), " ".join(outputs), hidden_size=HIDDEN, **attrs)], inputs,
                 dict.fromkeys(outputs, F32), constants), inputs


@pytest.mark.parametrize(("op", "attrs"), CASES)
@pytest.mark.parametrize("full", [False, True])
def test_networks_as_onnx_runtime_has_them(op: str, attrs: dict[str, Any], full: bool) -> None:
    proto, inputs = network(op, STEPS, attrs, full)
    feeds = {n: normal(*(BATCH if d == "n" else d for d in shape)) for n, (_, shape) in inputs.items()}
    if full:
        feeds["lengths"] = np.array([STEPS, 1], np.int32)
    compare(proto, feeds, rtol=1e-4, atol=1e-5, runtime=True)


def test_weights_that_are_integers() -> None:
    """As ONNX Runtime's quantizer leaves an LSTM: transposed, with a scale for all, or for each column."""
    rows, rng = 4 * HIDDEN, np.random.default_rng(0)
    w, r = (rng.integers(0, 255, (1, d, rows)).astype(np.uint8) for d in (DEPTH, HIDDEN))
    scales = {"ws": np.full(1, 0.01, np.float32), "rs": rng.uniform(0.005, 0.02, (1, rows)).astype(np.float32)}
    zeros = {"wz": np.full(1, 127, np.uint8), "rz": np.full((1, rows), 120, np.uint8)}
    inputs: dict[str, Any] = {"x": (F32, [STEPS, "n", DEPTH])}
    operands = ["x", "w", "r", *[""] * 5, "ws", "wz", "rs", "rz"]
    quantized = model([make_node("DynamicQuantizeLSTM", operands, ["y"], domain="com.microsoft", hidden_size=HIDDEN)],
                      inputs, {"y": F32}, {"w": w, "r": r, **scales, **zeros})
    real = {"w": (w.astype(np.float32) - 127) * scales["ws"], "r": (r.astype(np.float32) - 120) * scales["rs"]}
    plain = model([node("LSTM", "x w r", "y", hidden_size=HIDDEN)], inputs, {"y": F32},
                  {n: np.ascontiguousarray(t.transpose(0, 2, 1)) for n, t in real.items()})
    x = {"x": normal(STEPS, BATCH, DEPTH)}
    [y], [wanted] = (interpret(load(proto), x) for proto in (quantized, plain))
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


def test_steps_that_vary_are_refused() -> None:
    proto, _ = network("GRU", "s", {}, False)
    with pytest.raises(UnsupportedError, match="s steps; expected a fixed number of up to 64: state the input's shape"):
        import_onnx(proto)
