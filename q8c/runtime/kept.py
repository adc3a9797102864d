"""Where keys and values that are kept lie: as floats, or in 8 bits with a scale for each row.

Of floats a cache is [batch, heads, capacity, size]. In 8 bits each head of each sequence has its rows, [capacity][size]
int8, then their scales, [capacity] float32; of keys 16 tokens lie by turns, [capacity / 16][size][16], as attention
takes them.
"""
from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from q8c.errors import InputError
from q8c.runtime.arrays import Array
from q8c.runtime.memory import address_of, address_of_map, anonymous, require_memory

FORMATS = ("f32", "int8-keys", "int8-values")
TOKENS_BY_TURNS = 16
STEP = 64
"""In 8 bits the capacity is a multiple of so many tokens."""
_FLOAT = 4  # bytes of an element, and of a scale
_ALIGNMENT = 64


@dataclass(frozen=True)
class Kept:
    """What is kept of one input: heads of `size` channels each, in one of `FORMATS`."""

    heads: int
    size: int
    format: str = "f32"

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one sequence."""
        return self.heads * (_FLOAT * self.size if self.format == "f32" else self.size + _FLOAT)

    def capacity(self, tokens: int) -> int:
        """How many tokens a buffer has that is to hold so many."""
        return tokens if self.format == "f32" else -(-tokens // STEP) * STEP


@dataclass(frozen=True)
class Part:
    """An array of a buffer, [batch, heads, groups of `tokens` tokens, ...]."""

    array: Array
    tokens: int = 1


class Buffer:
    """One cache in memory: `parts` are its arrays, `address` is where it begins."""

    def __init__(self, kept: Kept, batch: int, capacity: int, memory: mmap.mmap, start: int) -> None:
        self.address = address_of_map(memory) + start
        self.parts = _parts(kept, batch, capacity, memory, start)
        self._memory = memory
        self._keys = kept.format == "int8-keys"

    def take(self, row: int, other: Buffer, of: int, tokens: int) -> None:
        """Copy the first tokens of a sequence of another buffer of the kind."""
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            groups = -(-tokens // mine.tokens)
            mine.array[row, :, :groups] = theirs.array[of, :, :groups]

    def forget(self, row: int, tokens: int, held: int) -> None:
        """Move what a sequence holds behind its first tokens to where these are, and give back the memory behind.

        `tokens` is a multiple of those that lie by turns.
        """
        for part in self.parts:
            rows, by = part.array[row], tokens // part.tokens
            end = -(-held // part.tokens)
            for start in range(by, end, by):  # so many at a time do not overlap
                here = min(by, end - start)
                rows[:, start - by:start - by + here] = rows[:, start:start + here]
            for head in rows:
                self._give_back(head[end - by:end])

    def _give_back(self, array: Array) -> None:
        """Let the system have the pages that lie within a dense array; they are zeros from then on."""
        first = address_of(array) - address_of_map(self._memory)
        begin, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, (first + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end:
            self._memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def floats(self, tokens: int) -> Array:
        """The first tokens [batch, heads, tokens, size] as floats; exact, as a scale has 16 bits."""
        steps, scale = (part.array for part in self.parts)
        if self._keys:
            batch, heads, groups, size, by_turns = steps.shape
            steps = steps.swapaxes(3, 4).reshape(batch, heads, groups * by_turns, size)
        return np.asarray(steps[:, :, :tokens] * scale[:, :, :tokens, None])


def _parts(kept: Kept, batch: int, capacity: int, memory: mmap.mmap, start: int) -> list[Part]:
    heads, size = kept.heads, kept.size
    if kept.format == "f32":
        return [Part(np.ndarray((batch, heads, capacity, size), np.float32, memory, start))]
    step = capacity * (size + _FLOAT)  # from a head to the next
    outer = (heads * step, step)
    scale = np.ndarray((batch, heads, capacity), np.float32, memory, start + capacity * size, (*outer, _FLOAT))
    if kept.format == "int8-values":
        rows = np.ndarray((batch, heads, capacity, size), np.int8, memory, start, (*outer, size, 1))
        return [Part(rows), Part(scale)]
    shape = (batch, heads, capacity // TOKENS_BY_TURNS, size, TOKENS_BY_TURNS)
    turned = np.ndarray(shape, np.int8, memory, start, (*outer, size * TOKENS_BY_TURNS, TOKENS_BY_TURNS, 1))
    return [Part(turned, TOKENS_BY_TURNS), Part(scale)]


def allocate(caches: Sequence[Kept], batch: int, tokens: int, what: str, filled: int | None = None) -> list[Buffer]:
    """Zeros for so many tokens of every cache, in one piece of memory. Raises InputError where there is not as much.

    If `filled` is given, no more than so many will be written, in pages that are not huge where those would hold much
    else.
    """
    sizes = [-(-batch * kept.capacity(tokens) * kept.token_bytes // _ALIGNMENT) * _ALIGNMENT for kept in caches]
    total = sum(sizes)
    filled = tokens if filled is None else filled
    require_memory(total * filled // tokens, what)
    try:
        memory = anonymous(total, huge=2 * filled > tokens)
    except (OSError, OverflowError, ValueError) as error:
        raise InputError(f"no memory for {what}, {total / 2**20:,.0f} MiB ({error}); make it smaller") from None
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return [Buffer(kept, batch, kept.capacity(tokens), memory, start)
            for kept, start in zip(caches, starts, strict=True)]
