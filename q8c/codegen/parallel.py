"""Code for several tiers at once: helper processes that are given the graph as text.

A helper is a fresh interpreter that reads requests from its standard input and writes answers to its output. Nothing
is forked from a process with threads, and nothing of the user's program is imported again. Whatever goes wrong with
one, its tier is generated here, so that errors are the same and a helper is never missed.
"""
from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any

from q8c.codegen.generate import Generated, generate
from q8c.codegen.targets import Tier
from q8c.ir.graph import Graph
from q8c.ir.parse import parse_graph
from q8c.ir.text import print_graph

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from q8c.codegen.parallel import serve; serve()"
Begun = Callable[[Tier], None]
_LOG = logging.getLogger(__name__)


class Generators:
    """Generates the code of tiers with the help of `helpers` other processes, which start at once."""

    def __init__(self, helpers: int = 0) -> None:
        self._helpers = [h for h in (_Helper() for _ in range(helpers)) if h.usable]
        self._waiting: deque[Tier] = deque()
        self._done: dict[str, tuple[Generated, float]] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Generators:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        for helper in self._helpers:
            helper.end()

    def begin(self, graph: Graph, tiers: Sequence[Tier], offsets: Mapping[str, int]) -> None:
        """Let the helpers begin with the code of these tiers; `finish` does the rest. The graph stays as it is."""
        self._waiting = deque(sorted(tiers, key=lambda t: t.registers))  # the most registers, the most code: the first
        self._done = {}
        text = print_graph(graph) if self._helpers else ""
        self._threads = [threading.Thread(target=h.work, args=(text, offsets, self._waiting, self._done), daemon=True)
                         for h in self._helpers]
        for thread in self._threads:
            thread.start()

    def finish(self, graph: Graph, tiers: Sequence[Tier], offsets: Mapping[str, int],
               begun: Begun = lambda tier: None) -> list[tuple[Generated, float]]:
        """The code of each tier that was begun and the seconds it took, byte for byte what `generate` gives.

        `begun` hears, in this thread, of the tiers this process itself begins. Raises what `generate` raises.
        """
        def take(tier: Tier) -> None:
            begun(tier)
            start = time.perf_counter()
            made = generate(graph, tier, offsets)
            self._done[tier.name] = made, time.perf_counter() - start

        while (tier := _next(self._waiting)) is not None:
            take(tier)
        for thread in self._threads:
            thread.join()
        for tier in tiers:
            if tier.name not in self._done:
                take(tier)
        return [self._done[tier.name] for tier in tiers]


class _Helper:
    """One process that generates code."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        if not os.path.basename(sys.executable or "").startswith(("python", "pypy")):
            return  # Python is embedded in another program
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError as error:
            _LOG.info("cannot start a process to help (%s)", error)

    @property
    def usable(self) -> bool:
        """Whether the process started."""
        return self._process is not None

    def work(self, text: str, offsets: Mapping[str, int], waiting: deque[Tier],
             done: dict[str, tuple[Generated, float]]) -> None:
        """Take tiers from `waiting` as long as there are any, once the process is ready for them."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        requests, answers = self._process.stdin, self._process.stdout
        try:
            if not self._ready:
                pickle.load(answers)
                self._ready = True
            while (tier := _next(waiting)) is not None:
                pickle.dump((text, tier, dict(offsets)), requests)
                requests.flush()
                answer = pickle.load(answers)
                if answer is not None:
                    done[tier.name] = answer
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            pass  # what is not done is seen to by the process that asks

    def end(self) -> None:
        """Stop the process."""
        if self._process is None:
            return
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close() if stream else None
        self._process.wait()


def _next(waiting: deque[Tier]) -> Tier | None:
    """Another tier nobody has taken."""
    try:
        return waiting.pop()
    except IndexError:
        return None


def serve() -> None:
    """The life of a helper: answers requests until its input ends, or until nobody reads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the process that asks, which ends its helpers
    requests: IO[bytes] = sys.stdin.buffer
    answers: IO[bytes] = sys.stdout.buffer
    sys.stdout = sys.stderr
    with contextlib.suppress(EOFError, BrokenPipeError):
        _answer(answers, "ready")
        while True:
            text, tier, offsets = pickle.load(requests)
            start = time.perf_counter()
            try:
                made = generate(parse_graph(text), tier, offsets)
                _answer(answers, (made, time.perf_counter() - start))
            except Exception:  # told by the process that asks, when it does the same
                _answer(answers, None)


def _answer(answers: IO[bytes], value: Any) -> None:
    pickle.dump(value, answers)
    answers.flush()
