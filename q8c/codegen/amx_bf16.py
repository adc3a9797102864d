"""Q8 weights with scales by blocks on AMX, as bfloat16: for `fast` numerics.

Scaling the int32 sums of every block takes longer than their products. So weights are multiplied by their scales and
rounded to bfloat16, by 2**-8 of each at most, where int8 has rounded them by 2**-8 of the block's largest already. Then
sums go on in the tile registers over all of depth. That is done once for many rows, beside the products of those
before; for a few rows, as weights arrive from memory. A panel becomes [depth / 2][16 columns][2].

Rows are bfloat16 already, rounded from float32 by what computed them: wide rows, 0 from depth to whole steps of 32.
"""
from __future__ import annotations

from collections.abc import Mapping

from q8c.codegen import amx, bf16
from q8c.codegen.amx_deep import DeepStrip
from q8c.codegen.amx_finish import Finish, FinishFloats, Group, Operands
from q8c.codegen.amx_shape import Depth, Shape, register_bytes, register_rows
from q8c.codegen.builder import F32, I16, I64, V16I, Builder, Operand, Value, constant
from q8c.codegen.layout import GROUP, PANEL
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import load_offsets, load_scales, nibbles

STEP = 32
"""Steps of depth in a tile; no block is less."""
GROUPS = STEP // GROUP
PART = GROUPS // 2
"""4-byte groups of a panel that are made bfloat16 at a time beside products."""
FRACTION = 16
"""Bits of a part: so evenly parts are spread over steps."""
TILE = amx.TILE_ROWS * amx.TILE_BYTES
MAGIC = 2.0**15
MAGIC_BITS = 0x47000000
"""The bits of MAGIC. A byte in the place of its second lowest is added to its value."""
STREAM_BYTES = 3072
"""How far ahead of their turn weights are asked for where they stream past."""


def depth_of(spec: Q8LinearSpec) -> Depth:
    """Steps of 32, the last one filled up."""
    return Depth(-(-spec.depth // STEP) * STEP // 2, spec.lda)


class Widener:
    """Makes bfloat16 of weights.

    A byte u becomes fma(MAGIC + u, scale, -(MAGIC + 127) * scale), and then bfloat16. The last factor is rounded, by
    a 500th of a step at most; bfloat16 rounds by up to a quarter of a step. That is one instruction less for each
    weight than an exact difference takes, and a few rows are as fast as this is.
    """

    def __init__(self, b: Builder, spec: Q8LinearSpec, values: Mapping[str, Value]) -> None:
        self.b, self.spec, self.values = b, spec, values

    def part(self, panel: Value, step: Value, target: Value, groups: int = GROUPS, first: Operand = 0,
             ahead: int = 0) -> None:
        """Write `groups` 4-byte groups of a panel's 32 steps of depth, from an even one, `first`, on, to the tile at
        `target`; ask for weights that are `ahead` bytes further on."""
        b, spec = self.b, self.spec
        block = b.add(b.mul(panel, spec.blocks), b.div(step, spec.block // STEP))
        typ = I16 if spec.half else F32
        scale = load_scales(b, typ, b.at(self.values["w_scale"], b.mul(block, PANEL), typ))
        halves = [b.shuffle(scale, scale, [c // 2 + PANEL // 2 * n for c in range(PANEL)]) for n in range(2)]
        factors = [(half, b.mul(half, -(MAGIC + spec.weight_zero))) for half in halves]
        offsets = load_offsets(b, b.at(self.values["w_offset"], b.mul(block, PANEL))) if spec.offsets else None
        source = b.at(self.values["w"], b.mul(panel, spec.panel_bytes))
        source = b.at(source, b.mul(b.add(b.mul(step, GROUPS), first), spec.step_bytes))
        target = b.at(target, b.mul(first, 2 * STEP_BYTES))
        for n in range(groups):
            odd = n % 2 if spec.bits == 4 else 0
            if not odd:
                at = b.at(source, n * spec.step_bytes)
                line = b.load(V16I, at, align=STEP_BYTES)
                if ahead:
                    b.prefetch(b.at(at, ahead), 1)
            weights = line if spec.bits == 8 else nibbles(b, line, odd, offsets)
            self._group(weights, factors, b.at(target, 2 * n * STEP_BYTES))

    def step(self, panel: Value, step: Value, target: Value, groups: int = GROUPS, ahead: int = 0) -> None:
        """Write a panel's 32 steps of depth, of which `groups` 4-byte groups are there."""
        self.part(panel, step, target, groups, ahead=ahead)
        for n in range(2 * groups, STEP // 2):
            self.b.store(constant(V16I, 0), self.b.at(target, n * STEP_BYTES), align=STEP_BYTES)

    def _group(self, weights: Value, factors: list[tuple[Value, Value]], target: Value) -> None:
        """Write 4 steps of depth of 16 columns as two rows of a tile."""
        b = self.b
        for pair in range(2):
            floats = []
            for half in range(2):
                columns = range(PANEL // 2 * half, PANEL // 2 * (half + 1))
                bytes_ = [GROUP * c + 2 * pair + odd for c in columns for odd in range(2)]
                floats.append(b.fma(b.from_bits(b.spread_bytes(weights, bytes_, MAGIC_BITS)), *factors[half]))
            b.store(bf16.pack(b, *floats), b.at(target, pair * STEP_BYTES), align=STEP_BYTES)


class Bf16Strip(DeepStrip):
    """Tiles of many rows, which are bfloat16 already. Weights are made so for each run of panels while the rows go over
    the one before.

    Here `rows` are those of all tiles: all but the last are whole, and that is multiplied as if it were.
    """

    CACHED_ROWS_BYTES = 1 << 20
    RUN_BYTES = 64 << 10
    load_rows = staticmethod(amx.load_once)  # so that weights stay: 512 rows are 11 to 20 % faster
    dot = staticmethod(amx.dot_bf16)
    depth_of = staticmethod(depth_of)

    def __init__(self, b: Builder, spec: Q8LinearSpec, shape: Shape, whole: bool) -> None:
        super().__init__(b, spec, shape, whole)
        self.all_rows, self.rows = b.arg("rows"), constant(I64, shape.rows)
        self.widener = Widener(b, spec, self.values)
        self.whole_steps, self.rest_groups = divmod(spec.steps, GROUPS)

    @classmethod
    def widened_bytes(cls, spec: Q8LinearSpec) -> int:
        """Bytes of two runs of panels."""
        return 2 * super().widened_bytes(spec)

    def finish(self, group: Group) -> Finish:
        """As they are."""
        return FinishFloats(self.b, self.operands, group, self.buffer)

    @property
    def rows_here(self) -> Value:
        """Those of the last tile are what is left."""
        return self.b.imin(self.rows, self.b.sub(self.all_rows, self.first_row))

    def groups(self) -> Group:
        """All groups, the first run's weights made before."""
        b = self.b
        last = b.imin(b.add(self.first, self.run), self.last)
        self._widen(self.first, constant(I64, 0), self._parts(self.first, last))
        return super().groups()

    def begin_run(self, first: Value, last: Value) -> list[Value]:
        """The weights of the next run are made bfloat16, and those after them asked for."""
        b = self.b
        self.wide, self.next = self._place(first), last
        after = b.imin(b.add(last, self.run), self.last)
        self.parts = self._parts(last, after)
        steps = b.mul(b.mul(self.tiles, b.ceildiv(b.sub(last, first), self.shape.panels)), self.depth.whole)
        self.share = b.ceildiv(b.shl(self.parts, FRACTION), steps)
        if self.rest_groups:
            with b.range(first, last) as panel:
                into = b.at(self.wide, b.mul(b.sub(panel, first), self.depth.panel_bytes))
                self.widener.step(panel, constant(I64, self.whole_steps), b.at(into, self.whole_steps * TILE),
                                  self.rest_groups)
        return [self.first_line(after), constant(I64, 0)]

    def beside(self, carried: list[Value]) -> list[Value]:
        """Ask for some weights, and make some bfloat16."""
        b, (ahead, done) = self.b, carried
        after = b.add(done, self.share)
        self._widen(self.next, b.lshr(done, FRACTION), b.imin(b.lshr(after, FRACTION), self.parts))
        return [self.ask_weights(ahead), after]

    def _place(self, first: Value) -> Value:
        """Where the weights of the run that begins with a panel are: two places in turn."""
        b = self.b
        odd = b.and_(b.div(b.sub(first, self.first), self.run), 1)
        return b.at(b.arg("scratch"), b.mul(odd, self.widened_bytes(self.spec) // 2))

    def _parts(self, first: Value, last: Value) -> Value:
        """How many parts the panels `first` to `last` - 1 have."""
        return self.b.mul(self.b.sub(last, first), self.whole_steps * GROUPS // PART)

    def _widen(self, first: Value, begin: Value, end: Value) -> None:
        """Make parts `begin` to `end` - 1 of the run bfloat16 that begins with panel `first`."""
        b, of_panel = self.b, self.whole_steps * GROUPS // PART
        if not of_panel:
            return
        place = self._place(first)
        with b.range(begin, end) as part:
            panel, number = b.div(part, of_panel), b.rem(part, of_panel)
            step, half = b.div(number, GROUPS // PART), b.rem(number, GROUPS // PART)
            tile = b.add(b.mul(panel, self.depth.panel_bytes), b.mul(step, TILE))
            self.widener.part(b.add(first, panel), step, b.at(place, tile), PART, b.mul(half, PART))


class Bf16Stream:
    """Up to as many rows as a shape has over its panels, one group of them after the other. Tiles of weights are made
    while those before are multiplied, and never leave the first-level cache."""

    def __init__(self, b: Builder, spec: Q8LinearSpec, shape: Shape, values: Mapping[str, Value], rows: Value) -> None:
        self.b, self.spec, self.shape, self.values, self.rows = b, spec, shape, values, rows
        self.depth = depth_of(spec)
        self.buffer, self.ring = b.scratch(shape.bytes), b.scratch(2 * shape.panels * TILE)
        self.widener = Widener(b, spec, values)
        amx.TileShapes(b, register_bytes(self.depth, shape)).configure(register_rows(b, self.depth, shape, rows))

    def groups(self, first: Value, last: Value) -> None:
        """The results of panels `first` to `last` - 1."""
        b, none, shape = self.b, constant(I64, 0), self.shape
        operands = Operands(self.spec, shape, self.values, self.rows, last, whole=False)
        with b.range(first, last, shape.panels) as panel:
            self._sums([b.imin(b.add(panel, n), b.sub(last, 1)) for n in range(shape.panels)])
            work = FinishFloats(b, operands, Group(none, panel, self.rows), self.buffer)
            work.loop(work.start(none), shape.rows)

    def _sums(self, panels: list[Value]) -> None:
        """The sums of a group, to memory."""
        b, shape = self.b, self.shape
        whole, rest = divmod(self.spec.steps, GROUPS)
        for total in shape.sums:
            amx.zero(b, total)
        if whole:
            self._widen(panels, constant(I64, 0), GROUPS)
            with b.range(1, whole) as step:
                self._widen(panels, step, GROUPS)
                self._multiply(b.sub(step, 1))
        if rest:
            self._widen(panels, constant(I64, whole), rest)
        for step in range(max(whole - 1, 0), self.depth.whole):
            self._multiply(constant(I64, step))
        for total in shape.sums:
            amx.store(b, total, b.at(self.buffer, shape.place(total)), shape.stride)

    def _place(self, step: Value, number: int) -> Value:
        """Where a step's tile of the group's panel `number` is."""
        b, count = self.b, self.shape.panels
        return b.at(self.ring, b.add(b.mul(b.and_(step, 1), count * TILE), number * TILE))

    def _widen(self, panels: list[Value], step: Value, groups: int) -> None:
        for number, panel in enumerate(panels):
            self.widener.step(panel, step, self._place(step, number), groups, STREAM_BYTES)

    def _multiply(self, step: Value) -> None:
        b, shape, depth = self.b, self.shape, self.depth
        rows = b.at(self.values["a"], b.mul(step, depth.left_bytes))
        for i, register in enumerate(shape.left):
            amx.load(b, register, b.at(rows, amx.TILE_ROWS * i * depth.pitch), depth.pitch)
        for j in range(shape.panels):
            right = shape.right[j]
            amx.load(b, right, self._place(step, j), STEP_BYTES)
            for i, left in enumerate(shape.left):
                amx.dot_bf16(b, i * shape.panels + j, left, right)
