"""Strided N-d iteration: which extents a kernel walks, how far each operand moves along them, and the loops.

A `Space` has extents and, per operand, one stride per extent in elements (0 where the operand is broadcast). Axes that
all operands walk as one are merged, so most kernels have one or two. Extents and strides are symbolic; those that are
not integers become i64 parameters of the kernel (`Sizes`).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import llvmlite.ir as ir

from q8c.codegen.builder import I64, LANES, Builder, Operand, Value
from q8c.ir.dims import Dim, Expr, floordiv, product

Offsets = list[Value]


@dataclass(frozen=True)
class Space:
    """Extents, and per operand its stride along each, in elements."""

    extents: tuple[Dim, ...]
    strides: tuple[tuple[Dim, ...], ...]

    def merged(self) -> Space:
        """The same walk with axes of extent 1 dropped and neighbours merged where every operand allows it."""
        extents: list[Dim] = []
        strides: list[list[Dim]] = [[] for _ in self.strides]
        for axis, extent in enumerate(self.extents):
            if extent == 1:
                continue
            here = [s[axis] for s in self.strides]
            if extents and all(s[-1] == h * extent for s, h in zip(strides, here, strict=True)):
                extents[-1] = extents[-1] * extent
                for s, h in zip(strides, here, strict=True):
                    s[-1] = h
                continue
            extents.append(extent)
            for s, h in zip(strides, here, strict=True):
                s.append(h)
        return Space(tuple(extents), tuple(map(tuple, strides)))


@dataclass(frozen=True)
class Rows:
    """A space seen as rows along its last axis: `cols` columns, `along` the strides of the operands on it.

    Rows longer than `chunk` (if not 0) are cut; `outer` then has the chunks as its first axis and one more operand,
    the column a chunk starts at.
    """

    outer: Space
    cols: Dim
    along: tuple[Dim, ...]
    chunk: int = 0


def rows_of(space: Space, chunk: int) -> Rows:
    """The merged space as rows; columns are cut into chunks where they are many or unknown."""
    merged = space.merged()
    if not merged.extents:
        return Rows(merged, 1, (0,) * len(space.strides))
    cols = merged.extents[-1]
    along = tuple(s[-1] for s in merged.strides)
    extents, strides = merged.extents[:-1], tuple(s[:-1] for s in merged.strides)
    if isinstance(cols, int) and cols <= 2 * chunk:
        return Rows(Space(extents, strides), cols, along)
    cut = tuple((chunk * step, *own) for step, own in zip(along, strides, strict=True))
    outer = Space((floordiv(cols + (chunk - 1), chunk), *extents), (*cut, (chunk, *[0] * len(extents))))
    return Rows(outer, cols, along, chunk)


def dense_strides(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """Elements from one index to the next along every axis of a dense array."""
    return tuple(product(shape[axis + 1:]) for axis in range(len(shape)))


def broadcast_strides(shape: Sequence[Dim], rank: int) -> tuple[Dim, ...]:
    """Strides of a dense array seen in a space of `rank` axes: 0 on missing axes and those of extent 1."""
    own = tuple(0 if d == 1 else s for d, s in zip(shape, dense_strides(shape), strict=True))
    return (0,) * (rank - len(shape)) + own


def broadcast_shape(shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    """The extents of the space that holds all shapes; they are known to fit."""
    rank = max(map(len, shapes), default=0)
    found: list[Dim] = [1] * rank
    for shape in shapes:
        for axis, d in enumerate(shape, rank - len(shape)):
            if found[axis] == 1:
                found[axis] = d
    return tuple(found)


@dataclass
class Sizes:
    """The run-time integers a kernel takes, in order; sums with negative terms are taken apart, as sizes are >= 0."""

    dims: list[Expr] = field(default_factory=list)

    def need(self, *dims: Dim) -> None:
        """Make these available to `value`."""
        for dim in dims:
            for part in _signed(dim):
                if isinstance(part, Expr) and part not in self.dims:
                    self.dims.append(part)

    def need_space(self, space: Space) -> None:
        """Make a space's extents and strides available."""
        self.need(*space.extents, *(s for own in space.strides for s in own))

    def need_rows(self, rows: Rows) -> None:
        """Make available what `each_row` needs."""
        self.need_space(rows.outer)
        self.need(rows.cols, *rows.along)

    def params(self) -> list[tuple[str, ir.Type]]:
        """The kernel's parameters for them."""
        return [(f"size{n}", I64) for n in range(len(self.dims))]

    def value(self, b: Builder, dim: Dim) -> Value:
        """The size as an i64."""
        positive, negative = (self._part(b, p) for p in _signed(dim))
        return positive if _signed(dim)[1] == 0 else b.sub(positive, negative)

    def space_name(self, space: Space) -> str:
        """A space as the kernel sees it."""
        return " | ".join(" ".join(map(self.name, own)) for own in (space.extents, *space.strides))

    def rows_name(self, rows: Rows) -> str:
        """Rows as the kernel sees them."""
        return f"{self.space_name(rows.outer)} by {' '.join(map(self.name, (rows.cols, *rows.along)))} / {rows.chunk}"

    def name(self, dim: Dim) -> str:
        """The size as the kernel sees it, for keys of equal kernels: numbers of parameters in place of symbols."""
        return "-".join(f"s{self.dims.index(p)}" if isinstance(p, Expr) else str(p) for p in _signed(dim))

    def _part(self, b: Builder, dim: Dim) -> Value:
        return b.arg(f"size{self.dims.index(dim)}") if isinstance(dim, Expr) else ir.Constant(I64, dim)


def _signed(dim: Dim) -> tuple[Dim, Dim]:
    """(a, b) with dim = a - b and no negative coefficient in either."""
    if isinstance(dim, int):
        return dim, 0
    positive: Dim = 0
    negative: Dim = 0
    for monomial, coefficient in dim.terms:
        if coefficient > 0:
            positive = positive + Expr({monomial: coefficient}) if monomial else positive + coefficient
        else:
            negative = negative + Expr({monomial: -coefficient}) if monomial else negative - coefficient
    return positive, negative


def share(b: Builder, total: Operand, piece: Value, pieces: Value) -> tuple[Value, Value]:
    """The items [start, stop) of `total` that a piece is."""
    total, = b.coerce(total)
    each = b.ir.udiv(b.sub(b.add(total, pieces), 1), pieces)
    start = b.imin(b.mul(each, piece), total)
    return start, b.imin(b.add(start, each), total)


@dataclass(frozen=True)
class Run:
    """`count` items in a row along the last axis: item i of operand o is at bases[o] + i * steps[o]."""

    count: Value
    bases: Offsets
    steps: Offsets

    def offsets(self, b: Builder, index: Value) -> Offsets:
        """Where item `index` of the run is, per operand, in elements."""
        return [b.add(base, b.mul(index, step)) for base, step in zip(self.bases, self.steps, strict=True)]


def walk_runs(b: Builder, extents: Sequence[Value], strides: Sequence[Sequence[Value]], start: Value, stop: Value,
              body: Callable[[Run], None]) -> None:
    """Call `body(run)` so that its items are start ... stop - 1 of the extents' product in row-major order.

    `strides[operand][axis]` are elements. Where the last axis ends, the other indices are found by division.
    """
    if len(extents) <= 1:
        steps = [s[0] if s else ir.Constant(I64, 0) for s in strides]
        body(Run(b.sub(stop, start), [b.mul(start, step) for step in steps], steps))
        return
    extents, strides = _longer(b, extents, strides)
    last = extents[-1]

    def run(state: list[Value]) -> list[Value]:
        item = state[0]
        outer = b.ir.udiv(item, last)
        first = b.sub(item, b.mul(outer, last))
        count = b.imin(b.sub(last, first), b.sub(stop, item))
        bases = _bases(b, extents[:-1], strides, outer)
        steps = [s[-1] for s in strides]
        body(Run(count, [b.add(base, b.mul(first, step)) for base, step in zip(bases, steps, strict=True)], steps))
        return [b.add(item, count)]

    b.while_([start], lambda state: b.icmp("<", state[0], stop), run)


def _longer(b: Builder, extents: Sequence[Value],
            strides: Sequence[Sequence[Value]]) -> tuple[list[Value], list[list[Value]]]:
    """The same walk with the last two axes exchanged where the last has one index, as tokens have when they are
    generated one by one: runs are then as long as there are sequences."""
    single = b.icmp("==", extents[-1], 1)

    def exchanged(sizes: Sequence[Value]) -> list[Value]:
        *others, outer, inner = sizes
        return [*others, b.select(single, inner, outer), b.select(single, outer, inner)]
    return exchanged(extents), [exchanged(s) for s in strides]


def walk(b: Builder, extents: Sequence[Value], strides: Sequence[Sequence[Value]], start: Value, stop: Value,
         body: Callable[[Offsets], None]) -> None:
    """Call `body(offsets)` for items start ... stop - 1."""
    def items(run: Run) -> None:
        with b.range(0, run.count) as index:
            body(run.offsets(b, index))

    walk_runs(b, extents, strides, start, stop, items)


def _bases(b: Builder, extents: Sequence[Value], strides: Sequence[Sequence[Value]], index: Value) -> Offsets:
    bases = [ir.Constant(I64, 0) for _ in strides]
    rest = index
    for axis in reversed(range(len(extents))):
        if axis:
            outer = b.ir.udiv(rest, extents[axis])
            along = b.sub(rest, b.mul(outer, extents[axis]))
            rest = outer
        else:
            along = rest
        bases = [b.add(base, b.mul(along, s[axis])) for base, s in zip(bases, strides, strict=True)]
    return bases


def each_run(b: Builder, sizes: Sizes, space: Space, body: Callable[[Run], None]) -> None:
    """Call `body(run)` for this piece (parameters `piece`, `pieces`) of a space's items."""
    extents = [sizes.value(b, e) for e in space.extents]
    strides = [[sizes.value(b, s) for s in own] for own in space.strides]
    total: Operand = 1
    for extent in extents:
        total = b.mul(total, extent)
    start, stop = share(b, total, b.arg("piece"), b.arg("pieces"))
    walk_runs(b, extents, strides, start, stop, body)


def each_item(b: Builder, sizes: Sizes, space: Space, body: Callable[[Offsets], None]) -> None:
    """Call `body(offsets)` for this piece of a space's items."""
    def items(run: Run) -> None:
        with b.range(0, run.count) as index:
            body(run.offsets(b, index))

    each_run(b, sizes, space, items)


def each_row(b: Builder, sizes: Sizes, rows: Rows, body: Callable[[Offsets, Operand], None]) -> None:
    """Call `body(offsets, columns)` for this piece of rows, or of chunks of rows."""
    cols: Operand = rows.cols if isinstance(rows.cols, int) else sizes.value(b, rows.cols)

    def row(offsets: Offsets) -> None:
        if rows.chunk:
            body(offsets[:-1], b.imin(b.sub(cols, offsets[-1]), rows.chunk))
        else:
            body(offsets, cols)

    each_item(b, sizes, rows.outer, row)


Part = tuple[Value, int, "Operand | None"]
"""One vector of columns: the first column, its slot in the group, and how many are there (None: all 16)."""


def columns(b: Builder, cols: Operand, group: int, start: list[Value],
            block: Callable[[Value, int, Operand | None, list[Value]], list[Value]]) -> list[Value]:
    """`block(column, slot, count, carried)` for every vector of the columns; the last one may be partial."""
    def each(parts: list[Part], carried: list[Value]) -> list[Value]:
        for col, slot, count in parts:
            carried = block(col, slot, count, carried)
        return carried

    return column_groups(b, cols, group, start, each)


def column_groups(b: Builder, cols: Operand, group: int, start: list[Value],
                  body: Callable[[list[Part], list[Value]], list[Value]]) -> list[Value]:
    """`body(parts, carried)` for groups of `group` whole vectors, then for what is left, in smaller groups."""
    step = group * LANES

    def whole_group(col: Value, carried: list[Value]) -> list[Value]:
        return body([(b.add(col, slot * LANES), slot, None) for slot in range(group)], carried)

    if isinstance(cols, int):
        whole = cols // step * step
        carried = b.loop(0, whole, step, start, whole_group) if whole > step else start
        if whole == step:
            carried = whole_group(ir.Constant(I64, 0), carried)
        rest: list[Part] = [(ir.Constant(I64, col), slot, None if cols - col >= LANES else cols - col)
                            for slot, col in enumerate(range(whole, cols, LANES))]
        return body(rest, carried) if rest else carried
    whole = b.and_(cols, -step)
    carried = b.loop(0, whole, step, start, whole_group)
    return _rest(b, whole, cols, group, 0, carried, body)


def _rest(b: Builder, col: Value, cols: Value, group: int, slot: int, carried: list[Value],
          body: Callable[[list[Part], list[Value]], list[Value]]) -> list[Value]:
    if slot == group:
        return carried
    rest = b.sub(cols, col)

    def some() -> list[Value]:
        after = body([(col, slot, b.imin(rest, LANES))], carried)
        return _rest(b, b.add(col, LANES), cols, group, slot + 1, after, body)

    if not carried:
        with b.if_(b.icmp(">", rest, 0)):
            some()
        return carried
    return b.if_else(b.icmp(">", rest, 0), some, lambda: carried)
