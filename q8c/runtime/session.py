"""Loads a compiled file and runs it."""
from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from q8c.errors import Error, InputError
from q8c.runtime import cpu
from q8c.runtime.arrays import Array
from q8c.runtime.artifact import Artifact
from q8c.runtime.code import Code
from q8c.runtime.keeper import Keeper
from q8c.runtime.manifest import FRAME_ARGUMENTS, FRAME_STAMPS, Model, Tensor
from q8c.runtime.memory import Frame, address_of
from q8c.runtime.planner import Plan
from q8c.runtime.signature import Signature
from q8c.runtime.state import Layout, State
from q8c.runtime.threads import MAX_THREADS, Workers
from q8c.runtime.trace import Trace

_IDLE_FRAMES = 8  # kept for the next runs; more are made when more run at once
_ONNX_TYPES = {"float32": "float", "float64": "double"}
_FIXED = struct.Struct("=qqqQQQQqQ")


@dataclass(frozen=True)
class Argument:
    """An input or output as ONNX Runtime describes one: free dimensions are text, `type` is such as "tensor(int64)"."""

    name: str
    shape: list[int | str]
    type: str
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _Loaded:
    """What a session works with until it is closed; a run holds on to it, so closing takes no memory from under it."""

    artifact: Artifact
    model: Model
    signature: Signature
    layout: Layout | None
    keeper: Keeper | None
    code: Code
    workers: Workers
    frames: list[Frame]
    arguments: struct.Struct
    tail: slice


class Session:
    """A compiled model, ready to run. Safe to use from several threads at once, and after a fork.

    `tier` is the CPU tier whose code runs, `threads` the most threads one run uses.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None, tier: str | None = None) -> None:
        """Map the code for `tier` (default: the best one this CPU can execute). See `load`."""
        images = {image.tier: image.features for image in artifact.manifest.images}
        self.tier = cpu.pick(images, tier)
        self._asked = threads, tier
        self._watcher: Callable[[Trace], None] | None = None
        model = artifact.manifest.model
        code = Code(artifact, self.tier)
        count = cpu.count() if threads is None else _checked_threads(threads)
        words, signature, layout = model.frame, Signature(model), Layout.of(model, artifact.digest)
        self._loaded: _Loaded | None = _Loaded(
            artifact, model, signature, layout, Keeper(model, signature, layout) if layout else None, code,
            Workers(code, count), [], struct.Struct(f"={words.dims - words.inputs}Q"),
            slice(8 * words.dims, 8 * words.size))
        self.path = artifact.path

    @property
    def threads(self) -> int:
        """The most threads a run uses, the calling one included."""
        return self._open().workers.threads

    @property
    def artifact(self) -> Artifact:
        """The open file: its manifest, IR and constants."""
        return self._open().artifact

    def get_inputs(self) -> list[Argument]:
        """The inputs in order."""
        return [_argument(t) for t in self._open().model.inputs]

    def get_outputs(self) -> list[Argument]:
        """The outputs in order."""
        return [_argument(t) for t in self._open().model.outputs]

    def new_state(self, max_tokens: int, batch: int = 1) -> State:
        """An empty state with room for `max_tokens` tokens of each of `batch` sequences, to be given to runs.

        Raises InputError for sizes that are none or too large for the memory there is, and Error if the model has no
        cache that grows in place.
        """
        layout = self._open().layout
        if layout is None:
            raise Error(f"the model of {self.path} keeps no keys and values in place (q8c explain says why); "
                        "run it without a state")
        return State(layout, max_tokens, batch)

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, npt.ArrayLike], *,
            state: State | None = None) -> list[Array]:
        """The outputs of those names, in that order (all for None or none), as fresh arrays the caller owns.

        With a `state` (`new_state`) the run continues what the state holds and appends its tokens to it: past keys and
        values are not passed, present ones not returned, and inputs that say where the new tokens stand may be left
        out. A mask [batch, new tokens] tells padding behind the tokens of shorter sequences, which is not appended.

        Raises InputError, saying what was expected and what came, for a feed that does not fit the signature or the
        state, or that the model itself refuses (a token id outside of its table, say); the state holds what it held.
        """
        loaded = self._open()
        wanted = loaded.signature.select(output_names) if output_names else ()
        if state is not None:
            return self._continue(loaded, input_feed, state, wanted)
        inputs, plan = loaded.signature.collect(input_feed)
        frame = _frame(loaded, plan)
        outputs = loaded.signature.allocate(plan)
        if loaded.keeper is None:
            self._execute(loaded, frame, plan, map(address_of, inputs), map(address_of, outputs), 0, 0, 0)
        else:
            dense = loaded.keeper.dense(inputs, outputs)
            self._execute(loaded, frame, plan, map(address_of, inputs), dense.addresses, address_of(dense.lengths),
                          dense.capacity, address_of(dense.counts))
            dense.finish()
        return [outputs[i] for i in wanted] if wanted else outputs

    def __call__(self, /, **feed: Any) -> dict[str, Array]:
        """All outputs by name; `state=` as for `run`. Raises InputError as `run` does."""
        state = feed.pop("state") if isinstance(feed.get("state"), State) else None
        loaded = self._open()
        kept = loaded.keeper.kept if state is not None and loaded.keeper is not None else ()
        names = [t.name for n, t in enumerate(loaded.model.outputs) if n not in kept]
        return dict(zip(names, self.run(names, feed, state=state), strict=True))

    def _continue(self, loaded: _Loaded, feed: Mapping[str, npt.ArrayLike], state: State,
                  wanted: Sequence[int]) -> list[Array]:
        """A run on a state: the outputs of those numbers, or all that are not kept if there are none."""
        if loaded.keeper is None:
            raise InputError(f"the model of {self.path} keeps nothing in place; run it without a state")
        keeper = loaded.keeper
        for n in keeper.kept.intersection(wanted):
            raise InputError(f"output {loaded.model.outputs[n].name!r} stays in the state; ask for other outputs")
        with keeper.held(state):
            step = keeper.step(feed, state)
            frame = _frame(loaded, step.plan)
            outputs = loaded.signature.allocate(step.plan, keeper.returned)
            self._execute(loaded, frame, step.plan, [0 if a is None else address_of(a) for a in step.inputs],
                          keeper.buffers(state, outputs), state.lengths_address, state.capacity,
                          address_of(step.counts))
            state.advance(step.after)
        return [outputs[keeper.returned.index(n)] for n in wanted] if wanted else outputs

    def _execute(self, loaded: _Loaded, frame: Frame, plan: Plan, inputs: Iterable[int], outputs: Iterable[int],
                 lengths: int, capacity: int, counts: int) -> None:
        """Run the code on arrays at these addresses. Raises InputError if the model refuses what is in them."""
        memory = frame.memory
        _FIXED.pack_into(memory, 0, 1, 0, 0, loaded.artifact.weights_address, frame.arena_address, 0, lengths, capacity,
                         counts)
        loaded.arguments.pack_into(memory, 8 * FRAME_ARGUMENTS, *inputs, *outputs)
        memory[loaded.tail] = plan.tail
        trace = None
        if self._watcher is None:
            loaded.workers.run(frame, plan.threads)
        else:
            trace = _traced(loaded, frame, plan)
        status, detail = frame.words[1], frame.words[2]
        frame.trim()
        if len(loaded.frames) < _IDLE_FRAMES:
            loaded.frames.append(frame)
        if status:
            raise _failure(loaded.model, status, detail)
        if trace is not None and self._watcher is not None:
            self._watcher(trace)

    def watch(self, watcher: Callable[[Trace], None] | None) -> None:
        """Have each run from now on timed node by node and `watcher` called with its trace before `run` returns; None
        ends it. Costs about 20 ns a node and thread."""
        self._watcher = watcher

    def close(self) -> None:
        """End the worker threads and let go of the file. Runs under way finish; later ones raise Error."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.workers.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as path and SHA-256: who unpickles needs the very same file in the same place."""
        threads, tier = self._asked
        return _reload, (self.path, self._open().artifact.sha256, threads, tier)

    def __repr__(self) -> str:
        state = "closed" if self._loaded is None else f"threads={self.threads}"
        return f"<Session {self.path!r} tier={self.tier} {state}>"

    def _open(self) -> _Loaded:
        if self._loaded is None:
            raise Error(f"the session of {self.path} is closed; load the file again")
        return self._loaded


def load(path: str | os.PathLike[str], *, threads: int | None = None, sha256: str | None = None,
         tier: str | None = None) -> Session:
    """Open a compiled file, check every byte of it, and make it ready to run.

    Args:
        path: The compiled file. It is mapped, not read into memory: replace it by renaming, never change it in place.
        threads: The most threads a run uses; by default as many as this process may use cores.
        sha256: What the whole file must hash to. The file holds machine code, and its own hashes show damage, not
            malice: pin files that come from elsewhere.
        tier: The CPU tier whose code to run; by default the best this CPU can execute.

    Raises:
        ArtifactError: The file is missing, not a compiled file, damaged, not the pinned one, or this machine cannot
            run it.
        InputError: `threads` is not a number from 1 to 256.
    """
    return Session(Artifact(path, sha256), threads, tier)


def _frame(loaded: _Loaded, plan: Plan) -> Frame:
    """A frame with memory for a run. Raises InputError where there is not as much."""
    try:
        frame = loaded.frames.pop()
    except IndexError:
        frame = Frame(loaded.model.frame.size)
    frame.reserve(plan.arena + loaded.workers.threads * plan.scratch)
    return frame


def _traced(loaded: _Loaded, frame: Frame, plan: Plan) -> Trace:
    """Run a frame and note when each thread was in which node."""
    ticks = np.zeros((loaded.workers.threads, len(loaded.model.nodes), 2), np.int64)
    frame.words[FRAME_STAMPS] = address_of(ticks)
    began = time.perf_counter_ns()
    loaded.workers.run(frame, plan.threads)
    return Trace(plan.symbols, began, time.perf_counter_ns(), ticks[:frame.words[0]])


def _reload(path: str, sha256: str, threads: int | None, tier: str | None) -> Session:
    return load(path, threads=threads, sha256=sha256, tier=tier)


def _checked_threads(threads: int) -> int:
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads must be an integer from 1 to {MAX_THREADS} or None, got {threads!r}")
    return threads


def _argument(tensor: Tensor) -> Argument:
    shape: list[int | str] = [p if isinstance(p, int) else t for p, t in zip(tensor.shape, tensor.text, strict=True)]
    element = _ONNX_TYPES.get(tensor.dtype, tensor.dtype)
    return Argument(tensor.name, shape, f"tensor({element})", np.dtype(tensor.dtype))


def _failure(model: Model, status: int, detail: int) -> InputError:
    if not 1 <= status <= len(model.nodes):
        return InputError(f"the model refused its input (status {status}, {detail})")
    node = model.nodes[status - 1]
    reason = node.failure.replace("{detail}", str(detail)) if node.failure else f"it refused its input ({detail})"
    return InputError(f"node {node.name!r} ({node.op}): {reason}")
