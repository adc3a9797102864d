"""ONNX Runtime's MoE and QMoE: mixtures of experts, of float weights and of weights of few bits.

They are written as the weights of its experts gathered for every token, as exporters do; passes know that form.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from q8c.frontend.ops.nbits import known
from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor, constant
from q8c.frontend.weights import unpack
from q8c.ir.dims import Dim, product
from q8c.ir.graph import Array
from q8c.ir.spill import assembled, release

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "identity": "", "swiglu": "swiglu"}


@dataclass(frozen=True)
class Choice:
    """The experts of each row, one after the other [rows * chosen], and what each of them counts [rows, chosen]."""

    rows: Dim
    chosen: int
    experts: int
    ids: Tensor
    scores: Tensor


@importer("MoE", domain=MICROSOFT)
def moe(c: Call) -> Tensor:
    """The sum of score * expert(x) over the experts of each token; the scores are softmax over all experts."""
    weights = [known(c, i) if c.has(i) else None for i in (2, 4, 6)]
    router = c.input(1)
    scores = c.emit("softmax", router, axis=-1)
    choice = _choose(c, router, scores, c.attr_int("normalize_routing_weights", 0) == 1)
    return _mixture(c, choice, weights, [c.optional(i) for i in (3, 5, 7)])


@importer("QMoE", domain=MICROSOFT)
def qmoe(c: Call) -> Tensor:
    """As MoE, of weights (q - zero point) * scale; scores are softmax over the chosen, or router_weights of them."""
    if c.attr_str("quant_type", "int") != "int":
        c.unsupported(f"quant_type {c.attr_str('quant_type')!r}; expected 'int'")
    if c.attr_int("weights_prepacked", -1) == 1:
        c.unsupported("weights that are packed for one kind of device; expected weights_prepacked 0")
    weights = [_dequantized(c, n, w, scale, zero) if c.has(w) else None
               for n, w, scale, zero in ((1, 2, 3, 11), (2, 5, 6, 12), (3, 8, 9, 13))]
    router, given = c.input(1), c.optional(14)
    if given is None:
        choice = _choose(c, router, c.emit("softmax", router, axis=-1), True)
    else:
        choice = _choose(c, router, given, c.attr_int("normalize_routing_weights", 0) == 1)
    return _mixture(c, choice, weights, [c.optional(i) for i in (4, 7, 10)])


def _choose(c: Call, router: Tensor, scores: Tensor, normalized: bool) -> Choice:
    """The k experts of each row by the router's numbers, with their scores, which may be brought to a sum of 1."""
    chosen = c.attr_int("k", 4)
    if router.rank != 2 or not isinstance(router.shape[1], int) or not 0 < chosen <= router.shape[1]:
        c.fail(f"expected router_probs as [tokens, experts] with at least {chosen} experts, got {router.type}")
    if c.attr_int("use_sparse_mixer", 0):
        c.unsupported("use_sparse_mixer; experts are chosen by the largest numbers only")
    ids = c.emit("top_k", router, k=chosen, axis=1)
    picked = c.emit("gather_elements", scores, ids, axis=1)
    if normalized:
        picked = c.emit("div", picked, c.emit("reduce_sum", picked, axes=(1,), keepdims=True))
    rows = router.shape[0]
    return Choice(rows, chosen, router.shape[1], c.builder.reshape(ids, (rows * chosen,)), picked)


def _mixture(c: Call, choice: Choice, weights: list[Array | None], biases: list[Tensor | None]) -> Tensor:
    """The sum over a row's experts of score * (w2 f(w1 x + b1, w3 x + b3) + b2)."""
    x, (w1, w2, w3) = c.input(0), weights
    hidden, pairs = x.shape[-1], choice.rows * choice.chosen
    if w1 is None or w2 is None:
        c.fail("weights of fc1 and fc2 are missing")
    act = c.attr_str("activation_type", "relu")
    if act not in _ACTIVATIONS:
        c.unsupported(f"activation {act!r}; expected one of {', '.join(_ACTIVATIONS)}")
    c.builder.same(product(x.shape[:-1]), choice.rows)
    inner = w2.shape[2]
    fused = act == "swiglu" and w3 is None
    if fused and c.attr_int("swiglu_fusion", 0) not in (1, 2):
        c.fail(f"swiglu_fusion is {c.attr_int('swiglu_fusion', 0)} and there is no fc3; expected 1 or 2")
    for w, shape in ((w1, (inner * (2 if fused else 1), hidden)), (w2, (hidden, inner)), (w3, (inner, hidden))):
        if w is not None and w.shape != (choice.experts, *shape):
            c.fail(f"expected weights {[choice.experts, *shape]}, got {list(w.shape)}")
    rows = c.builder.reshape(x, (choice.rows, 1, hidden))
    rows = c.builder.reshape(c.builder.broadcast(rows, (choice.rows, choice.chosen, hidden)), (pairs, hidden))
    if fused and c.attr_int("swiglu_fusion", 0) == 1:
        w1, biases[0] = _apart(c, w1, biases[0])
    up = _linear(c, choice, rows, w1, biases[0], 2)
    gated: Tensor | None = None
    if fused:
        up, gated = (c.builder.slice_axis(up, 1, start, inner) for start in (0, inner))
    elif w3 is not None:
        gated = _linear(c, choice, rows, w3, biases[2], 6 if c.op == "MoE" else 8)
    total = _linear(c, choice, _activated(c, act, up, gated), w2, biases[1], 4 if c.op == "MoE" else 5)
    total = c.emit("mul", total, c.builder.reshape(choice.scores, (pairs, 1)))
    total = c.builder.reshape(total, (choice.rows, choice.chosen, hidden))
    return c.builder.reshape(c.emit("reduce_sum", total, axes=(1,), keepdims=False), x.shape)


def _linear(c: Call, choice: Choice, rows: Tensor, w: Array, bias: Tensor | None, operand: int) -> Tensor:
    """Each row [n, depth] by the weight [cols, depth] of its expert, plus bias: [n, cols]."""
    n, depth = rows.shape
    picked = c.emit("gather", constant(w, c.node.input[operand]), choice.ids, axis=0)
    y = c.emit("matmul", picked, c.builder.reshape(rows, (n, depth, 1)))
    y = c.builder.reshape(y, (n, w.shape[1]))
    return y if bias is None else c.emit("add", y, c.emit("gather", bias, choice.ids, axis=0))


def _apart(c: Call, w: Array, bias: Tensor | None) -> tuple[Array, Tensor | None]:
    """Weights [experts, cols, depth] and bias of a fused SwiGLU with its gates, which come by turns, in front."""
    w = assembled(len(w), lambda some: np.concatenate([w[some, 0::2], w[some, 1::2]], axis=1))
    if bias is None:
        return w, None
    turns = c.builder.reshape(bias, (len(w), w.shape[1] // 2, 2))
    return w, c.builder.reshape(c.builder.transpose(turns, (0, 2, 1)), (len(w), w.shape[1]))


def _activated(c: Call, act: str, up: Tensor, gated: Tensor | None) -> Tensor:
    """The activation of `up`, times what gates it."""
    if act == "swiglu":
        assert gated is not None
        limit = c.attr_float("swiglu_limit", float("inf"))
        if limit != float("inf"):
            up = c.emit("min", up, c.scalar(limit, up))
            gated = c.emit("max", c.emit("min", gated, c.scalar(limit, up)), c.scalar(-limit, up))
        alpha, beta = c.attr_float("activation_alpha", 1.0), c.attr_float("activation_beta", 0.0)
        gate = c.emit("sigmoid", up if alpha == 1 else c.emit("mul", up, c.scalar(alpha, up)))
        gated = gated if beta == 0 else c.emit("add", gated, c.scalar(beta, up))
        return c.emit("mul", c.emit("mul", up, gate), gated)
    attrs = {"approximate": "tanh"} if act == "gelu" else {}
    y = up if act == "identity" else c.emit(_ACTIVATIONS[act], up, **attrs)
    return y if gated is None else c.emit("mul", y, gated)


def _dequantized(c: Call, number: int, operand: int, scales: int, zeros: int) -> Array:
    """The float weights [experts, cols, depth] of a QMoE, made an expert at a time."""
    bits = c.attr_int(f"fc{number}_expert_weight_bits", c.attr_int("expert_weight_bits", 4))
    if bits not in (2, 4, 8):
        c.unsupported(f"weights of {bits} bits; expected 2, 4 or 8")
    packed, scale = known(c, operand), known(c, scales)
    if packed.ndim != 3 or packed.dtype != np.uint8:
        c.fail(f"expected weights as bytes [experts, cols, depth], got {c.input(operand).type}")
    experts, cols, depth = *packed.shape[:2], packed.shape[2] * 8 // bits
    block = c.attr_int("block_size", 0) or depth
    blocks = -(-depth // block)
    if scale.size != experts * cols * blocks or depth % block:
        c.fail(f"expected {blocks} scales for each column of {c.input(operand).type}, got {c.input(scales).type}")
    scale = scale.reshape(experts, cols, blocks).astype(np.float32, copy=False)
    zero: Array = np.full((experts, 1, 1), 1 << (bits - 1), np.float32)
    if c.has(zeros):
        found = known(c, zeros)
        by_column = found.ndim == 2  # one for each column, packed along them
        zero = unpack(found, bits)[..., :cols if by_column else blocks].astype(np.float32)
        if zero.size != scale.size:
            c.fail(f"expected a zero point for each scale {list(scale.shape)}, got {c.input(zeros).type}")
        zero = zero.reshape(scale.shape)

    def some(part: slice) -> Array:
        steps = unpack(packed[part], bits).astype(np.float32).reshape(-1, cols, blocks, block)
        return np.asarray(((steps - zero[part, ..., None]) * scale[part, ..., None]).reshape(-1, cols, depth))

    weight = assembled(experts, some)
    release(packed)
    return weight
