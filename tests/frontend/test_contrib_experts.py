"""ONNX Runtime's MoE and QMoE, compared with ONNX Runtime, and with each other where its CPU build has them not."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from q8c.errors import CompileError, UnsupportedError
from q8c.frontend import import_onnx
from q8c.frontend.weights import unpack
from q8c.ir import interpret
from q8c.layers import layer_errors
from q8c.passes.manager import run_passes
from q8c.passes.pipeline import Options
from q8c.passes.route_experts import RouteExperts
from tests.frontend.support import F32, Array, compare, integers, model, node, normal

DOMAIN = "com.microsoft"
TOKENS, HIDDEN, INNER, EXPERTS, CHOSEN = 5, 32, 64, 4, 2
SWIGLU: dict[str, Any] = {"activation_type": "swiglu", "activation_alpha": 1.702, "activation_beta": 1.0,
                          "swiglu_limit": 0.7}
FEED = {"x": normal(1, TOKENS, HIDDEN) * F32(0.5), "router": normal(TOKENS, EXPERTS, seed=1)}


def mixture(op: str, operands: str, constants: Mapping[str, Array], **attrs: Any) -> onnx.ModelProto:
    """A model of one mixture of [1, seq, HIDDEN]."""
    return model([node(op, f"x router {operands}", domain=DOMAIN, k=CHOSEN, **attrs)],
                 {"x": (F32, [1, "seq", HIDDEN]), "router": (F32, ["seq", EXPERTS])}, {"y": F32}, constants,
                 opset_imports=[helper.make_opsetid(DOMAIN, 1)])


def result(proto: onnx.ModelProto) -> Array:
    """What the graph computes."""
    return interpret(import_onnx(proto), FEED)[0]


def weights(inner: int) -> dict[str, Array]:
    """Float weights and biases, of `inner` channels behind the first product."""
    shapes = {"w1": (inner, HIDDEN), "b1": (inner,), "w2": (HIDDEN, INNER), "b2": (HIDDEN,), "w3": (INNER, HIDDEN),
              "b3": (INNER,)}
    return {name: normal(EXPERTS, *shape, seed=n) * F32(0.3) for n, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("attrs", [
    {**SWIGLU, "swiglu_fusion": 1}, {"activation_type": "gelu", "normalize_routing_weights": 1},
    {"activation_type": "silu"}, {}], ids=["swiglu", "gelu", "silu", "relu"])
def test_a_mixture_of_float_weights(attrs: dict[str, Any]) -> None:
    fused = "swiglu_fusion" in attrs
    compare(mixture("MoE", "w1 b1 w2 b2" if fused else "w1 - w2", weights(2 * INNER if fused else INNER), **attrs),
            FEED, runtime=True)


def test_gate_and_linear_part_may_lie_in_three_ways() -> None:
    by_turns = weights(2 * INNER)
    turned = [np.stack([by_turns[n][:, i::2] for i in (0, 1)], axis=1) for n in ("w1", "b1")]
    behind = {**by_turns, **{n: w.reshape(by_turns[n].shape) for n, w in zip(("w1", "b1"), turned, strict=True)}}
    apart = {**by_turns, **{n: w[:, i] for n, w, i in zip(
        ("w1", "b1", "w3", "b3"), (*turned, *turned), (0, 0, 1, 1), strict=True)}}
    wanted = result(mixture("MoE", "w1 b1 w2 b2", by_turns, **SWIGLU, swiglu_fusion=1))
    assert np.array_equal(result(mixture("MoE", "w1 b1 w2 b2", behind, **SWIGLU, swiglu_fusion=2)), wanted)
    np.testing.assert_allclose(result(mixture("MoE", "w1 b1 w2 b2 w3 b3", apart, **SWIGLU)), wanted, rtol=1e-5,
                               atol=1e-6)


def quantized(name: str, cols: int, depth: int, bits: int, block: int, zero: bool) -> tuple[dict[str, Array], Array]:
    """Constants of a weight of few bits, and the floats they stand for."""
    seed, blocks = ord(name), depth // block if block else 1
    packed = integers(EXPERTS, cols, depth * bits // 8, low=0, high=256, dtype=np.uint8, seed=seed)
    scale = np.abs(normal(EXPERTS, cols, blocks, seed=seed)) * F32(0.05)
    wide = unpack(packed, bits).reshape(EXPERTS, cols, blocks, -1).astype(F32)
    found = {f"w{name}": packed, f"s{name}": scale if block else scale[..., 0]}
    if not zero:
        return found, ((wide - (1 << bits - 1)) * scale[..., None]).reshape(EXPERTS, cols, depth)
    count = blocks if block else cols
    zeros = integers(EXPERTS, *((cols,) if block else ()), -(-count * bits // 8), low=0, high=256, dtype=np.uint8)
    z = unpack(zeros, bits)[..., :count].reshape(EXPERTS, cols, blocks, 1)
    return {**found, f"z{name}": zeros}, ((wide - z) * scale[..., None]).reshape(EXPERTS, cols, depth)


@pytest.mark.parametrize(("bits", "block", "zero"), [(4, 16, True), (4, 0, False), (2, 32, True), (8, 0, True)])
def test_a_mixture_of_weights_of_few_bits(bits: int, block: int, zero: bool) -> None:
    (up, w1), (down, w2) = (quantized(n, *shape, bits, block, zero) for n, shape in (
        ("1", (2 * INNER, HIDDEN)), ("2", (HIDDEN, INNER))))
    attrs = {**SWIGLU, "swiglu_fusion": 1}
    blocks = {"block_size": block} if block else {}
    bits_in_file = {"fc1_expert_weight_bits": bits, "expert_weight_bits": bits}
    operands = "w1 s1 - w2 s2" + " - - - - z1 z2" * zero
    proto = mixture("QMoE", operands, {**up, **down}, **attrs, **blocks, **bits_in_file, normalize_routing_weights=1)
    compare(proto, FEED, runtime=True, rtol=2e-3 if bits == 2 else 1e-5, atol=2e-3 if bits == 2 else 1e-6)
    floats = mixture("MoE", "w1 - w2", {"w1": w1, "w2": w2}, **attrs, normalize_routing_weights=1)
    np.testing.assert_allclose(result(proto), result(floats), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalized", [0, 1])
def test_experts_may_count_by_other_numbers_than_they_are_chosen_by(normalized: int) -> None:
    (up, _), (down, _) = (quantized(n, *shape, 4, 16, False) for n, shape in (
        ("1", (INNER, HIDDEN)), ("2", (HIDDEN, INNER))))
    counts = np.abs(normal(TOKENS, EXPERTS, seed=7))
    operands = "w1 s1 - w2 s2 - - - - - - - counts"
    compare(mixture("QMoE", operands, {**up, **down, "counts": counts}, activation_type="silu", block_size=16,
                    normalize_routing_weights=normalized), FEED, runtime=True)


def test_experts_are_known_to_the_pass_that_computes_them() -> None:
    proto = mixture("MoE", "w1 b1 w2 b2", weights(2 * INNER), **SWIGLU, swiglu_fusion=1)
    graph = import_onnx(proto)
    run_passes(graph, [RouteExperts()])
    assert not any(n.op == "matmul" and not n.input(1).is_constant for n in graph.nodes)
    np.testing.assert_allclose(interpret(graph, FEED)[0], result(proto), rtol=1e-5, atol=1e-6)


def test_the_error_of_each_product_of_experts_is_known() -> None:
    """By which formats are chosen for them, and `q8c check --layers` lists them."""
    found = layer_errors(mixture("MoE", "w1 b1 w2 b2", weights(INNER), activation_type="silu"), Options(), [FEED])
    assert [(layer.depth, layer.cols) for layer in sorted(found.layers, key=lambda layer: layer.depth)] == [
        (HIDDEN, EXPERTS * INNER), (INNER, EXPERTS * HIDDEN)]
    assert all(0 < layer.effect <= 0.02 for layer in found.layers) and found.total < 0.03


@pytest.mark.parametrize(("attrs", "error", "message"), [
    ({"use_sparse_mixer": 1}, UnsupportedError, "use_sparse_mixer"),
    ({"activation_type": "swish"}, UnsupportedError, "activation 'swish'; expected one of relu, gelu"),
    ({"activation_type": "swiglu"}, CompileError, "swiglu_fusion is 0 and there is no fc3"),
    ({"activation_type": "swiglu", "swiglu_fusion": 1}, CompileError, r"expected weights \[4, 128, 32\], got \[4, 64")])
def test_what_is_no_mixture_is_told(attrs: dict[str, Any], error: type[CompileError], message: str) -> None:
    with pytest.raises(error, match=message):
        import_onnx(mixture("MoE", "w1 b1 w2 b2", weights(INNER), **attrs))


def test_other_ways_of_quantizing_are_told() -> None:
    constants, _ = quantized("1", INNER, HIDDEN, 4, 0, False)
    with pytest.raises(UnsupportedError, match="quant_type 'fp4'; expected 'int'"):
        import_onnx(mixture("QMoE", "w1 s1 - w1 s1", constants, quant_type="fp4"))
