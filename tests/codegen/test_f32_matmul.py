"""Batched float products at run-time sizes: within the bound of their sums, the same bits on every tier."""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from q8c.codegen.f32_matmul import SCRATCH_PER_DEPTH, F32MatmulSpec, emit_f32_matmul
from q8c.codegen.matmul import matmul_kernel
from q8c.codegen.module import new_module
from q8c.codegen.targets import Tier
from q8c.ir import interpret, parse_graph
from q8c.ir.dims import evaluate
from tests.codegen.jit import Loaded, both_widths, each_width, guarded
from tests.codegen.queues import Queues

Floats = NDArray[np.float32]


@cache
def kernel(tier: Tier, spec: F32MatmulSpec) -> tuple[Loaded, str]:
    module = new_module("test")
    function = emit_f32_matmul(module, tier, spec)
    function.linkage = "external"
    return Loaded(module, tier), function.name


def run(tier: Tier, a: Floats, b: Floats, transpose_b: bool) -> Floats:
    """The kernel's product of two operands whose batch dimensions broadcast; everything ends at an unreadable page."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    loaded, name = kernel(tier, F32MatmulSpec(len(batch), transpose_b))
    rows, depth, cols = *a.shape[-2:], b.shape[-2] if transpose_b else b.shape[-1]
    y = guarded(np.full((*batch, rows, cols), -7, np.float32))
    wide = [np.broadcast_to(v, (*batch, *v.shape[-2:])) for v in (a, b)]
    batches = [n for i, size in enumerate(batch) for n in (size, *(v.strides[i] // 4 for v in wide))]
    scratch = np.full(SCRATCH_PER_DEPTH * -(-depth // 16) * 16, 0xFF, np.uint8)
    queues = Queues(1)
    args: list[Any] = [guarded(a), guarded(b), y, rows, cols, depth, *batches, scratch, 1, queues[0]]
    loaded(name, *args)
    return np.array(y)


def check(a: Floats, b: Floats, transpose_b: bool) -> None:
    """All tiers agree bit for bit, and with double precision within one rounding per term (Higham, 3.1)."""
    wide_b = np.swapaxes(b, -1, -2).astype(np.float64) if transpose_b else b.astype(np.float64)
    exact, terms = a.astype(np.float64) @ wide_b, np.abs(a).astype(np.float64) @ np.abs(wide_b)
    results = [run(tier, a, b, transpose_b) for tier in both_widths()]
    assert (np.abs(results[0] - exact) <= a.shape[-1] * 2.0**-24 * terms).all()
    assert all(r.tobytes() == results[0].tobytes() for r in results)


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 14), st.integers(1, 40), st.integers(1, 70), st.booleans())
def test_any_size(rows: int, depth: int, cols: int, transpose_b: bool) -> None:
    check(random(2, rows, depth), random(2, *((cols, depth) if transpose_b else (depth, cols)), seed=1), transpose_b)


@pytest.mark.parametrize(("a", "b"), [((3, 1), (4,)), ((), (5,)), ((2, 3), ()), ((), ())])
def test_batches_broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check(random(*a, 5, 17), random(*b, 17, 33, seed=1), False)


@each_width
def test_a_row_does_not_know_its_mates(tier: Tier) -> None:
    a, b = random(13, 20), random(20, 50, seed=1)
    whole = run(tier, a, b, False)
    for first, last in [(0, n) for n in range(1, 13)] + [(4, 9)]:
        assert run(tier, a[first:last], b, False).tobytes() == whole[first:last].tobytes()
    a[3, 7] = np.nan
    assert np.isnan(run(tier, a, b, False)[3]).all()
    assert np.delete(run(tier, a, b, False), 3, 0).tobytes() == np.delete(whole, 3, 0).tobytes()


@pytest.mark.parametrize(("shapes", "transpose_b"), [
    (("n, h, s, 8", "n, h, 8, t"), False), (("n, h, s, 8", "n, h, t, 8"), True), (("n, h, s, 8", "h, 8, t"), False),
    (("1, h, s, 8", "n, 1, 8, t"), False), (("s, 8", "n, t, 8"), True)])
def test_nodes_find_their_matrices(shapes: tuple[str, str], transpose_b: bool) -> None:
    dims = {"n": 3, "h": 2, "s": 5, "t": 19}
    a, b = (random(*(dims.get(d) or int(d) for d in shape.split(", ")), seed=len(shape)) for shape in shapes)
    batch = {1: "", 3: "n, ", 4: "n, h, "}[max(a.ndim, b.ndim)] if max(a.ndim, b.ndim) != 2 else ""
    text = (f"graph @g(%a: f32[{shapes[0]}], %b: f32[{shapes[1]}]) {{ %y: f32[{batch}s, t] = "
            f"matmul(%a, %b) {{transpose_b = {str(transpose_b).lower()}}} return %y }}")
    graph = parse_graph(text)
    exact, = interpret(graph, {"a": a, "b": b})
    for tier in both_widths():
        module = new_module("test")
        kernel = matmul_kernel(module, tier, graph.nodes[0])
        kernel.function.linkage = "external"
        sizes = [evaluate(d, dims) for d in kernel.sizes]
        y, scratch = np.zeros_like(exact), np.zeros(evaluate(kernel.scratch or 0, dims), np.uint8)
        queues = Queues(1)
        run_kernel = Loaded(module, tier)
        run_kernel(kernel.function.name, a, b, y, *sizes, scratch, 1, queues[0])
        np.testing.assert_allclose(y, exact, rtol=0, atol=8 * 2.0**-24 * 30)
