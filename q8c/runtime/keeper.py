"""Runs of a model that keeps keys and values: what they are given, from the caller's arrays or from a state.

In the compiled code what is kept and what it becomes are one buffer with room for `capacity` tokens of each sequence.
Without a state that is the output's array, into which the code copies the input, or memory of the run, where rows are
kept in 8 bits. With one it is the state's memory: the inputs that are kept come from there, and those that only say
where new tokens stand may be left to be derived.
"""
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from q8c.errors import ArtifactError, InputError
from q8c.runtime.arrays import Array, misfit
from q8c.runtime.cache import NONE
from q8c.runtime.kept import Buffer, allocate
from q8c.runtime.memory import address_of
from q8c.runtime.model import Model
from q8c.runtime.planner import Plan, Shape, describe
from q8c.runtime.signature import Signature
from q8c.runtime.state import Layout, Lengths, State

_CACHED_PLANS = 16
_STEP = 64
"""Runs are planned for a multiple of so many tokens held: one plan serves as many decoded tokens."""


@dataclass(frozen=True)
class Step:
    """One run on a state: what it reads by input (None for what the state holds), its plan, how many of each sequence's
    new tokens are no padding, and how many tokens each holds after it."""

    inputs: Sequence[Array | None]
    plan: Plan
    counts: Lengths
    after: Sequence[int]


@dataclass(frozen=True)
class Dense:
    """A run without a state: how many tokens each sequence has, -1 where other inputs say that, and how many new ones
    up to the last that is no padding; for how many its buffers have room, the addresses of the outputs or of buffers in
    place of them, and which outputs are to be filled from such buffers."""

    lengths: Lengths
    counts: Lengths
    capacity: int
    addresses: Sequence[int]
    buffers: Sequence[tuple[Array, Buffer]]

    def finish(self) -> None:
        """Write the outputs that buffers stand for."""
        for array, buffer in self.buffers:
            array[...] = buffer.floats(array.shape[2])


class Keeper:
    """What a model with a cache takes and gives. Safe in threads."""

    def __init__(self, model: Model, signature: Signature, layout: Layout) -> None:
        assert model.cache is not None
        self._model, self._signature, self._layout, self._cache = model, signature, layout, model.cache
        pasts = dict(model.cache.pairs)
        self.kept = frozenset(pasts.values())
        self.returned = [n for n in range(len(model.outputs)) if n not in self.kept]
        self._pasts = {model.inputs[i].name for i in pasts}
        self._names = {t.name: i for i, t in enumerate(model.inputs) if i not in pasts}
        self._needed = {n for n, i in self._names.items() if i not in (model.cache.mask, model.cache.positions)}
        self._plan = functools.lru_cache(_CACHED_PLANS)(self._planned)

    def dense(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Dense:
        """A run without a state, on arrays. The code takes what is kept from the inputs; as floats it goes to the
        outputs, in 8 bits to buffers for the time of the run."""
        pairs = [(inputs[i], outputs[o]) for i, o in self._cache.pairs]
        (batch, _, past, _), tokens = pairs[0][0].shape, pairs[0][1].shape[2]
        if past > tokens or any(present.shape[2] != tokens for _, present in pairs):
            raise ArtifactError("the outputs have no room for the keys and values they are to hold; compile the model "
                                "again")
        lengths, addresses = np.full(batch, -1 if self._cache.given else past), [address_of(a) for a in outputs]
        counts = self._counts(inputs, batch, past)
        if not self._layout.in_bytes:
            return Dense(lengths, counts, tokens, addresses, [])
        buffers = allocate(self._layout.caches, batch, tokens, "what this run keeps in 8 bits")
        for (_, o), buffer in zip(self._cache.pairs, buffers, strict=True):
            addresses[o] = buffer.address
        grown = [(present, buffer) for (_, present), buffer in zip(pairs, buffers, strict=True)]
        return Dense(lengths, counts, self._layout.capacity(tokens), addresses, grown)

    def _counts(self, inputs: Sequence[Array], batch: int, past: int) -> Lengths:
        """How many new tokens each sequence has, up to the last one that the mask says is no padding."""
        number, axis = self._cache.tokens
        tokens = inputs[number].shape[axis]
        if tokens < 2 or self._cache.mask == NONE:
            return np.full(batch, tokens)
        there = inputs[self._cache.mask] != 0
        ends = np.where(there, np.arange(1, there.shape[1] + 1), 0).max(1, initial=0)
        return np.asarray(np.clip(ends - past, 0, tokens))

    def buffers(self, state: State, returned: Sequence[Array]) -> list[int]:
        """The addresses of a run's outputs: the state's for what is kept, and those of arrays for the others."""
        found = [0] * len(self._model.outputs)
        for (_, o), address in zip(self._cache.pairs, state.addresses, strict=True):
            found[o] = address
        for n, array in zip(self.returned, returned, strict=True):
            found[n] = address_of(array)
        return found

    def held(self, state: State) -> AbstractContextManager[None]:
        """Take a state for one run. Raises InputError if it is none of this model's, or another run has it."""
        if not isinstance(state, State):
            raise InputError(f"state must be what session.new_state gave, got a {type(state).__name__}")
        if state.layout != self._layout:
            raise InputError("the state belongs to another model; states go with the file they were made for")
        return state.held()

    def step(self, feed: Mapping[str, object], state: State) -> Step:
        """A run that appends the feed's tokens to a state, which the caller has taken (`held`).

        Raises InputError that says what was expected and what came; the state is not changed.
        """
        cache, signature, lengths = self._cache, self._signature, state.held_tokens
        self._check_names(feed)
        found: list[Array | None] = [None] * len(self._model.inputs)
        for name, value in feed.items():
            found[self._names[name]] = signature.array(self._names[name], value)
        tokens = self._tokens(found, state)
        new = self._new(found, lengths, tokens)
        after = [length + more for length, more in zip(lengths, new, strict=True)]
        self._check_room(state, lengths, after, tokens)
        held = [length - gone for length, gone in zip(lengths, state.forgotten, strict=True)]
        most = max(held)
        past = most if cache.uniform else min(-(-most // _STEP) * _STEP, state.max_tokens - tokens)
        if cache.mask != NONE:
            found[cache.mask] = None
        if cache.positions != NONE and found[cache.positions] is None:
            positions = [range(length, length + tokens) for length in lengths]
            found[cache.positions] = np.array(positions, self._model.inputs[cache.positions].dtype)
        shapes = tuple([None if a is None else a.shape for a in found])
        plan, mask = self._plan(state.batch, past, tokens, shapes)
        if cache.mask != NONE:
            ends = [length + more for length, more in zip(held, new, strict=True)]
            found[cache.mask] = mask if mask is None or min(new) == tokens else _before(mask, ends)
        return Step(found, plan, np.array(new), after)

    def _planned(self, batch: int, past: int, tokens: int,
                 shapes: Sequence[Shape | None]) -> tuple[Plan, Array | None]:
        """The plan of a run on `past` tokens held, `shapes` being those of the arrays given, and its mask: of ones, as
        attention goes by the lengths, or all sequences are equally long."""
        own: dict[int, Shape] = {i: (batch, kept.heads, past, kept.size)
                                 for (i, _), kept in zip(self._cache.pairs, self._layout.caches, strict=True)}
        mask = None
        if self._cache.mask != NONE:
            mask = np.ones((batch, past + tokens), self._model.inputs[self._cache.mask].dtype)
            own[self._cache.mask] = mask.shape
        return self._signature.plan(*(own[i] if s is None else s for i, s in enumerate(shapes))), mask

    def _check_names(self, feed: Mapping[str, object]) -> None:
        if isinstance(feed, Mapping):
            given = feed.keys()
            if self._needed <= given <= self._names.keys():
                return
            if given & self._pasts:
                raise InputError(f"{min(given & self._pasts)!r} is what the state holds; leave it out of the feed")
        raise misfit(feed, self._names, [n for n in self._names if n in self._needed], "with a state the inputs are")

    def _tokens(self, found: Sequence[Array | None], state: State) -> int:
        """How many tokens each sequence of the feed has, padding included."""
        number, axis = self._cache.tokens
        tensor, array = self._model.inputs[number], found[number]
        assert array is not None
        if array.ndim != len(tensor.shape):
            raise InputError(f"input {tensor.name!r} must have {len(tensor.shape)} dimensions, {describe(tensor)}, "
                             f"got shape {array.shape}")
        batch = self._model.inputs[self._cache.pairs[0][0]].shape[0]
        for size, program in zip(array.shape, tensor.shape, strict=True):
            if program == batch and size != state.batch:
                raise InputError(f"input {tensor.name!r} has {size} sequences (shape {array.shape}), "
                                 f"the state has {state.batch}")
        return int(array.shape[axis])

    def _new(self, found: Sequence[Array | None], lengths: Sequence[int], tokens: int) -> list[int]:
        """How many tokens of each sequence are no padding."""
        mask = found[self._cache.mask] if self._cache.mask != NONE else None
        if mask is None:
            return [tokens] * len(lengths)
        name, most, there = self._model.inputs[self._cache.mask].name, max(lengths), mask != 0
        if there.shape == (len(lengths), most + tokens):
            if not np.array_equal(there[:, :most], np.arange(most) < np.array(lengths)[:, None]):
                raise InputError(f"input {name!r} contradicts the state: it must be 1 for the tokens held, which are "
                                 f"the first {_listed(lengths)}, and 0 from there to {most}; it may also be left out")
            there = there[:, most:]
        elif there.shape != (len(lengths), tokens):
            raise InputError(f"input {name!r} must have the shape {(len(lengths), tokens)}, new tokens only, or "
                             f"{(len(lengths), most + tokens)} with those held, got {there.shape}")
        new = np.count_nonzero(there, axis=1)
        if not np.array_equal(there, np.arange(tokens) < new[:, None]):
            raise InputError(f"input {name!r} has padding before a token: with a state, padding stands behind them")
        return list(map(int, new))

    def _check_room(self, state: State, lengths: Sequence[int], after: Sequence[int], tokens: int) -> None:
        if tokens > state.max_tokens:
            raise InputError(f"{tokens} tokens of each sequence, with padding, are more than the state has room for: "
                             f"{state.max_tokens} (max_tokens)")
        most = max(after)
        if most > state.max_tokens:
            row = after.index(most)
            raise InputError(f"sequence {row} would be {most} tokens long, {lengths[row]} held and "
                             f"{most - lengths[row]} new; the state has room for {state.max_tokens} (max_tokens)")
        if self._cache.uniform and min(after) != most:
            raise InputError(f"the sequences would be {_listed(after)} tokens long, and this model computes with one "
                             "length for all; use a state for each length")


def _listed(numbers: Sequence[int]) -> str:
    """Numbers for a message, not more than a few."""
    text = ", ".join(map(str, numbers[:6]))
    return f"{text}, ..." if len(numbers) > 6 else text


def _before(mask: Array, ends: Sequence[int]) -> Array:
    """The mask with 0 from each sequence's end on, which tells padding to what is no attention."""
    return np.where(np.arange(mask.shape[1]) < np.array(ends)[:, None], mask, mask.dtype.type(0))
