"""ONNX Runtime's MatMulNBits, MatMulBnb4 and GatherBlockQuantized: weights and tables of few bits in blocks."""
from __future__ import annotations

import numpy as np

from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor, constant
from q8c.frontend.weights import FOUR_BITS, type_name, unpack
from q8c.ir.graph import Array
from q8c.ir.spill import assembled, release

FP4 = tuple(sign * level for sign in (1, -1) for level in (0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4))
NF4 = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
"""The levels of bitsandbytes: floats of 4 bits, and quantiles of a normal distribution (arXiv 2305.14314)."""


@importer("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(c: Call) -> Tensor:
    """x w' + bias for w [cols, depth], (q - zero point) * scale with a scale for each column and block of depth."""
    y, bias = _product(c, _weight(c)), c.optional(5)
    return y if bias is None else c.emit("add", y, bias)


def _product(c: Call, weight: Array) -> Tensor:
    """Rows, or the only row, times the weight [cols, depth] that operand 1 holds."""
    x = c.input(0)
    rows = c.builder.reshape(x, (1, *x.shape)) if x.rank == 1 else x
    y = c.emit("matmul", rows, constant(weight, c.node.input[1]), transpose_b=True)
    return c.builder.reshape(y, y.shape[1:]) if x.rank == 1 else y


def _weight(c: Call) -> Array:
    """The float weight [cols, depth], made some columns at a time."""
    depth, cols, bits, block = (c.attr_int(n) for n in ("K", "N", "bits", "block_size"))
    if bits not in (2, 4, 8) or block < 16:
        c.unsupported(f"{bits} bits in blocks of {block}; expected 2, 4 or 8 bits in blocks of 16 or more")
    blocks = -(-depth // block)
    packed, scale = known(c, 1), known(c, 2)
    if packed.shape != (cols, blocks, block * bits // 8) or packed.dtype != np.uint8 or scale.size != cols * blocks:
        c.fail(f"expected weights u8[{cols}, {blocks}, {block * bits // 8}] and {cols * blocks} scales, got "
               f"{c.input(1).type} and {c.input(2).type}")
    scale = scale.reshape(cols, blocks, 1).astype(np.float32, copy=False)
    zero = np.broadcast_to(_zeros(c, cols, blocks, bits), scale.shape)
    order = None if not c.has(4) else known(c, 4).reshape(-1)[:depth]  # the block of each step, if not in order
    if order is not None and (order.size != depth or order.min(initial=0) < 0 or order.max(initial=0) >= blocks):
        c.fail(f"expected g_idx as {depth} numbers below {blocks}, got {c.input(4).type}")

    def columns(some: slice) -> Array:
        steps = unpack(packed[some], bits).astype(np.float32)
        if order is not None:
            return np.asarray((steps.reshape(len(steps), -1)[:, :depth] - zero[some, order, 0]) * scale[some, order, 0])
        return np.asarray(((steps - zero[some]) * scale[some]).reshape(len(steps), -1)[:, :depth])

    weight = assembled(cols, columns)
    for read in (packed, scale):
        release(read)
    return weight


def _zeros(c: Call, cols: int, blocks: int, bits: int) -> Array:
    """The zero points [cols, blocks, 1], or the one that stands where none are given."""
    if not c.has(3):
        return np.full((1, 1, 1), 1 << (bits - 1), np.float32)
    zero = known(c, 3)
    if zero.dtype == np.uint8:
        zero = unpack(zero.reshape(cols, -1), bits)[:, :blocks]
    if zero.size != cols * blocks:
        c.fail(f"expected {cols * blocks} zero points, got {c.input(3).type}")
    wide: Array = zero.astype(np.float32).reshape(cols, blocks, 1)
    return wide


def known(c: Call, index: int) -> Array:
    """The elements of an operand, which must be constant."""
    found = c.input(index).known
    if found is None or found.dtype == object:
        c.unsupported(f"operand {index} is computed; it must be constant")
    return found


@importer("MatMulBnb4", domain=MICROSOFT)
def matmul_bnb4(c: Call) -> Tensor:
    """x w' for w [cols, depth] of 16 levels, which blocks of elements in a row scale by their largest."""
    depth, cols, block, kind = (c.attr_int(n) for n in ("K", "N", "block_size", "quant_type"))
    packed, scale = known(c, 1).reshape(-1), known(c, 2).reshape(-1)
    count = depth * cols
    if kind not in (0, 1) or min(depth, cols, block) < 1 or packed.size != -(-count // 2) \
            or packed.dtype != np.uint8 or scale.size != -(-count // block):
        c.fail(f"expected quant_type 0 or 1, {-(-count // 2)} bytes and a scale for each block of {block}, got "
               f"{kind}, {c.input(1).type} and {c.input(2).type}")
    levels = np.array(NF4 if kind else FP4, np.float32)

    def columns(some: slice) -> Array:
        first, end = some.start * depth, some.stop * depth  # pairs and blocks go on from one column to the next
        pairs = packed[first // 2:-(-end // 2)]
        numbers = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)[first % 2:][:end - first]
        largest = np.repeat(scale[first // block:-(-end // block)], block)[first % block:][:end - first]
        return np.asarray((levels[numbers] * largest).reshape(-1, depth), np.float32)

    weight = assembled(cols, columns)
    release(packed)
    return _product(c, weight)


@importer("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(c: Call) -> Tensor:
    """Rows of a table of integers of 4 or 8 bits, (q - zero point) * scale with a scale for each block of an axis."""
    bits, block = c.attr_int("bits", 4), c.attr_int("block_size", 128)
    if bits not in (4, 8) or block < 16:
        c.unsupported(f"{bits} bits in blocks of {block}; expected 4 or 8 bits in blocks of 16 or more")
    own = type_name(c.weights.elem_type(c.node.input[0]) or 0) in FOUR_BITS  # the others have two in a byte
    steps, scale = _integers(c, 0, 8 if own else bits), known(c, 2).astype(np.float32, copy=False)
    axis = c.axis(c.attr_int("quantize_axis", 1), steps.ndim)
    size = steps.shape[axis]
    if scale.shape != (*steps.shape[:axis], -(-size // block), *steps.shape[axis + 1:]):
        c.fail(f"expected a scale for each block of {block} along axis {axis} of {list(steps.shape)}, got "
               f"{c.input(2).type}")
    zero = np.full_like(scale, 0 if own else 1 << (bits - 1))
    if c.has(3):
        zero = _integers(c, 3, 8 if own else bits)[..., :scale.shape[-1]].astype(np.float32)
        if zero.shape != scale.shape:
            c.fail(f"expected a zero point for each scale {list(scale.shape)}, got {c.input(3).type}")
    blocks = np.arange(size) // block

    def rows(some: slice) -> Array:
        offset, factor = (v[blocks[some]] if axis == 0 else v[some].take(blocks, axis) for v in (zero, scale))
        return np.asarray((steps[some] - offset) * factor, np.float32)

    table = constant(assembled(len(steps), rows), c.node.input[0])
    release(known(c, 0))
    return c.emit("gather", table, c.input(1), axis=c.axis(c.attr_int("gather_axis", 0), steps.ndim))


def _integers(c: Call, index: int, bits: int) -> Array:
    """Constant integers, those of fewer than 8 bits unpacked along the last axis."""
    found = known(c, index)
    if found.dtype not in (np.uint8, np.int8)[:1 if bits < 8 else 2] or not found.ndim:
        c.fail(f"operand {index} is {c.input(index).type}, expected bytes")
    return found if bits == 8 else unpack(found, bits).reshape(*found.shape[:-1], -1)
