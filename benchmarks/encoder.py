"""Encoders in q8c and in every peer that is installed: latency, error, distance from what the CPU could do at best,
memory and load time, on the same inputs in one run.

Every engine has a process of its own, pinned to as many cores as it has threads. They take turns in rounds on the same
inputs, and those that wait are stopped, so that no idle thread of one takes time from another. Times are medians with
the 10th and 90th percentile.

  x floor   the time over the least time the model could take: its weight products at the measured int8 peak plus its
            attention at the measured float peak, or reading the weights once, whichever is longer. There are two: with
            the best units this CPU has, and with those of the tier whose code a q8c runs.
  error     relative L2 of the outputs against ONNX Runtime in fp32, on text where the weights are trained ones.
  best      how many times faster than the best peer, and than the best one that multiplies integers.
  memory    the most the process had resident after a run of that shape, mapped weights included.

examples:
  python benchmarks/encoder.py                                  MiniLM with its trained weights, all default shapes
  python benchmarks/encoder.py -m bert-base -t 1                BERT-base with random weights, one thread
  python benchmarks/encoder.py --shapes 1x128 --seconds 0.3     a quick look
  python benchmarks/encoder.py --engines q8c,q8c:weights=q8-block64,q8c:tier=avx2,ort-fp32
  python benchmarks/encoder.py --shapes 32x5-128 -a q8c:pack=true    a batch of 5 to 128 tokens a row, padding left out
  python benchmarks/encoder.py -m model.onnx --shapes 4x1       any ONNX file; a shape is batch x seq, or whatever its
                                                                first two free dimensions are
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import common, models, peers, report
from benchmarks.common import BenchmarkError
from benchmarks.models import Model, Shape
from benchmarks.race import Contestant, ended, race

REFERENCE = "ort-fp32"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; the exit code."""
    args = arguments().parse_args(argv)
    result = common.conclude("encoder", lambda: measure(args), report.text, args.output)
    if result is None:
        return 1
    if args.plot:
        try:
            report.plot(result, args.plot)
            print(f"plot in {args.plot}")
        except ModuleNotFoundError:
            print("no plot: matplotlib is not installed")
    return 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = common.parser("encoder", __doc__, threads=(1, 2), seconds=1, rounds=5)
    add = parser.add_argument
    add("-m", "--model", action="append", metavar="MODEL", help="minilm, bert-base, or an ONNX file; may be repeated "
        "(default: minilm)")
    add("-s", "--shapes", type=shapes, metavar="BxS,...", help="batch x seq, such as 1x128,8x128; 32x5-128 has rows of "
        "5 to 128 tokens")
    add("-e", "--engines", metavar="NAME,...", help="engines, options of q8c after a colon and joined by + "
        f"(default: q8c and {', '.join(peers.ENGINES)})")
    add("-a", "--also", action="append", default=[], metavar="NAME", help="one more engine, such as q8c:tier=avx2")
    add("--plot", type=Path, default=common.results("encoder.svg"), metavar="FILE",
        help="where the plot goes (default: benchmarks/results/encoder.svg)")
    return parser


def shapes(text: str) -> tuple[Shape, ...]:
    """`1x128,8x128`, for argparse."""
    try:
        return tuple(map(Shape.parse, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected shapes such as 1x128,32x5-128, got {text!r}") from None


def engines(args: argparse.Namespace) -> list[str]:
    """The engines asked for; options of q8c are joined by + there, as commas part the engines."""
    words = args.engines.split(",") if args.engines else ["q8c", *peers.ENGINES]
    names = list(dict.fromkeys(word.replace("+", ",") for word in [*words, *args.also]))
    for name in names:
        peers.engine(name)
    return names


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, as the JSON file has them."""
    chosen = [models.find(name) for name in args.model or ["minilm"]]
    names = engines(args)
    result: dict[str, Any] = {
        "schema": report.SCHEMA, "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv[1:],
        "machine": common.machine(), "ceilings": {}, "engines": [], "results": []}
    for threads in args.threads:
        result["ceilings"][str(threads)] = common.ceilings(threads)
    for model in chosen:
        contestants = prepared(model, names, args.python, result)
        if not contestants:
            raise BenchmarkError(f"no engine is left for {model.name}: " + "; ".join(
                f"{e['name']}: {e['skipped']}" for e in result["engines"] if "skipped" in e)[:500])
        for threads in args.threads:
            with ended(contestants):
                run(model, threads, contestants, args, result)
    return result


def prepared(model: Model, names: Sequence[str], python: str, result: dict[str, Any]) -> list[Contestant]:
    """The engines that can run the model; what became of the others is put in the result."""
    found = []
    for name in names:
        common.say(f"{model.name}: preparing {name}")
        contestant = Contestant(name, sys.executable if name.startswith("q8c") else python)
        try:
            contestant.prepare(model)
            found.append(contestant)
        except BenchmarkError as error:
            note(result, model, 0, contestant, str(error))
    return found


def note(result: dict[str, Any], model: Model, threads: int, contestant: Contestant, reason: str | None) -> None:
    """Put in the result how an engine loads a model, or why it does not take part."""
    engine = peers.engine(contestant.name)
    entry: dict[str, Any] = {
        "model": model.name, "threads": threads, "name": contestant.name, "title": engine.title, "int8": engine.int8}
    entry |= {k: contestant.facts[k] for k in ("prepare", "import", "load", "facts", "versions")
              if k in contestant.facts}
    result["engines"].append(entry | ({} if reason is None else {"skipped": reason}))


def run(model: Model, threads: int, contestants: Sequence[Contestant], args: argparse.Namespace,
        result: dict[str, Any]) -> None:
    """All shapes of a model with so many threads."""
    going = []
    for contestant in contestants:
        common.say(f"{model.name}, {threads} threads: loading {contestant.name}")
        try:
            contestant.start(threads)
            going.append(contestant)
        except BenchmarkError as error:
            note(result, model, threads, contestant, str(error))
        else:
            note(result, model, threads, contestant, None)
    floors = Floors(model, going, result["ceilings"][str(threads)])
    for shape in sorted(args.shapes or model.shapes, key=lambda s: s.batch * s.seq):
        common.say(f"{model.name} {shape}, {threads} threads")
        dropped: dict[str, str] = {}
        feed = model.feed(shape.batch, shape.seq, shape.least)
        figures = race(going, feed, args.seconds, args.rounds, dropped)
        going = [c for c in going if c.name not in dropped]
        case = {"model": model.name, "shape": str(shape), "tokens": shape.tokens, "threads": threads}
        result["results"].append(report.summarize(
            case, figures, {c.name: peers.engine(c.name) for c in going}, REFERENCE, floors.of(shape), floors.tiers,
            dropped, feed["attention_mask"] != 0 if shape.least else None))


class Floors:
    """The least times of a model for so many threads, on the best units of the CPU and on those of each tier q8c runs;
    `tiers` are the tiers of the engines that have one."""

    def __init__(self, model: Model, contestants: Sequence[Contestant], ceilings: dict[str, Any]) -> None:
        from q8c import ceilings as measured
        mine = {c.name: c.facts["facts"] for c in contestants if c.name.startswith("q8c")}
        self.tiers: dict[str, str] = {name: facts["tier"] for name, facts in mine.items()}
        self._ceilings = measured.Ceilings.from_json(ceilings)
        self._features: dict[str, frozenset[str] | None] = {"cpu": None}
        self._features |= {f["tier"]: measured.tier_features(f["tier"], f["extras"]) for f in mine.values()}
        file = next((facts["file"] for facts in mine.values()), None)
        if file is None:
            from q8c.frontend import import_onnx
            self._graph = import_onnx(model.onnx)
        else:
            from q8c.ir import parse_graph
            from q8c.runtime.artifact import Artifact
            self._graph = parse_graph(Artifact(file).ir())

    def of(self, shape: Shape) -> dict[str, Any]:
        """The floors of a shape by `cpu` or tier, those that are known: padding counts for nothing."""
        found: dict[str, Any] = {}
        rows = [(1, n) for n in shape.lengths] if shape.least else [(shape.batch, shape.seq)]
        for name, features in self._features.items():
            parts = [self._floor(batch, seq, features) for batch, seq in rows]
            if all(part is not None for part in parts):
                compute, memory = sum(p.compute for p in parts), parts[0].memory
                found[name] = vars(parts[0]) | {"compute": compute, "seconds": max(compute, memory)}
        return found

    def _floor(self, batch: int, seq: int, features: frozenset[str] | None) -> Any:
        """The floor of rows that are full; a packed graph has their tokens as a third size."""
        from q8c.ceilings import floor_of
        sizes: dict[str, int] = dict(zip(self._graph.symbols(), (batch, seq, batch * seq), strict=False))
        return floor_of(self._graph, sizes, self._ceilings, features)


if __name__ == "__main__":
    sys.exit(main())
