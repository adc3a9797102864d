"""One engine in a process of its own, told by the benchmark what to do, a JSON object a line.

A process each gives every engine its own memory to be measured, its own thread pools, and an end that is nobody else's
if it crashes. Between its turns the benchmark stops the process, so that threads spinning for more work take no time
from the others.
"""
from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import common, models, peers
from benchmarks.engine import Engine
from benchmarks.models import Array


def named(name: str) -> Engine:
    """The engine of that name, an encoder's or a decoder's."""
    if "decoder" in name.partition(":")[0].split("-"):
        from benchmarks import decoders
        return decoders.engine(name)
    return peers.engine(name)


class Worker:
    """An engine with a model loaded."""

    def __init__(self, name: str, path: Path, threads: int) -> None:
        common.pin(threads)
        engine = named(name)
        start = time.perf_counter()
        with contextlib.suppress(ImportError):
            for package in engine.packages:
                if package != "onnx" and not name.startswith("q8c"):  # q8c runs without its compiler
                    __import__(package)
        if name.startswith("q8c"):
            __import__("q8c.runtime.session")
        imported = time.perf_counter()
        self._loaded = engine.load(path, threads)
        self._run: Callable[[], list[Array]] = lambda: []
        self.first = {"import": imported - start, "load": time.perf_counter() - imported,
                      "facts": dict(self._loaded.facts),
                      "versions": common.versions(("q8c", *engine.packages))}

    def feed(self, path: str) -> dict[str, Any]:
        """Take these inputs and run once; the seconds of that run."""
        import numpy as np
        with np.load(path) as arrays:
            self._run = self._loaded.bind({name: arrays[name] for name in arrays.files})
        start = time.perf_counter()
        self._run()
        return {"first": time.perf_counter() - start, "memory": common.peak_memory()}

    def time(self, warmups: int, runs: int, seconds: float) -> dict[str, Any]:
        """Run up to `warmups` times within `seconds`, then at least once and until `runs` runs or again so many
        seconds are over. Where the first run takes that long it is the one that counts: what a turn begins with is
        little beside it."""
        start = time.perf_counter()
        for number in range(warmups):
            self._run()
            took = time.perf_counter() - start
            if took > seconds:
                if number == 0:
                    return {"seconds": [took]}
                break
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while not samples or (len(samples) < runs and time.perf_counter() < end):
            start = time.perf_counter()
            self._run()
            samples.append(time.perf_counter() - start)
        return {"seconds": samples}

    def generate(self, path: str, tokens: int) -> dict[str, Any]:
        """So many likeliest tokens behind the rows of `input_ids` that an .npz file has; all tokens of each row."""
        import numpy as np
        if self._loaded.generate is None:
            raise common.BenchmarkError("this engine is not told how to write")
        with np.load(path) as arrays:
            return {"text": self._loaded.generate(arrays["input_ids"], tokens).tolist()}

    def nodes(self, runs: int, seconds: float) -> dict[str, Any]:
        """The medians of the kernels of a run over so many runs, or as many as fit in so many seconds."""
        if self._loaded.nodes is None:
            return {"nodes": []}
        return {"nodes": self._loaded.nodes(lambda: None if self.time(2, runs, seconds) else None)}

    def outputs(self, path: str) -> dict[str, Any]:
        """Write the outputs of one run."""
        import numpy as np
        np.savez(path, *self._run())
        return {}


def main() -> None:
    """Serve until the input ends. The words are an engine, the path of what it prepared, and a number of threads."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print
    name, path, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    actions: dict[str, Callable[..., dict[str, Any]]] = {}
    try:
        worker = Worker(name, path, threads)
        actions = {"feed": worker.feed, "time": worker.time, "nodes": worker.nodes, "outputs": worker.outputs,
                   "generate": worker.generate}
        _reply(replies, worker.first)
    except Exception as error:
        _reply(replies, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        return
    for line in sys.stdin:
        request = json.loads(line)
        try:
            _reply(replies, actions[request.pop("do")](**request))
        except Exception as error:
            _reply(replies, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def _reply(replies: TextIO, value: dict[str, Any]) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


def prepare(name: str, model: str) -> None:
    """Make what an engine loads of a model (as JSON) and tell its path and the seconds it took."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start = time.perf_counter()
    try:
        path = named(name).prepared(models.Model.from_json(json.loads(model)))
        _reply(replies, {"path": str(path), "prepare": time.perf_counter() - start})
    except common.BenchmarkError as error:
        _reply(replies, {"error": " ".join(str(error).split())})
    except Exception as error:
        _reply(replies, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(*sys.argv[2:])
    else:
        main()
