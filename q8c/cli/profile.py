"""Show where a compiled model's time goes, node by node.

The compiled code itself notes when each thread begins and ends a node; what a node must compute and move comes from
the graph in the file. The share of the ceiling sets that against what this CPU can do, measured first by generated
code (two seconds; --no-ceiling leaves it out, as does a missing compiler).

  q8c profile model.q8c -s seq=128              nodes in order of their time
  q8c profile model.q8c --by kernel             nodes of one kind together
  q8c profile model.q8c --trace out.json        for ui.perfetto.dev or chrome://tracing

`wait` is how long threads stood idle behind a node for others to finish it. Times are medians; with several threads
they are sums over the threads divided by their number, so that all add up to the time of a run.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import q8c
from q8c.cli.common import (
    Progress,
    UsageError,
    add_feed_arguments,
    add_json_argument,
    add_model_argument,
    add_state_argument,
    add_threads_argument,
    positive,
    print_json,
    table,
)

if TYPE_CHECKING:
    from q8c.profile import Least, Profile, Row
    from q8c.runtime.session import Session
    from q8c.runtime.trace import Trace

_NAME = 48


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_model_argument(verb)
    add_feed_arguments(verb)
    add_state_argument(verb)
    add_threads_argument(verb)
    verb.add_argument("--tier", help="the CPU tier whose code to run (default: the best this CPU has)")
    verb.add_argument("-n", "--runs", type=positive, default=50, help="timed runs (default: 50)")
    verb.add_argument("--by", choices=("node", "kernel", "op"), default="node",
                      help="a line for each node, or for all nodes of one kernel or op")
    verb.add_argument("--sort", choices=("time", "order"), default="time", help="of nodes (default: time)")
    verb.add_argument("--trace", type=Path, metavar="FILE.json", help="write the last run in Chrome's trace format")
    verb.add_argument("--no-ceiling", action="store_true", help="do not measure what the CPU can do")
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Run, then print."""
    from q8c.cli.feeds import feeds_for, runner
    from q8c.ir import parse_graph
    from q8c.profile import chrome_trace, profile
    session = q8c.load(args.model, threads=args.threads, tier=args.tier)
    call, _ = runner(session, feeds_for(session, args), args.state)
    progress = Progress()
    try:
        least = None if args.no_ceiling else ceiling(session, progress)
        traces = record(session, call, args.runs, progress)
    finally:
        progress.clear()
    part = traces[-1].part
    graph = parse_graph(session.artifact.ir(part))
    symbols = session.artifact.manifest.parts[part].model.symbols
    found = profile(graph, symbols, traces, least)
    if args.trace:
        events = chrome_trace(graph, symbols, traces[-1:], f"{Path(session.path).name} {session.tier}")
        try:
            args.trace.write_text(json.dumps(events), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--trace: cannot write {args.trace}: {error.strerror}") from error
    if args.json:
        print_json({"tier": session.tier, **asdict(found)})
    else:
        print(text(found, session.tier, args.by, args.sort))
    return 0


def record(session: Session, call: Callable[[], object], runs: int, progress: Progress) -> list[Trace]:
    """The traces of so many runs, after three that do not count."""
    traces: list[Trace] = []
    for _ in range(3):
        call()
    session.watch(traces.append)
    for number in range(runs):
        progress(f"run {number} of {runs}")
        call()
    session.watch(None)
    return traces


def ceiling(session: Session, progress: Progress) -> Least | None:
    """The least times the code of the session's tier could take on this CPU, None where the compiler that measures what
    the CPU can do is missing."""
    from q8c.extras import require_compiler
    try:
        require_compiler()
    except q8c.CompileError:
        return None
    from q8c import ceilings
    progress("what this CPU can do")
    try:
        found = ceilings.measure(session.threads)
    except q8c.Error:  # more threads than cores
        return None
    features = ceilings.tier_features(session.tier, session.artifact.image(session.tier).features)
    return lambda kind, macs, nbytes: found.seconds(kind, macs, nbytes, features)


def text(found: Profile, tier: str, by: str, sort: str) -> str:
    """The profile for people."""
    from q8c.profile import grouped
    rows = list(found.rows)
    if by != "node":
        rows = grouped(rows, "label" if by == "kernel" else "op")
    elif sort == "time":
        rows.sort(key=lambda r: -(r.seconds + r.wait))
    sizes = ", ".join(f"{n}={v}" for n, v in found.sizes.items())
    head = (f"{found.seconds * 1e6:,.1f} us a run (median of {found.runs}), {found.accounted * 1e6:,.1f} us accounted "
            f"for; {tier}, {found.threads} thread{'s' * (found.threads > 1)}{', ' if sizes else ''}{sizes}")
    lines = [["us", "%", "wait", "GMAC/s", "GB/s", "of ceiling", *([] if by == "node" else ["nodes"]), by,
              *(["kernel"] if by == "node" else [])]]
    lines += [_cells(row, found.accounted, by) for row in rows]
    lines.append([f"{found.outside * 1e6:.1f}", f"{100 * found.outside / found.accounted:.1f}", "", "", "", "",
                  *([] if by == "node" else [""]), "outside of nodes", *([""] if by == "node" else [])])
    return f"{head}\n{table(lines, right=range(6 if by == 'node' else 7))}"


def _cells(row: Row, total: float, by: str) -> list[str]:
    share = "" if row.share is None else f"{100 * row.share:.0f} %"
    per_second = 1e-9 / row.seconds
    cells = [f"{row.seconds * 1e6:.1f}", f"{100 * (row.seconds + row.wait) / total:.1f}", f"{row.wait * 1e6:.1f}",
             f"{row.macs * per_second:.1f}" if row.macs else "", f"{row.bytes * per_second:.1f}", share]
    if by == "node":
        return [*cells, _short(row.name), row.label]
    return [*cells, str(row.count), row.name]


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[:_NAME // 2 - 2]}...{name[-_NAME // 2 + 1:]}"
