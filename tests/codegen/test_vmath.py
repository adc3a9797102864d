"""Vector functions against double precision: dense sweeps within named budgets, edges, the same bits on every tier."""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import llvmlite.ir as ir
import numpy as np
import pytest
from numpy.typing import NDArray

from q8c.codegen import vmath, vmath_trig
from q8c.codegen.builder import F32, I64, PTR, V16F, Builder
from q8c.codegen.targets import Tier
from tests.codegen.jit import Loaded, all_tiers, build, runnable_tiers

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
NAMES = ("exp", "log", "erf", "tanh", "sigmoid", "silu", "softplus", "gelu", "gelu_tanh", "sin", "cos",
         *vmath_trig.ULPS)
ULPS = vmath.ULPS | vmath_trig.ULPS

def _by_element(function: Callable[[float], float]) -> Callable[[Doubles], Doubles]:
    ufunc = np.frompyfunc(function, 1, 1)
    return lambda x: np.asarray(ufunc(x), np.float64)


_erf = _by_element(math.erf)


def _sigmoid(x: Doubles) -> Doubles:
    return np.asarray(1 / (1 + np.exp(-x)))


REFERENCE: dict[str, Callable[[Doubles], Doubles]] = {
    "exp": np.exp, "log": np.log, "tanh": np.tanh, "sigmoid": _sigmoid, "silu": lambda x: x * _sigmoid(x),
    "erf": _erf, "softplus": lambda x: np.logaddexp(0, x),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "sin": _by_element(math.sin), "cos": _by_element(math.cos), "tan": _by_element(math.tan), "asin": np.arcsin,
    "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh,
}


@cache
def functions(tier: Tier) -> Loaded:
    def emit(module: ir.Module, tier: Tier) -> None:
        for name in NAMES:
            b = Builder(module, tier, name, [("x", PTR), ("y", PTR), ("count", I64)])
            with b.range(0, b.arg("count"), 16) as i:
                x = b.load(V16F, b.at(b.arg("x"), i, F32))
                function = getattr(vmath_trig if name in vmath_trig.ULPS else vmath, name)
                b.store(function(b, x), b.at(b.arg("y"), i, F32))
            b.ret()
        b = Builder(module, tier, "pow", [("x", PTR), ("y", PTR), ("out", PTR), ("count", I64)])
        with b.range(0, b.arg("count"), 16) as i:
            x, y = (b.load(V16F, b.at(b.arg(n), i, F32)) for n in "xy")
            b.store(vmath.pow(b, x, y), b.at(b.arg("out"), i, F32))
        b.ret()
    return build(tier, emit)


def call(tier: Tier, name: str, *operands: Floats) -> Floats:
    count = -(-operands[0].size // 16) * 16
    padded = [np.concatenate([v, np.zeros(count - v.size, np.float32)]) for v in operands]
    out = np.zeros(count, np.float32)
    functions(tier)(name, *padded, out, count)
    return out[:operands[0].size]


def every(step: int, first: float = 0.0, last: float = 3.4e38) -> Floats:
    """Every `step`-th float from first to last by bit pattern, of both signs."""
    low, high = (int(np.float32(v).view(np.int32)) for v in (first, last))
    positive = np.arange(low, high, step, dtype=np.int32).view(np.float32)
    return np.concatenate([positive, -positive])


def ulps(y: Floats, exact: Doubles) -> Doubles:
    """|y - exact| in units of the last place of the exact value's float."""
    exponent = np.frexp(np.maximum(np.abs(exact), 2.0**-126))[1]
    return np.asarray(np.abs(y.astype(np.float64) - exact) * 2.0**(24 - exponent))


SWEEPS = {"exp": every(5003, 2e-8, 88.7), "log": np.abs(every(10007, 1.5e-45)), "erf": every(20011, 1e-40, 20),
          "tanh": every(10007, 1e-40, 100), "sigmoid": every(10007, 1e-20, 87), "silu": every(10007, 1e-20, 87),
          "softplus": every(10007, 1e-20, 87), "sin": every(20011, 1e-40), "cos": every(20011, 1e-40),
          "tan": every(20011, 1e-40), "asin": every(10007, 1e-40, 1), "acos": every(10007, 1e-40, 1),
          "atan": every(20011, 1e-40), "sinh": every(10007, 1e-40, 89.4), "cosh": every(10007, 1e-40, 89.4),
          "asinh": every(20011, 1e-40), "acosh": np.abs(every(10007, 1)), "atanh": every(10007, 1e-40, 1)}


@all_tiers
@pytest.mark.parametrize("name", list(SWEEPS))
def test_within_its_ulps(tier: Tier, name: str) -> None:
    x = SWEEPS[name]
    error = ulps(call(tier, name, x), REFERENCE[name](x.astype(np.float64)))
    worst = int(np.argmax(error))
    assert error[worst] <= ULPS[name], f"{error[worst]:.2f} ulp at {x[worst]!r}"


@all_tiers
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_within_its_error(tier: Tier, name: str) -> None:
    x = np.concatenate([np.linspace(-8, 8, 200_001, dtype=np.float32), every(100_003, 1e-40, 1e38)])
    for numerics, budget in ((tier, vmath.GELU_ERROR), (tier.fast(), vmath.GELU_APPROXIMATE_ERROR)):
        with np.errstate(over="ignore"):
            error = np.abs(call(numerics, name, x) - REFERENCE[name](x.astype(np.float64))) / np.maximum(np.abs(x), 1)
        worst = int(np.argmax(error))
        assert error[worst] <= budget, f"{error[worst]:.2e} at {x[worst]!r}"


@all_tiers
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_approximate_gelu_near_zero_and_at_the_edges(tier: Tier, name: str) -> None:
    x = every(100_003, 1e-30, 0.1)
    np.testing.assert_allclose(call(tier.fast(), name, x), REFERENCE[name](x.astype(np.float64)), rtol=2e-3)
    edges = np.array([INF, -INF, NAN, 0], np.float32)
    assert np.isfinite(call(tier.fast(), name, edges)).tolist() == [False, False, False, True]


def test_every_tier_gives_the_same_bits() -> None:
    x = np.concatenate([every(200_003), np.array([np.inf, -np.inf, np.nan], np.float32)])
    y = np.resize(x[::-1], x.size) / np.float32(3)
    for name in NAMES:
        assert len({call(tier, name, x).tobytes() for tier in runnable_tiers()}) == 1, name
    assert len({call(tier, "pow", x, y).tobytes() for tier in runnable_tiers()}) == 1


INF, NAN = float("inf"), float("nan")
EDGES: dict[str, list[tuple[float, float]]] = {
    "exp": [(INF, INF), (-INF, 0), (89, INF), (-104, 0), (0, 1), (-100, math.exp(-100))],
    "log": [(INF, INF), (0, -INF), (-0.0, -INF), (-1, NAN), (-INF, NAN), (1, 0)],
    "erf": [(INF, 1), (-INF, -1), (0, 0), (1e30, 1)], "tanh": [(INF, 1), (-INF, -1), (0, 0), (1e30, 1)],
    "sigmoid": [(INF, 1), (-INF, 0), (0, 0.5), (1e30, 1), (-1e30, 0)],
    "silu": [(INF, INF), (-INF, NAN), (0, 0), (1e30, 1e30), (-1e30, 0)],
    "softplus": [(INF, INF), (-INF, 0), (1e30, 1e30), (-1e30, 0)],
    "gelu": [(INF, INF), (-INF, NAN), (0, 0), (1e30, 1e30), (-1e30, 0)],
    "gelu_tanh": [(INF, INF), (-INF, NAN), (0, 0), (1e30, 1e30), (-1e30, 0)],
    "sin": [(INF, NAN), (-INF, NAN), (0, 0), (1e-45, 1e-45)], "cos": [(INF, NAN), (-INF, NAN), (0, 1)],
    "tan": [(INF, NAN), (-INF, NAN), (0, 0)], "asin": [(1, math.pi / 2), (-1, -math.pi / 2), (1.01, NAN), (-INF, NAN)],
    "acos": [(1, 0), (-1, math.pi), (1.01, NAN), (-INF, NAN)], "atan": [(INF, math.pi / 2), (-INF, -math.pi / 2)],
    "sinh": [(INF, INF), (-INF, -INF), (90, INF), (0, 0)], "cosh": [(INF, INF), (-INF, INF), (90, INF), (0, 1)],
    "asinh": [(INF, INF), (-INF, -INF), (0, 0)], "acosh": [(INF, INF), (1, 0), (0.99, NAN), (-INF, NAN)],
    "atanh": [(1, INF), (-1, -INF), (1.01, NAN), (0, 0)],
}


@all_tiers
@pytest.mark.parametrize("name", NAMES)
def test_edges(tier: Tier, name: str) -> None:
    x, expected = np.array(EDGES[name] + [(NAN, NAN)], np.float32).T
    np.testing.assert_array_equal(call(tier, name, x), expected)


@all_tiers
def test_pow_within_its_ulps(tier: Tier) -> None:
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(-80, 80, 40_000)).astype(np.float32)
    y = (rng.uniform(-87, 88, x.size) / np.log(x)).astype(np.float32)
    x[:9] = [2, 10, 1e-42, 3, 0.5, 1.0000001, 0.9999999, 1e30, 7]
    y[:9] = [-149, 38, 1.0, 2, 0.5, 1e7, 1e8, -1.5, -50]
    with np.errstate(all="ignore"):
        exact = x.astype(np.float64) ** y
    error = ulps(call(tier, "pow", x, y), exact)
    assert error.max() <= vmath.POW_ULPS, f"{error.max():.2f} at {x[error.argmax()]!r} ** {y[error.argmax()]!r}"


@all_tiers
def test_pow_at_the_edges_is_c_s(tier: Tier) -> None:
    values = np.array([0, -0.0, 1, -1, 2, -2, 3, -3, 0.5, -0.5, 2.5, INF, -INF, NAN, 1e38, -1e38, 1e-45], np.float32)
    x, y = np.repeat(values, values.size), np.tile(values, values.size)
    with np.errstate(all="ignore"):
        expected = np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(np.signbit(call(tier, "pow", x, y)) & ~np.isnan(expected), np.signbit(expected)
                                  & ~np.isnan(expected))
    np.testing.assert_allclose(call(tier, "pow", x, y), expected, rtol=2.0**-23)
