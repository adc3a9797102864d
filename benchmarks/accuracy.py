"""Error of int8 engines against fp32, beside their time, on trained weights.

  python benchmarks/accuracy.py                      MiniLM on sentences, SmolLM2 on a text: tables
  python benchmarks/accuracy.py --plot accuracy.svg  and a picture of MiniLM's error against its time
  python benchmarks/accuracy.py --only minilm        one of the models

Peers that are not installed are left out; q8c[bench] has them. Nothing that is measured was calibrated on: q8c makes
up its inputs, and rows called `calibrated` saw other sentences, or another text.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import numpy as np  # noqa: E402

from benchmarks import peers, smollm2  # noqa: E402
from benchmarks.common import (  # noqa: E402
    ROOT,
    BenchmarkError,
    hush,
    machine,
    ms,
    pin,
    say,
    table,
    versions,
    write_json,
)
from benchmarks.engine import Engine, Loaded  # noqa: E402
from benchmarks.models import Array, Feed, Model, find  # noqa: E402
from q8c.accuracy import error, logit_error  # noqa: E402
from q8c.cli.common import positive  # noqa: E402

FORMATS = ("q8-channel", "q8-block128", "q8-block64", "q8-block32")
CALIBRATED_EVERY = 6   # of the sentences, one in so many is for calibration and none for measuring
TIMED_TOKENS = 128
PACKAGES = ("q8c", "llvmlite", "onnxruntime", "openvino", "ctranslate2", "torch", "numpy")


@dataclass(frozen=True)
class Contender:
    """One engine and how it is told to run: what it is called, whose it is, and the engine."""

    title: str
    family: str
    engine: Engine


@dataclass(frozen=True)
class Row:
    """What one contender reached; `seconds` is the median for one sequence of `TIMED_TOKENS`, one thread."""

    title: str
    family: str
    figures: dict[str, float]
    seconds: float | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for; the exit code."""
    args = arguments().parse_args(argv)
    found: dict[str, list[Row]] = {}
    try:
        pin(1)
        if args.only in (None, "minilm"):
            found["minilm"] = measure_minilm(args)
            hush()
            print(encoder_table(found["minilm"]))
        if args.only in (None, "smollm2"):
            found["smollm2"] = measure_smollm2(args)
            hush()
            print(decoder_table(found["smollm2"]))
        if args.json:
            write_json(args.json, {"machine": machine(), "versions": versions(PACKAGES),
                                   **{name: [asdict(r) for r in rows] for name, rows in found.items()}})
        if args.plot and "minilm" in found:
            plot(found["minilm"], args.plot)
    except BenchmarkError as problem:
        hush()
        print(f"accuracy: {problem}", file=sys.stderr)
        return 1
    return 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("minilm", "smollm2"), help="one of the models")
    parser.add_argument("-n", "--runs", type=positive, default=15, help="timed runs of each (default: 15)")
    parser.add_argument("--no-peers", action="store_true", help="q8c alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw error against time (needs matplotlib)")
    return parser


# -- contenders

def contenders(with_peers: bool) -> list[Contender]:
    """q8c in each format and the int8 peers."""
    found = [Contender(f"q8c {f}", "q8c", peers.engine(f"q8c:weights={f}")) for f in FORMATS]
    if with_peers:
        ort, openvino = peers.ENGINES["ort-int8"], peers.ENGINES["ov-int8"]
        found += [
            Contender("ONNX Runtime dynamic, per tensor", "ONNX Runtime",
                      replace(ort, name="ort-int8-tensor", prepare=per_tensor)),
            Contender("ONNX Runtime dynamic, per channel", "ONNX Runtime",
                      replace(ort, name="ort-int8-channel", prepare=per_channel)),
            Contender("OpenVINO int8, groups of 128", "OpenVINO", openvino),
            Contender("OpenVINO int8, groups of 32", "OpenVINO", replace(
                openvino, name="ov-int8-32", load=peers.ov_load(DYNAMIC_QUANTIZATION_GROUP_SIZE=32))),
            Contender("CTranslate2 int8", "CTranslate2", peers.ENGINES["ct2-int8"]),
            Contender("PyTorch dynamic int8", "PyTorch", peers.ENGINES["torch-int8"])]
    return found


def calibrated(format: str, feeds: Sequence[Feed]) -> Contender:
    """q8c calibrated on feeds."""

    def prepare(source: Model, path: Path) -> None:
        from q8c.compiler import compile_model
        from q8c.passes.pipeline import Options
        compile_model(source.onnx, path, options=Options(weights=format, feeds=tuple(feeds)))

    name = f"q8c {format}, calibrated"
    return Contender(name, "q8c calibrated", replace(peers.engine("q8c"), name=name, prepare=prepare))


def per_tensor(model: Model, path: Path) -> None:
    """ONNX Runtime's `quantize_dynamic` as it comes."""
    ort_dynamic(model, path, False)


def per_channel(model: Model, path: Path) -> None:
    """ONNX Runtime's `quantize_dynamic` with a scale per output channel."""
    ort_dynamic(model, path, True)


def ort_dynamic(model: Model, path: Path, channels: bool) -> None:
    """Matrix products alone: what else it would quantize (embeddings) is none of theirs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    quantize_dynamic(model.onnx, path, per_channel=channels, weight_type=QuantType.QInt8,
                     op_types_to_quantize=["MatMul"], extra_options={"MatMulConstBOnly": True})


def loaded(model: Model, entrants: Iterable[Contender]) -> list[tuple[Contender, Loaded]]:
    """The contenders that can be had here, ready to run; why others cannot goes to stderr."""
    found = []
    for one in entrants:
        say(f"{model.name}: {one.title}")
        try:
            found.append((one, one.engine.load(one.engine.prepared(model), 1)))
        except (BenchmarkError, ImportError) as problem:
            hush()
            print(f"without {one.title}: {problem}", file=sys.stderr)
    return found


# -- MiniLM

def measure_minilm(args: argparse.Namespace) -> list[Row]:
    """Error on held-out sentences, one at a time, and time of 128 tokens."""
    model = find("minilm")
    sentences = sentence_feeds(model)
    held_out = [f for i, f in enumerate(sentences) if i % CALIBRATED_EVERY != 1]
    exact = outputs(peers.ENGINES["ort-fp32"].load(model.onnx, 1), held_out)
    entrants = contenders(not args.no_peers)
    entrants += [calibrated(f, sentences[1::CALIBRATED_EVERY]) for f in ("q8-channel", "q8-block64", "q8-block32")]
    ready = loaded(model, entrants)
    errors = [error(outputs(one, held_out), exact) for _, one in ready]
    times = interleaved([one.bind(model.feed(1, TIMED_TOKENS)) for _, one in ready], args.runs)
    return [Row(c.title, c.family, {"cosine": e.cosine, "relative_l2": e.relative_l2}, seconds)
            for (c, _), e, seconds in zip(ready, errors, times, strict=True)]


def sentence_feeds(model: Model) -> list[Feed]:
    """The example's sentences."""
    from tokenizers import Tokenizer
    assert model.folder is not None
    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    tokenizer.no_padding()
    text = (ROOT / "examples" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    rows = [np.array([tokenizer.encode(line).ids], np.int64) for line in text if line.strip() and line[0] != "#"]
    return [{"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            for ids in rows]


def outputs(one: Loaded, feeds: Iterable[Feed]) -> Array:
    """The rows of the first output over all feeds."""
    rows = [np.array(one.bind(feed)()[0]) for feed in feeds]
    return np.concatenate([r.reshape(-1, r.shape[-1]) for r in rows])


def interleaved(runs: Sequence[Callable[[], Any]], count: int) -> list[float]:
    """The median seconds of each, run in turn, so that the machine's moods hit all."""
    samples: list[list[float]] = [[] for _ in runs]
    for turn in range(-2, count):
        say(f"run {max(turn, 0)} of {count}")
        for run, seconds in zip(runs, samples, strict=True):
            start = time.perf_counter()
            run()
            if turn >= 0:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(s) for s in samples]


def encoder_table(rows: Sequence[Row]) -> str:
    """For people."""
    head = ["all-MiniLM-L6-v2, held-out sentences", "cosine", "relative L2", f"ms, {TIMED_TOKENS} tokens, 1 thread"]
    return table([head, *([r.title, f"{r.figures['cosine']:.5f}", f"{r.figures['relative_l2']:.4f}",
                           ms(r.seconds or 0)] for r in rows)])


# -- SmolLM2

def measure_smollm2(args: argparse.Namespace) -> list[Row]:
    """KL, agreement of the best token and NLL over a held-out text, as one sequence."""
    model = smollm2.model()
    held_out, other = (smollm2.text_feed(model, Path(__file__).parent / "texts" / name)
                       for name in ("held_out.txt", "calibration.txt"))
    following = np.append(held_out["input_ids"][0, 1:], -1)
    exact = outputs(peers.ENGINES["ort-fp32"].load(model.onnx, 1), [held_out])
    entrants = [c for c in contenders(not args.no_peers) if c.family in ("q8c", "ONNX Runtime", "OpenVINO")]
    entrants += [calibrated(f, [other]) for f in ("q8-channel", "q8-block32")]
    rows = []
    for one in entrants:
        for contender, ready in loaded(model, [one]):  # one at a time: each holds hundreds of megabytes
            found = logit_error(outputs(ready, [held_out]), exact, following)
            figures = {name: value for name, value in asdict(found).items() if value is not None}
            rows.append(Row(contender.title, contender.family, figures))
    return rows


def decoder_table(rows: Sequence[Row]) -> str:
    """For people."""
    head = ["SmolLM2-135M-Instruct, held-out text", "KL", "same best token", "NLL", "NLL fp32"]
    return table([head, *([r.title, f"{r.figures['kl']:.5f}", f"{r.figures['top1']:.1%}", f"{r.figures['nll']:.4f}",
                           f"{r.figures['reference_nll']:.4f}"] for r in rows)])


# -- the picture

COLORS = {"q8c": "#c8102e", "ONNX Runtime": "#3b6ea5", "OpenVINO": "#6a4c93", "CTranslate2": "#2a9d8f",
          "PyTorch": "#e07b39"}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Error against time, both logarithmic; q8c's formats are joined. Raises BenchmarkError without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise BenchmarkError("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "q8c"  # the same figures give the same file
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(7.6, 4.4), layout="constrained")
    shown = [r for r in rows if r.family in COLORS and r.seconds]
    own = sorted((r for r in shown if r.family == "q8c"), key=lambda r: r.figures["relative_l2"])
    axes.plot([(r.seconds or 0) * 1e3 for r in own], [r.figures["relative_l2"] for r in own], color=COLORS["q8c"], lw=1)
    for row in shown:
        x, y = (row.seconds or 0) * 1e3, row.figures["relative_l2"]
        axes.scatter([x], [y], color=COLORS[row.family], s=36, zorder=3)
        axes.annotate(row.title, (x, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8,
                      color=COLORS[row.family])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.3, y=0.12)
    for axis, label in ((axes.xaxis, f"ms for {TIMED_TOKENS} tokens, one thread"),
                        (axes.yaxis, "relative L2 error on held-out sentences")):
        axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.set_label_text(label)
    ticks = partial(matplotlib.ticker.LogLocator, subs=(1, 2, 5))
    axes.xaxis.set_major_locator(ticks())
    axes.yaxis.set_major_locator(ticks())
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("all-MiniLM-L6-v2: int8 error against time; down and left is better", fontsize=10, loc="left")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    sys.exit(main())
