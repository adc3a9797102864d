"""Measure a compiled model's error against fp32.

The fp32 answers come from the ONNX file, by ONNX Runtime where it is installed and by the reference interpreter
(slow) elsewhere; or from the inputs file itself, if it holds them under the names out:NAME.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import q8c
from q8c.cli.common import (
    Progress,
    UsageError,
    add_feed_arguments,
    add_json_argument,
    feeds_for,
    print_json,
    table,
    threads_argument,
)


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    verb.add_argument("model", type=Path, help="a compiled model, or an ONNX file (compiled into the cache first)")
    verb.add_argument("onnx", type=Path, nargs="?", help="the ONNX file it was compiled from")
    add_feed_arguments(verb)
    threads_argument(verb)
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Run both, compare, print the errors of each output."""
    from q8c.accuracy import error
    session = q8c.load(args.model, threads=args.threads)
    feeds = feeds_for(session, args)
    source, reference = fp32(args, feeds)
    results = session(**{k: feeds[k] for k in feeds})
    missing = sorted(set(results) - set(reference))
    if missing:
        raise UsageError(f"the reference lacks the outputs {', '.join(missing)}; is it of the same model?")
    errors = {name: error(results[name], reference[name]) for name in results}
    if args.json:
        print_json({"reference": source, "outputs": {n: asdict(e) for n, e in errors.items()}})
        return 0
    rows = [["output", "shape", "cosine", "worst row", "relative L2", "max"]]
    rows += [[n, "x".join(map(str, results[n].shape)), f"{e.cosine:.6f}", f"{e.worst_cosine:.6f}",
              f"{e.relative_l2:.5f}", f"{e.max_abs:.5g}"] for n, e in errors.items()]
    print(f"error against fp32 ({source})")
    print(table(rows, right=[2, 3, 4, 5]))
    return 0


def fp32(args: argparse.Namespace, feeds: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where the fp32 outputs come from, and the outputs by name."""
    stored = stored_outputs(args.inputs) if args.inputs else {}
    if stored:
        return f"outputs in {args.inputs.name}", stored
    model = args.onnx or (args.model if args.model.suffix == ".onnx" else None)
    if model is None:
        raise UsageError("against what? give the ONNX file, or an inputs file that holds out:NAME arrays")
    progress = Progress()
    try:
        return onnxruntime_outputs(model, feeds, progress)
    except ModuleNotFoundError:
        return interpreted_outputs(model, feeds, progress)
    finally:
        progress.clear()


def stored_outputs(path: Path) -> dict[str, Any]:
    """The arrays called `out:NAME` of an inputs file."""
    import numpy as np
    with np.load(path, allow_pickle=False) as data:
        return {n.removeprefix("out:"): data[n] for n in data.files if n.startswith("out:")}


def onnxruntime_outputs(model: Path, feeds: Mapping[str, Any], progress: Progress) -> tuple[str, dict[str, Any]]:
    """The outputs of ONNX Runtime, fp32."""
    import onnxruntime
    progress("ONNX Runtime, fp32")
    try:
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        return f"ONNX Runtime {onnxruntime.__version__}", dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as failure:  # ONNX Runtime's errors have no common base
        raise q8c.Error(f"ONNX Runtime refuses {model}: {failure}") from failure


def interpreted_outputs(model: Path, feeds: Mapping[str, Any], progress: Progress) -> tuple[str, dict[str, Any]]:
    """The outputs of the reference interpreter on the imported graph."""
    from q8c.frontend import import_onnx
    from q8c.ir import interpret
    progress("reference interpreter, fp32")
    graph = import_onnx(model)
    return "reference interpreter", dict(zip(graph.output_names, interpret(graph, feeds), strict=True))
