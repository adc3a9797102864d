"""Run passes on a graph and print the result: a graph's text, or an ONNX file.

  q8c opt g.q8ir -p fold-constants,fuse-linear
  q8c opt model.onnx -p canonicalize -o model.q8ir

Constants that the text holds as references lie beside it in a file of the same name with .npz added.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from q8c.cli.common import UsageError
from q8c.errors import CompileError

if TYPE_CHECKING:
    from q8c.ir import Graph


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    verb.add_argument("graph", type=Path, nargs="?", help="graph text (.q8ir, - for stdin) or an ONNX file")
    verb.add_argument("-p", "--passes", metavar="PASS,...",
                      help="passes to run in order, with arguments as in fold-weights{format=q8-channel}; "
                           "the compiler's own list if not given")
    verb.add_argument("--list", action="store_true", help="list the passes there are")
    verb.add_argument("-o", "--output", type=Path, help="write the text here and the constants to FILE.npz")
    verb.add_argument("--print-after", metavar="PASS|all", help="print the graph after a pass")
    verb.add_argument("--dump-dir", type=Path, metavar="DIR", help="write the graph after each pass that changed it")
    verb.add_argument("--verify-each", action="store_true",
                      help="run the graph in the reference interpreter after every pass and compare")


def run(args: argparse.Namespace) -> int:
    """Run the passes and print or write the graph."""
    from q8c.ir import print_graph
    from q8c.passes.manager import parse_passes, run_passes
    from q8c.passes.observers import observers_for
    from q8c.passes.pipeline import PASSES, Options, pipeline

    if args.list:
        for name, kind in PASSES.items():
            print(f"{name:26}{(kind.__doc__ or '').strip().splitlines()[0]}")
        return 0
    if args.graph is None:
        raise UsageError("which graph? give a .q8ir or .onnx file, or --list")
    passes = parse_passes(args.passes, PASSES) if args.passes else pipeline(Options())
    graph = read(args.graph)
    report = run_passes(graph, passes, observers=observers_for(args.print_after, args.dump_dir, args.verify_each))
    if args.verbose:
        for note in [*report.rewrites, *report.declines]:
            print(f"# {note}", file=sys.stderr)
    if args.output:
        write(graph, args.output)
    else:
        print(print_graph(graph), end="")
    return 0


def read(path: Path) -> Graph:
    """A graph from text with its constants, or from ONNX."""
    from q8c.frontend import import_onnx
    from q8c.ir import parse_graph
    if path.suffix == ".onnx":
        return import_onnx(path)
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CompileError(f"{path} is not text; expected a graph as .q8ir text or a file called .onnx") from error
    beside = path.with_name(path.name + ".npz")
    if str(path) == "-" or not beside.exists():
        return parse_graph(text)
    try:
        with np.load(beside, allow_pickle=False) as data:
            return parse_graph(text, {name: data[name] for name in data.files})
    except (ValueError, EOFError, KeyError) as error:
        raise CompileError(f"cannot read the constants in {beside}: {error}") from error


def write(graph: Graph, path: Path) -> None:
    """The graph as text, and its constants beside it."""
    from q8c.ir import constant_data, print_graph
    path.write_text(print_graph(graph), encoding="utf-8")
    with open(path.with_name(path.name + ".npz"), "wb") as file:
        np.savez(file, allow_pickle=False, **constant_data(graph))
