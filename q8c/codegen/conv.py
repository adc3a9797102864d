"""Convolutions by groups of channels, straight from the operand: windows that overlap are not written out.

Lanes are neighbouring places of the last axis. For a block of them and some outputs of a group, sums stay in registers
over channels and the window's places, in ascending order with one fma each, so that a result's bits depend on nothing
but its operands.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen.builder import F32, LANES, V16F, Builder, Operand, Value
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_space import Space, dense_strides, each_item
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, product
from q8c.ir.graph import Node
from q8c.ir.ops import attributes

FLOAT = 4
_MOST_VECTORS = 8
_MOST_SUMS = {512: 24, 256: 6}
"""Sums of 16 lanes that stay in registers, beside what is multiplied."""
_UNROLLED = 8
"""Places of a window along the last axis that are written out."""


@dataclass(frozen=True)
class _Step:
    """One level of the sum: how many, and bytes from one to the next in operand and kernel."""

    count: int
    x: Dim
    w: int


def conv_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of a conv node whose last stride is 1."""
    x, w, y, attrs = node.input(0), node.input(1), node.output, attributes(node)
    assert attrs["strides"][-1] == 1
    outputs, channels, *kernel = (int(str(d)) for d in w.shape)
    own, taps = outputs // attrs["groups"], channels * int(str(product(kernel)))
    together = max(n for n in range(1, _MOST_SUMS[tier.vector_bits] // 4 + 3) if own % n == 0)
    from_x, from_y = dense_strides(x.shape), dense_strides(y.shape)
    space = Space((x.shape[0], attrs["groups"], own // together, *y.shape[2:-1]), (
        (from_x[0], channels * from_x[1], 0, *(d * s for d, s in zip(from_x[2:-1], attrs["strides"], strict=False))),
        (0, own * taps, together * taps, *[0] * (len(kernel) - 1)),
        (from_y[0], own * from_y[1], together * from_y[1], *from_y[2:-1]))).merged()
    steps = [_Step(channels, from_x[1] * FLOAT, FLOAT * taps // channels)]
    for axis, (count, dilation) in enumerate(zip(kernel, attrs["dilations"], strict=True)):
        steps.append(_Step(count, from_x[2 + axis] * dilation * FLOAT, FLOAT * int(str(product(kernel[axis + 1:])))))
    m = Movement(node)
    m.sizes.need_space(space)
    m.sizes.need(y.shape[-1], from_y[1], *(s.x for s in steps))

    def emit(b: Builder) -> None:
        block = _Block(b, together, taps * FLOAT, steps, [m.sizes.value(b, s.x) for s in steps],
                       b.mul(m.sizes.value(b, from_y[1]), FLOAT))

        def item(offsets: list[Value]) -> None:
            here = [b.at(b.arg(p), b.mul(o, FLOAT)) for p, o in zip(("p0", "p1", "p2"), offsets, strict=True)]
            block.row(here[0], here[1], here[2], m.sizes.value(b, y.shape[-1]))

        each_item(b, m.sizes, space, item)

    key = f"{m.sizes.space_name(space)} {m.sizes.name(y.shape[-1])} {m.sizes.name(from_y[1])} {together} " + " ".join(
        f"{s.count} {m.sizes.name(s.x)} {s.w}" for s in steps)
    return m.kernel(module, tier, key, emit)


@dataclass
class _Block:
    """Sums of `outputs` outputs, whose kernels are `apart` bytes apart and whose results `plane`."""

    b: Builder
    outputs: int
    apart: int
    steps: Sequence[_Step]
    x_steps: Sequence[Value]
    plane: Value

    @property
    def vectors(self) -> int:
        """Vectors of places in a block."""
        return min(_MOST_VECTORS, _MOST_SUMS[self.b.tier.vector_bits] // self.outputs)

    def row(self, x: Value, w: Value, y: Value, cols: Value) -> None:
        """All places of the last axis: whole blocks, and one of fewer vectors whose last may be a part of one."""
        b, size = self.b, self.vectors * LANES
        whole = b.mul(b.div(cols, size), size)
        with b.range(0, whole, size) as col:
            self.block(b.at(x, col, F32), w, b.at(y, col, F32), self.vectors, None)
        rest = b.sub(cols, whole)

        def some(vectors: int) -> Callable[[], None]:
            last = b.sub(rest, (vectors - 1) * LANES)
            return lambda: self.block(b.at(x, whole, F32), w, b.at(y, whole, F32), vectors, last)

        b.switch(b.ceildiv(rest, LANES), {n: some(n) for n in range(1, self.vectors + 1)})

    def block(self, x: Value, w: Value, y: Value, vectors: int, last: Operand | None) -> None:
        """The sums of `vectors` vectors of places, in the last of them `last` (None: all 16)."""
        b = self.b
        totals = self._sum(0, x, w, [b.splat(0.0)] * (self.outputs * vectors), vectors, last)
        for output in range(self.outputs):
            row = b.at(y, b.mul(self.plane, output))
            for n in range(vectors):
                total, place = totals[output * vectors + n], b.at(row, n * LANES, F32)
                if n == vectors - 1 and last is not None:
                    b.store_tail(total, place, last)
                else:
                    b.store(total, place, align=FLOAT)

    def _sum(self, level: int, x: Value, w: Value, totals: list[Value], vectors: int,
             last: Operand | None) -> list[Value]:
        """The totals with all that is below a level of the sum added."""
        if level == len(self.steps):
            return self._tap(x, w, totals, vectors, last)
        b, step, ahead = self.b, self.steps[level], self.x_steps[level]
        unrolled = step.count if level == len(self.steps) - 1 and step.count <= _UNROLLED else 1

        def one(state: list[Value]) -> list[Value]:
            x, w, *totals = state
            return [b.at(x, ahead), b.at(w, step.w), *self._sum(level + 1, x, w, totals, vectors, last)]

        state = [x, w, *totals]
        if unrolled == step.count:
            for _ in range(step.count):
                state = one(state)
        else:
            state = b.loop(0, step.count, 1, state, lambda _, state: one(state))
        return state[2:]

    def _tap(self, x: Value, w: Value, totals: list[Value], vectors: int, last: Operand | None) -> list[Value]:
        """The totals with one place of one channel added."""
        b, loaded = self.b, []
        for n in range(vectors):
            place = b.at(x, n * LANES, F32)
            partial = n == vectors - 1 and last is not None
            loaded.append(b.load_tail(V16F, place, last) if partial and last is not None else
                          b.load(V16F, place, align=FLOAT))
        weights = [b.splat(b.load(F32, b.at(w, output * self.apart))) for output in range(self.outputs)]
        return [b.fma(loaded[n], weights[output], totals[output * vectors + n])
                for output in range(self.outputs) for n in range(vectors)]
