"""int8 tiles: exact integer sums per block of depth, scaled and added up in float."""
from __future__ import annotations

from typing import NamedTuple

import llvmlite.ir as ir

from q8c.codegen.builder import F32, I8, I16, I32, I64, LANES, V16I, Builder, Operand, Value, constant
from q8c.codegen.layout import GROUP, PANEL
from q8c.codegen.linear_spec import STEP_BYTES, LinearSpec
from q8c.codegen.linear_tile import TileEmitter
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.ir.q8 import SUM_LIMIT

V8I = ir.VectorType(I32, 8)
FLOAT_OFFSET = 3.0 * SUM_LIMIT
FLOAT_BITS = 0x4B400000
"""The bits of FLOAT_OFFSET. It lies in the middle of the floats that are 1 apart: an integer below SUM_LIMIT added to
its bits is added to its value."""
OWN_SUMS_ROWS = 2
"""Rows up to which sums of a block's weights are computed and not read: there is time while weights arrive, and they
are a tenth of the bytes. Of more rows the sums of products need the registers."""


def load_scales(b: Builder, typ: ir.Type, address: Value, lanes: int = PANEL) -> Value:
    """So many scales as f32: `typ` is F32, or I16 for half floats."""
    scales = b.load(ir.VectorType(typ, lanes), address)
    if typ is F32:
        return scales
    return b.ir.fpext(b.bitcast(scales, ir.VectorType(ir.HalfType(), lanes)), ir.VectorType(F32, lanes))


def load_sums(b: Builder, typ: ir.Type, address: Value, lanes: int = PANEL) -> Value:
    """So many sums of weights as pairs of i16 (see `layout.pack_sums`): `typ` is I32, or I16 for sums of 16 bits, the
    second of each pair then being 0."""
    sums = b.load(ir.VectorType(typ, lanes), address)
    return sums if typ is I32 else b.zext(sums, ir.VectorType(I32, lanes))


class Columns(NamedTuple):
    """Columns that one register holds: `lanes` of a panel from lane `first` (an i64 value or a number) on."""

    panel: int
    first: Operand
    lanes: int


class Q8TileEmitter(TileEmitter):
    """Rows of broadcast dwords against registers of weights, 4 steps of depth in one instruction (`vpdpbusd`)."""

    spec: Q8LinearSpec

    @staticmethod
    def prepare(b: Builder, spec: LinearSpec, rows: int, values: dict[str, Value]) -> dict[str, Value]:
        """What the sums of each row and block start at, and zero points as pairs for `layout.pack_sums`, both i32.

        Sums of blocks start at FLOAT_BITS, and so need no conversion to float.
        """
        assert isinstance(spec, Q8LinearSpec)
        return prepare_rows(b, spec, constant(I64, rows), rows, values)

    def scaled(self, total: Value, row: int, panel: int) -> Value:
        """With one scale per row and column, float(total) * (row scale * column scale) + bias, the last two in one
        fma; what blocks gave already is a float."""
        b, bias = self.b, None
        if self.spec.bias:
            bias = self.column_values("bias", panel)
        if self.spec.block:
            return total if bias is None else b.add(total, bias)
        factor = b.mul(self.row_value("row_scale", row, constant(I64, 0)), self.column_values("w_scale", panel))
        y = b.to_f32(total)
        return b.mul(y, factor) if bias is None else b.fma(y, factor, bias)

    def sums(self) -> list[list[Value]]:
        """The product of every row and panel: int32, or float if there are blocks."""
        panels = self.tile.panels
        totals = self.sums_of([Columns(p, 0, PANEL) for p in range(panels)])
        return [totals[r * panels:(r + 1) * panels] for r in range(self.tile.rows)]

    def sums_of(self, columns: list[Columns]) -> list[Value]:
        """The product of some columns, row by row."""
        return self.block_sums(columns) if self.spec.block else self.integer_sums(columns)

    def integer_sums(self, columns: list[Columns]) -> list[Value]:
        """sum of (a - zero) * (w - 127) over all of depth, row by row."""
        pointers = self.start([self.values["a"], self.weights(columns)])
        return self.block(columns, constant(I64, 0), pointers, self.spec.steps)[0]

    def block_sums(self, columns: list[Columns]) -> list[Value]:
        """Blocks scaled and added in order, row by row: fma(float(sum) * column scale, row scale, total).

        A sum comes as the bits of FLOAT_OFFSET + sum; the product with FLOAT_OFFSET is exact (`q8.block_scale`), so one
        fma gives float(sum) * column scale with the one rounding that has.
        """
        b, spec = self.b, self.spec
        *same, last = spec.block_steps
        if last == spec.block_steps[0]:
            same, last = spec.block_steps, 0
        totals = [b.splat(0.0, ir.VectorType(F32, c.lanes)) for _ in range(self.tile.rows) for c in columns]

        def add(number: Value, carried: list[Value], steps: int) -> list[Value]:
            totals, pointers = carried[:len(carried) - moving], carried[len(carried) - moving:]
            sums, pointers = self.block(columns, number, pointers, steps)
            scales = [self.scales(c, number) for c in columns]
            offsets = [b.mul(scale, -FLOAT_OFFSET) for scale in scales]
            for r in range(self.tile.rows):
                for n, c in enumerate(columns):
                    at = r * len(columns) + n
                    scaled = b.fma(b.from_bits(sums[at]), scales[n], offsets[n])
                    totals[at] = b.fma(scaled, self.row_value("row_scale", r, number, c.lanes), totals[at])
            return [*totals, *pointers]

        pointers = self.start([self.values["a"], self.weights(columns)])
        moving = len(pointers)
        carried = [*totals, *pointers]
        if same:
            carried = b.loop(0, len(same), 1, carried, lambda number, carried: add(number, carried, same[0]))
        if last:
            carried = add(constant(I64, len(same)), carried, last)
        return carried[:len(totals)]

    def block(self, columns: list[Columns], number: Value, pointers: list[Value],
              steps: int) -> tuple[list[Value], list[Value]]:
        """int32 sums of one block, row by row, and the pointers after it."""
        rows = [(r, c) for r in range(self.tile.rows) for c in columns]
        starts = [self.row_value("starts", r, number, c.lanes) for r, c in rows]

        def step(accs: list[Value], pointers: list[Value], step_number: int) -> list[Value]:
            return self.step(columns, accs, pointers, step_number)

        if self.spec.offsets:
            self.offsets = [load_offsets(self.b, self.block_address("w_offset", c, number, I8), c.lanes)
                            for c in columns]
        if not self.spec.zero_point:
            return self.along_depth(starts, pointers, steps, step)
        if self.own_sums:
            starts += [constant(ir.VectorType(I32, c.lanes), -self.spec.weight_zero * GROUP * steps) for c in columns]
            accs, pointers = self.along_depth(starts, pointers, steps, step)
            accs, own = accs[:len(rows)], accs[len(rows):]
            return [self.less_zeros(acc, r, number, own[n % len(columns)], 0xFFFF)
                    for n, (acc, (r, _)) in enumerate(zip(accs, rows, strict=True))], pointers
        typ = I16 if self.spec.block else I32
        for n, (r, c) in enumerate(rows):
            sums = load_sums(self.b, typ, self.block_address("w_sum", c, number, typ), c.lanes)
            starts[n] = self.less_zeros(starts[n], r, number, sums, -1)
        return self.along_depth(starts, pointers, steps, step)

    @property
    def own_sums(self) -> bool:
        """Whether sums of weights are computed beside those of products, after which they come."""
        spec = self.spec
        return spec.zero_point and spec.block != 0 and self.b.tier.has_vnni and self.tile.rows <= OWN_SUMS_ROWS

    def less_zeros(self, acc: Value, row: int, number: Value, sums: Value, mask: int) -> Value:
        """acc - zero * sums of 32-bit lanes, which are what `layout.pack_sums` makes of sums, or sums of 16 bits: the
        mask then leaves one factor of the pair."""
        b, pairs = self.b, ir.VectorType(I16, 2 * sums.type.count)
        zeros = b.and_(self.row_value("zeros", row, number, sums.type.count), mask)
        return b.dot_s16(acc, b.bitcast(sums, pairs), b.bitcast(zeros, pairs))

    def row_value(self, name: str, row: int, number: Value, lanes: int = PANEL) -> Value:
        """A row's value for a block, in all lanes."""
        b = self.b
        scalar = F32 if name == "row_scale" else I32
        address = b.at(self.values[name], b.add(number, row * self.spec.blocks), scalar)
        return b.splat(b.load(scalar, address), ir.VectorType(scalar, lanes))

    def scales(self, columns: Columns, number: Value) -> Value:
        """The scales of some columns for a block."""
        typ = I16 if self.spec.half else F32
        return load_scales(self.b, typ, self.block_address("w_scale", columns, number, typ), columns.lanes)

    def block_address(self, name: str, columns: Columns, number: Value, typ: ir.Type) -> Value:
        """Where the values of some columns for a block are, in [panels][blocks][16]."""
        b = self.b
        panel = b.at(self.values[name], columns.panel * self.spec.blocks * PANEL, typ)
        return b.at(b.at(panel, columns.first, typ), b.mul(number, PANEL), typ)

    def weights(self, columns: list[Columns]) -> Value:
        """Where the weights of the first columns begin."""
        panel = self.b.at(self.values["w"], columns[0].panel * self.spec.panel_bytes)
        return self.b.at(panel, columns[0].first, I32)

    def weight(self, w: Value, columns: Columns, n: int, number: int) -> Value:
        """The register of 4 steps of depth of the n-th columns, whose weights in memory are at `w`; those of 4 bits lie
        two and two such steps together."""
        b, typ = self.b, ir.VectorType(I32, columns.lanes)
        odd = number % 2 if self.spec.bits == 4 else 0
        both = b.load(typ, b.at(w, -odd * self.spec.step_bytes), align=4 * columns.lanes)
        if self.spec.bits == 8:
            return both
        return nibbles(b, both, odd, self.offsets[n] if self.spec.offsets else None)

    def step(self, columns: list[Columns], accs: list[Value], pointers: list[Value], number: int) -> list[Value]:
        """4 columns of depth for every row and panel."""
        b, tile = self.b, self.tile
        a, w = pointers
        weights = [self.weight(b.at(w, c.panel * self.spec.panel_bytes), c, n, number) for n, c in enumerate(columns)]
        for r in range(tile.rows):
            dword = b.splat(b.load(I32, b.at(a, r * self.spec.lda)), V16I)
            for n, weight in enumerate(weights):
                accs[r * len(columns) + n] = b.dot_u8s8(accs[r * len(columns) + n], weight, dword)
        if self.own_sums:
            ones = constant(V16I, 0x01010101)
            accs[tile.rows * len(columns):] = [b.dot_u8s8(acc, weight, ones) for acc, weight in zip(
                accs[tile.rows * len(columns):], weights, strict=True)]
        return accs


class WidenedTileEmitter(Q8TileEmitter):
    """The tile without VNNI: exact through `vpmaddwd` on rows widened to 16 bits beforehand (`emit_widen`).

    4 instructions per row and 8 columns, 2 more per 8 columns: so many rows by half a panel at a time.
    """

    def sums(self) -> list[list[Value]]:
        """The product of every row and the only panel, half of it at a time."""
        b, rows = self.b, self.tile.rows
        typ = ir.VectorType(F32 if self.spec.block else I32, PANEL)
        kept = b.scratch(STEP_BYTES * rows)
        with b.range(0, PANEL, PANEL // 2) as first:
            for r, total in enumerate(self.sums_of([Columns(0, first, PANEL // 2)])):
                b.store(total, b.at(b.at(kept, r * STEP_BYTES), first, I32))
        return [[b.load(typ, b.at(kept, r * STEP_BYTES))] for r in range(rows)]

    def step(self, columns: list[Columns], accs: list[Value], pointers: list[Value], number: int) -> list[Value]:
        """4 columns of depth for every row, even and odd bytes apart."""
        b, stride = self.b, widened_stride(self.spec)
        a, w = pointers
        pairs = b.split_u8(self.weight(w, columns[0], 0, number))
        for r in range(self.tile.rows):
            for odd, weights in enumerate(pairs):
                dword = b.load(I32, b.at(a, r * stride + odd * stride // 2))
                accs[r] = b.dot_s16(accs[r], weights, b.bitcast(b.splat(dword, V8I), weights.type))
        return accs


def load_offsets(b: Builder, address: Value, lanes: int = PANEL) -> Value:
    """Bytes, one for each column, four times in its lane."""
    words = b.zext(b.load(ir.VectorType(I8, lanes), address), ir.VectorType(I32, lanes))
    return b.mul(words, 0x01010101)


def nibbles(b: Builder, both: Value, odd: int, offsets: Value | None) -> Value:
    """The low or (`odd`) high 4 bits of each byte as a byte, plus `offsets`."""
    found = b.and_(b.lshr(both, 4) if odd else both, 0x0F0F0F0F)
    return found if offsets is None else b.add(found, offsets)


def prepare_rows(b: Builder, spec: Q8LinearSpec, rows: Value, most: int, values: dict[str, Value]) -> dict[str, Value]:
    """For each block of `rows` rows, at most `most`: `starts`, what its sum starts at, and `zeros`, its zero point as a
    pair for `layout.pack_sums`; both i32 in memory of the function."""
    count = b.mul(rows, spec.blocks)
    names = ["starts", *(["zeros"] if spec.zero_point else [])]
    made = {name: b.scratch(4 * (most * spec.blocks + LANES)) for name in names}
    with b.range(0, count, LANES) as at:
        left = b.sub(count, at)
        starts = sum_starts(b, spec, b.load_tail(V16I, b.at(values["row_sum"], at, I32), left))
        b.store(starts, b.at(made["starts"], at, I32))
        if spec.zero_point:
            pair = zero_pairs(b, b.load_tail(V16I, b.at(values["row_zero"], at, I32), left))
            b.store(pair, b.at(made["zeros"], at, I32))
    return made


def sum_starts(b: Builder, spec: Q8LinearSpec, row_sums: Value) -> Value:
    """What sums of products start at, of rows whose own sums are given."""
    starts = b.mul(row_sums, -spec.weight_zero)
    return b.add(starts, FLOAT_BITS) if spec.block else starts


def zero_pairs(b: Builder, zeros: Value) -> Value:
    """What takes zero points off sums, as pairs for `layout.pack_sums`."""
    minus = b.sub(0, zeros)
    return b.or_(b.and_(minus, 0xFFFF), b.shl(minus, 24))


def widened_stride(spec: LinearSpec) -> int:
    """Bytes of one widened row: all even bytes as i16 pairs, then all odd ones, in whole registers."""
    return 2 * 32 * -(-spec.steps // 8)


def emit_widen(b: Builder, spec: LinearSpec, a: Value, rows: Value, out: Value) -> None:
    """Write `rows` R8 rows as 16-bit even and odd bytes to `out`."""
    stride = widened_stride(spec)
    with b.range(0, rows) as r:
        source, target = b.at(a, b.mul(r, spec.lda)), b.at(out, b.mul(r, stride))

        def widen(dwords: Value, at: Value) -> None:
            for odd, wide in enumerate(b.split_s8(dwords)):
                b.store(wide, b.at(target, b.add(at, odd * stride // 2)), align=32)

        whole = spec.steps // 16 * 16
        with b.range(0, 4 * whole, 4 * 16) as at:
            for half in range(2):
                position = b.add(at, 32 * half)
                widen(b.load(V8I, b.at(source, position)), position)
        rest = spec.steps - whole
        if rest:
            dwords = b.load_tail(V16I, b.at(source, 4 * whole), rest)
            for half, part in enumerate(b.halves(dwords)[:-(-rest // 8)]):
                widen(part, constant(I64, 4 * whole + 32 * half))
