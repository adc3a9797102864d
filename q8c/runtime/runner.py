"""Runs one part of a compiled file: from arrays to a frame, through the code, and back to arrays."""
from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from q8c.errors import InputError
from q8c.runtime.arrays import Array
from q8c.runtime.artifact import Artifact
from q8c.runtime.code import Code
from q8c.runtime.keeper import Keeper
from q8c.runtime.memory import Frame, address_of
from q8c.runtime.model import FRAME_ARGUMENTS, FRAME_STAMPS, Model
from q8c.runtime.outputs import Outputs
from q8c.runtime.planner import Plan
from q8c.runtime.signature import Signature
from q8c.runtime.state import Layout, State
from q8c.runtime.threads import Workers
from q8c.runtime.trace import Trace

Feed: TypeAlias = "Mapping[str, npt.ArrayLike]"
Watcher: TypeAlias = "Callable[[Trace], None] | None"
_IDLE_FRAMES = 8  # kept for the next runs; more are made when more run at once
_FIXED = struct.Struct("=qqqQQQQqQ")


class Runner:
    """A part of a file with its code mapped, its plans, worker threads and idle frames. Safe in threads."""

    def __init__(self, artifact: Artifact, part: int, tier: str, threads: int) -> None:
        """Map the code of a part, by number, for a tier; runs use up to so many threads."""
        self.part = part
        self.model = model = artifact.manifest.parts[part].model
        self.signature = Signature(model)
        self._outputs = Outputs(model)
        self.layout = Layout.of(model, artifact.digest)
        self.keeper = Keeper(model, self.signature, self.layout) if self.layout else None
        self.code = Code(artifact, tier, part)
        self.workers = Workers(self.code, threads)
        self.frames: list[Frame] = []
        self._artifact = artifact
        words = model.frame
        self._arguments = struct.Struct(f"={words.dims - words.inputs}Q")
        self._tail = slice(8 * words.dims, 8 * words.size)

    def run(self, wanted: Sequence[int], feed: Feed, watcher: Watcher = None) -> list[Array]:
        """The outputs of those numbers, or all if there are none. Raises InputError for a feed that does not fit."""
        inputs, plan = self.signature.collect(feed)
        frame = self._frame(plan)
        outputs = self._outputs.allocate(plan)
        if self.keeper is None:
            self._execute(frame, plan, map(address_of, inputs), map(address_of, outputs), 0, 0, 0, watcher)
        else:
            dense = self.keeper.dense(inputs, outputs)
            self._execute(frame, plan, map(address_of, inputs), dense.addresses, address_of(dense.lengths),
                          dense.capacity, address_of(dense.counts), watcher)
            dense.finish()
        return [outputs[i] for i in wanted] if wanted else outputs

    def resume(self, wanted: Sequence[int], feed: Feed, state: State, watcher: Watcher = None) -> list[Array]:
        """A run on a state: the outputs of those numbers, or all that are not kept if there are none. Raises InputError
        for a feed or an output that does not go with a state."""
        keeper = self.keeper
        if keeper is None:
            raise InputError("the model keeps nothing in place; run it without a state")
        for n in keeper.kept.intersection(wanted):
            raise InputError(f"output {self.model.outputs[n].name!r} stays in the state; ask for other outputs")
        with keeper.held(state):
            step = keeper.step(feed, state)
            frame = self._frame(step.plan)
            outputs = self._outputs.allocate(step.plan, keeper.returned)
            self._execute(frame, step.plan, [0 if a is None else address_of(a) for a in step.inputs],
                          keeper.buffers(state, outputs), state.lengths_address, state.capacity,
                          address_of(step.counts), watcher)
            state.advance(step.after)
        return [outputs[keeper.returned.index(n)] for n in wanted] if wanted else outputs

    def _execute(self, frame: Frame, plan: Plan, inputs: Iterable[int], outputs: Iterable[int], lengths: int,
                 capacity: int, counts: int, watcher: Watcher) -> None:
        """Run the code on arrays at these addresses. Raises InputError if the model refuses what is in them."""
        self._artifact.require_whole()
        memory = frame.memory
        _FIXED.pack_into(memory, 0, 1, 0, 0, self._artifact.weights_address, frame.arena_address, 0, lengths, capacity,
                         counts)
        self._arguments.pack_into(memory, 8 * FRAME_ARGUMENTS, *inputs, *outputs)
        memory[self._tail] = plan.tail
        trace = None
        if watcher is None:
            self.workers.run(frame, plan.threads)
        else:
            trace = self._traced(frame, plan)
        status, detail = frame.words[1], frame.words[2]
        frame.trim()
        if len(self.frames) < _IDLE_FRAMES:
            self.frames.append(frame)
        if status:
            raise _failure(self.model, status, detail)
        if trace is not None and watcher is not None:
            watcher(trace)

    def _frame(self, plan: Plan) -> Frame:
        """A frame with memory for a run. Raises InputError where there is not as much."""
        try:
            frame = self.frames.pop()
        except IndexError:
            frame = Frame(self.model.frame.size)
        frame.reserve(plan.arena + self.workers.threads * plan.scratch)
        return frame

    def _traced(self, frame: Frame, plan: Plan) -> Trace:
        """Run a frame and note when each thread was in which node."""
        ticks = np.zeros((self.workers.threads, len(self.model.nodes), 2), np.int64)
        frame.words[FRAME_STAMPS] = address_of(ticks)
        began = time.perf_counter_ns()
        self.workers.run(frame, plan.threads)
        return Trace(plan.symbols, began, time.perf_counter_ns(), ticks[:frame.words[0]], self.part)


def _failure(model: Model, status: int, detail: int) -> InputError:
    if not 1 <= status <= len(model.nodes):
        return InputError(f"the model refused its input (status {status}, {detail})")
    node = model.nodes[status - 1]
    reason = node.failure.replace("{detail}", str(detail)) if node.failure else f"it refused its input ({detail})"
    return InputError(f"node {node.name!r} ({node.op}): {reason}")
