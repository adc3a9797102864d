"""Operands for the int8 linear kernel, its run, and its oracle `linear_ref`."""
from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from q8c.codegen import layout
from q8c.codegen.amx_linear import scratch_bytes
from q8c.codegen.bf16 import FEW_TOKENS
from q8c.codegen.q8_linear import emit_q8_linear
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.targets import Tier
from q8c.ir import q4, q8
from q8c.ir.memory import WIDE_TILE
from tests.codegen.jit import Loaded, aligned, build, guarded
from tests.codegen.queues import Queues


@cache
def kernel(tier: Tier, spec: Q8LinearSpec) -> tuple[Loaded, str]:
    """The compiled kernel and its symbol."""
    names: list[str] = []
    loaded = build(tier, lambda module, tier: names.append(emit_q8_linear(module, tier, spec).name))
    return loaded, names[0]


@dataclass
class Problem:
    """Operands of one linear: R8 rows, a Q8 weight and what is fused. Scales and zero points are [..., blocks]."""

    spec: Q8LinearSpec
    a: NDArray[np.int8]
    row_scale: NDArray[np.float32]
    row_zero: NDArray[np.int32]
    w: NDArray[np.uint8]
    w_scale: NDArray[np.floating[Any]]
    bias: NDArray[np.float32]
    residual: NDArray[np.float32]
    packed: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sums = q8.column_sums(self.w, self.spec.block)
        self.packed = {"w": aligned(layout.pack_q8(self.w)), "w_scale": aligned(layout.pack_scales(self.w_scale)),
                       "w_sum": aligned(layout.pack_sums(sums)), "bias": aligned(layout.pad_cols(self.bias))}
        if self.spec.bits == 4:
            found = q4.narrow(self.w, self.spec.block)
            assert found is not None and (found.offsets is not None) is self.spec.offsets and found.sign is None
            self.packed["w"] = aligned(layout.pack_q4(found.numbers))
            if found.offsets is not None:
                self.packed["w_offset"] = aligned(layout.pack_scales(found.offsets))

    def rows(self, first: int, last: int) -> Problem:
        """The same problem for some of the rows."""
        part = slice(first, last)
        return Problem(self.spec, self.a[part], self.row_scale[part], self.row_zero[part], self.w, self.w_scale,
                       self.bias, self.residual[part])

    def floats(self) -> NDArray[np.float32]:
        """The numbers that the rows stand for."""
        def of_rows(values: NDArray[Any]) -> NDArray[Any]:
            return np.repeat(values, self.spec.block or self.spec.depth, axis=1)[:, :self.spec.depth]
        zeros = of_rows(self.row_zero) if self.spec.zero_point else 0
        return np.asarray((self.a - zeros) * of_rows(self.row_scale), np.float32)

    def row_sums(self) -> NDArray[np.int32]:
        """Sums of the rows' int8 values, per block."""
        block = self.spec.block or self.spec.depth
        starts = np.arange(0, self.spec.depth, block)
        return np.add.reduceat(self.a.astype(np.int32), starts, axis=1, dtype=np.int32)


def problem(spec: Q8LinearSpec, rows: int, seed: int = 0, plain: bool = False) -> Problem:
    """Random operands over the full ranges; `plain` has all scales 1, so that results are the integers themselves."""
    rng = np.random.default_rng(seed)
    a = rng.integers(-127, 128, (rows, spec.depth)).astype(np.int8)
    w = rng.integers(0, 255, (spec.depth, spec.cols)).astype(np.uint8)
    if spec.bits == 4:
        w = narrow_weight(spec, rng)
    row_scale = np.exp(rng.normal(-4, 1, (rows, spec.blocks))).astype(np.float32)
    w_scale = np.exp(rng.normal(-6, 1, (spec.blocks, spec.cols))).astype(np.float32)
    row_zero = rng.integers(-127, 128, (rows, spec.blocks)).astype(np.int32)
    bias, residual = rng.normal(size=spec.cols), rng.normal(size=(rows, spec.result_cols))
    if spec.block:
        w_scale[0, 0] = 1 if spec.half else 2.0**-40
        w_scale = q8.block_scale(w_scale)
    if plain:
        row_scale, w_scale = np.ones_like(row_scale), np.ones_like(w_scale)
    return Problem(spec, a, row_scale, row_zero, w, w_scale if spec.block else w_scale[0], bias.astype(np.float32),
                   residual.astype(np.float32))


def narrow_weight(spec: Q8LinearSpec, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A Q8 weight that 4 bits hold, over the full range, with offsets if the spec has some."""
    n = rng.integers(0, q4.STEPS, (spec.depth, spec.cols)).astype(np.uint8)
    lowest = q8.ZERO_POINT - q4.STEPS + 1
    offsets = rng.integers(lowest, q8.ZERO_POINT + 1, (spec.blocks, spec.cols)).astype(np.uint8)
    return q4.widen(n, (offsets if spec.block else offsets[0]) if spec.offsets else None, spec.block)


def run(tier: Tier, p: Problem, threads: int = 1, ldy: int | None = None, in_place: bool = False,
        counts: Sequence[int] = ()) -> NDArray[np.float32]:
    """The kernel's y [rows, cols]; every operand ends at an unreadable page, gaps between rows of y are checked.
    `counts`: of each sequence, for a spec that is told of them."""
    loaded, name = kernel(tier, p.spec)
    rows, cols = p.residual.shape
    stride = ldy or cols
    y = guarded(np.full(max((rows - 1) * stride + cols, 0), -7, np.float32))
    view = np.lib.stride_tricks.as_strided(y, (rows, cols), (4 * stride, 4))
    residual = view if in_place else guarded(p.residual)
    if in_place:
        view[...] = p.residual
    values: dict[str, NDArray[Any] | int] = {
        **p.packed, "a": guarded(in_memory(tier, p, counts)), "row_scale": guarded(p.row_scale),
        "row_sum": guarded(p.row_sums()), "row_zero": guarded(p.row_zero), "y": y, "ldy": stride, "residual": residual,
        "ldr": stride if in_place else cols, "rows": rows, "threads": threads,
        "counts": guarded(np.array(counts, np.int64)), "tokens": rows // max(len(counts), 1)}
    queues = Queues(threads)
    scratch = [aligned(np.zeros(scratch_bytes(p.spec) or 0, np.uint8)) for _ in range(threads)]
    calls = [[(values | {"queue": queues[t], "scratch": scratch[t]})[param] for param, _ in p.spec.params]
             for t in range(threads)]
    workers = [threading.Thread(target=loaded, args=(name, *args)) for args in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    gaps = np.concatenate([y, np.full(rows * stride - y.size, -7, np.float32)]).reshape(rows, stride)[:, cols:]
    assert (gaps == -7).all(), "wrote outside its columns"
    return np.array(view)


def bfloat16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Floats rounded to bfloat16."""
    return np.asarray(x.astype(ml_dtypes.bfloat16).astype(np.float32))


def in_memory(tier: Tier, p: Problem, counts: Sequence[int] = ()) -> NDArray[np.int8]:
    """The rows as they lie; where wide ones may be bfloat16, those that are, and behind all of them NaN."""
    rows, depth = p.a.shape
    a = np.zeros((rows, p.spec.lda), np.int8)
    a[:, :depth] = p.a
    if not p.spec.wide:
        return a
    if tier.has("amx-bf16"):
        halves = p.floats().astype(ml_dtypes.bfloat16)
        many = np.repeat(np.array(counts or [rows]) > FEW_TOKENS, rows // max(len(counts), 1)) | (not p.spec.counted)
        a[many, :2 * depth] = halves.view(np.int8)[many]
    return np.concatenate([a, np.full((WIDE_TILE - 1, p.spec.lda), -1, np.int8)])


def products(p: Problem) -> NDArray[np.int32]:
    """The exact int32 sums, [rows, cols] or [rows, blocks, cols]."""
    return q8.matmul_ref(p.a, p.w, p.row_zero if p.spec.zero_point else None, p.spec.block)


def linear_ref(p: Problem) -> NDArray[np.float64]:
    """y in float64 from the exact int32 sums, the factors rounded where the kernel rounds them."""
    y = sum_of_blocks(p, products(p).astype(np.float32).astype(np.float64))
    if p.spec.bias:
        y = y + p.bias
    if p.spec.activation == "relu":
        y = np.where(y < 0, 0, y)
    return y + p.residual if p.spec.residual else y


def sum_of_blocks(p: Problem, acc: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums times their scales, blocks added up."""
    if not p.spec.block:
        return np.asarray(acc * (p.row_scale * p.w_scale).astype(np.float64))
    scaled = (acc.astype(np.float32) * p.w_scale).astype(np.float64)
    return np.asarray((scaled * p.row_scale[:, :, None].astype(np.float64)).sum(axis=1))
