"""bfloat16: the upper halves of float32, two to a 32-bit lane, as the products of pairs want them."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.builder import I16, LANES, V16F, V16I, Builder, Value

FEW_TOKENS = 8
"""New tokens of a sequence up to which they are not multiplied in bfloat16 on AMX: attention is as fast in float32, and
products by blocks in int8 are as fast as weights arrive, where making those bfloat16 takes a quarter longer."""
_V32S = ir.VectorType(I16, 2 * LANES)


def pack(b: Builder, low: Value, high: Value) -> Value:
    """Two vectors of 16 floats rounded to nearest (halves to even), one after the other, as <16 x i32>.

    NaN stays NaN; what is too small for a normal float becomes 0.
    """
    return b.bitcast(_rounded(b, low, high), V16I)


def pair(b: Builder, even: Value, odd: Value) -> Value:
    """Two vectors of 16 floats rounded and lane by lane side by side, as <16 x i32> with `even` in the low halves."""
    bits = _rounded(b, even, odd)
    lanes = [lane + LANES * half for lane in range(LANES) for half in range(2)]
    return b.bitcast(b.shuffle(bits, bits, lanes), V16I)


def _rounded(b: Builder, low: Value, high: Value) -> Value:
    assert low.type == high.type == V16F
    # llvmlite has no name for LLVM's bfloat; LLVM takes the older form, in integers, as well
    return b.intrinsic("llvm.x86.avx512bf16.cvtne2ps2bf16.512", [high, low], _V32S)
