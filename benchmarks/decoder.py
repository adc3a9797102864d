"""SmolLM2-135M with its trained weights in q8c and in every peer that is installed: reading prompts, writing tokens,
and how close each is to fp32, in one run.

Every engine has a process of its own, pinned to as many cores as it has threads. They take turns in rounds on the same
tokens, and those that wait are stopped. Times are medians with the 10th and 90th percentile.

  prefill N     logits of N tokens with nothing before them, of all tokens or of the last one alone
  decode at N   one more token for each sequence of the batch behind N others
  tok/s         tokens a second, of all sequences together
  of floor      of a prompt: the least time over the time. That is the multiply-adds at the measured int8 peak, and
                attention at the float peak.
  of bandwidth  of tokens: what q8c has to read (weights and scales as its file has them, keys and values) by its time,
                over the bandwidth of reading as much memory again and again, which takes its turn among the engines
  x q8c         how many times the time of q8c
  accuracy      on a text nobody was calibrated on: KL and agreement of the likeliest token with fp32, and what the
                model thinks of the text
  greedy text   for how many tokens always taking the likeliest writes the same text as fp32, after each of some prompts

examples:
  python benchmarks/decoder.py                             everything, 1 and 2 threads: 6 to 7 minutes
  python benchmarks/decoder.py -t 1 --prefill 128 --decode 112 --batches 1      a quick look
  python benchmarks/decoder.py -e q8c-decoder,q8c-decoder:weights=q8-channel --prefill 128 --decode ""
"""
from __future__ import annotations

import argparse
import sys
import tempfile
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
from benchmarks.race import Contestant, Figures, answers, ended, race

REFERENCE = "decoder-ort-fp32"
OWN = "q8c-decoder"
OWN_LAST = "q8c-decoder:last_logits=true"
CHOOSES = "decoder-llamacpp"
"""The engine that is told with each run which logits to compute."""
TEXTS = Path(__file__).resolve().parent / "texts"
WRITTEN = 40
"""Tokens of a greedy text."""
SCHEMA = 2


@dataclass(frozen=True)
class Case:
    """`seq` new tokens for each of `batch` sequences behind `past` others, and logits of all or the `last` of them."""

    batch: int
    past: int
    seq: int
    last: bool = False

    def __str__(self) -> str:
        kind = f"decode at {self.past}" if self.seq == 1 else f"prefill {self.seq}{', last logits' * self.last}"
        return kind if self.batch == 1 else f"{kind}, batch {self.batch}"

    def feed(self, text: Array, kept: str, read: int) -> Feed:
        """The text as often as it takes; every row of a batch has the same. See `benchmarks.decoders`."""
        ids = np.resize(text, self.past + self.seq)[None].repeat(self.batch, axis=0)
        return feed_of(ids, self.past) | {"last": np.array(self.last), "kept": np.array(kept), "bytes": np.array(read)}

    def suits(self, name: str, names: Sequence[str]) -> bool:
        """Whether the engine, one of these, computes this. Those made for the last logits write tokens only where
        there is none that is made for all."""
        if name == decoders.READS:
            return self.seq == 1
        if self.last:
            return is_last(name) or name == CHOOSES
        return not is_last(name) or (self.seq == 1 and name.replace(OWN_LAST, OWN) not in names)


def feed_of(ids: Array, past: int = 0) -> Feed:
    """Tokens [batch, n] of which `past` are there before."""
    return {"prefix": ids[:, :past], "input_ids": ids[:, past:], "last": np.array(False), "kept": np.array("")}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; the exit code."""
    args = arguments().parse_args(argv)
    return int(common.conclude("decoder", lambda: measure(args), text_of, args.output) is None)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = common.parser("decoder", __doc__, threads=(1, 2), seconds=1, rounds=3)
    add = parser.add_argument
    add("--prefill", type=numbers, default=(128, 512), metavar="N,...", help="tokens of a prompt (default: 128,512)")
    add("--decode", type=numbers, default=(112, 1024, 4096), metavar="N,...",
        help="tokens before the one that is written (default: 112,1024,4096)")
    add("--batches", type=numbers, default=(1, 8), metavar="N,...",
        help="sequences that are written at once, those after the first at the first context (default: 1,8)")
    add("-e", "--engines", metavar="NAME,...", help="engines, options of q8c after a colon and joined by + (default: "
        f"{', '.join([OWN, OWN_LAST, *decoders.ENGINES])})")
    add("--no-accuracy", action="store_true", help="leave out the table of accuracy")
    return parser


def numbers(text: str) -> tuple[int, ...]:
    """`128,512`, or nothing, for argparse."""
    return common.counts(text) if text else ()


def cases(args: argparse.Namespace) -> list[Case]:
    """What is measured, in order of memory."""
    found = [Case(1, 0, seq, last) for seq in args.prefill for last in (False, True)]
    found += [Case(batch, past, 1) for n, batch in enumerate(args.batches)
              for past in (args.decode if n == 0 else args.decode[:1])]
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, as the JSON file has them."""
    model = smollm2.model()
    words = args.engines.split(",") if args.engines else [OWN, OWN_LAST, *decoders.ENGINES]
    names = [word.replace("+", ",") for word in words]
    result: dict[str, Any] = {
        "schema": SCHEMA, "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv[1:],
        "machine": common.machine(), "ceilings": {str(n): {} for n in args.threads}, "engines": {}, "results": [],
        "accuracy": {}, "greedy": {}, "left out": {}}
    contestants = []
    for name in [*names, decoders.READS]:
        common.say(f"preparing {name}")
        contestant = Contestant(name, sys.executable if name.startswith("q8c") else args.python)
        try:
            contestant.prepare(model)
            contestants.append(contestant)
        except BenchmarkError as error:
            result["left out"][decoders.engine(name).title] = str(error)
    reads = {c.name: Reads(Path(c.facts["path"])) for c in contestants if is_own(c.name)}
    texts = {name: smollm2.tokens((TEXTS / f"{name}.txt").read_text("utf-8")) for name in ("calibration", "held_out")}
    floors = Floors(model)
    with tempfile.TemporaryDirectory(prefix="q8c-bench") as kept:
        # The most threads first: what becomes of long prefixes is kept for those with fewer.
        for threads in sorted(args.threads, reverse=True):
            result["ceilings"][str(threads)] = common.ceilings(threads)
            with ended(contestants):
                going = started(contestants, threads, result)
                for case in cases(args):
                    common.say(f"{case}, {threads} threads")
                    read = max((r.of(case) for r in reads.values()), default=0)
                    racing = [c for c in going if case.suits(c.name, [g.name for g in going])]
                    figures = raced(racing, case.feed(texts["calibration"], kept, read), args, str(case), result)
                    going = [c for c in going if c not in racing or c.name in figures]
                    floor = floors.seconds(case, result["ceilings"][str(threads)])
                    result["results"].append(summary(case, threads, figures, floor, reads))
                if threads == max(args.threads) and not args.no_accuracy:
                    common.say("accuracy")
                    every = [c for c in going if not is_last(c.name) and c.name != decoders.READS]
                    result["accuracy"] = accuracy(every, texts["held_out"], result)
                    common.say("greedy text")
                    result["greedy"] = greedy(every, result)
    result["results"].sort(key=lambda r: list(args.threads).index(r["threads"]))
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
            if contestant.name != decoders.READS:
                result["engines"].setdefault(contestant.name, {"title": engine.title} | {
                    k: contestant.facts[k] for k in ("prepare", "import", "load", "facts", "versions")
                    if k in contestant.facts})
        except BenchmarkError as error:
            result["left out"][engine.title] = str(error)
    return going


def raced(racing: Sequence[Contestant], feed: Feed, args: argparse.Namespace, case: str,
          result: dict[str, Any]) -> dict[str, Figures]:
    """The figures of those that can do it; why others cannot is put in the result."""
    dropped: dict[str, str] = {}
    figures = race(racing, feed, args.seconds, args.rounds, dropped)
    leave_out(dropped, case, result)
    return figures


def leave_out(dropped: Mapping[str, str], what: str, result: dict[str, Any]) -> None:
    """Put in the result why engines could not do something."""
    result["left out"] |= {f"{decoders.engine(name).title}, {what}": why for name, why in dropped.items()}


def is_last(name: str) -> bool:
    """Whether an engine can compute no logits but those of the last token."""
    return "last_logits=true" in name


def is_own(name: str) -> bool:
    """Whether an engine is q8c."""
    return name.startswith(OWN) and name != decoders.READS


class Reads:
    """How much memory a compiled file makes a run read."""

    def __init__(self, compiled: Path) -> None:
        self._weights, self._token = decoders.weight_bytes(compiled), decoders.token_bytes(compiled)

    def of(self, case: Case) -> int:
        """In bytes: the weights and scales, and the keys and values of all tokens."""
        return self._weights + case.batch * (case.past + case.seq) * self._token


class Floors:
    """The least times of the model's products."""

    def __init__(self, model: Model) -> None:
        from q8c.frontend import import_onnx
        from q8c.ir.work import total_work
        graph = import_onnx(model.onnx)
        self._total = total_work(graph)
        logits = graph.outputs[0].producer
        assert logits is not None
        hidden, self._vocabulary = logits.input(0).shape[-1], logits.output.shape[-1]
        assert isinstance(hidden, int) and isinstance(self._vocabulary, int)
        self._head = hidden * self._vocabulary

    def seconds(self, case: Case, ceilings: Mapping[str, Any]) -> float:
        """For a case."""
        from q8c.ceilings import Ceilings
        from q8c.ir.dims import evaluate
        sizes = {"batch": case.batch, "seq": case.seq, "past": case.past}
        known = Ceilings.from_json(dict(ceilings))
        int8, other = known.for_work("int8"), known.for_work("attention")
        assert int8 is not None and other is not None
        macs = evaluate(self._total.weight_macs, sizes) - case.last * case.batch * (case.seq - 1) * self._head
        return macs / int8.macs + evaluate(self._total.attention_macs, sizes) / other.macs


def summary(case: Case, threads: int, figures: Mapping[str, Figures], floor: float,
            reads: Mapping[str, Reads]) -> dict[str, Any]:
    """One case as the JSON file has it."""
    from q8c.accuracy import error
    expected = figures[REFERENCE].outputs[0][:, -1] if REFERENCE in figures else None
    own = figures.get(OWN_LAST if case.last else OWN)
    reader = figures.get(decoders.READS)
    bandwidth = None if reader is None else max(r.of(case) for r in reads.values()) / reader.times.median
    rows = {}
    for name, found in figures.items():
        if name == decoders.READS:
            continue
        seconds = found.times.median
        share = floor / seconds if case.seq > 1 else None
        if bandwidth is not None and name in reads:
            share = reads[name].of(case) / seconds / bandwidth
        rows[name] = {
            "title": decoders.engine(name).title, **vars(found.times), "memory": found.memory, "share": share,
            "error": None if expected is None else error(found.outputs[0][:, -1], expected).relative_l2
            if found.outputs else None,
            "tokens": case.batch * case.seq / seconds, "ratio": None if own is None else seconds / own.times.median}
    return {"case": str(case), **asdict(case), "threads": threads, "floor": floor if case.seq > 1 else None,
            "bandwidth": bandwidth, "engines": rows}


def accuracy(every: Sequence[Contestant], ids: Array, result: dict[str, Any]) -> dict[str, Any]:
    """How far each engine's logits over a text are from the reference's."""
    from q8c.accuracy import logit_error
    dropped: dict[str, str] = {}
    found = answers(every, feed_of(ids[None]), dropped)
    leave_out(dropped, "accuracy", result)
    if REFERENCE not in found:
        return {}
    following = np.append(ids[1:], -1)
    return {decoders.engine(name).title: asdict(logit_error(logits[0], found[REFERENCE][0][0], following))
            for name, (logits, *_) in found.items()}


def greedy(every: Sequence[Contestant], result: dict[str, Any]) -> dict[str, list[int]]:
    """For how many tokens each engine writes what the reference writes, prompt by prompt.

    Engines are given the reference's text: up to where the likeliest token is another one, it is what they would have
    written themselves.
    """
    reference = next((c for c in every if c.name == REFERENCE), None)
    if reference is None:
        return {}
    lines = (TEXTS / "prompts.txt").read_text("utf-8").splitlines()
    rows = [smollm2.tokens(line) for line in lines]
    length = min(map(len, rows))
    prompts = np.stack([row[:length] for row in rows])
    with tempfile.TemporaryDirectory(prefix="q8c-bench") as folder:
        path = Path(folder) / "prompts.npz"
        np.savez(path, input_ids=prompts)
        text = np.array(reference.ask("generate", path=str(path), tokens=WRITTEN)["text"])
    dropped: dict[str, str] = {}
    found = answers([c for c in every if c.name != REFERENCE], feed_of(text[:, :-1]), dropped)
    leave_out(dropped, "greedy text", result)
    return {decoders.engine(name).title: agreed(logits[:, length - 1:].argmax(-1), text[:, length:])
            for name, (logits, *_) in found.items()}


def agreed(chosen: Array, text: Array) -> list[int]:
    """How many of the first tokens of each row are the same."""
    found: list[int] = np.cumprod(chosen == text, axis=1).sum(axis=1).tolist()
    return found


def text_of(result: Mapping[str, Any]) -> str:
    """Everything for people."""
    from benchmarks.report import machine_text
    parts = [machine_text(result), *map(case_text, result["results"])]
    if result["accuracy"]:
        rows = [["accuracy, held-out text", "KL", "same best", "NLL", "perplexity", "fp32"]]
        rows += [[title, f"{r['kl']:.5f}", f"{r['top1']:.1%}", f"{r['nll']:.4f}", f"{np.exp(r['nll']):.2f}",
                  f"{np.exp(r['reference_nll']):.2f}"] for title, r in result["accuracy"].items()]
        parts.append(table(rows))
    if result["greedy"]:
        rows = [["greedy text, as fp32 writes it", "for 20 tokens", f"for {WRITTEN}", "median"]]
        rows += [[title, *(f"{sum(n >= least for n in same)} of {len(same)}" for least in (20, WRITTEN)),
                  f"{np.median(same):.0f}"] for title, same in result["greedy"].items()]
        parts.append(table(rows))
    rows = [["loading, ms", "import", "load", "prepared in s"]]
    rows += [[e["title"], f"{e['import'] * 1e3:.0f}", f"{e['load'] * 1e3:.0f}", f"{e['prepare']:.1f}"]
             for e in result["engines"].values()]
    parts.append(table(rows))
    if result["left out"]:
        parts.append("\n".join(["left out:", *(f"  {n}: {why}" for n, why in result["left out"].items())]))
    return "\n\n".join(parts)


def case_text(case: Mapping[str, Any]) -> str:
    """One case for people."""
    head = f"{case['case']}, {case['threads']} thread{'s' * (case['threads'] > 1)}"
    rows = [[head, "ms", "p10", "p90", "tok/s", "of floor" if case["seq"] > 1 else "of bandwidth", "x q8c", "error",
             "MB"]]
    for row in sorted(case["engines"].values(), key=lambda r: float(r["median"])):
        rows.append([row["title"], ms(row["median"]), ms(row["p10"]), ms(row["p90"]), f"{row['tokens']:.0f}",
                     "" if row["share"] is None else f"{row['share']:.0%}",
                     "" if row["ratio"] is None else f"{row['ratio']:.2f}",
                     "" if row["error"] is None else f"{row['error']:.4f}", f"{row['memory'] / 1e6:.0f}"])
    told = f"\nreads of as much memory: {case['bandwidth'] / 1e9:.1f} GB/s" if case["bandwidth"] else ""
    return table(rows) + told


if __name__ == "__main__":
    sys.exit(main())
