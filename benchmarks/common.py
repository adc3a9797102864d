"""What the benchmarks share: where things are kept, statistics, the machine, tables."""
from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q8c.cli.common import positive

ROOT = Path(__file__).resolve().parent.parent


class BenchmarkError(Exception):
    """Something the person who called can put right; the message is one line that says how."""


@dataclass(frozen=True)
class Times:
    """Seconds of runs: the median, the 10th and 90th percentile, the least, and how many there were."""

    median: float
    p10: float
    p90: float
    least: float
    runs: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Times:
        """Raises ValueError where there are no samples."""
        ordered = sorted(samples)
        if not ordered:
            raise ValueError("no run was timed")

        def at(share: float) -> float:
            place = share * (len(ordered) - 1)
            low = math.floor(place)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (place - low) * (ordered[high] - ordered[low])

        return cls(at(0.5), at(0.1), at(0.9), ordered[0], len(ordered))


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product of n positive numbers; NaN for none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def cache_folder() -> Path:
    """Where models made for the benchmarks are kept: $Q8C_BENCH_CACHE, else q8c-benchmarks in the user's cache."""
    base = os.environ.get("Q8C_BENCH_CACHE")
    path = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "q8c-benchmarks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model, flags = "", set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and not model:
                model = value.strip()
            if name.strip() == "flags" and not flags:
                flags = set(value.split())
    except OSError:
        pass
    wide = sorted(f for f in flags if f.startswith(("avx", "amx", "fma")))
    return {"cpu": model, "features": wide, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0],
            "system": platform.platform(), "python": platform.python_version()}


def versions(names: Sequence[str]) -> dict[str, str]:
    """The installed versions of packages, without those that are missing."""
    from importlib.metadata import PackageNotFoundError, version
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def pin(threads: int) -> list[int]:
    """Keep this process on the first `threads` cores it may use; which those are."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise BenchmarkError(f"{threads} threads are asked for and this process may use {len(cores)} cores; "
                             "give fewer with --threads")
    os.sched_setaffinity(0, cores[:threads])
    return cores[:threads]


def peak_memory() -> int:
    """The most memory this process ever had resident, in bytes, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def counts(text: str) -> tuple[int, ...]:
    """`1,2` as numbers, for argparse."""
    if not all(word.isdecimal() and int(word) for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected numbers of at least 1 such as 1,2, got {text!r}")
    return tuple(int(word) for word in text.split(","))


def ceilings(threads: int) -> dict[str, Any]:
    """What the CPU can do with so many threads, as JSON values."""
    from q8c.ceilings import measure
    from q8c.errors import Error
    say(f"what {threads} thread{'s' * (threads > 1)} can do")
    try:
        return measure(threads).to_json()
    except Error as error:
        raise BenchmarkError(str(error)) from error


def table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows as aligned columns, to the right but for the columns in `left`."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) if i in left else c.rjust(w)
                               for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)


def ms(seconds: float) -> str:
    """A time with three digits that count."""
    value = seconds * 1e3
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if 0 < value < 1000 else f"{value:.0f}"


def parser(name: str, description: str | None, threads: Sequence[int], seconds: float,
           rounds: int) -> argparse.ArgumentParser:
    """What every race of engines takes, with the defaults of the benchmark `name`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("-t", "--threads", type=counts, default=tuple(threads), metavar="N,...",
        help=f"numbers of threads (default: {','.join(map(str, threads))})")
    add("--seconds", type=float, default=seconds, help=f"time for each engine on each case (default: {seconds:g})")
    add("--rounds", type=positive, default=rounds, help=f"rounds that time is cut into (default: {rounds})")
    add("--python", default=sys.executable, metavar="PATH", help="the interpreter that has the peers (default: this)")
    add("-o", "--output", type=Path, default=results(f"{name}.json"), metavar="FILE",
        help=f"where the figures go as JSON (default: benchmarks/results/{name}.json)")
    return made


def results(name: str) -> Path:
    """A file among the results."""
    return ROOT / "benchmarks" / "results" / name


def conclude(name: str, measure: Callable[[], Mapping[str, Any]], text: Callable[[Mapping[str, Any]], str],
             output: Path) -> Mapping[str, Any] | None:
    """Measure, print, write: the figures, or None where a benchmark said in a line why there are none."""
    try:
        found = measure()
    except BenchmarkError as error:
        hush()
        print(f"{name}.py: {error}", file=sys.stderr)
        return None
    hush()
    print(text(found))
    write_json(output, found)
    print(f"\nfigures in {output}")
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """One JSON object, NaN and infinities as null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def say(text: str) -> None:
    """Progress for whoever watches a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def hush() -> None:
    """Wipe the line of `say`."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
