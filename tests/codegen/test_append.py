"""append writes new rows where lengths say, as far as there is room, and zeros behind them where no more are kept."""
from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numpy as np
import pytest

from q8c.codegen.append import append_kernel, kept_kernel
from q8c.codegen.builder import Builder
from q8c.codegen.kernel import Kernel
from q8c.codegen.targets import TIERS, Tier
from q8c.errors import CompileError
from q8c.ir import parse_graph, q8
from q8c.ir.dims import evaluate
from q8c.ir.memory import CAPACITY, rows_held
from tests.codegen.jit import Loaded, build, guarded, runnable
from tests.codegen.kept import kept_rows

HEADS, SIZE = 2, 20
WIDE = f"""graph @g(%past: f32[b, {HEADS}, past, {SIZE}], %new: f32[b, s, 70], %lengths: i64[b]) {{
  %y: f32[b, {HEADS}, past + s, {SIZE}] = append(%past, %new, %lengths) {{
    kv_heads = {HEADS}, head_size = {SIZE}, offset = 24, in_place = true}}
  return %y
}}"""
SPLIT = WIDE.replace("%new: f32[b, s, 70]", f"%new: f32[b, {HEADS}, s, {SIZE}]").replace(" offset = 24,", "")


tiers = pytest.mark.parametrize("tier", [t for t in TIERS.values() if runnable(t)], ids=lambda t: t.name)


def compiled(tier: Tier, text: str) -> tuple[Kernel, Loaded]:
    """The kernel of the node, as the function `run`."""
    node, = parse_graph(text).nodes
    kernels: list[Kernel] = []

    def emit(module: ir.Module, tier: Tier) -> None:
        kernels.append((kept_kernel if node.op == "kept" else append_kernel)(module, tier, node))
        params = [(f"a{n}", a.type) for n, a in enumerate(kernels[0].function.args)]
        b = Builder(module, tier, "run", params)
        b.ir.call(kernels[0].function, [b.arg(name) for name, _ in params])
        b.ret()

    run = build(tier, emit)
    return kernels[0], run


@tiers
@pytest.mark.parametrize("text", [WIDE, SPLIT], ids=["wide", "split"])
def test_rows_go_where_lengths_say(tier: Tier, text: str) -> None:
    kernel, run = compiled(tier, text)
    rng = np.random.default_rng(0)
    for batch, seq, capacity, held in ((1, 1, 8, [3]), (3, 4, 9, [0, 5, 2]), (2, 5, 6, [6, 3]), (2, 0, 4, [1, 2])):
        lengths = np.array(held)
        present = guarded(rng.standard_normal((batch, HEADS, capacity, SIZE)).astype(np.float32))
        new = rng.standard_normal((batch, seq, 70) if text is WIDE else (batch, HEADS, seq, SIZE)).astype(np.float32)
        tokens = new[..., 24:64].reshape(batch, seq, HEADS, SIZE).transpose(0, 2, 1, 3) if text is WIDE else new
        expected = present.copy()
        for row, length in enumerate(held):
            there = max(0, min(seq, capacity - length))
            expected[row, :, length:length + there] = tokens[row, :, :there]
            if max(held) + seq == capacity:
                expected[row, :, length + there:] = 0
        past = rng.standard_normal((batch, HEADS, max(held), SIZE)).astype(np.float32)
        sizes = {"b": batch, "s": seq, "past": max(held)}
        values = [capacity if s == CAPACITY else evaluate(s, sizes) for s in kernel.sizes]
        frame = guarded(np.zeros(3, np.int64))
        for given in (None, guarded(past)):  # what is kept is there already, then it comes as an array
            for piece in range(3):
                run("run", given, guarded(new), guarded(lengths), present, *values, frame, 6, piece, 3)
            np.testing.assert_array_equal(present, expected)
            for row, length in enumerate(held):
                there = length if seq else max(held)
                expected[row, :, :there] = past[row, :, :there]
        assert not frame.any()


def test_a_copy_of_what_is_kept() -> None:
    kernel, run = compiled(TIERS["avx2"], f"""graph @g(%x: f32[b, {HEADS}, t, {SIZE}]) {{
      %y: f32[b, {HEADS}, t, {SIZE}] = kept(%x)
      return %y
    }}""")
    rng = np.random.default_rng(2)
    for batch, tokens, capacity in ((1, 1, 8), (3, 7, 7), (2, 9, 6), (2, 0, 4)):
        present = guarded(rng.standard_normal((batch, HEADS, capacity, SIZE)).astype(np.float32))
        copy = guarded(np.zeros((batch, HEADS, tokens, SIZE), np.float32))
        values = [capacity if s == CAPACITY else evaluate(s, {"b": batch, "t": tokens}) for s in kernel.sizes]
        for piece in range(3):
            run("run", present, copy, *values, piece, 3)
        np.testing.assert_array_equal(copy[:, :, :capacity], present[:, :, :tokens])
        assert not copy[:, :, capacity:].any()


@tiers
@pytest.mark.parametrize("keys", [True, False], ids=["keys", "values"])
def test_rows_of_8_bits(tier: Tier, keys: bool) -> None:
    """Those kept come as floats or are there already, those that are new begin anywhere; the oracle's bytes."""
    text = WIDE.replace("in_place", f'format = "int8-{"keys" if keys else "values"}", in_place')
    kernel, run = compiled(tier, text)
    rng = np.random.default_rng(1)
    batch, seq, past, capacity, lengths = 3, 19, 70, 128, np.array([70, 3, 127])
    kept = rng.standard_normal((batch, HEADS, past, SIZE)).astype(np.float32)
    kept *= np.exp(rng.uniform(-90, 80, (batch, HEADS, past, 1))).astype(np.float32)
    kept[0, 0, :4, 7] = np.nan, np.inf, 3e38, 0
    new = rng.standard_normal((batch, seq, 70)).astype(np.float32)
    new[1, 2, 30] = -np.inf
    tokens = new[..., 24:64].reshape(batch, seq, HEADS, SIZE).transpose(0, 2, 1, 3)
    for given in (kept, None):
        present = guarded(np.full(batch * HEADS * capacity * (SIZE + 4), 99, np.uint8))
        steps, scale = (a.copy() for a in kept_rows(present, batch, HEADS, capacity, SIZE, keys))
        for row, length in enumerate(lengths.tolist()):
            if given is not None:
                steps[row, :, :length][:, :past], scale[row, :, :length][:, :past] = q8.quantize_kept(
                    kept[row, :, :length])
            there = slice(length, min(length + seq, capacity))
            steps[row, :, there], scale[row, :, there] = q8.quantize_kept(tokens[row, :, :capacity - length])
        sizes = {"b": batch, "s": seq, "past": past}
        values = [capacity if s == CAPACITY else evaluate(s, sizes) for s in kernel.sizes]
        for piece in range(3):
            run("run", None if given is None else guarded(given), guarded(new), lengths, present, *values,
                np.zeros(3, np.int64), 6, piece, 3)
        got = kept_rows(present, batch, HEADS, capacity, SIZE, keys)
        np.testing.assert_array_equal(got[0], steps)
        np.testing.assert_array_equal(got[1], scale)


def test_only_what_grows_in_place_has_room_for_more() -> None:
    graph = parse_graph(WIDE)
    assert rows_held(graph.outputs[0]) == CAPACITY and rows_held(graph.inputs[0]) == graph.inputs[0].shape[2]


def test_an_append_without_lengths_has_no_kernel() -> None:
    node: Any = parse_graph(WIDE.replace("%new, %lengths", "%new").replace(", in_place = true", "")).nodes[0]
    with pytest.raises(CompileError, match="run keep-cache"):
        append_kernel(ir.Module(), next(iter(TIERS.values())), node)
