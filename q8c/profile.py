"""Where the time of a model's runs goes: traces of the compiled code beside what each node has to do."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from q8c.ir.dims import Dim, evaluate
from q8c.ir.graph import Graph
from q8c.ir.work import Work, label, work_of
from q8c.runtime.trace import Trace, ticks_per_ns

WAIT = "wait"


Least = Callable[[str, int, int], float]
"""The least seconds the threads of a run need together for `Work.kind`, multiply-adds and bytes."""


@dataclass(frozen=True)
class Row:
    """One node, or nodes taken together: the median over the runs of its time and of the threads' waiting for each
    other behind it, in seconds, both as shares of one run (sums over threads by their number), and what it does.

    `floor` is the least time this CPU could need, None where its ceilings are not known.
    """

    name: str
    label: str
    op: str
    count: int
    seconds: float
    wait: float
    macs: int
    bytes: int
    floor: float | None = None

    @property
    def share(self) -> float | None:
        """How near it comes to the ceiling: 1 is the ceiling."""
        return None if self.floor is None or not self.seconds else self.floor / self.seconds


@dataclass(frozen=True)
class Profile:
    """The nodes of a model in order; the median time of a run, and of the part of it outside of the nodes, in seconds.

    On a busy machine `accounted` is less than `seconds`: each run is held up somewhere, but seldom in one same node.
    """

    rows: tuple[Row, ...]
    seconds: float
    outside: float
    runs: int
    threads: int
    sizes: Mapping[str, int]

    @property
    def accounted(self) -> float:
        """All rows and what is outside of them."""
        return sum(r.seconds + r.wait for r in self.rows) + self.outside


def profile(graph: Graph, symbols: Sequence[str], traces: Sequence[Trace], least: Least | None = None) -> Profile:
    """What the traces of equal runs say of each node of the final graph, node numbers being those of the manifest.

    `symbols` are the manifest's names of the sizes in the traces. Traces with fewer threads than the first (other runs
    had the workers) are left out.
    """
    speed = ticks_per_ns(traces) * 1e9
    kept = [t for t in traces if len(t.ticks) == len(traces[0].ticks)]
    threads = len(kept[0].ticks)
    sizes = dict(zip(symbols, kept[0].symbols, strict=True))
    busy = np.median([_busy(t) for t in kept], axis=0) / speed / threads
    wait = np.median([_waits(t) for t in kept], axis=0) / speed / threads
    total = [(t.ended - t.began) * 1e-9 for t in kept]
    outside = [whole - (t.last - t.first) / speed for whole, t in zip(total, kept, strict=True)]
    rows = []
    for node, seconds, waited in zip(graph.nodes, busy, wait, strict=True):
        if not seconds:
            continue
        work = work_of(node)
        macs, nbytes = _value(work.macs, sizes), _value(work.bytes, sizes)
        floor = least(work.kind, macs, nbytes) if least else None
        rows.append(Row(node.source[0] if node.source else f"%{node.output.name}", label(node), node.op, 1,
                        float(seconds), float(waited), macs, nbytes, floor))
    return Profile(tuple(rows), float(np.median(total)), max(0.0, float(np.median(outside))), len(kept), threads, sizes)


def grouped(rows: Iterable[Row], by: str) -> list[Row]:
    """The rows with equal `label` or `op` added up, the longest first; each is named by what it has in common."""
    groups: dict[str, Row] = {}
    for row in rows:
        key = getattr(row, by)
        had = groups.get(key)
        groups[key] = replace(row, name=key) if had is None else replace(
            had, count=had.count + 1, seconds=had.seconds + row.seconds, wait=had.wait + row.wait,
            macs=had.macs + row.macs, bytes=had.bytes + row.bytes,
            floor=None if had.floor is None or row.floor is None else had.floor + row.floor)
    return sorted(groups.values(), key=lambda r: -(r.seconds + r.wait))


def chrome_trace(graph: Graph, symbols: Sequence[str], traces: Sequence[Trace], title: str) -> dict[str, Any]:
    """The traces as JSON values in Chrome's trace event format, which Perfetto and chrome://tracing open: a row per
    thread, a slice per node and another where it waits. Times are in microseconds."""
    per_us = ticks_per_ns(traces) * 1e3
    sizes = dict(zip(symbols, traces[0].symbols, strict=True))
    names = [(label(n), {"node": n.source[0] if n.source else f"%{n.output.name}", **_facts(work_of(n), sizes)})
             for n in graph.nodes]
    start = traces[0].first
    threads = max(len(t.ticks) for t in traces)
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": title}}]
    events += [{"ph": "M", "name": "thread_name", "pid": 1, "tid": t, "args": {"name": f"thread {t}"}}
               for t in range(threads)]

    def event(name: str, category: str, tid: int, begin: int, end: int, args: dict[str, Any]) -> None:
        events.append({"ph": "X", "name": name, "cat": category, "pid": 1, "tid": tid,
                       "ts": round((begin - start) / per_us, 3), "dur": round((end - begin) / per_us, 3), "args": args})

    for trace in traces:
        for tid, stamps in enumerate(trace.ticks.tolist()):
            before = None
            for (name, args), (begin, end) in zip(names, stamps, strict=True):
                if not end:
                    continue
                if before is not None and begin - before > per_us / 10:
                    event(WAIT, WAIT, tid, before, begin, {})
                event(name, "node", tid, begin, end, args)
                before = end
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _busy(trace: Trace) -> np.ndarray[Any, Any]:
    """Ticks in each node, all threads together."""
    return np.asarray((trace.ticks[:, :, 1] - trace.ticks[:, :, 0]).sum(axis=0))


def _waits(trace: Trace) -> np.ndarray[Any, Any]:
    """Ticks that threads were in no node while the run was on, put to the nodes the others were in then.

    A thread that comes late, or not at all, has no stamps for the nodes it missed.
    """
    waits = np.zeros(trace.ticks.shape[1], np.int64)
    ends = trace.ticks[:, :, 1].max(axis=0)
    timed = np.flatnonzero(ends)
    ends = np.maximum.accumulate(ends[timed])
    for stamps in trace.ticks[:, timed]:
        mine = np.flatnonzero(stamps[:, 1])
        begins = np.append(stamps[mine, 0], trace.last)
        since = np.insert(stamps[mine, 1], 0, trace.first)
        for number, (begin, end) in enumerate(zip(since, begins, strict=True)):
            missed = range(mine[number - 1] if number else 0, mine[number] if number < len(mine) else len(timed))
            for node in missed[:-1]:
                until = min(max(begin, ends[node]), end)
                waits[timed[node]] += until - begin
                begin = until
            if end > begin:
                waits[timed[missed[-1] if missed else 0]] += end - begin
    return waits


def _value(dim: Dim, sizes: Mapping[str, int]) -> int:
    return evaluate(dim, sizes)


def _facts(work: Work, sizes: Mapping[str, int]) -> dict[str, int]:
    facts = {"multiply-adds": _value(work.macs, sizes), "bytes": _value(work.bytes, sizes)}
    return {name: value for name, value in facts.items() if value}
