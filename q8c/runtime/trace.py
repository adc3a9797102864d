"""When each thread of a run was in which node, noted by the compiled code itself with the time-stamp counter."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Trace:
    """The course of one run.

    `ticks` is [threads, nodes, 2]: the time-stamp counter when a thread began and ended each node of the manifest, 0
    for nodes that take no code. `began` and `ended` are `time.perf_counter_ns` around the run's native call. `symbols`
    are the values of the model's symbolic sizes, `part` is the number of the part of the file that ran.
    """

    symbols: tuple[int, ...]
    began: int
    ended: int
    ticks: npt.NDArray[np.int64]
    part: int = 0

    @property
    def first(self) -> int:
        """The tick the first node began at."""
        return int(self.ticks[self.ticks > 0].min(initial=np.iinfo(np.int64).max))

    @property
    def last(self) -> int:
        """The tick the last node ended at."""
        return int(self.ticks.max(initial=0))


def ticks_per_ns(traces: Sequence[Trace]) -> float:
    """The speed of the time-stamp counter, from the first and the last of some traces of one process.

    Its error is some microseconds over the time between them: take runs of at least some milliseconds together.
    Raises ValueError where no trace holds a tick.
    """
    ticked = [t for t in traces if t.last]
    if not ticked:
        raise ValueError("no node of the traces was timed")
    start, end = ticked[0], ticked[-1]
    if start.began == end.began:
        return (end.last - start.first) / max(1, end.ended - start.began)
    return (end.first - start.first) / (end.began - start.began)
