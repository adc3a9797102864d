"""Attention on packed rows: the bits of each sequence alone, on every tier and in any number of pieces."""
from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q8c.codegen.attention import attention_kernel
from q8c.codegen.kernel import Kernel
from q8c.codegen.module import new_module
from q8c.codegen.targets import TIERS, Tier
from q8c.ir import Graph, interpret, parse_graph
from q8c.ir.dims import evaluate
from q8c.ir.graph import Array
from tests.codegen.attention import Case
from tests.codegen.attention import run as run_alone
from tests.codegen.jit import Loaded, both_widths, guarded, runnable

FAST = TIERS["amx-int8"].with_extras(*TIERS["amx-int8"].fast_extras)
BF16 = [FAST] if runnable(FAST) else []
CASES = [Case(), Case(heads=3, kv_heads=3, size=64), Case(heads=1, kv_heads=1, size=1), Case(size=33, causal=True),
         Case(heads=6, kv_heads=2, size=20, nan_to_zero=True),
         Case(heads=4, size=24, merged=False, split="qkv", square=True),
         Case(heads=4, size=16, merged=False, split="kv", causal=True, square=True)]


def packed_graph(case: Case, longest: str = "longest") -> Graph:
    """The case's node on packed rows."""
    alone = case.graph()
    node = alone.nodes[0]
    params = ", ".join(f"%{v.name}: {v.type}" for v in alone.inputs).replace("keys", "seq").replace("batch", "1")
    attrs = ", ".join(f"{k} = {str(v).lower() if isinstance(v, bool) else v}" for k, v in node.attrs.items())
    operands = ", ".join(f"%{v.name}" for v in node.operands)
    return parse_graph(f"""graph @packed({params}, %starts: i64[batch + 1]) {{
        %y: f32[1, seq, {case.heads * case.size}] = packed_attention({operands}, %starts) {{{attrs}, longest = seq}}
        return %y }}""".replace("seq", "tokens").replace("longest = tokens", f"longest = {longest}"))


@cache
def kernel_of(case: Case, tier: Tier) -> tuple[Kernel, str, Loaded]:
    module = new_module("attention")
    kernel = attention_kernel(module, tier, packed_graph(case).nodes[0])
    kernel.function.linkage = "external"
    return kernel, kernel.function.name, Loaded(module, tier)


def rows_of(case: Case, lengths: Sequence[int], seed: int) -> list[dict[str, Array]]:
    """Feeds of each sequence alone."""
    rng = np.random.default_rng(seed)
    return [case.feeds(rng, 1, n, n) for n in lengths]


def joined(case: Case, feeds: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """The feeds packed."""
    graph = case.graph()
    starts = np.cumsum([0, *(f[graph.inputs[0].name].shape[-2] for f in feeds)])
    return {v.name: np.concatenate([f[v.name] for f in feeds], axis=v.type.rank - 2) for v in graph.inputs} | {
        "starts": starts}


def run(case: Case, feeds: dict[str, Array], tier: Tier, pieces: int, longest: int) -> Array:
    """The kernel's result, its pieces in reverse; arrays and scratch end at guarded pages."""
    kernel, name, loaded = kernel_of(case, tier)
    graph = packed_graph(case)
    starts = feeds["starts"]
    env = {"tokens": int(starts[-1]), "batch": len(starts) - 1, "longest": longest}
    arrays = {n: guarded(a) for n, a in feeds.items()}
    pointers = [arrays[v.name] for v in graph.nodes[0].operands]
    result = guarded(np.full([evaluate(d, env) for d in graph.outputs[0].shape], 77, np.float32))
    assert kernel.scratch is not None
    for piece in reversed(range(pieces)):
        scratch = guarded(np.full(evaluate(kernel.scratch, env) // 4, np.nan, np.float32))
        loaded(name, *pointers, result, *(evaluate(d, env) for d in kernel.sizes), scratch, piece, pieces)
    return np.array(result)


def check(case: Case, lengths: Sequence[int], seed: int = 0, spare: int = 0) -> None:
    """The bits of each sequence alone, and close to the reference."""
    alone = rows_of(case, lengths, seed)
    feeds = joined(case, alone)
    reference, = interpret(packed_graph(case, "tokens"), feeds)
    for group, error in ((both_widths(), 2e-5), (BF16, 0.05)):
        parts = [run_alone(case, f, group[0])[0] for f, n in zip(alone, lengths, strict=True) if n and group]
        expected = np.concatenate([reference[0][:0], *parts])
        for tier in group:
            for pieces in (1, 3, 16):
                np.testing.assert_array_equal(run(case, feeds, tier, pieces, max(lengths) + spare)[0], expected)
            np.testing.assert_allclose(expected, reference[0], rtol=0, atol=error)


@pytest.mark.parametrize("case", CASES)
def test_bits_of_each_sequence_alone(case: Case) -> None:
    check(case, [5, 1, 40, 0, 33, 16, 0, 67])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.sampled_from(CASES[:4]), st.lists(st.integers(0, 70), min_size=1, max_size=5), st.integers(0, 99),
       st.sampled_from([0, 1, 30]))
def test_any_lengths(case: Case, lengths: list[int], seed: int, spare: int) -> None:
    check(case, lengths, seed, spare)


def test_nothing_at_all() -> None:
    check(Case(), [0, 0, 0], spare=7)
    check(Case(), [0])
