"""Where an attention kernel finds queries, keys and values, and which keys there are to see."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.attention_spec import MASK_SIZES, AttentionSpec, size_names
from q8c.codegen.builder import F32, I64, LANES, PTR, V16F, Builder, Value, constant
from q8c.codegen.kept_rows import KeptRows, value_lanes
from q8c.codegen.loop_memory import load_lanes, load_scalar
from q8c.ir.dims import Dim
from q8c.ir.memory import round_up
from q8c.ir.types import DType

HIDDEN = float("-inf")
"""What is added to the score of a key that is not seen."""


def attention_params(spec: AttentionSpec) -> list[tuple[str, ir.Type]]:
    """The kernel's parameters up to its sizes: pointers to the operands there are and the result, sizes."""
    there = {"starts": spec.packed, "mask": spec.mask is not None, "key_mask": spec.key_mask is not None,
             "lengths": spec.lengths, "counts": spec.counts, "sinks": spec.sinks}
    pointers = ["q", "k", "v", *(n for n, present in there.items() if present), "out"]
    return [*((n, PTR) for n in pointers), *((n, I64) for n in size_names(spec))]


def step_params(spec: AttentionSpec) -> list[tuple[str, ir.Type]]:
    """The parameters of a kernel with scratch, and what is shared if there are steps that share it."""
    memory = ["scratch", *(["shared"] if spec.two_steps else [])]
    return [*attention_params(spec), *((n, PTR) for n in memory), ("piece", I64), ("pieces", I64)]


class Operands:
    """Operands of a kernel whose function has `attention_params`. `start` is the row a packed sequence starts at."""

    def __init__(self, b: Builder, spec: AttentionSpec) -> None:
        self.b, self.spec = b, spec
        self.start: Value = constant(I64, 0)

    def row(self, operand: int, batch: Value, token: Value, head: Value) -> Value:
        """Where a head of a token of q, k or v starts."""
        b, spec = self.b, self.spec
        heads = spec.kv_heads if operand else spec.heads
        tokens = b.arg("keys" if operand else "queries")
        if spec.split[operand]:
            if spec.packed:
                rows, token = b.load(I64, b.at(b.arg("starts"), b.arg("batch"), I64)), b.add(self.start, token)
                first = b.mul(head, rows)
            else:
                rows = b.arg(f"{'kv'[operand - 1]}_rows") if operand else tokens
                first = b.mul(b.add(b.mul(batch, heads), head), rows)
            place = b.mul(b.add(first, token), spec.size(operand))
        else:
            row = b.add(self.start if spec.packed else b.mul(batch, tokens), token)
            channel = b.add(b.mul(head, spec.size(operand)), spec.offsets[operand])
            place = b.add(b.mul(row, spec.strides[operand]), channel)
        return b.at(b.arg("qkv"[operand]), place, F32)

    def value(self, batch: Value, token: Value, head: Value, channel: Value, count: int) -> Value:
        """16 channels of a head's value, or the first `count`; the others are 0."""
        b, spec = self.b, self.spec
        if spec.int8:
            kept, index = self.kept(2), b.add(b.mul(batch, spec.kv_heads), head)
            scale = b.splat(b.load(F32, kept.scales(index, token)))
            return b.mul(value_lanes(b, kept.row(index, token), channel, count), scale)
        address = b.at(self.row(2, batch, token, head), channel, F32)
        return b.load(V16F, address) if count == LANES else b.load_tail(V16F, address, count)

    def kept(self, operand: int) -> KeptRows:
        """The keys (operand 1) or values (2) that are kept in 8 bits; heads count over the whole batch."""
        b = self.b
        rows = b.arg(f"{'kv'[operand - 1]}_rows")
        return KeptRows(b, b.arg("qkv"[operand]), self.spec.size(operand), rows, operand == 1)

    def out(self, row: Value, head: Value) -> Value:
        """Where a head of a row of the result starts."""
        b = self.b
        return b.at(b.arg("out"), b.add(b.mul(row, self.spec.channels), b.mul(head, self.spec.value_size)), F32)

    def mask(self, batch: Value, head: Value, query: Value) -> Value:
        """Where the mask of a query begins."""
        b = self.b
        steps = [b.mul(index, b.arg(n)) for index, n in zip((batch, head, query), MASK_SIZES, strict=True)]
        return b.at(b.arg("mask"), b.add(b.add(steps[0], steps[1]), steps[2]), F32)

    def sink(self, head: Value) -> Value:
        """The score that a head's softmax is over beside those of keys."""
        return self.b.load(F32, self.b.at(self.b.arg("sinks"), head, F32))

    # -- which keys there are

    def visible(self, batch: Value) -> Value:
        """The place of the first query among the keys, the last one it sees if causal; may be negative."""
        b = self.b
        if self.spec.lengths:
            return b.load(I64, b.at(b.arg("lengths"), batch, I64))
        return b.sub(b.arg("keys"), b.arg("queries"))

    def counted(self, batch: Value) -> Value:
        """How many queries of a batch item are no padding."""
        return self.b.load(I64, self.b.at(self.b.arg("counts"), batch, I64))

    def there(self, batch: Value) -> Value:
        """How many keys of a batch item any query may see: one at least, if there are keys at all, so that a query that
        sees none is NaN by its -inf score."""
        b, keys = self.b, self.b.arg("keys")
        if not self.spec.lengths:
            return keys
        if self.spec.split[1]:
            keys = b.imin(keys, b.arg("k_rows"))  # only padding comes behind what a cache has room for
        return b.imin(b.imax(b.add(self.visible(batch), b.arg("queries")), 1), keys)

    def place_key_mask(self, batch: Value, target: Value) -> None:
        """Write what the key mask of a batch item adds to scores, 0 or -inf, as float32 for all keys; -inf behind the
        last one, in whole vectors (`key_mask_bytes`)."""
        b, keys = self.b, self.b.arg("keys")
        assert self.spec.key_mask is not None
        dtype = DType(self.spec.key_mask)
        row = b.at(b.arg("key_mask"), b.mul(b.mul(batch, b.arg("key_mask_batch")), dtype.itemsize))
        whole = b.and_(keys, -LANES)
        with b.range(0, whole, LANES) as key:
            value = load_lanes(b, dtype, b.at(row, b.mul(key, dtype.itemsize)))
            b.store(b.select(self._is_zero(dtype, value), b.splat(HIDDEN), 0.0), b.at(target, key, F32))
        with b.if_(b.icmp("<", whole, keys)):
            b.store(b.splat(HIDDEN), b.at(target, whole, F32))
        with b.range(whole, keys) as key:
            zero = self._is_zero(dtype, load_scalar(b, dtype, b.at(row, b.mul(key, dtype.itemsize))))
            b.store(b.select(zero, constant(F32, HIDDEN), 0.0), b.at(target, key, F32))

    def _is_zero(self, dtype: DType, value: Value) -> Value:
        if dtype is DType.bool:
            return self.b.xor(value, constant(value.type, 1))
        zero = constant(value.type, 0 if dtype.is_int else 0.0)
        return self.b.icmp("==", value, zero) if dtype.is_int else self.b.fcmp("==", value, zero)


def key_mask_bytes(keys: Dim) -> Dim:
    """Bytes that `place_key_mask` writes, in whole cache lines."""
    return 4 * round_up(keys, LANES)
