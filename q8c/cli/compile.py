"""Compile an ONNX model into one file that the run time executes.

The file holds the quantized weights, the final graph and machine code for the CPU tiers asked for. Nothing is left
under its name if compilation fails.
"""
from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8c.cli.common import (
    Progress,
    add_json_argument,
    add_setting_arguments,
    add_watch_arguments,
    print_json,
    size_text,
)
from q8c.cli.products import product_lines

if TYPE_CHECKING:
    from q8c.compiler import Built, Result
    from q8c.passes.manager import Note, Report

_SHOWN = 3  # reasons of one kind


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    verb.add_argument("model", type=Path, help="the ONNX file")
    verb.add_argument("-o", "--output", type=Path, help="the file to write (default: beside the model, .q8c)")
    verb.add_argument("--target", default="native", metavar="TIER,...",
                      help="native (the best tier of this CPU; default), all, or some of "
                           "avx2,avx-vnni,avx512-vnni,amx-int8")
    verb.add_argument("--weights", default="default", metavar="FORMAT",
                      help="weight format: q8-channel, q8-block128, q8-block64, q8-block32, each closer and (blocks "
                           "on AMX apart) slower than the one before, or auto; or q4-block32, half as large and some "
                           "10 times as far off (default: q8-block32 for decoders, q8-channel for all else)")
    verb.add_argument("--max-error", type=float, metavar="X",
                      help="with --weights auto: the largest relative L2 error of the outputs (default: 0.02)")
    verb.add_argument("--max-layer-error", type=float, metavar="X",
                      help="products whose int8 results would be farther off than this (relative L2, on the "
                           "calibration inputs) stay float (default: 0.2; inf: none does)")
    verb.add_argument("--calibrate", type=Path, metavar="FILE.npz|DIR",
                      help="inputs like those the model is for, arrays by input name; made up if not given")
    verb.add_argument("--no-balance", action="store_true",
                      help="do not balance scales between activations and weights")
    verb.add_argument("--no-quantize", action="store_true", help="keep everything fp32")
    verb.add_argument("--numerics", default="fast", metavar="fast|reproducible",
                      help="reproducible: the same bits on every CPU tier (default: fast)")
    verb.add_argument("--keep", action="append", default=[], metavar="NODE",
                      help="leave this node of the model float; may be repeated")
    verb.add_argument("--pack", nargs="?", const=True, default=False, metavar="MASK",
                      help="compute only rows where the padding mask is not 0; the input that is the mask is found, or "
                           "named (--pack=attention_mask)")
    verb.add_argument("--last-logits", action="store_true",
                      help="compute logits of the last token of each sequence only, as generating needs")
    add_setting_arguments(verb)
    verb.add_argument("--kv-cache", default="f32", metavar="f32|int8",
                      help="how a state keeps keys and values: int8 takes nearly a quarter of the memory and is read "
                           "faster (default: f32)")
    verb.add_argument("--embeddings", default="q8", metavar="q8|float",
                      help="large tables of embeddings in 8 bits, shared with a head that is tied to them (default), "
                           "or as they are")
    add_watch_arguments(verb)
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Compile and print a summary."""
    from q8c.extras import require_compiler
    require_compiler()
    from q8c.cli.calibration import read_calibration
    from q8c.cli.watch import observers
    from q8c.codegen.module import listing
    from q8c.compiler import compile_model
    from q8c.passes.pipeline import Options

    options = Options(quantize=not args.no_quantize, weights=args.weights, numerics=args.numerics,
                      keep=tuple(args.keep), balance=not args.no_balance, max_error=args.max_error,
                      max_layer_error=args.max_layer_error, pack=args.pack,
                      embeddings=args.embeddings, last_logits=args.last_logits, kv_cache=args.kv_cache,
                      set_inputs=tuple(args.set), shapes=tuple(args.shape), feeds=read_calibration(args.calibrate))
    progress = Progress()
    try:
        result = compile_model(args.model, args.output, target=args.target, options=options, progress=progress,
                               observers=observers(args, progress))
        if args.dump_dir:
            progress("dump")
            for number, part in enumerate(result.parts):
                for one in part.generated:
                    name = f"{one.tier.name}{f'-{number}' if number else ''}"
                    for suffix, listed in zip(("ll", "s"), listing(one.parts), strict=True):
                        (args.dump_dir / f"{name}.{suffix}").write_text(listed, encoding="utf-8")
    finally:
        progress.clear()
    if args.json:
        print_json(summary(result))
    else:
        print(text(result, args.verbose > 0))
    return 0


def summary(result: Result) -> dict[str, Any]:
    """The result as JSON values; where branches of the model became parts of the file, with a list of those."""
    parts = [part_summary(part) for part in result.parts]
    return {
        "path": str(result.path), "file_bytes": result.file_bytes, "weight_bytes": result.weight_bytes,
        "model_weight_bytes": result.model_weight_bytes, "elapsed": result.elapsed, "seconds": result.seconds,
        **({"parts": [{"when": part.when, **facts} for part, facts in zip(result.parts, parts, strict=True)],
            "refused": list(result.refused)} if result.conditions else parts[0])}


def part_summary(part: Built) -> dict[str, Any]:
    """What became of a part as JSON values."""
    return {
        "code_bytes": {g.tier.name: len(g.image.code) for g in part.generated},
        "products": [vars(p) for p in part.products],
        "error": asdict(part.measured) if part.measured else None,
        "nodes": Counter(n.op for n in part.graph.nodes),
        "rewrites": [note(n) for n in part.report.rewrites], "declines": [note(n) for n in part.report.declines]}


def note(n: Note) -> dict[str, Any]:
    """A note of a pass as JSON values."""
    return {"pass": n.pass_name, "node": n.node, "source": list(n.source), "text": n.text}


def text(result: Result, verbose: bool) -> str:
    """The summary for people."""
    lines = [f"{result.path}: {size_text(result.file_bytes)}, of which weights {size_text(result.weight_bytes)} "
             f"(in the model {size_text(result.model_weight_bytes)})"]
    several = bool(result.conditions)
    for part in result.parts:
        lines += [f"  where {part.when}:"] if several else []
        lines += [f"  {'  ' * several}{line}" for line in part_lines(part, verbose)]
    lines += [f"  not compiled {reason}" for reason in result.refused]
    lines.append(f"  {result.elapsed:.1f} s: " + ", ".join(f"{n} {s:.1f}" for n, s in result.seconds.items()))
    return "\n".join(lines)


def part_lines(part: Built, verbose: bool) -> list[str]:
    """What became of a part, for people."""
    counts = Counter(n.op for n in part.graph.nodes)
    lines = product_lines(part.products, counts["q8_linear"], verbose)
    formats = Counter(f"q8-block{n.attrs['block']}" if n.attrs.get("block") else "q8-channel"
                      for n in part.graph.nodes if n.op == "q8_linear")
    if len(formats) > 1:
        lines.append("formats " + ", ".join(f"{n} {format}" for format, n in formats.most_common()))
    if part.measured:
        lines.append(f"error {part.measured}")
    lines += [f"packed: {n.text}" for n in part.report.rewrites if n.pass_name == "pack-rows"]
    lines += [f"not packed: {n.node}: {n.text}" for n in part.report.declines if n.pass_name == "pack-rows"]
    lines += [f"logits of all tokens: {n.text}" for n in part.report.declines if n.pass_name == "last-logits"]
    lines += cache_lines(part.report)
    if part.options.kv_cache == "int8" and all(n.pass_name != "keep-cache" for n in part.report.rewrites):
        lines.append("nothing is kept in 8 bits: no cache of keys and values grows in place")
    lines.append(f"nodes {len(part.graph.nodes)}: " + ", ".join(f"{n} {op}" for op, n in counts.most_common()))
    lines.append("code " + ", ".join(f"{g.tier.name} {size_text(len(g.image.code))}" for g in part.generated))
    return lines + ([str(n) for n in (*part.report.rewrites, *part.report.declines)] if verbose else [])


def cache_lines(report: Report) -> list[str]:
    """How many caches of keys and values grow in place, how, and why others do not."""
    grown = [n.text for n in report.rewrites if n.pass_name == "keep-cache"]
    left = [n.text for n in report.declines if n.pass_name == "keep-cache"]
    how = ", in 8 bits" if any(text.endswith(", in 8 bits") for text in grown) else ""
    lines = [f"{len(grown)} caches of keys and values grow in place{how} (session.new_state)"] if grown else []
    lines += [f"{'' if reason.startswith(('not in', 'all of')) else 'not in place: '}{reason}"
              for reason in left[:_SHOWN]]
    return lines + ([f"{len(left) - _SHOWN} more caches (q8c explain)"] if len(left) > _SHOWN else [])
