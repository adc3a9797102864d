"""ONNX Runtime's MatMulNBits: weights of 2, 4 or 8 bits in blocks along the depth."""
from __future__ import annotations

import numpy as np

from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor, constant
from q8c.frontend.weights import unpack
from q8c.ir.graph import Array


@importer("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(c: Call) -> Tensor:
    """x w' + bias for w [cols, depth], (q - zero point) * scale with a scale for each column and block of depth."""
    if c.has(4):
        c.unsupported("g_idx, an order of the depth")
    weight = constant(np.ascontiguousarray(_weight(c).T), c.node.input[1])
    y = c.emit("matmul", c.input(0), weight)
    bias = c.optional(5)
    return y if bias is None else c.emit("add", y, bias)


def _weight(c: Call) -> Array:
    """The float weight [cols, depth]."""
    depth, cols, bits, block = (c.attr_int(n) for n in ("K", "N", "bits", "block_size"))
    if bits not in (2, 4, 8) or block < 16:
        c.unsupported(f"{bits} bits in blocks of {block}; expected 2, 4 or 8 bits in blocks of 16 or more")
    blocks = -(-depth // block)
    packed, scale = _known(c, 1), _known(c, 2)
    if packed.shape != (cols, blocks, block * bits // 8) or packed.dtype != np.uint8 or scale.size != cols * blocks:
        c.fail(f"expected weights u8[{cols}, {blocks}, {block * bits // 8}] and {cols * blocks} scales, got "
               f"{c.input(1).type} and {c.input(2).type}")
    steps = unpack(packed, bits).astype(np.float32) - _zeros(c, cols, blocks, bits)
    w = steps * scale.reshape(cols, blocks, 1).astype(np.float32)
    return w.reshape(cols, blocks * block)[:, :depth]


def _zeros(c: Call, cols: int, blocks: int, bits: int) -> Array:
    """The zero points [cols, blocks, 1], or the one that stands where none are given."""
    if not c.has(3):
        return np.full((1, 1, 1), 1 << (bits - 1), np.float32)
    zero = _known(c, 3)
    if zero.dtype == np.uint8:
        zero = unpack(zero.reshape(cols, -1), bits)[:, :blocks]
    if zero.size != cols * blocks:
        c.fail(f"expected {cols * blocks} zero points, got {c.input(3).type}")
    wide: Array = zero.astype(np.float32).reshape(cols, blocks, 1)
    return wide


def _known(c: Call, index: int) -> Array:
    found = c.input(index).known
    if found is None or found.dtype == object:
        c.unsupported(f"operand {index} is computed; it must be constant")
    return found
