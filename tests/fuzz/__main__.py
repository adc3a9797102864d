"""Many random models: `python -m tests.fuzz --seeds 5000`.

Seeds run in subprocesses of some each, so that what kills the process is caught and laid to the seed that did it; one
that hangs is killed by an alarm.
"""
from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

SECONDS = 600  # of one seed


def main() -> int:
    """1 if any seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--chunk", type=int, default=50, help="seeds of one subprocess")
    parser.add_argument("--passes-only", action="store_true", help="run what passes leave in the interpreter")
    parser.add_argument("--hostile", action="store_true", help="models with something wrong in them")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.seeds)
    if args.child:
        return _hostile_child(seeds) if args.hostile else _child(seeds, not args.passes_only)
    counts: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    mode = ["--passes-only"] * args.passes_only + ["--hostile"] * args.hostile
    for found in _outcomes(seeds, args.chunk, mode):
        counts[found["outcome"]] += 1
        if found["outcome"] == "refused":
            refusals[_kind(found["why"])] += 1
        elif found["outcome"] not in ("equal", "taken"):
            print(f"seed {found['seed']}: {found['outcome']}: {found['why']}\n{found.get('text', '')}\n", flush=True)
    print(", ".join(f"{n} {what}" for what, n in counts.most_common()))
    for why, n in refusals.most_common(25):
        print(f"  refused {n}: {why}")
    return int(any(counts[what] for what in ("wrong", "broken", "killed")))


def _outcomes(seeds: range, chunk: int, mode: list[str]) -> Iterator[dict[str, str]]:
    at = seeds.start
    while at < seeds.stop:
        count = min(chunk, seeds.stop - at)
        command = [sys.executable, "-m", "tests.fuzz", "--child", "--first", str(at), "--seeds", str(count), *mode]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.endswith("}")]
        yield from lines
        at += len(lines)
        if len(lines) < count:
            yield {"seed": str(at), "outcome": "killed", "why": f"exit status {done.returncode}: {done.stderr[-500:]}"}
            at += 1


def _child(seeds: range, native: bool) -> int:
    from tests.fuzz.judge import judge, shrink, text_of

    for seed in _timed(seeds):
        verdict, g = judge(seed, native)
        line = {"seed": seed, "outcome": verdict.outcome, "why": verdict.why[:1000]}
        if verdict.failed:
            model, why = shrink(g, native)
            line |= {"text": text_of(model), "why": f"{why[:600]} (at first: {verdict.why[:300]})"}
        print(json.dumps(line), flush=True)
    return 0


def _timed(seeds: range) -> Iterator[int]:
    for seed in seeds:
        signal.alarm(SECONDS)
        yield seed


def _hostile_child(seeds: range) -> int:
    from tests.fuzz.hostile import judge_hostile
    from tests.fuzz.judge import text_of

    for seed in _timed(seeds):
        verdict, model = judge_hostile(seed)
        line = {"seed": seed, "outcome": verdict.outcome, "why": verdict.why[:1000]}
        print(json.dumps(line | ({"text": text_of(model)[:3000]} if verdict.failed else {})), flush=True)
    return 0


def _kind(why: str) -> str:
    """A refusal without names and numbers."""
    import re
    return re.sub(r"%?\w*\d[\w.]*", "#", why)[:150]


if __name__ == "__main__":
    sys.exit(main())
