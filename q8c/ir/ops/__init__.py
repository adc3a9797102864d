"""The ops of the IR, by family; importing this package registers all of them."""
from __future__ import annotations

from q8c.ir.ops import (
    conv,
    decoder,
    elementwise,
    experts,
    fused,
    movement,
    nn,
    packed,
    prescribed,
    quantized,
    reduce,
    select,
)
from q8c.ir.ops.registry import OPS, Level, OpDef, Operands, attributes, definition_of, infer, register

__all__ = ["OPS", "Level", "OpDef", "Operands", "attributes", "conv", "decoder", "definition_of", "elementwise",
           "experts", "fused", "infer", "movement", "nn", "packed", "prescribed", "quantized", "reduce", "register",
           "select"]
