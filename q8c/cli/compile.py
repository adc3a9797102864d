"""Compile an ONNX model into one file that the run time executes.

The file holds the quantized weights, the final graph and machine code for the CPU tiers asked for. Nothing is left
under its name if compilation fails.
"""
from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8c.cli.common import Progress, add_json_argument, megabytes, print_json

if TYPE_CHECKING:
    from q8c.compiler import Result


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    verb.add_argument("model", type=Path, help="the ONNX file")
    verb.add_argument("-o", "--output", type=Path, help="the file to write (default: beside the model, .q8c)")
    verb.add_argument("--target", default="native", help="native (default), all, or tiers: avx2,avx-vnni,avx512-vnni")
    verb.add_argument("--weights", default="q8-channel", metavar="FORMAT", help="weight format (default: q8-channel)")
    verb.add_argument("--no-quantize", action="store_true", help="keep everything fp32")
    verb.add_argument("--numerics", default="fast", choices=["fast", "reproducible"],
                      help="reproducible: the same bits on every CPU tier")
    verb.add_argument("--keep", action="append", default=[], metavar="NODE",
                      help="leave this node of the model float; may be repeated")
    verb.add_argument("--print-after", metavar="PASS|all", help="print the graph after a pass")
    verb.add_argument("--dump-dir", type=Path, metavar="DIR",
                      help="write the graph after each pass that changed it, and the code as .ll and .s")
    verb.add_argument("--verify-each", action="store_true",
                      help="run the graph in the reference interpreter after every pass and compare")
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Compile and print a summary."""
    from q8c.compiler import compile_model
    from q8c.passes.observers import observers_for
    from q8c.passes.pipeline import Options

    options = Options(quantize=not args.no_quantize, weights=args.weights, numerics=args.numerics,
                      keep=tuple(args.keep))
    progress = Progress()
    try:
        result = compile_model(args.model, args.output, target=args.target, options=options, progress=progress,
                               observers=observers_for(args.print_after, args.dump_dir, args.verify_each))
    finally:
        progress.clear()
    if args.dump_dir:
        for one in result.generated:
            (args.dump_dir / f"{one.tier.name}.ll").write_text(one.compiled.ir)
            (args.dump_dir / f"{one.tier.name}.s").write_text(one.compiled.assembly())
    if args.json:
        print_json(summary(result))
    else:
        print(text(result, args.model, args.verbose > 0))
    return 0


def summary(result: Result) -> dict[str, Any]:
    """The result as JSON values."""
    ops = Counter(n.op for n in result.graph.nodes)
    return {
        "path": str(result.path), "file_bytes": result.file_bytes, "weight_bytes": result.weight_bytes,
        "tiers": {g.tier.name: len(g.image.code) for g in result.generated}, "kernels": dict(ops),
        "quantized": ops["q8_linear"], "left_float": [vars_of(n) for n in float_reasons(result)],
        "declines": [vars_of(n) for n in result.report.declines], "seconds": result.seconds}


def vars_of(note: Any) -> dict[str, Any]:
    """A note of a pass as JSON values."""
    return {"pass": note.pass_name, "node": note.node, "source": list(note.source), "reason": note.text}


def float_reasons(result: Result) -> list[Any]:
    """Why matmuls were left float."""
    return [n for n in result.report.declines if n.pass_name in ("fold-weights", "insert-dynamic-quantize")]


def text(result: Result, model: Path, verbose: bool) -> str:
    """The summary for people."""
    ops = Counter(n.op for n in result.graph.nodes)
    kept = float_reasons(result)
    lines = [f"{result.path}: {megabytes(result.file_bytes)} from {megabytes(model.stat().st_size)} of ONNX, "
             f"weights {megabytes(result.weight_bytes)}"]
    floats = ops["linear"] + ops["matmul"]
    lines.append(f"  {ops['q8_linear']} linear layers are int8, {floats} matrix products float, "
                 f"{ops['attention']} attentions, {ops['loop']} fused loops, {len(result.graph.nodes)} nodes in all")
    lines += [f"  float: {n.source[0] if n.source else n.node}: {n.text}" for n in kept[:None if verbose else 8]]
    if len(kept) > 8 and not verbose:
        lines.append(f"  ... and {len(kept) - 8} more (-v lists all)")
    lines.append("  code: " + ", ".join(f"{g.tier.name} {megabytes(len(g.image.code))}" for g in result.generated))
    total = sum(result.seconds.values())
    lines.append(f"  {total:.1f} s: " + ", ".join(f"{n} {s:.1f}" for n, s in result.seconds.items()))
    return "\n".join(lines)
