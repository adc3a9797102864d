"""What a node becomes: a call of one generated function."""
from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.ir.dims import Dim


@dataclass(frozen=True)
class Kernel:
    """A generated function and how to call it.

    Its parameters are, in this order: a pointer per operand that is present and per output; `sizes` as i64; if
    `scratch` is given, a pointer to that many bytes of the thread's own, 64-byte aligned; if `reports`, the frame and
    the node's number (i64), to note a
    failure; if `counter`, a pointer to an i64 that is 0 when the node starts; the thread's number and the number of
    threads (i64).
    Sizes and scratch are the same on every tier.
    """

    function: ir.Function
    sizes: tuple[Dim, ...] = ()
    scratch: Dim | None = None
    reports: bool = False
    counter: bool = False
