"""Single kernels: int8 linears of few and many rows, attention, and the row kernels between them, as multiply-adds or
bytes a second and as a share of what this CPU can do, beside the same operation in the peers.

Each case is a tiny ONNX model that q8c and the peers are given in the same run, in turn, pinned, in processes of their
own. What q8c's kernels take inside of a run its code notes itself; the run as a whole is compared with the peers'.

  ms, peers    a run from numpy arrays to numpy arrays: for a linear rows are quantized, multiplied and biased
  of tier/cpu  share of the measured peak of the units of q8c's tier, and of the best this CPU has
  of memory    share of what reading the operands would take at the bandwidth of the caches that hold them

examples:
  python benchmarks/kernels.py                             everything, one thread
  python benchmarks/kernels.py --only linear -t 2          linears on two threads
  python benchmarks/kernels.py --only rows --q8c tier=avx2
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import cases, common, peers
from benchmarks.cases import Case
from benchmarks.common import BenchmarkError, ms, table
from benchmarks.race import Contestant, Figures, ended, race

SCHEMA = 1
_TOLD = 3  # peers on a line; all are in the JSON file


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; the exit code."""
    args = arguments().parse_args(argv)
    return int(common.conclude("kernels", lambda: measure(args), text, args.output) is None)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = common.parser("kernels", __doc__, threads=(1,), seconds=0.2, rounds=3)
    add = parser.add_argument
    add("--only", metavar="GROUP,...", help=f"some of {', '.join(cases.GROUPS)}")
    add("--q8c", action="append", default=[], metavar="OPTION=VALUE,...", help="q8c with options; may be repeated")
    add("--no-peers", action="store_true", help="q8c alone")
    return parser


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, as the JSON file has them."""
    groups = args.only.split(",") if args.only else list(cases.GROUPS)
    unknown = [g for g in groups if g not in cases.GROUPS]
    if unknown:
        raise BenchmarkError(f"no group {unknown[0]!r}; expected some of {', '.join(cases.GROUPS)}")
    mine = [f"q8c:{words}" for words in args.q8c] or ["q8c"]
    result: dict[str, Any] = {
        "schema": SCHEMA, "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv[1:],
        "machine": common.machine(), "ceilings": {}, "skipped": {}, "results": []}
    for threads in args.threads:
        result["ceilings"][str(threads)] = common.ceilings(threads)
        for group in groups:
            for case in cases.GROUPS[group]():
                names = [*mine, *([] if args.no_peers else case.peers)]
                _Run(case, threads, args, result).measure(names)
    return result


@dataclass
class _Run:
    """One case with so many threads."""

    case: Case
    threads: int
    args: argparse.Namespace
    result: dict[str, Any]

    def measure(self, names: Sequence[str]) -> None:
        """Race the engines for every number of rows."""
        contestants = [c for name in names if (c := self.ready(name)) is not None]
        with ended(contestants):
            for rows in self.case.rows:
                common.say(f"{self.case.model.name}, {rows} rows, {self.threads} threads")
                dropped: dict[str, str] = {}
                figures = race(contestants, self.case.feed(rows), self.args.seconds, self.args.rounds, dropped)
                self.result["skipped"] |= {f"{self.case.model.name} {name}": why for name, why in dropped.items()}
                contestants = [c for c in contestants if c.name not in dropped]
                self.add(rows, contestants, figures)

    def ready(self, name: str) -> Contestant | None:
        """The engine with the case's model loaded, None (and the reason kept) if it cannot."""
        contestant = Contestant(name, sys.executable if name.startswith("q8c") else self.args.python)
        try:
            contestant.prepare(self.case.model)
            contestant.start(self.threads)
        except BenchmarkError as error:
            contestant.end()
            self.result["skipped"][f"{self.case.model.name} {name}"] = str(error)
            return None
        return contestant

    def add(self, rows: int, contestants: Sequence[Contestant], figures: dict[str, Figures]) -> None:
        """Put the figures of one number of rows in the result."""
        from q8c import ceilings as measured
        able = measured.Ceilings.from_json(self.result["ceilings"][str(self.threads)])
        engines: dict[str, Any] = {}
        for contestant in contestants:
            found = figures[contestant.name]
            row: dict[str, Any] = {"title": peers.engine(contestant.name).title, **vars(found.times)}
            if contestant.name.startswith("q8c"):
                facts = contestant.facts["facts"]
                features = measured.tier_features(facts["tier"], facts["extras"])
                nodes = contestant.ask("nodes", runs=200, seconds=self.args.seconds)["nodes"]
                row |= {"tier": facts["tier"], "kernels": [kernel(n, self.case, able, features) for n in nodes]}
            engines[contestant.name] = row
        self.result["results"].append({"group": self.case.group, "name": self.case.name, "rows": rows,
                                       "threads": self.threads, "engines": engines})


def kernel(node: dict[str, Any], case: Case, able: Any, features: frozenset[str]) -> dict[str, Any]:
    """A kernel's rates and shares: `tier` and `cpu` of the peaks for its products, `memory` of the bandwidth."""
    kind = {"q8_linear": "int8", "attention": "attention"}.get(node["op"], "f32")
    shares: dict[str, float] = {"memory": able.read_seconds(node["bytes"]) / node["seconds"]}
    for name, allowed in (("tier", features), ("cpu", None)):
        rate = able.for_work(kind, allowed)
        if node["macs"] and rate is not None:
            shares[name] = node["macs"] / node["seconds"] / rate.macs
    return {**node, "wanted": case.wants(node), "shares": shares}


def text(result: Mapping[str, Any]) -> str:
    """Everything for people."""
    from benchmarks.report import machine_text
    parts = [machine_text(result)]
    for group in dict.fromkeys(r["group"] for r in result["results"]):
        rows = [["case", "rows", "threads", "ms", "kernel", "us", "GMAC/s", "of tier", "of cpu", "GB/s", "of memory",
                 "best peers, ms (times q8c)"]]
        for found in (r for r in result["results"] if r["group"] == group):
            rows += _lines(found)
        parts.append(f"{group}\n{table(rows, left=(0, 4, 11))}")
    if result["skipped"]:
        parts.append("\n".join(["left out:", *(f"  {n}: {why}" for n, why in result["skipped"].items())]))
    return "\n\n".join(parts)


def _lines(found: dict[str, Any]) -> list[list[str]]:
    """A line per q8c and kernel of interest, the peers on the first."""
    others = [e for name, e in found["engines"].items() if not name.startswith("q8c")]
    lines: list[list[str]] = []
    for name, row in found["engines"].items():
        if not name.startswith("q8c"):
            continue
        told = ", ".join(f"{e['title']} {ms(e['median'])} ({e['median'] / row['median']:.2f})"
                         for e in sorted(others, key=lambda e: float(e["median"]))[:_TOLD])
        for number, k in enumerate(k for k in row["kernels"] if k["wanted"]):
            first = [f"{found['name']}{'' if name == 'q8c' else ' ' + row['title']}", str(found["rows"]),
                     str(found["threads"]), ms(row["median"])]
            lines.append([*(first if not number else [""] * 4), k["label"], f"{k['seconds'] * 1e6:.1f}",
                          f"{k['macs'] / k['seconds'] / 1e9:.1f}" if k["macs"] else "",
                          *(f"{100 * k['shares'][s]:.0f} %" if s in k["shares"] else "" for s in ("tier", "cpu")),
                          f"{k['bytes'] / k['seconds'] / 1e9:.1f}", f"{100 * k['shares']['memory']:.0f} %",
                          told if not number else ""])
    return lines


if __name__ == "__main__":
    sys.exit(main())
