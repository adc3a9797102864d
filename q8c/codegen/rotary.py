"""rotary: pairs of a head's channels turned by the position of its token; each product is rounded by itself."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen.builder import F32, LANES, V16F, Builder, Value, sizeof
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_space import Space, dense_strides, each_item
from q8c.codegen.movement_copy import copy_row
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim
from q8c.ir.graph import Node
from q8c.ir.graph import Value as Operand
from q8c.ir.ops import attributes


def rotary_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of a `rotary` node; its pieces are runs of heads of tokens."""
    a = attributes(node)
    batch, seq, _ = node.output.shape
    heads, size = a["heads"], a["head_size"]
    space = Space((batch, seq, heads), (_head_strides(node.input(0), size), _angle_strides(node.input(1)),
                                        _angle_strides(node.input(2)), (seq * (heads * size), heads * size, size)))
    m = Movement(node)
    m.sizes.need_space(space)

    def emit(b: Builder) -> None:
        x = b.at(b.arg("p0"), a["offset"], F32)

        def item(offsets: list[Value]) -> None:
            pointers = (x, *(b.arg(f"p{n}") for n in (1, 2, 3)))
            head = _Head(b, *(b.at(p, at, F32) for p, at in zip(pointers, offsets, strict=True)))
            head.turn(a["rotary_size"] // 2, a["interleaved"])
            rest = size - a["rotary_size"]
            if rest:
                copy_row(b, sizeof(F32), b.at(head.x, size - rest, F32), b.at(head.y, size - rest, F32), rest)

        each_item(b, m.sizes, space, item)

    return m.kernel(module, tier, f"{m.sizes.space_name(space)} {sorted(a.items())}", emit)


def _head_strides(x: Operand, size: int) -> tuple[Dim, Dim, Dim]:
    """Elements from one batch item, token and head to the next."""
    dense = dense_strides(x.shape)
    return (dense[0], dense[2], dense[1]) if x.type.rank == 4 else (dense[0], dense[1], size)


def _angle_strides(angles: Operand) -> tuple[Dim, Dim, Dim]:
    """The same of cos or sin, which all heads share and all batch items may."""
    dense = dense_strides(angles.shape)
    return (0 if angles.shape[0] == 1 else dense[0], dense[1], 0)


@dataclass(frozen=True)
class _Head:
    """One head of one token: addresses of its channels, its cos and sin, its result."""

    b: Builder
    x: Value
    cos: Value
    sin: Value
    y: Value

    def turn(self, pairs: int, interleaved: bool) -> None:
        """Turn the first `pairs` pairs, 16 at a time."""
        step: Callable[[int, int], None] = self._neighbours if interleaved else lambda at, count: self._halves(
            at, count, pairs)
        for at in range(0, pairs, LANES):
            step(at, min(LANES, pairs - at))

    def _halves(self, at: int, count: int, pairs: int) -> None:
        first, second = self._turned(at, count, self._load(self.x, at, count), self._load(self.x, pairs + at, count))
        self._store(first, at, count)
        self._store(second, pairs + at, count)

    def _neighbours(self, at: int, count: int) -> None:
        b = self.b
        counts = (min(LANES, 2 * count), max(0, 2 * count - LANES))
        low, high = (self._load(self.x, 2 * at + n * LANES, c) if c else b.splat(0.0) for n, c in enumerate(counts))
        first, second = self._turned(at, count, b.shuffle(low, high, range(0, 2 * LANES, 2)),
                                     b.shuffle(low, high, range(1, 2 * LANES, 2)))
        pairs = [lane for n in range(LANES) for lane in (n, LANES + n)]
        for n, c in enumerate(counts):
            if c:
                self._store(b.shuffle(first, second, pairs[n * LANES:(n + 1) * LANES]), 2 * at + n * LANES, c)

    def _turned(self, at: int, count: int, first: Value, second: Value) -> tuple[Value, Value]:
        b = self.b
        cos, sin = self._load(self.cos, at, count), self._load(self.sin, at, count)
        return (b.sub(b.mul(first, cos), b.mul(second, sin)), b.add(b.mul(second, cos), b.mul(first, sin)))

    def _load(self, row: Value, at: int, count: int) -> Value:
        b, address = self.b, self.b.at(row, at, F32)
        return b.load(V16F, address) if count == LANES else b.load_tail(V16F, address, count)

    def _store(self, value: Value, at: int, count: int) -> None:
        b, address = self.b, self.b.at(self.y, at, F32)
        if count == LANES:
            b.store(value, address)
        else:
            b.store_tail(value, address, count)
