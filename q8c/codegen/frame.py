"""The frame a run passes to the compiled code: one int64 array of pointers, sizes and counters.

    [0] threads  [1] status: 0, or 1 + the number of the first node that failed  [2] the integer it failed on
    [3] weights  [4] arena  [5] stamps, or 0  [6] lengths  [7] capacity  [8] counts
    [9...] inputs, outputs, sizes, slot offsets

Stamps are an int64 array [threads][nodes][2]: each thread notes the time-stamp counter before and after each node.
Lengths are an int64 array [batch]: how many tokens of each sequence the cache holds; its buffers have room for
`capacity` tokens. Counts are one more: how many new tokens of each sequence are no padding. Of a model without a cache
that grows in place these words are 0.
The run time has the same layout from the manifest; a test holds the two together.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from q8c.ir import memory
from q8c.ir.dims import Dim, Expr

THREADS, STATUS, DETAIL, WEIGHTS, ARENA, STAMPS, LENGTHS, CAPACITY, COUNTS = range(9)
ARGUMENTS = 9


@dataclass(frozen=True)
class Frame:
    """The parts of a frame whose length depends on the model.

    `sizes` are the run-time integers the code reads. `slots` are the bytes of each arena slot. `scratch` is how many
    bytes each thread has for the node at hand; if not 0, they lie behind one more slot word, thread after thread.
    """

    inputs: int
    outputs: int
    sizes: tuple[Expr, ...]
    slots: tuple[Dim, ...]
    scratch: Dim

    def input(self, index: int) -> int:
        """The word that points to an input."""
        return ARGUMENTS + index

    def output(self, index: int) -> int:
        """The word that points to an output."""
        return ARGUMENTS + self.inputs + index

    def size(self, size: Expr) -> int:
        """The word that holds a run-time integer."""
        if size == memory.CAPACITY:
            return CAPACITY
        return self.output(self.outputs) + self.sizes.index(size)

    def slot(self, index: int) -> int:
        """The word that holds a slot's offset from the arena."""
        return self.output(self.outputs) + len(self.sizes) + index


def distinct(sizes: Sequence[Dim]) -> tuple[Expr, ...]:
    """The symbolic ones among sizes, each once, in order; but the capacity, which has a word of its own."""
    return tuple(dict.fromkeys(s for s in sizes if isinstance(s, Expr) and s != memory.CAPACITY))
