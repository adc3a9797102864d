"""Say which nodes of a model became which kernels, and what was left unfused or float, and why.

An ONNX file goes through the passes with the options given; a compiled file tells what it keeps of its compilation.
"""
from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import q8c
from q8c.cli.common import Progress, add_json_argument, add_setting_arguments, count, is_onnx, print_json, table
from q8c.cli.products import product_lines

if TYPE_CHECKING:
    from q8c.explain import Explanation

_SHOWN = 3  # names in a line, unless all are asked for


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    verb.add_argument("model", type=Path, help="an ONNX file, or a compiled model")
    verb.add_argument("node", nargs="?", help="only nodes of the model with this in their names")
    verb.add_argument("--weights", default="default", metavar="FORMAT", help="of an ONNX file: as for compile")
    verb.add_argument("--no-quantize", action="store_true", help="of an ONNX file: as for compile")
    add_setting_arguments(verb)
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Print the explanation."""
    from q8c.extras import require_compiler
    require_compiler()
    progress = Progress()
    try:
        progress("passes")
        parts, refused = _of_onnx(args) if is_onnx(args.model) else _of_artifact(args.model)
    finally:
        progress.clear()
    found = [(when, one.about(args.node) if args.node else one) for when, one in parts]
    if args.node and not any(one.products or one.kernels or one.left for _, one in found):
        raise q8c.InputError(f"nothing is known of a node with {args.node!r} in its name; without it, all are shown")
    several = len(found) > 1 or bool(refused)
    if args.json:
        listed = [{"when": when, **asdict(one)} for when, one in found]
        print_json({"parts": listed, "refused": refused} if several else asdict(found[0][1]))
        return 0
    for when, one in found:
        if several:
            print(f"where {when}:")
        print(text(one, everything=args.verbose > 0 or bool(args.node)))
    for reason in refused:
        print(f"not compiled {reason}")
    return 0


def _of_onnx(args: argparse.Namespace) -> tuple[list[tuple[str, Explanation]], list[str]]:
    """What is to be said of each part that is no condition, and of branches that are none."""
    from q8c.explain import explain
    from q8c.frontend import import_parts
    from q8c.passes.manager import run_passes
    from q8c.passes.pipeline import Options, pipeline
    from q8c.products import product_names, products_of

    found = []
    parts = import_parts(args.model, dict(args.set), dict(args.shape))
    for part in parts.ways:
        names = product_names(part.graph)
        report = run_passes(part.graph, pipeline(Options(weights=args.weights, quantize=not args.no_quantize)))
        products = products_of(part.graph, names, report, not args.no_quantize)
        found.append((part.when, explain(part.graph, report.declines, products)))
    return found, list(parts.refused)


def _of_artifact(path: Path) -> tuple[list[tuple[str, Explanation]], list[str]]:
    from q8c.explain import explain, read_notes
    from q8c.ir import parse_graph
    from q8c.products import read_products
    from q8c.runtime.artifact import Artifact
    from q8c.runtime.manifest import refused_by

    artifact, found = Artifact(path), []
    for number, part in enumerate(artifact.manifest.ways):
        kept = part.model.notes
        notes = read_notes([n for n in kept.get("declines", []) if isinstance(n, str)])
        found.append((part.when, explain(parse_graph(artifact.ir(number)), notes,
                                         read_products(kept.get("products", [])))))
    return found, refused_by(artifact.manifest.choice)


def text(found: Explanation, everything: bool) -> str:
    """The explanation for people."""
    lines = product_lines(found.products, sum(k.op == "q8_linear" for k in found.kernels), everything)
    lines.append(count(len(found.kernels), "kernel"))
    if found.kernels:
        rows = [[f"  {k.op}", k.result, _names(k.nodes, everything)] for k in found.kernels]
        lines.append(table([["  kernel", "result", "nodes of the model"], *rows]))
    lines += [f"left alone by {e.pass_name}: {e.reason} ({_names(e.nodes, everything)})" for e in found.left]
    return "\n".join(lines)


def _names(names: tuple[str, ...], everything: bool) -> str:
    shown = names if everything else names[:_SHOWN]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")
