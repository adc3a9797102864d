"""Attention's exponential and transposition on every tier."""
from __future__ import annotations

from functools import cache

import llvmlite.ir as ir
import numpy as np

from q8c.codegen.attention_math import LEAST_EXPONENT, exp_nonpositive, transpose
from q8c.codegen.builder import F32, I64, LANES, PTR, V16F, Builder
from q8c.codegen.targets import Tier
from q8c.ir.graph import Array
from tests.codegen.jit import Loaded, both_widths, build, each_width


@cache
def _loaded(tier: Tier) -> Loaded:
    def exponential(module: ir.Module, tier: Tier) -> None:
        b = Builder(module, tier, "exp", [("x", PTR), ("y", PTR), ("count", I64)])
        with b.range(0, b.arg("count"), LANES) as i:
            b.store(exp_nonpositive(b, b.load(V16F, b.at(b.arg("x"), i, F32))), b.at(b.arg("y"), i, F32))
        b.ret()

    def transposition(module: ir.Module, tier: Tier) -> None:
        b = Builder(module, tier, "transpose", [("x", PTR), ("y", PTR)])
        rows = [b.load(V16F, b.at(b.arg("x"), LANES * n, F32)) for n in range(tier.lanes)]
        for n, column in enumerate(transpose(b, rows)):
            b.store(column, b.at(b.arg("y"), tier.lanes * n, F32))
        b.ret()
    return build(tier, exponential, transposition)


def _exp(tier: Tier, x: Array) -> Array:
    padded = np.zeros(-(-x.size // LANES) * LANES, np.float32)
    padded[:x.size] = x
    y = np.empty_like(padded)
    _loaded(tier)("exp", padded, y, padded.size)
    return y[:x.size]


@each_width
def test_exp_error(tier: Tier) -> None:
    x = np.concatenate([-np.geomspace(1e-38, 87.5, 200_000), -np.linspace(0, 87.5, 200_000)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(_exp(tier, x) - exact) / exact
    assert (error <= 2e-7 + 2e-8 * np.abs(x)).all()
    assert _exp(tier, np.zeros(1, np.float32))[0] == 1
    approximate = np.abs(_exp(tier.fast(), x) - exact) / exact
    assert (approximate <= 9e-5 + 6e-8 * np.abs(x)).all()


@each_width
def test_exp_of_far_and_odd_values(tier: Tier) -> None:
    far = np.array([LEAST_EXPONENT, -87.7, -88.4, -1e4, -3.4e38, -np.inf], np.float32)
    assert (_exp(tier, far).view(np.uint32) == 0).all()
    payloads = np.array([0x7FC00000, 0x7FC00001, 0x7FFFFFFF, 0xFFC00001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(_exp(tier, payloads)).all()
    assert (_exp(tier.fast(), far[3:]).view(np.uint32) == 0).all() and np.isnan(_exp(tier.fast(), payloads)).all()


def test_exp_has_the_same_bits_on_every_tier() -> None:
    x = -np.geomspace(1e-6, 90, 100_000).astype(np.float32)
    assert len({_exp(tier, x).tobytes() for tier in both_widths()}) == 1


@each_width
def test_transpose(tier: Tier) -> None:
    x = np.arange(tier.lanes * LANES, dtype=np.float32).reshape(tier.lanes, LANES)
    y = np.zeros((LANES, tier.lanes), np.float32)
    _loaded(tier)("transpose", x, y)
    assert (y == x.T).all()
