"""A family of transformers as data: what `export` builds with PyTorch, and what the tests feed."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Size = int | str
Form = Literal["dynamo-sdpa", "dynamo-eager", "dynamo23-sdpa", "script14-sdpa", "script17-sdpa", "script17-eager"]
"""Exporter (`dynamo`: torch.export; `script`: TorchScript), its opset if not its default, and how transformers computes
attention, for which there is an operator from opset 23 on."""
Padding = Literal["none", "right", "left"]
HIDDEN, HEADS, VOCABULARY = 64, 2, 99


@dataclass(frozen=True)
class Input:
    """One input of a model. `kind`: `ids` of tokens, a `mask` of those that are there, `types` (0 or 1), `positions`
    behind what is kept, `boxes` (left, top, right and bottom along the last axis), or `normal` floats; axes named by
    text vary."""

    kind: Literal["ids", "mask", "types", "positions", "boxes", "normal"]
    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Family:
    """One model: the class of transformers (or of `export`) and its config, tiny; its `inputs`, and `outputs` by name.

    `head` names a function of `export` that wraps the model, `sizes` what is run one after the other in one session
    (the first is what the exporters see: no two of its axes alike), `attentions` how many are fused into one kernel,
    `float_products` the names, in part, of products that stay float, each with the reason q8c gives, in part.
    `int8_error` bounds the relative L2 of an output: products in a row, as tests/test_compile.py has them, make 0.01 to
    0.03 of random weights.
    `kernels` says how many kernels of some kinds there are, `causal` and `windows` how many attentions know that they
    are causal, or see near keys only, without a mask in memory.
    `compiled` is whether the first form is run as code too, which costs seconds: one of those that share kernels is.
    """

    model: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...] = ("last_hidden_state",)
    head: str = "outputs"
    forms: tuple[Form, ...] = ("dynamo-sdpa", "script17-eager")
    sizes: tuple[Mapping[str, int], ...] = ({"batch": 2, "seq": 9}, {"batch": 3, "seq": 24}, {"batch": 1, "seq": 1})
    attentions: int = 2
    float_products: Mapping[str, str] = field(default_factory=dict)
    int8_error: float = 0.035
    kernels: Mapping[str, int] = field(default_factory=dict)
    causal: int = 0
    windows: int = 0
    compiled: bool = False


def feed(family: Family, sizes: Mapping[str, int], padding: Padding = "right", seed: int = 0) -> dict[str, Array]:
    """Made-up inputs of the given sizes; of several sequences, the first is of full length."""
    rng = np.random.default_rng(seed)
    made = {name: _made(rng, one.kind, tuple(sizes[d] if isinstance(d, str) else d for d in one.shape), padding)
            for name, one in family.inputs.items()}
    for name, one in family.inputs.items():
        if one.kind == "positions":
            made[name] += sizes["past"]
    return made


def _made(rng: np.random.Generator, kind: str, shape: tuple[int, ...], padding: Padding) -> Array:
    if kind == "ids":
        return rng.integers(3, VOCABULARY, shape)
    if kind == "positions":
        return np.tile(np.arange(shape[1]), (shape[0], 1))
    if kind == "types":
        return rng.integers(0, 2, shape)
    if kind == "boxes":
        return np.sort(rng.integers(0, 20, (*shape[:-1], 2, 2)), axis=-2).reshape(shape)
    if kind == "normal":
        return rng.standard_normal(shape).astype(np.float32)
    batch, seq = shape
    lengths = rng.integers((seq + 1) // 2, seq + 1, batch)
    lengths[0] = seq
    if padding == "none":
        lengths[:] = seq
    there = np.arange(seq) < lengths[:, None]
    return (there[:, ::-1] if padding == "left" else there).astype(np.int64)
