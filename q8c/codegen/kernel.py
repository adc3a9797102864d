"""What a node becomes: a call of one generated function."""
from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.ir.dims import Dim


@dataclass(frozen=True)
class Kernel:
    """A generated function and how to call it.

    Its parameters are, in this order: a pointer per operand that is present and per output; `sizes` as i64; if
    `scratch` is given, a pointer to that many bytes of the thread's own, 64-byte aligned; if `shared` is given, one to
    that many bytes of all threads; if `reports`, the frame and the node's number (i64), to note a failure; and two
    more. If `draws` they are the number of threads (i64) and the thread's queue: each thread calls once, draws pieces
    of the work (`draw`) until there are none, and never waits for another. If not, they are the number of a piece and
    how many pieces the work is cut into (i64): the function is called once for each, by any thread.
    `then`, if there is one, is called in the same way when all of this is done; it finds what was left in `shared`.
    `turns` is how many kernels one that draws is to the queue: it may go on to the next as soon as it finds no piece.
    Sizes, scratch and what is shared are the same on every tier.
    """

    function: ir.Function
    sizes: tuple[Dim, ...] = ()
    scratch: Dim | None = None
    shared: Dim | None = None
    reports: bool = False
    draws: bool = False
    turns: int = 1
    then: Kernel | None = None

    @property
    def steps(self) -> list[Kernel]:
        """This kernel and those that follow it."""
        return [self, *(self.then.steps if self.then else [])]
