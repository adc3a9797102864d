"""Batched float matrix products of two run-time operands: panels of b are packed to scratch, then multiplied.

Every output is one chain of fma over ascending depth, as in `f32_linear`.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen.attention_math import transpose
from q8c.codegen.builder import F32, I64, LANES, PTR, V16F, Builder, Value, constant
from q8c.codegen.draw import draw
from q8c.codegen.targets import Tier
from q8c.codegen.tasks import for_tiles

ROWS = 6
"""Rows of a tile: with two registers of columns, 12 accumulators hide the latency of fma."""


@dataclass(frozen=True)
class F32MatmulSpec:
    """y[..., r, c] = sum_k a[..., r, k] * b[..., k, c], or b[..., c, k] with `transpose_b`; all sizes at run time.

    `batch_dims` counts the leading dimensions; an operand's stride of 0 in one repeats it.
    """

    batch_dims: int
    transpose_b: bool = False

    @property
    def name(self) -> str:
        """The kernel's symbol without the tier."""
        return f"q8c_matmul_f32_b{self.batch_dims}{'_transposed' if self.transpose_b else ''}"

    @property
    def sizes(self) -> list[str]:
        """The integer parameters: rows, cols, depth, then size and strides (in elements) of each batch dimension."""
        per_batch = [f"{what}{n}" for n in range(self.batch_dims) for what in ("size", "a_stride", "b_stride")]
        return ["rows", "cols", "depth", *per_batch]

    @property
    def params(self) -> list[tuple[str, ir.Type]]:
        """The kernel's parameters, in order. Rows of every operand are dense; y is dense throughout."""
        return [*((n, PTR) for n in ("a", "b", "y")), *((n, I64) for n in self.sizes), ("scratch", PTR),
                ("threads", I64), ("queue", PTR)]


def panel_groups(tier: Tier) -> int:
    """Panels of 16 columns that a tile multiplies at once."""
    return 2 if tier.vector_bits == 512 else 1


SCRATCH_PER_DEPTH = 2 * 4 * LANES
"""Bytes of a thread's scratch per step of depth, depth rounded up to 16."""


def emit_f32_matmul(module: ir.Module, tier: Tier, spec: F32MatmulSpec) -> ir.Function:
    """Add the kernel of `spec` to the module: `void name(params)` with `spec.params`.

    Threads draw tasks (a batch entry and a group of columns) from `queue` (see `draw`).
    """
    return _Matmul(module, tier, spec).emit()


class _Matmul:
    """One kernel being emitted."""

    def __init__(self, module: ir.Module, tier: Tier, spec: F32MatmulSpec) -> None:
        self.spec = spec
        self.panels = panel_groups(tier)
        self.b = Builder(module, tier, f"{spec.name}__{tier.name.replace('-', '')}", spec.params, internal=True)
        self.rows, self.cols, self.depth = (self.b.arg(n) for n in ("rows", "cols", "depth"))

    def emit(self) -> ir.Function:
        b = self.b
        groups = b.ceildiv(self.cols, LANES * self.panels)
        tasks = b.mul(groups, self.batch())
        empty = b.or_(b.icmp("<=", self.rows, 0), b.icmp("<=", tasks, 0))

        def task(drawn: list[Value]) -> list[Value]:
            self.task(b.div(drawn[0], groups), b.rem(drawn[0], groups))
            return [draw(b, b.arg("queue"), tasks)]

        with b.if_(b.xor(empty, 1)):
            b.while_([draw(b, b.arg("queue"), tasks)], lambda drawn: b.icmp(">=", drawn[0], 0), task)
        b.ret()
        return b.function

    def batch(self) -> Value:
        """How many matrices there are."""
        count = constant(I64, 1)
        for n in range(self.spec.batch_dims):
            count = self.b.mul(count, self.b.arg(f"size{n}"))
        return count

    def task(self, entry: Value, group: Value) -> None:
        """All rows of one matrix by one group of columns."""
        b = self.b
        a, right = self.matrix("a", entry), self.matrix("b", entry)
        first = b.mul(group, LANES * self.panels)
        y = b.at(b.at(b.arg("y"), b.mul(entry, b.mul(self.rows, self.cols)), F32), first, F32)
        left = b.sub(self.cols, first)
        if self.spec.transpose_b:
            self.pack_transposed(b.at(right, b.mul(first, self.depth), F32), left)
        else:
            self.pack(b.at(right, first, F32), left)
        for_tiles(b, self.rows, ROWS, lambda first, size, count: b.switch(
            size, {rows: self.strip(rows, a, y, left, first, count) for rows in range(1, ROWS + 1)}))

    def matrix(self, name: str, entry: Value) -> Value:
        """Where an operand's matrix of a batch entry begins."""
        b, offset = self.b, constant(I64, 0)
        for n in reversed(range(self.spec.batch_dims)):
            size = b.arg(f"size{n}")
            offset = b.add(offset, b.mul(b.rem(entry, size), b.arg(f"{name}_stride{n}")))
            entry = b.div(entry, size)
        return b.at(b.arg(name), offset, F32)

    # -- packing: [panel][depth][16], zeros past the last column

    def panel(self, number: int) -> Value:
        """Where a packed panel begins."""
        return self.b.at(self.b.arg("scratch"), self.b.mul(self.pitch(), number * LANES), F32)

    def pitch(self) -> Value:
        """Depth rounded up to whole vectors."""
        return self.b.mul(self.b.ceildiv(self.depth, LANES), LANES)

    def pack(self, source: Value, left: Value) -> None:
        """Copy rows of b, 16 columns to a panel."""
        b = self.b
        for p in range(self.panels):
            panel, count = self.panel(p), b.imax(b.sub(left, p * LANES), 0)
            mask_count = b.imin(count, LANES)
            with b.range(0, self.depth) as k:
                row = b.at(source, b.add(b.mul(k, self.cols), p * LANES), F32)
                b.store(b.load_tail(V16F, row, mask_count), b.at(panel, b.mul(k, LANES), F32))

    def pack_transposed(self, source: Value, left: Value) -> None:
        """Turn blocks of rows of b, which are columns of the product, by 90 degrees."""
        b, lanes = self.b, self.b.tier.lanes
        with b.range(0, self.depth, LANES) as k:
            wide = b.imin(b.sub(self.depth, k), LANES)
            for p in range(self.panels):
                target = b.at(self.panel(p), b.mul(k, LANES), F32)
                for part in range(0, LANES, lanes):
                    columns = range(p * LANES + part, p * LANES + part + lanes)
                    for n, row in enumerate(transpose(b, [self.b_row(source, left, c, k, wide) for c in columns])):
                        b.store(row, b.at(target, n * LANES + part, F32))

    def b_row(self, source: Value, left: Value, column: int, k: Value, count: Value) -> Value:
        """16 steps of depth of one column of the product; zeros past the last column."""
        b = self.b
        exists = b.icmp(">", left, column)
        row = b.at(source, b.add(b.mul(b.select(exists, column, 0), self.depth), k), F32)
        return b.load_tail(V16F, row, b.select(exists, count, 0))

    # -- multiplying

    def strip(self, rows: int, a: Value, y: Value, left: Value, first: Value, count: Value) -> Callable[[], None]:
        """`count` tiles of `rows` rows from row `first` down."""
        b = self.b

        def emit() -> None:
            with b.range(0, count) as tile:
                row = b.add(first, b.mul(tile, rows))
                sums = self.sums(rows, b.at(a, b.mul(row, self.depth), F32))
                target = b.at(y, b.mul(row, self.cols), F32)
                whole = b.icmp(">=", left, LANES * self.panels)
                b.if_else(whole, lambda: self.store(sums, target, None), lambda: self.store(sums, target, left))
        return emit

    def sums(self, rows: int, a: Value) -> list[list[Value]]:
        """The sums of a tile, by row and panel."""
        b = self.b
        pitch = self.depth
        starts = [b.splat(0.0)] * (rows * self.panels)
        row_pointers = [b.at(a, b.mul(pitch, r), F32) for r in range(rows)]
        panels = [self.panel(p) for p in range(self.panels)]

        def step(k: Value, accs: list[Value]) -> list[Value]:
            weights = [b.load(V16F, b.at(panel, b.mul(k, LANES), F32)) for panel in panels]
            values = [b.splat(b.load(F32, b.at(row, k, F32))) for row in row_pointers]
            return [b.fma(value, w, accs[r * self.panels + p])
                    for r, value in enumerate(values) for p, w in enumerate(weights)]

        sums = b.loop(0, self.depth, 1, starts, step)
        return [sums[r * self.panels:(r + 1) * self.panels] for r in range(rows)]

    def store(self, sums: list[list[Value]], y: Value, left: Value | None) -> list[Value]:
        """Write a tile, its last columns masked if only `left` are left."""
        b = self.b
        for row in sums:
            for p, value in enumerate(row):
                address = b.at(y, p * LANES, F32)
                if left is None:
                    b.store(value, address)
                else:
                    b.store_tail(value, address, b.imax(b.sub(left, p * LANES), 0))
            y = b.at(y, self.cols, F32)
        return []
