"""Scans along an axis: cumsum, argmax and argmin.

Axes behind the scanned one go 16 elements at a time, the axis step by step. Where there are none, cumsum goes element
by element, and argmax keeps the best of every 16th element and compares the 16 at the end.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen import loop_ops
from q8c.codegen.builder import I64, LANES, Builder, Operand, Value, constant
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_fold import neutral
from q8c.codegen.loop_memory import (
    lanes_of,
    load_lanes,
    load_scalar,
    round_f16,
    scalar_type,
    store_lanes,
    store_scalar,
    vector_type,
)
from q8c.codegen.loop_space import Sizes, Space, columns, each_item
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, floordiv, product
from q8c.ir.graph import Node
from q8c.ir.ops import attributes
from q8c.ir.types import DType

V16L = lanes_of(I64)
Best = tuple[Value, Value]
"""Values and the indices they stand at."""


@dataclass(frozen=True)
class _Axis:
    """An array as [before, size, after]. `items` are (before, bands of 16 of after), its operands (x, y, band)."""

    size: Dim
    after: Dim
    items: Space

    @staticmethod
    def of(node: Node, axis: int, kept: bool) -> _Axis:
        """The operand's axis; `kept` says whether the result has it too."""
        shape = node.input(0).shape or (1,)
        axis %= len(shape)
        before, size, after = product(shape[:axis]), shape[axis], product(shape[axis + 1:])
        result = size * after if kept else after
        bands = floordiv(after + (LANES - 1), LANES)
        return _Axis(size, after, Space((before, bands), ((size * after, LANES), (result, LANES), (0, LANES))))

    def need(self, sizes: Sizes) -> str:
        """Make its sizes parameters; returns text that is equal for equal axes."""
        sizes.need_space(self.items)
        sizes.need(self.size, self.after)
        return f"{sizes.space_name(self.items)} {sizes.name(self.size)} {sizes.name(self.after)}"

    def each(self, b: Builder, sizes: Sizes, itemsizes: tuple[int, int],
             body: Callable[[Value, Value, Operand | None], None]) -> None:
        """Call `body(address of x, of y, columns)` for this piece's bands; columns None says there is no `after`."""
        def item(offsets: list[Value]) -> None:
            x, y = (b.at(b.arg(p), b.mul(o, s)) for p, o, s in zip(("p0", "p1"), offsets, itemsizes, strict=False))
            count = None if self.after == 1 else b.imin(b.sub(sizes.value(b, self.after), offsets[2]), LANES)
            body(x, y, count)

        each_item(b, sizes, self.items, item)


def cumsum(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """Running sums or products, in the order of the axis."""
    m, dtype, attrs = Movement(node), node.input(0).dtype, attributes(node)
    axis = _Axis.of(node, attrs["axis"], kept=True)
    reverse, exclusive, products = bool(attrs["reverse"]), bool(attrs["exclusive"]), node.op == "cumprod"
    key = f"{axis.need(m.sizes)} {dtype} {reverse} {exclusive}"

    def emit(b: Builder) -> None:
        size, after = m.sizes.value(b, axis.size), m.sizes.value(b, axis.after)

        def band(x: Value, y: Value, count: Operand | None) -> None:
            def step(i: Value, state: list[Value]) -> list[Value]:
                along = b.sub(b.sub(size, 1), i) if reverse else i
                at = b.mul(b.mul(along, after), dtype.itemsize)
                here = _load(b, dtype, b.at(x, at), count)
                total = b.mul(state[0], here) if products else b.add(state[0], here)
                total = round_f16(b, total) if dtype is DType.f16 else total
                _store(b, dtype, state[0] if exclusive else total, b.at(y, at), count)
                return [total]

            typ = scalar_type(dtype) if count is None else vector_type(dtype)
            b.loop(0, size, 1, [loop_ops.number(int(products), dtype, typ)], step)

        axis.each(b, m.sizes, (dtype.itemsize, dtype.itemsize), band)

    return m.kernel(module, tier, key, emit)


def argument(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """argmax, argmin: the first index of the extreme along an axis; the first NaN counts as the extreme."""
    m, dtype = Movement(node), node.input(0).dtype
    axis = _Axis.of(node, attributes(node)["axes"][0], kept=False)
    key = f"{axis.need(m.sizes)} {dtype}"

    def emit(b: Builder) -> None:
        search = _Search(b, dtype, largest=node.op == "argmax")
        size, after = m.sizes.value(b, axis.size), m.sizes.value(b, axis.after)

        def band(x: Value, y: Value, count: Operand | None) -> None:
            if count is None:
                store_scalar(b, DType.i64, search.along(x, size), y)
            else:
                store_lanes(b, DType.i64, search.across(x, size, after, count), y, count)

        axis.each(b, m.sizes, (dtype.itemsize, DType.i64.itemsize), band)

    return m.kernel(module, tier, key, emit)


def better(b: Builder, order: str, dtype: DType, x: Value, y: Value) -> Value:
    """Whether x is above (order `>`) or below (`<`) y; NaN is beyond every number."""
    wins = loop_ops.compare(b, order, dtype, x, y)
    return b.or_(wins, b.and_(b.is_nan(x), b.xor(b.is_nan(y), 1))) if dtype.is_float else wins


class _Search:
    """Finds where the extreme is."""

    def __init__(self, b: Builder, dtype: DType, largest: bool) -> None:
        self.b = b
        self.source = dtype
        self.dtype = DType.u8 if dtype is DType.bool else dtype
        self.order = ">" if largest else "<"
        self.start = neutral("row_max" if largest else "row_min", self.dtype)

    def _take(self, address: Value, count: Operand | None) -> Value:
        return loop_ops.cast(self.b, self.source, self.dtype, load_lanes(self.b, self.source, address, count))

    def better(self, x: Value, y: Value) -> Value:
        """Whether x beats y."""
        return better(self.b, self.order, self.dtype, x, y)

    def _update(self, best: Best, value: Value, index: Value, valid: Value | None = None) -> list[Value]:
        wins = self.better(value, best[0])
        wins = wins if valid is None else self.b.and_(wins, valid)
        return [self.b.select(wins, value, best[0]), self.b.select(wins, index, best[1])]

    def across(self, x: Value, size: Value, after: Value, count: Operand) -> Value:
        """The indices for 16 columns."""
        b = self.b

        def step(i: Value, state: list[Value]) -> list[Value]:
            value = self._take(b.at(x, b.mul(b.mul(i, after), self.dtype.itemsize)), count)
            return self._update((state[0], state[1]), value, b.splat(i, V16L))

        return b.loop(0, size, 1, [self.start, constant(V16L, 0)], step)[1]

    def along(self, x: Value, size: Value) -> Value:
        """The index in a contiguous row. Lane j starts at index j, so lanes past the end lose every tie to lane 0."""
        b = self.b

        def block(col: Value, slot: int, count: Operand | None, state: list[Value]) -> list[Value]:
            value = self._take(b.at(x, b.mul(col, self.dtype.itemsize)), count)
            index = b.add(b.iota(V16L), b.splat(col, V16L))
            return self._update((state[0], state[1]), value, index, None if count is None else b.tail_mask(count))

        values, indices = columns(b, size, 1, [self.start, b.iota(V16L)], block)
        while values.type.count > 2:
            values, indices = self._merge(tuple(zip(b.halves(values), b.halves(indices), strict=True)))
        lanes = [(b.lane(values, n), b.lane(indices, n)) for n in range(2)]
        return self._merge((lanes[0], lanes[1]))[1]

    def _merge(self, pair: tuple[Best, ...]) -> Best:
        """The better of two, lane by lane; of equals the one with the lower index."""
        b, ((v0, i0), (v1, i1)) = self.b, pair
        second = b.or_(self.better(v1, v0), b.and_(b.xor(self.better(v0, v1), 1), b.icmp("<", i1, i0)))
        return b.select(second, v1, v0), b.select(second, i1, i0)


def _load(b: Builder, dtype: DType, address: Value, count: Operand | None) -> Value:
    return load_scalar(b, dtype, address) if count is None else load_lanes(b, dtype, address, count)


def _store(b: Builder, dtype: DType, value: Value, address: Value, count: Operand | None) -> None:
    if count is None:
        store_scalar(b, dtype, value, address)
    else:
        store_lanes(b, dtype, value, address, count)
