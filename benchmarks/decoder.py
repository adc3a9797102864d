"""SmolLM2-135M with its trained weights in q8c and in every peer that is installed: reading prompts, writing tokens,
and how close each is to fp32, in one run.

Every engine has a process of its own, pinned to as many cores as it has threads. They take turns in rounds on the same
tokens, and those that wait are stopped. Times are medians with the 10th and 90th percentile.

  prefill N    logits of N tokens with nothing before them. Engines called `last` compute those of the last token alone,
               a quarter less work; compare like with like.
  decode at N  one more token for each sequence of the batch behind N others
  tok/s        tokens a second, of all sequences together
  of floor     the least time over the time. The floor is the multiply-adds at the measured int8 peak and attention at
               the float peak, or reading the weights (a byte each) and the sequences' keys and values (fp32) once,
               whichever is longer; of the last token's logits alone for engines that are asked for no more.
  x q8c        how many times the time of q8c, of the kind that computes the same logits
  accuracy     on a text nobody was calibrated on: KL and agreement of the likeliest token with fp32, and what the
               model thinks of the text

examples:
  python benchmarks/decoder.py                             everything, 1 and 2 threads: several minutes
  python benchmarks/decoder.py -t 1 --prefill 128 --decode 112 --batches 1      a quick look
  python benchmarks/decoder.py -e q8c-decoder,q8c-decoder:weights=q8-channel --prefill 128 --decode ""
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import common, decoders, smollm2
from benchmarks.common import BenchmarkError, ms, table
from benchmarks.models import Array, Feed, Model
from benchmarks.race import Contestant, Figures, ended, race

REFERENCE = "decoder-ort-fp32"
OWN = {True: "q8c-decoder:last_logits=true", False: "q8c-decoder"}
TEXTS = Path(__file__).resolve().parent / "texts"
SCHEMA = 1


@dataclass(frozen=True)
class Case:
    """`seq` new tokens for each of `batch` sequences behind `past` others."""

    batch: int
    past: int
    seq: int

    def __str__(self) -> str:
        kind = f"decode at {self.past}" if self.seq == 1 else f"prefill {self.seq}"
        return kind if self.batch == 1 else f"{kind}, batch {self.batch}"

    def feed(self, text: Array) -> Feed:
        """The text as often as it takes; every row of a batch has the same."""
        ids = np.resize(text, self.past + self.seq)[None].repeat(self.batch, axis=0)
        return {"prefix": ids[:, :self.past], "input_ids": ids[:, self.past:]}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; the exit code."""
    args = arguments().parse_args(argv)
    return int(common.conclude("decoder", lambda: measure(args), text_of, args.output) is None)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = common.parser("decoder", __doc__, threads=(1, 2), seconds=2, rounds=5)
    add = parser.add_argument
    add("--prefill", type=numbers, default=(128, 512), metavar="N,...", help="tokens of a prompt (default: 128,512)")
    add("--decode", type=numbers, default=(112, 1024, 4096), metavar="N,...",
        help="tokens before the one that is written (default: 112,1024,4096)")
    add("--batches", type=numbers, default=(1, 8), metavar="N,...",
        help="sequences that are written at once, those after the first at the first context (default: 1,8)")
    add("-e", "--engines", metavar="NAME,...", help="engines, options of q8c after a colon and joined by + (default: "
        f"{', '.join([*OWN.values(), *decoders.ENGINES])})")
    add("--no-accuracy", action="store_true", help="leave out the table of accuracy")
    return parser


def numbers(text: str) -> tuple[int, ...]:
    """`128,512`, or nothing, for argparse."""
    return common.counts(text) if text else ()


def cases(args: argparse.Namespace) -> list[Case]:
    """What is measured, in order of memory."""
    found = [Case(1, 0, seq) for seq in args.prefill]
    found += [Case(batch, past, 1) for n, batch in enumerate(args.batches)
              for past in (args.decode if n == 0 else args.decode[:1])]
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, as the JSON file has them."""
    model = smollm2.model()
    words = args.engines.split(",") if args.engines else [*OWN.values(), *decoders.ENGINES]
    names = [word.replace("+", ",") for word in words]
    result: dict[str, Any] = {
        "schema": SCHEMA, "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv[1:],
        "machine": common.machine(), "ceilings": {}, "engines": {}, "results": [], "accuracy": {}, "left out": {}}
    contestants = []
    for name in names:
        common.say(f"preparing {name}")
        title = decoders.engine(name).title
        contestant = Contestant(name, sys.executable if name.startswith("q8c") else args.python)
        try:
            contestant.prepare(model)
            contestants.append(contestant)
        except BenchmarkError as error:
            result["left out"][title] = str(error)
    tokenizer = smollm2.gguf().tokenizer()
    texts = {path.stem: np.array(tokenizer.encode(path.read_text(encoding="utf-8")).ids) for path in TEXTS.iterdir()}
    floors = Floors(model)
    for turn, threads in enumerate(args.threads):
        result["ceilings"][str(threads)] = common.ceilings(threads)
        with ended(contestants):
            going = started(contestants, threads, result)
            for case in cases(args):
                common.say(f"{case}, {threads} threads")
                figures = raced(going, case.feed(texts["calibration"]), args, str(case), result)
                floor = {last: floors.seconds(case, last, result["ceilings"][str(threads)]) for last in (True, False)}
                result["results"].append(summary(case, threads, figures, floor))
            if turn == 0 and not args.no_accuracy:
                common.say("accuracy")
                every = [c for c in going if not is_last(c.name)]
                feed = {"prefix": np.zeros((1, 0), np.int64), "input_ids": texts["held_out"][None]}
                figures = raced(every, feed, args, "accuracy", result)
                result["accuracy"] = accuracy(figures, texts["held_out"])
    return result


def started(contestants: Sequence[Contestant], threads: int, result: dict[str, Any]) -> list[Contestant]:
    """Those that could load the model."""
    going = []
    for contestant in contestants:
        engine = decoders.engine(contestant.name)
        common.say(f"{threads} threads: loading {engine.title}")
        try:
            contestant.start(threads)
            going.append(contestant)
            result["engines"].setdefault(contestant.name, {"title": engine.title} | {
                k: contestant.facts[k] for k in ("prepare", "import", "load", "facts", "versions")
                if k in contestant.facts})
        except BenchmarkError as error:
            result["left out"][engine.title] = str(error)
    return going


def raced(going: list[Contestant], feed: Feed, args: argparse.Namespace, case: str,
          result: dict[str, Any]) -> dict[str, Figures]:
    """The figures of those that can do it; why others cannot is put in the result."""
    dropped: dict[str, str] = {}
    figures = race(going, feed, args.seconds, args.rounds, dropped)
    result["left out"] |= {f"{decoders.engine(name).title}, {case}": why for name, why in dropped.items()}
    for contestant in [c for c in going if c.name in dropped]:
        going.remove(contestant)
    return figures


def is_last(name: str) -> bool:
    """Whether an engine computes logits of the last token alone."""
    return "last_logits=true" in name or name == "decoder-llamacpp"


class Floors:
    """The least times of the model."""

    def __init__(self, model: Model) -> None:
        from q8c.frontend import import_onnx
        from q8c.ir.work import total_work
        graph = import_onnx(model.onnx)
        self._total = total_work(graph)
        self._caches = [v.type.nbytes for v in graph.inputs if v.name.startswith("past_key_values.")]
        logits = graph.outputs[0].producer
        assert logits is not None
        hidden, self._vocabulary = logits.input(0).shape[-1], logits.output.shape[-1]
        assert isinstance(hidden, int) and isinstance(self._vocabulary, int)
        self._head = hidden * self._vocabulary

    def seconds(self, case: Case, last: bool, ceilings: Mapping[str, Any]) -> float:
        """For a case, with logits of all tokens or of the `last`."""
        from q8c.ceilings import Ceilings
        from q8c.ir.dims import evaluate
        sizes = {"batch": case.batch, "seq": case.seq, "past": case.past}
        known = Ceilings.from_json(dict(ceilings))
        int8, other = known.for_work("int8"), known.for_work("attention")
        assert int8 is not None and other is not None
        macs = evaluate(self._total.weight_macs, sizes) - (case.batch * (case.seq - 1) * self._head if last else 0)
        compute = macs / int8.macs + evaluate(self._total.attention_macs, sizes) / other.macs
        read = evaluate(self._total.weight_bytes, sizes) + sum(evaluate(n, sizes) for n in self._caches)
        return max(compute, known.read_seconds(read))


def summary(case: Case, threads: int, figures: Mapping[str, Figures], floor: Mapping[bool, float]) -> dict[str, Any]:
    """One case as the JSON file has it."""
    expected = figures[REFERENCE].outputs[0][:, -1] if REFERENCE in figures else None
    rows = {}
    for name, found in figures.items():
        own = figures.get(OWN[is_last(name)])
        gap = None
        if expected is not None and found.outputs:
            from q8c.accuracy import error
            gap = error(found.outputs[0][:, -1], expected).relative_l2
        rows[name] = {
            "title": decoders.engine(name).title, **vars(found.times), "memory": found.memory, "error": gap,
            "tokens": case.batch * case.seq / found.times.median, "share": floor[is_last(name)] / found.times.median,
            "ratio": None if own is None else found.times.median / own.times.median}
    return {"case": str(case), **asdict(case), "threads": threads, "floor": dict(zip(("last", "all"), floor.values(),
                                                                                     strict=True)), "engines": rows}


def accuracy(figures: Mapping[str, Figures], ids: Array) -> dict[str, Any]:
    """How far each engine's logits over a text are from the reference's."""
    if REFERENCE not in figures:
        return {}
    from q8c.accuracy import logit_error
    following = np.append(ids[1:], -1)
    return {decoders.engine(name).title: asdict(logit_error(f.outputs[0][0], figures[REFERENCE].outputs[0][0],
                                                            following))
            for name, f in figures.items() if f.outputs}


def text_of(result: Mapping[str, Any]) -> str:
    """Everything for people."""
    from benchmarks.report import machine_text
    parts = [machine_text(result)]
    for case in result["results"]:
        head = f"{case['case']}, {case['threads']} thread{'s' * (case['threads'] > 1)}"
        rows = [[head, "ms", "p10", "p90", "tok/s", "of floor", "x q8c", "error", "MB"]]
        for row in sorted(case["engines"].values(), key=lambda r: float(r["median"])):
            rows.append([row["title"], ms(row["median"]), ms(row["p10"]), ms(row["p90"]), f"{row['tokens']:.0f}",
                         f"{row['share']:.0%}", "" if row["ratio"] is None else f"{row['ratio']:.2f}",
                         "" if row["error"] is None else f"{row['error']:.4f}", f"{row['memory'] / 1e6:.0f}"])
        parts.append(table(rows))
    if result["accuracy"]:
        rows = [["accuracy, held-out text", "KL", "same best", "NLL", "perplexity", "fp32"]]
        rows += [[title, f"{r['kl']:.5f}", f"{r['top1']:.1%}", f"{r['nll']:.4f}", f"{np.exp(r['nll']):.2f}",
                  f"{np.exp(r['reference_nll']):.2f}"] for title, r in result["accuracy"].items()]
        parts.append(table(rows))
    rows = [["loading, ms", "import", "load", "prepared in s"]]
    rows += [[e["title"], f"{e['import'] * 1e3:.0f}", f"{e['load'] * 1e3:.0f}", f"{e['prepare']:.1f}"]
             for e in result["engines"].values()]
    parts.append(table(rows))
    if result["left out"]:
        parts.append("\n".join(["left out:", *(f"  {n}: {why}" for n, why in result["left out"].items())]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
