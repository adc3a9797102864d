"""Keys and values kept in 8 bits: where they lie, and how a row is rounded, as `q8.quantize_kept` has it."""
from __future__ import annotations

from dataclasses import dataclass

from q8c.codegen.builder import F32, LANES, V16B, V16I, V16M, Builder, Operand, Value
from q8c.codegen.loop_memory import load_lanes, store_lanes
from q8c.codegen.loop_pack import clip_step
from q8c.codegen.loop_quantize import ABS_BITS, INF_BITS
from q8c.codegen.loop_space import columns
from q8c.ir import q8
from q8c.ir.memory import KEPT_TOKENS, SCALE_BYTES
from q8c.ir.types import DType

assert KEPT_TOKENS == LANES


def key_lanes(b: Builder, row: Value, channel: Operand) -> Value:
    """A channel of the 16 keys at `KeptRows.row`, in steps of their scales."""
    return b.to_f32(b.load(V16B, b.at(row, b.mul(channel, KEPT_TOKENS))))


def value_lanes(b: Builder, row: Value, channel: Operand, count: int) -> Value:
    """16 channels of the value at `KeptRows.row`, or the first `count`, in steps of its scale; the others are 0."""
    return b.to_f32(load_lanes(b, DType.i8, b.at(row, channel), None if count == LANES else count))


@dataclass(frozen=True)
class KeptRows:
    """Rows of `size` channels in a buffer of heads, each of which has `capacity` rows and then their scales.

    Of `keys` 16 tokens lie by turns, [capacity / 16][size][16]; values lie row by row.
    """

    b: Builder
    buffer: Value
    size: int
    capacity: Value
    keys: bool

    def head(self, head: Value) -> Value:
        """Where a head of the whole batch begins."""
        b = self.b
        return b.at(self.buffer, b.mul(head, b.mul(self.capacity, self.size + SCALE_BYTES)))

    def row(self, head: Value, token: Value) -> Value:
        """Where a value begins; of keys, where 16 begin whose first is `token`."""
        return self.b.at(self.head(head), self.b.mul(token, self.size))

    def scales(self, head: Value, token: Value) -> Value:
        """The address of a token's scale, behind which those of the tokens after it lie."""
        b = self.b
        return b.at(b.at(self.head(head), b.mul(self.capacity, self.size)), token, F32)

    def write(self, source: Value, head: Value, token: Value) -> None:
        """Round the floats at `source` to a token's row."""
        b = self.b
        scale, inverse, finite = self._step(source)
        b.store(scale, self.scales(head, token))
        row = self.row(head, b.and_(token, -KEPT_TOKENS) if self.keys else token)

        def vector(channel: Value, _: int, count: Operand | None, carried: list[Value]) -> list[Value]:
            x = load_lanes(b, DType.f32, b.at(source, channel, F32), count)
            steps = b.to_i32(b.mul(x, b.splat(inverse)))
            q = clip_step(b, steps, b.splat(0, V16I), b.splat(finite, V16M))
            if not self.keys:
                store_lanes(b, DType.i8, q, b.at(row, channel), count)
                return []
            place = b.at(row, b.add(b.mul(channel, KEPT_TOKENS), b.and_(token, KEPT_TOKENS - 1)))
            for n in range(LANES if count is None else int(count)):
                b.store(b.lane(q, n), b.at(place, n * KEPT_TOKENS))
            return []

        columns(b, self.size, 1, [], vector)

    def _step(self, source: Value) -> tuple[Value, Value, Value]:
        """The scale of a row (NaN if it is not finite), 1 / scale, and whether it is finite."""
        b = self.b

        def larger(channel: Value, _: int, count: Operand | None, most: list[Value]) -> list[Value]:
            x = load_lanes(b, DType.f32, b.at(source, channel, F32), count)
            return [b.umax(b.and_(b.bits(x), ABS_BITS), most[0])]

        most, = columns(b, self.size, 1, [b.splat(0, V16I)], larger)
        bits = b.reduce(most, b.umax)
        finite = b.icmp("<", bits, INF_BITS)
        step = b.div(b.select(finite, b.from_bits(bits), 0.0), float(q8.QMAX))
        step = b.from_bits(b.and_(b.bits(b.fmax(step, q8.SCALE_FLOOR)), q8.KEPT_SCALE_BITS - (1 << 32)))
        return b.select(finite, step, float("nan")), b.div(1.0, step), finite
