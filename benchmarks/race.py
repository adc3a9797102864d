"""Engines in processes of their own, run in turn on the same inputs."""
from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import BenchmarkError, Times
from benchmarks.models import Array, Feed, Model

_WORKER = str(Path(__file__).with_name("worker.py"))
_PATIENCE = 900  # seconds for one answer; float models on long inputs take some


@dataclass
class Contestant:
    """An engine in its process. `python` is the interpreter that has the engine's packages."""

    name: str
    python: str = sys.executable
    facts: dict[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None

    def prepare(self, model: Model) -> None:
        """Make what the engine loads, in a process that ends. Raises BenchmarkError that says why it cannot."""
        done = subprocess.run([self.python, _WORKER, "prepare", self.name, json.dumps(model.to_json())],
                              capture_output=True, text=True)
        self.facts |= self._checked(done.stdout, done.stderr, done.returncode)

    def start(self, threads: int) -> None:
        """Load what was prepared. Raises BenchmarkError that says why it cannot."""
        self._log = tempfile.TemporaryFile("w+")
        words = [self.python, _WORKER, self.name, self.facts["path"], str(threads)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
                                         text=True, bufsize=1)
        self.facts |= self._answer()

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """Let the process do one thing; it is stopped before and after. Raises BenchmarkError where it fails."""
        assert self._process is not None and self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
        except BrokenPipeError:
            pass  # it is gone; the answer that does not come says so
        return self._answer()

    def end(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    stream.close() if stream else None
            self._process.wait()
            self._log.close()
            self._process = None

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _PATIENCE)[0]:
            raise BenchmarkError(f"no answer for {_PATIENCE} s")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            return self._checked("", self._log.read(), code)
        self._process.send_signal(signal.SIGSTOP)
        return self._checked(line, "", 0)

    def _checked(self, line: str, log: str, code: int) -> dict[str, Any]:
        if not line:
            last = log.strip().splitlines()[-1:] or [""]
            raise BenchmarkError(f"its process ended with {_exit(code)}{': ' if last[0] else ''}{last[0][:200]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return answer


@dataclass(frozen=True)
class Figures:
    """One engine on one shape: its times, the first run's, the peak memory of its process so far in bytes, and its
    outputs."""

    times: Times
    first: float
    memory: int
    outputs: list[Array]


@contextlib.contextmanager
def ended(contestants: Sequence[Contestant]) -> Iterator[None]:
    """No process outlives the block."""
    try:
        yield
    finally:
        for contestant in contestants:
            contestant.end()


class _Turns:
    """Engines that take a feed and answer; those that fail are left out and `dropped` gets the reason."""

    def __init__(self, contestants: Sequence[Contestant], feed: Feed, dropped: dict[str, str], folder: str) -> None:
        self.going, self._dropped, self._folder = list(contestants), dropped, folder
        inputs = os.path.join(folder, "feed.npz")
        np.savez(inputs, **feed)  # type: ignore[arg-type, unused-ignore]
        self.firsts = {c.name: self.ask(c, "feed", path=inputs) for c in contestants}

    def ask(self, contestant: Contestant, do: str, **words: Any) -> dict[str, Any]:
        """The answer of one engine, nothing where it fails."""
        try:
            return contestant.ask(do, **words)
        except BenchmarkError as error:
            self._dropped[contestant.name] = str(error)
            self.going.remove(contestant)
            return {}

    def outputs(self) -> dict[str, list[Array]]:
        """What each engine computes."""
        found = {}
        for contestant in list(self.going):
            path = os.path.join(self._folder, "outputs.npz")
            self.ask(contestant, "outputs", path=path)
            if contestant in self.going:
                with np.load(path) as arrays:
                    found[contestant.name] = [arrays[name] for name in arrays.files]
        return found


def race(contestants: Sequence[Contestant], feed: Feed, seconds: float, rounds: int,
         dropped: dict[str, str]) -> dict[str, Figures]:
    """The figures of each engine on one feed.

    They take turns, each round beginning with another one. A turn is two runs that warm up and then timed ones for
    its part of `seconds`. Those that fail are left out and `dropped` gets the reason.
    """
    samples: dict[str, list[float]] = {c.name: [] for c in contestants}
    with tempfile.TemporaryDirectory(prefix="q8c-bench") as folder:
        turns = _Turns(contestants, feed, dropped, folder)
        for number in range(rounds):
            first = number % max(1, len(turns.going))
            for contestant in [*turns.going[first:], *turns.going[:first]]:
                answer = turns.ask(contestant, "time", warmups=2, runs=1000, seconds=seconds / rounds)
                samples[contestant.name] += answer.get("seconds", [])
        outputs = turns.outputs()
    return {name: Figures(Times.of(samples[name]), turns.firsts[name]["first"], turns.firsts[name]["memory"], found)
            for name, found in outputs.items()}


def answers(contestants: Sequence[Contestant], feed: Feed, dropped: dict[str, str]) -> dict[str, list[Array]]:
    """What each engine computes for a feed, not timed; `dropped` as for `race`."""
    with tempfile.TemporaryDirectory(prefix="q8c-bench") as folder:
        return _Turns(contestants, feed, dropped, folder).outputs()


def _exit(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
