"""Measure a compiled model's error against fp32.

The fp32 answers come from the ONNX file, by ONNX Runtime where it is installed and by the reference interpreter
(slow) elsewhere; or from the inputs file itself, if it holds them under the names out:NAME.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import q8c
from q8c.cli.common import (
    Progress,
    UsageError,
    add_feed_arguments,
    add_json_argument,
    add_model_argument,
    add_threads_argument,
    is_onnx,
    print_json,
    table,
)


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_model_argument(verb)
    verb.add_argument("onnx", type=Path, nargs="?", help="the ONNX file it was compiled from")
    add_feed_arguments(verb)
    add_threads_argument(verb)
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Run both, compare, print the errors of each output."""
    from q8c.cli.feeds import feeds_for
    session = q8c.load(args.model, threads=args.threads)
    feeds = feeds_for(session, args)
    names = [o.name for o in session.get_outputs()]
    results = dict(zip(names, session.run(None, feeds), strict=True))
    source, reference = fp32(args, feeds)
    errors = {name: distance(name, results[name], reference) for name in names}
    if args.json:
        print_json({"reference": source, "outputs": {n: vars(e) for n, e in errors.items()}})
        return 0
    rows = [["output", "shape", "cosine", "worst row", "relative L2", "max"]]
    rows += [[n, "x".join(map(str, results[n].shape)), f"{e.cosine:.6f}", f"{e.worst_cosine:.6f}",
              f"{e.relative_l2:.5f}", f"{e.max_abs:.5g}"] for n, e in errors.items()]
    print(f"error against fp32 ({source})")
    print(table(rows, right=[2, 3, 4, 5]))
    return 0


def distance(name: str, result: Any, reference: Mapping[str, Any]) -> Any:
    """The error of one output. Raises UsageError where the reference is of another model."""
    from q8c.accuracy import error
    if name not in reference:
        raise UsageError(f"the reference has no output {name!r}, it has {', '.join(reference) or 'none'}; "
                         "is it of the same model?")
    if reference[name].shape != result.shape:
        raise UsageError(f"output {name!r} is {list(result.shape)} and its reference {list(reference[name].shape)}; "
                         "is it of the same model and inputs?")
    return error(result, reference[name])


def fp32(args: argparse.Namespace, feeds: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where the fp32 outputs come from, and the outputs by name."""
    from q8c.cli.feeds import read_outputs
    from q8c.cli.peer import onnxruntime_session
    stored = read_outputs(args.inputs) if args.inputs else {}
    if stored:
        return f"outputs in {args.inputs.name}", stored
    model = args.onnx or (args.model if is_onnx(args.model) else None)
    if model is None:
        raise UsageError("against what? give the ONNX file, or an inputs file that holds out:NAME arrays")
    progress = Progress()
    try:
        progress("fp32")
        peer = onnxruntime_session(model)
        if peer is None:
            return interpreted_outputs(model, feeds)
        return f"ONNX Runtime {peer.version}", dict(zip(peer.outputs, peer.run(feeds), strict=True))
    finally:
        progress.clear()


def interpreted_outputs(model: Path, feeds: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The outputs of the reference interpreter on the imported graph."""
    from q8c.extras import require_compiler
    require_compiler()
    from q8c.frontend import import_onnx
    from q8c.ir import interpret
    graph = import_onnx(model)
    return "reference interpreter", dict(zip(graph.output_names, interpret(graph, feeds), strict=True))
