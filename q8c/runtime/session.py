"""Loads a compiled file and runs it."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy.typing as npt

from q8c.errors import Error, InputError
from q8c.runtime import cpu
from q8c.runtime.arrays import Array
from q8c.runtime.artifact import Artifact
from q8c.runtime.chooser import Argument, Chooser
from q8c.runtime.runner import Runner
from q8c.runtime.state import State
from q8c.runtime.threads import MAX_THREADS
from q8c.runtime.trace import Trace


@dataclass(frozen=True)
class _Loaded:
    """What a session works with until it is closed; a run holds on to it, so closing takes no memory from under it."""

    artifact: Artifact
    runners: tuple[Runner, ...]
    chooser: Chooser


class Session:
    """A compiled model, ready to run. Safe to use from several threads at once, and after a fork.

    `tier` is the CPU tier whose code runs, `threads` the most threads one run uses.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None, tier: str | None = None) -> None:
        """Map the code for `tier` (default: the best one this CPU can execute). See `load`."""
        parts = artifact.manifest.parts
        images = {image.tier: tuple({f for p in parts for i in p.images if i.tier == image.tier for f in i.features})
                  for image in parts[0].images}
        self.tier = cpu.pick(images, tier)
        self._asked = threads, tier
        self._watcher: Callable[[Trace], None] | None = None
        count = cpu.count() if threads is None else _checked_threads(threads)
        runners = tuple(Runner(artifact, number, self.tier, count) for number in range(len(parts)))
        self._loaded: _Loaded | None = _Loaded(artifact, runners, Chooser(artifact.manifest, runners))
        self.path = artifact.path

    @property
    def threads(self) -> int:
        """The most threads a run uses, the calling one included."""
        return self._open().runners[0].workers.threads

    @property
    def artifact(self) -> Artifact:
        """The open file: its manifest, IR and constants."""
        return self._open().artifact

    def get_inputs(self) -> list[Argument]:
        """The inputs in order, of all branches where inputs choose one: those of other branches may be left out."""
        return self._open().chooser.inputs()

    def get_outputs(self) -> list[Argument]:
        """The outputs in order."""
        return self._open().chooser.outputs()

    def new_state(self, max_tokens: int, batch: int = 1) -> State:
        """An empty state with room for `max_tokens` tokens of each of `batch` sequences, to be given to runs.

        Raises InputError for sizes that are none or too large for the memory there is, and Error if the model has no
        cache that grows in place.
        """
        layout = self._open().chooser.layout()
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
        Without one, an input that the model only broadcasts along an axis may have 1 there: one mask for all sequences.

        Raises InputError, saying what was expected and what came, for a feed that does not fit the signature or the
        state, or that the model itself refuses (a token id outside of its table, say); the state holds what it held.
        """
        runner, feed = self._open().chooser.choose(input_feed, state is not None)
        wanted = runner.signature.select(output_names) if output_names else ()
        if state is None:
            return runner.run(wanted, feed, self._watcher)
        return runner.resume(wanted, feed, state, self._watcher)

    def __call__(self, /, **feed: Any) -> dict[str, Array]:
        """All outputs by name; `state=` as for `run`. Raises InputError as `run` does."""
        state = feed.pop("state") if isinstance(feed.get("state"), State) else None
        runner, read = self._open().chooser.choose(feed, state is not None)
        watcher, kept = self._watcher, frozenset[int]()
        if state is None:
            found = runner.run((), read, watcher)
        else:
            found = runner.resume((), read, state, watcher)
            kept = runner.keeper.kept if runner.keeper else kept
        names = [t.name for n, t in enumerate(runner.model.outputs) if n not in kept]
        return dict(zip(names, found, strict=True))

    def watch(self, watcher: Callable[[Trace], None] | None) -> None:
        """Have each run from now on timed node by node and `watcher` called with its trace before `run` returns; None
        ends it. Costs about 20 ns a node and thread."""
        self._watcher = watcher

    def close(self) -> None:
        """End the worker threads and let go of the file. Runs under way finish; later ones raise Error."""
        loaded, self._loaded = self._loaded, None
        for runner in loaded.runners if loaded else ():
            runner.workers.close()

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


def _reload(path: str, sha256: str, threads: int | None, tier: str | None) -> Session:
    return load(path, threads=threads, sha256=sha256, tier=tier)


def _checked_threads(threads: int) -> int:
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads must be an integer from 1 to {MAX_THREADS} or None, got {threads!r}")
    return threads
