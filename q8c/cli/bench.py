"""Time a compiled model, beside ONNX Runtime fp32 where that is installed and the ONNX file is given.

Both run in this process on the same inputs, in turn, so that the machine's moods hit both. Medians count.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import q8c
from q8c.cli.common import (
    Progress,
    UsageError,
    add_feed_arguments,
    add_json_argument,
    add_model_argument,
    add_state_argument,
    add_threads_argument,
    is_onnx,
    positive,
    print_json,
    table,
)


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_model_argument(verb)
    verb.add_argument("-m", "--onnx", type=Path, help="the ONNX file, to time ONNX Runtime on it")
    add_feed_arguments(verb)
    add_state_argument(verb)
    add_threads_argument(verb)
    verb.add_argument("-n", "--runs", type=positive, default=30, help="timed runs of each (default: 30)")
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Time, then print."""
    from q8c.cli.feeds import feeds_for, runner
    from q8c.cli.peer import onnxruntime_session
    if args.state and args.onnx:
        raise UsageError("--state is q8c's own: ONNX Runtime cannot be timed beside it")
    session = q8c.load(args.model, threads=args.threads)
    feeds = feeds_for(session, args)
    call, passed = runner(session, feeds, args.state)
    engines: dict[str, Callable[[], object]] = {f"q8c {session.tier}": call}
    onnx = args.onnx or (args.model if is_onnx(args.model) and not args.state else None)
    peer = onnxruntime_session(onnx, session.threads) if onnx is not None else None
    if args.onnx and peer is None:
        print("q8c: ONNX Runtime is not installed here, so q8c is timed alone", file=sys.stderr)
    if peer is not None:
        engines["ONNX Runtime fp32"] = partial(peer.run, feeds)
    progress = Progress()
    try:
        times = measure(engines, args.runs, progress)
    finally:
        progress.clear()
    figures = {name: statistics_of(samples) for name, samples in times.items()}
    if args.json:
        print_json({"threads": session.threads, "tier": session.tier, "runs": args.runs, "seconds": figures})
        return 0
    shapes = ", ".join(f"{n}[{', '.join(map(str, a.shape))}]" for n, a in passed.items())
    where = f" on a state of {args.state} tokens" if args.state else ""
    print(f"{args.runs} runs in turn{where}, {session.threads} thread{'s' * (session.threads > 1)}, {shapes}")
    best = next(iter(figures.values()))["median"]
    rows = [["", "median ms", "p10", "p90", "ratio"]]
    rows += [[n, *(f"{f[k] * 1e3:.3f}" for k in ("median", "p10", "p90")), f"{f['median'] / best:.2f}"]
             for n, f in figures.items()]
    print(table(rows, right=[1, 2, 3, 4]))
    return 0


def measure(engines: Mapping[str, Callable[[], object]], runs: int, progress: Progress) -> dict[str, list[float]]:
    """Seconds of each run, engines in turn, after three runs that do not count."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(-3, runs):
        progress(f"run {max(turn, 0)} of {runs}")
        for name, call in engines.items():
            start = time.perf_counter()
            call()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def statistics_of(samples: list[float]) -> dict[str, float]:
    """Median and the 10th and 90th percentile."""
    import statistics
    ordered = sorted(samples)
    return {"median": statistics.median(ordered), "p10": ordered[len(ordered) // 10],
            "p90": ordered[-1 - len(ordered) // 10]}
