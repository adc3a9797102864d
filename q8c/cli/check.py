"""Measure a compiled model's error against fp32.

The fp32 answers come from the ONNX file, by ONNX Runtime where it is installed and by the reference interpreter
(slow) elsewhere; or from the inputs file itself, if it holds them under the names out:NAME. Rows that an attention
mask among the inputs leaves out do not count. Outputs that are logits are compared as distributions too: KL, how often
the best class is the same, and the likelihood of the tokens that came next in the inputs.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import q8c
from q8c.cli.common import (
    Progress,
    UsageError,
    add_feed_arguments,
    add_json_argument,
    add_model_argument,
    add_threads_argument,
    alike,
    is_onnx,
    print_json,
    table,
)
from q8c.cli.layers import add_layer_arguments, layer_rows, layers_json, measured_layers, plot

if TYPE_CHECKING:
    from q8c.accuracy import Error, LogitError


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_model_argument(verb)
    verb.add_argument("onnx", type=Path, nargs="?", help="the ONNX file it was compiled from")
    add_feed_arguments(verb)
    add_threads_argument(verb)
    add_layer_arguments(verb)
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Run both, compare, print the errors of each output."""
    from q8c.cli.feeds import feeds_for
    if not args.layers and (args.plot or args.weights):
        raise UsageError(f"{'--plot' if args.plot else '--weights'} goes with --layers")
    session = q8c.load(args.model, threads=args.threads)
    feeds = feeds_for(session, args)
    names = [o.name for o in session.get_outputs()]
    results = dict(zip(names, session.run(None, feeds), strict=True))
    source, reference = fp32(args, feeds)
    errors = {name: distance(name, results[name], reference, feeds) for name in names}
    logits = {name: found for name in names if (found := as_logits(name, results[name], reference[name], feeds))}
    layers = measured_layers(args, session.artifact, feeds) if args.layers else None
    if layers is not None and args.plot:
        plot(layers, args.plot)
    if args.json:
        print_json({"reference": source, "outputs": {n: vars(e) for n, e in errors.items()},
                    "logits": {n: vars(e) for n, e in logits.items()},
                    **({"layers": layers_json(layers)} if layers else {})})
        return 0
    print(f"error against fp32 ({source}), {'given' if args.inputs else 'made-up'} inputs")
    print(error_rows(errors, {n: "x".join(map(str, results[n].shape)) for n in names}, args.verbose > 0))
    for name, found in logits.items():
        print(f"{name} as logits: {logit_text(found)}")
    if layers is not None:
        print(f"\n{layer_rows(layers)}")
    return 0


def error_rows(errors: Mapping[str, Error], shapes: Mapping[str, str], everything: bool) -> str:
    """The errors of the outputs for people; of those that differ in a number of their names the worst, unless all are
    asked for. NaN is the worst of all."""
    import numpy as np
    groups = {name: [name] for name in errors} if everything else alike(shapes.items())
    rows = [["output", "shape", "cosine", "worst row", "relative L2", "max"]]
    for title, names in groups.items():
        found = [errors[name] for name in names]
        rows.append([title, shapes[names[0]], f"{np.min([e.cosine for e in found]):.6f}",
                     f"{np.min([e.worst_cosine for e in found]):.6f}", f"{np.max([e.relative_l2 for e in found]):.5f}",
                     f"{np.max([e.max_abs for e in found]):.5g}"])
    several = "\nof several outputs in a line the worst; -v shows each" if len(groups) < len(errors) else ""
    return table(rows, right=[2, 3, 4, 5]) + several


def distance(name: str, result: Any, reference: Mapping[str, Any], feeds: Mapping[str, Any]) -> Error:
    """The error of one output. Raises UsageError where the reference is of another model."""
    from q8c.accuracy import error
    if name not in reference:
        raise UsageError(f"the reference has no output {name!r}, it has {', '.join(reference) or 'none'}; "
                         "is it of the same model?")
    if reference[name].shape != result.shape:
        raise UsageError(f"output {name!r} is {list(result.shape)} and its reference {list(reference[name].shape)}; "
                         "is it of the same model and inputs?")
    real = real_rows(result, feeds)
    return error(result, reference[name]) if real is None else error(result[real], reference[name][real])


def real_rows(result: Any, feeds: Mapping[str, Any]) -> Any:
    """Which rows [batch, seq] of an output a mask among the inputs says are real, None if no mask does."""
    for name, mask in feeds.items():
        if "mask" in name and mask.ndim == 2 and mask.shape == result.shape[:2] and result.ndim > 2 and mask.any():
            return mask != 0
    return None


def as_logits(name: str, result: Any, reference: Any, feeds: Mapping[str, Any]) -> LogitError | None:
    """The error of an output as logits, None if it is not taken for that."""
    import numpy as np

    from q8c.accuracy import is_logits, logit_error
    if not is_logits(name, result.shape) or not result.size or result.dtype.kind != "f":
        return None
    real = real_rows(result, feeds)
    keep = np.ones(result.shape[:-1], bool) if real is None else np.broadcast_to(real, result.shape[:-1])
    following = next_tokens(result, feeds, keep)
    return logit_error(result[keep], reference[keep], None if following is None else following[keep])


def next_tokens(result: Any, feeds: Mapping[str, Any], real: Any) -> Any:
    """The token that follows each position of logits [batch, seq, classes] in the inputs, -1 behind the last real one;
    None if the inputs hold no token ids of that shape."""
    import numpy as np
    for name, ids in feeds.items():
        plain = name.endswith("ids") and not any(word in name for word in ("position", "type"))
        if plain and result.ndim == 3 and ids.shape == result.shape[:2] and ids.dtype.kind in "iu":
            following = np.full(ids.shape, -1, np.int64)
            following[:, :-1] = np.where(real[:, 1:] & (ids[:, 1:] < result.shape[-1]), ids[:, 1:], -1)
            return following
    return None


def logit_text(found: LogitError) -> str:
    """The figures for people."""
    likelihood = "" if found.nll is None or found.reference_nll is None else (
        f", next tokens' NLL {found.nll:.4f} (fp32 {found.reference_nll:.4f})")
    return f"KL {found.kl:.5f}, the best class is the same in {found.top1:.1%} of rows{likelihood}"


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
    from q8c.frontend import import_parts
    from q8c.ir import interpret
    parts = import_parts(model)
    number = parts.chosen(feeds)
    graph = parts.parts[number].graph
    outputs = interpret(graph, parts.feed(number, feeds))
    return "reference interpreter", dict(zip(graph.output_names, outputs, strict=True))
