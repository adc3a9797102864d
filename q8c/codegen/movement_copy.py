"""Strided copies: what transpose, broadcast_to, slice, concat, pad and plain copies are made of.

A copy walks a `Space` of two operands, the source and the target. Along the last merged axis it moves whole vectors
where both are contiguous, stores one element over and over where the source is broadcast, turns 8 x 8 tiles where the
source is contiguous along another axis, and goes element by element elsewhere.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import llvmlite.ir as ir

from q8c.codegen.builder import I64, Builder, Operand, Value
from q8c.codegen.loop_memory import lanes_of
from q8c.codegen.loop_space import Rows, Sizes, Space, columns, each_item, each_row, rows_of
from q8c.ir.dims import Dim, floordiv

CHUNK = 16384
"""Elements of the last axis that one piece takes at a time."""
TILE = 8


@dataclass(frozen=True)
class Copy:
    """Elements of `itemsize` bytes from pointer `source` to pointer `target`; offsets are in elements."""

    source: int
    target: int
    itemsize: int
    space: Space
    source_offset: Dim = 0
    target_offset: Dim = 0

    @cached_property
    def rows(self) -> Rows:
        """The space as rows."""
        return rows_of(self.space, CHUNK)

    @cached_property
    def tiles(self) -> Tiles | None:
        """The space as tiles, if the source is contiguous along another axis than the last."""
        space = self.space.merged()
        turned = [axis for axis, s in enumerate(space.strides[0][:-1]) if s == 1]
        if not turned or space.strides[0][-1] == 0 or space.strides[1][-1] != 1:
            return None
        axis = turned[-1]
        extents, strides = list(space.extents[:-1]), [list(s[:-1]) for s in space.strides] + [[0] * axis]
        down, extent = strides[1][axis], extents[axis]
        extents[axis] = floordiv(extent + (TILE - 1), TILE)
        for own in strides[:2]:
            own[axis] = own[axis] * TILE
        strides[2] += [TILE] + [0] * (len(extents) - axis - 1)
        outer = Space(tuple(extents), tuple(map(tuple, strides)))
        return Tiles(outer, extent, space.extents[-1], space.strides[0][-1], down)

    def need(self, sizes: Sizes) -> None:
        """Make the sizes of the copy parameters of the kernel."""
        sizes.need(self.source_offset, self.target_offset)
        if self.tiles is not None:
            sizes.need_space(self.tiles.outer)
            sizes.need(self.tiles.height, self.tiles.width, self.tiles.across, self.tiles.down)
        else:
            sizes.need_rows(self.rows)

    def key(self, sizes: Sizes) -> str:
        """Text that is equal for equal code."""
        space = self.space.merged()
        return (f"{self.source}>{self.target} x{self.itemsize} {sizes.name(self.source_offset)} "
                f"{sizes.name(self.target_offset)} ") + (sizes.rows_name(self.rows) if self.tiles is None else
                                                         f"{self.tiles.key(sizes)} {space.extents}")


@dataclass(frozen=True)
class Tiles:
    """A copy as bands of 8 source-contiguous elements: `height` elements along the turned axis, `width` along the last
    axis of the target; `across` is the source's stride along the width, `down` the target's along the height.
    """

    outer: Space
    height: Dim
    width: Dim
    across: Dim
    down: Dim

    def key(self, sizes: Sizes) -> str:
        """Text that is equal for equal code."""
        own = map(sizes.name, (self.height, self.width, self.across, self.down))
        return f"{' '.join(own)} {sizes.space_name(self.outer)}"


def emit_copy(b: Builder, copy: Copy, sizes: Sizes) -> None:
    """This piece of a copy."""
    emitter = _Copier(b, copy, sizes)
    if copy.tiles is not None:
        tiles = copy.tiles
        each_item(b, sizes, tiles.outer, lambda offsets: emitter.band(tiles, offsets))
    else:
        each_row(b, sizes, copy.rows, emitter.row)


def copy_row(b: Builder, itemsize: int, source: Value, target: Value, count: Operand) -> None:
    """`count` contiguous elements from source to target."""
    typ = ir.IntType(8 * itemsize)

    def block(col: Value, slot: int, part: Operand | None, carried: list[Value]) -> list[Value]:
        at = b.mul(col, itemsize)
        _store(b, _load(b, typ, b.at(source, at), part), b.at(target, at), part)
        return carried

    if isinstance(count, int) and count == 1:
        b.store(b.load(typ, source), target)
    else:
        columns(b, count, 4, [], block)


def fill_row(b: Builder, element: Value, target: Value, count: Operand) -> None:
    """The integer `element` stored `count` times."""
    lanes = b.splat(element, lanes_of(element.type))
    itemsize = element.type.width // 8

    def block(col: Value, slot: int, part: Operand | None, carried: list[Value]) -> list[Value]:
        _store(b, lanes, b.at(target, b.mul(col, itemsize)), part)
        return carried

    columns(b, count, 4, [], block)


def _load(b: Builder, typ: ir.Type, address: Value, count: Operand | None) -> Value:
    return b.load(lanes_of(typ), address) if count is None else b.load_tail(lanes_of(typ), address, count)


def _store(b: Builder, value: Value, address: Value, count: Operand | None) -> None:
    if count is None:
        b.store(value, address)
    else:
        b.store_tail(value, address, count)


class _Copier:
    def __init__(self, b: Builder, copy: Copy, sizes: Sizes) -> None:
        self.b, self.copy, self.sizes = b, copy, sizes
        self.typ = ir.IntType(8 * copy.itemsize)
        self.source = self.address(b.arg(f"p{copy.source}"), sizes.value(b, copy.source_offset))
        self.target = self.address(b.arg(f"p{copy.target}"), sizes.value(b, copy.target_offset))

    def address(self, base: Value, elements: Operand) -> Value:
        return self.b.at(base, self.b.mul(elements, self.copy.itemsize))

    def row(self, offsets: Sequence[Value], count: Operand) -> None:
        """One row, or a chunk of one."""
        b, rows = self.b, self.copy.rows
        source, target = self.address(self.source, offsets[0]), self.address(self.target, offsets[1])
        if rows.cols == 1 or rows.along == (1, 1):
            copy_row(b, self.copy.itemsize, source, target, count)
        elif rows.along == (0, 1):
            fill_row(b, b.load(self.typ, source), target, count)
        else:
            self._elements(source, target, count, *(self.sizes.value(b, a) for a in rows.along))

    def _elements(self, source: Value, target: Value, count: Operand, along: Value, across: Value,
                  start: Operand = 0) -> None:
        b = self.b
        with b.range(start, count) as i:
            element = b.load(self.typ, self.address(source, b.mul(i, along)))
            b.store(element, self.address(target, b.mul(i, across)))

    def band(self, tiles: Tiles, offsets: Sequence[Value]) -> None:
        """Up to 8 elements of the turned axis by the whole width."""
        b = self.b
        source, target = self.address(self.source, offsets[0]), self.address(self.target, offsets[1])
        height, width, across, down = (self.sizes.value(b, d) for d in
                                       (tiles.height, tiles.width, tiles.across, tiles.down))
        rest = b.sub(height, offsets[2])
        whole = b.select(b.icmp(">=", rest, TILE), b.and_(width, -TILE), ir.Constant(I64, 0))
        with b.range(0, whole, TILE) as col:
            self._tile(self.address(source, b.mul(col, across)), self.address(target, col), across, down)
        with b.range(0, b.imin(rest, TILE)) as row:
            self._elements(self.address(source, row), self.address(target, b.mul(row, down)), width, across,
                           ir.Constant(I64, 1), whole)

    def _tile(self, source: Value, target: Value, across: Value, down: Value) -> None:
        """8 x 8 elements turned in registers: blocks of 4, 2 and 1 lanes change places."""
        b, typ = self.b, ir.VectorType(self.typ, TILE)
        lines = [b.load(typ, self.address(source, b.mul(across, n))) for n in range(TILE)]
        for size in (4, 2, 1):
            first = [j if not j & size else TILE + (j ^ size) for j in range(TILE)]
            second = [j | size if not j & size else TILE + j for j in range(TILE)]
            for n in range(TILE):
                if not n & size:
                    x, y = lines[n], lines[n | size]
                    lines[n], lines[n | size] = b.shuffle(x, y, first), b.shuffle(x, y, second)
        for n, line in enumerate(lines):
            b.store(line, self.address(target, b.mul(down, n)))
