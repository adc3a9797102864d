"""What a model keeps of the tokens it has seen: their keys and values, in memory that is allocated once."""
from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, SupportsIndex

import numpy as np
import numpy.typing as npt

from q8c.errors import InputError
from q8c.runtime.kept import Kept, allocate
from q8c.runtime.memory import address_of
from q8c.runtime.model import Model

Lengths = npt.NDArray[np.int64]
_LIMIT = 1 << 31
_SPAN = 256
"""Tokens are forgotten by so many: attention adds up spans of as many keys, so its sums stay the same bits."""


@dataclass(frozen=True)
class Layout:
    """What the states of a model hold for every pair of the manifest, in order. `file` is the SHA-256 of the manifest
    of the compiled file, which no other file has. With a `window` (not 0) a token sees no keys so many or more before
    it, and these may be forgotten."""

    file: bytes
    caches: tuple[Kept, ...]
    window: int = 0

    @staticmethod
    def of(model: Model, file: bytes) -> Layout | None:
        """The layout of a model's states, None if it keeps nothing."""
        if model.cache is None:
            return None
        shapes = (model.inputs[i].shape for i, _ in model.cache.pairs)
        return Layout(file, tuple(Kept(int(str(shape[1])), int(str(shape[3])), format)
                                  for shape, format in zip(shapes, model.cache.formats, strict=True)),
                      model.cache.window)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one sequence."""
        return sum(kept.token_bytes for kept in self.caches)

    @property
    def in_bytes(self) -> bool:
        """Whether rows are kept in 8 bits: all are, or none."""
        return self.caches[0].format != "f32"

    def forgets(self, held: int) -> int:
        """How many of the first tokens of so many in memory to forget. It comes half a window at a time, so that to
        move the others is little for each token."""
        surplus = held - (self.window - 1)
        if not self.window or surplus < max(_SPAN, self.window // 2):
            return 0
        return surplus // _SPAN * _SPAN

    def most_held(self, tokens: int) -> int:
        """How many of so many tokens are in memory at most, behind a run of a few."""
        return min(tokens, self.window + max(_SPAN, self.window // 2)) if self.window else tokens

    def capacity(self, tokens: int) -> int:
        """For how many tokens of each sequence buffers have room that are to hold so many."""
        return self.caches[0].capacity(tokens)


class State:
    """Keys and values of up to `max_tokens` tokens of each sequence of a batch; `Session.new_state` makes one.

    A run that is given the state reads what it holds and appends its tokens; nothing held is moved. One run at a time
    may have it. The memory is zeros that take no room until a token is written, and in huge pages, where the system has
    them, maybe all of it then. Where no token sees further back than a window, what lies before it is forgotten by and
    by, and its memory given back.
    """

    def __init__(self, layout: Layout, max_tokens: int, batch: int = 1) -> None:
        """An empty state. Raises InputError for sizes that are none, and where there is no memory for them."""
        self._layout = layout
        self._batch, self._max_tokens = _count(batch, "batch"), _count(max_tokens, "max_tokens")
        self._lock = threading.Lock()
        self._buffers = allocate(layout.caches, self._batch, layout.capacity(self._max_tokens),
                                 f"a state of {self._batch} x {self._max_tokens} tokens",
                                 layout.most_held(self._max_tokens))
        self._held, self._forgotten = np.zeros((2, self._batch), np.int64)
        self._held_address = address_of(self._held)
        self._addresses = [buffer.address for buffer in self._buffers]

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return self._batch

    @property
    def max_tokens(self) -> int:
        """How many tokens each sequence has room for."""
        return self._max_tokens

    @property
    def lengths(self) -> Lengths:
        """How many tokens each sequence has, those forgotten included, int64 [batch], a copy."""
        return np.asarray(self._held + self._forgotten)

    @property
    def nbytes(self) -> int:
        """Bytes of a full state."""
        return self._batch * self._layout.most_held(self._max_tokens) * self._layout.token_bytes

    def copy(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None) -> State:
        """A state of its own with the same tokens, to go on from here in two ways.

        `rows` says which sequences the new one has, in what order; a sequence may be there several times (beams).
        Copies the tokens held, not the room for more. Raises InputError for a sequence there is not.
        """
        with self.held():
            taken = np.arange(self._batch) if rows is None else _integers(rows, "rows")
            for row in taken.tolist():
                if not 0 <= row < self._batch:
                    raise InputError(f"rows has sequence {row}, the state has {self._batch} (0 to {self._batch - 1})")
            made = State(self._layout, self._max_tokens, len(taken))
            made._held[:], made._forgotten[:] = self._held[taken], self._forgotten[taken]
            for mine, other in zip(self._buffers, made._buffers, strict=True):
                for new, old in enumerate(taken.tolist()):
                    other.take(new, mine, old, int(self._held[old]))
            return made

    def truncate(self, tokens: int | Sequence[int] | npt.NDArray[np.integer[Any]]) -> None:
        """Forget all but the first tokens of each sequence: so many of all, or of each its own number.

        Raises InputError where a sequence does not hold as many, or has forgotten some that the next token sees;
        nothing is changed then.
        """
        with self.held():
            kept = _integers([tokens] * self._batch if isinstance(tokens, (int, np.integer)) else tokens, "tokens")
            if len(kept) != self._batch:
                raise InputError(f"tokens has {len(kept)} numbers, the state has {self._batch} sequences")
            for row, (new, old, gone) in enumerate(zip(kept.tolist(), self.held_tokens, self._forgotten, strict=True)):
                if not 0 <= new <= old:
                    raise InputError(f"sequence {row} holds {old} tokens, cannot keep the first {new}")
                if 0 < new < (least := gone + self._layout.window - 1) and gone:
                    raise InputError(f"sequence {row} has forgotten its first {gone} tokens, as a token sees "
                                     f"{self._layout.window}: it can keep {least} or more, or none, not {new}")
            self._forgotten[kept == 0] = 0
            self._held[:] = kept - self._forgotten

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from the state. Raises InputError if somebody has it."""
        if not self._lock.acquire(blocking=False):
            raise InputError("the state is in use by another run; give each its own (state.copy())")
        try:
            yield
        finally:
            self._lock.release()

    def __repr__(self) -> str:
        lengths = self.lengths
        most = int(lengths.max())
        held = f"{most}" if (lengths == most).all() else f"{lengths.min()} to {most}"
        return (f"<State of {self._batch} sequence{'s' * (self._batch > 1)}, {held} of {self._max_tokens} tokens, "
                f"{self.nbytes / 2**20:,.1f} MiB>")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a state cannot be pickled: it is memory of this process; keep the tokens and run them again")

    # What a run needs: where the arrays lie and the lengths, which it may change while it has the state.

    @property
    def layout(self) -> Layout:
        """Whose state this is."""
        return self._layout

    @property
    def addresses(self) -> list[int]:
        """Where the buffer of each pair begins."""
        return self._addresses

    @property
    def capacity(self) -> int:
        """For how many tokens of each sequence the buffers have room."""
        return self._layout.capacity(self._max_tokens)

    @property
    def lengths_address(self) -> int:
        """Where it is said how many tokens of each sequence are in memory, int64 [batch]."""
        return self._held_address

    @property
    def held_tokens(self) -> list[int]:
        """The lengths as Python's integers."""
        found: list[int] = self.lengths.tolist()
        return found

    @property
    def forgotten(self) -> list[int]:
        """How many of the first tokens of each sequence are not in memory."""
        found: list[int] = self._forgotten.tolist()
        return found

    def advance(self, after: Sequence[int]) -> None:
        """Take the lengths after a run, and forget what no token will see."""
        self._held[:] = after - self._forgotten
        for row, held in enumerate(self._held.tolist() if self._layout.window else []):
            tokens = self._layout.forgets(held)
            if tokens:
                for buffer in self._buffers:
                    buffer.forget(row, tokens, held)
                self._held[row] -= tokens
                self._forgotten[row] += tokens


def _count(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or not 1 <= value.__index__() < _LIMIT:
        raise InputError(f"{name} must be an integer from 1 to 2**31 - 1, got {value!r}")
    return value.__index__()


def _integers(values: object, name: str) -> Lengths:
    """A list of integers as an array."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError):
        array = np.zeros(0)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise InputError(f"{name} must be a list of integers, got {str(values):.60}")
    return array.astype(np.int64)
