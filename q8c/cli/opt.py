"""Run passes on a graph and print the result: a graph's text, or an ONNX file.

  q8c opt g.q8ir -p fold-constants,fuse-linear
  q8c opt model.onnx -p canonicalize -o model.q8ir

Constants that the text holds as references lie beside it in a file of the same name with .npz added; without that
file their elements are unknown, and passes that need them say so.
"""
from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from q8c.cli.common import Progress, UsageError, add_watch_arguments, is_onnx

if TYPE_CHECKING:
    from q8c.ir import Graph


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    verb.add_argument("graph", type=Path, nargs="?", help="graph text (.q8ir, - for stdin) or an ONNX file")
    verb.add_argument("-p", "--passes", metavar="PASS,...",
                      help="passes to run in order, with arguments as in fold-weights{format=q8-channel}; "
                           "the compiler's own list if not given")
    verb.add_argument("--list", action="store_true", help="list the passes there are")
    verb.add_argument("-o", "--output", type=Path, metavar="FILE",
                      help="write the text here and the constants to FILE.npz")
    verb.add_argument("--draw", type=Path, metavar="FILE.dot", help="write the graph for Graphviz's dot to draw")
    add_watch_arguments(verb)


def run(args: argparse.Namespace) -> int:
    """Run the passes and print or write the graph."""
    from q8c.cli.watch import observers
    from q8c.ir import print_graph
    from q8c.passes.manager import parse_passes, run_passes
    from q8c.passes.pipeline import PASSES, Options, pipeline

    if args.list:
        for name, kind in sorted(PASSES.items()):
            print(textwrap.fill(f"{name:26}{_first_sentence(kind.__doc__ or '')}", 120, subsequent_indent=" " * 26,
                                break_on_hyphens=False))
        return 0
    if args.graph is None:
        raise UsageError("which graph? give a .q8ir or .onnx file, - for stdin, or --list")
    progress = Progress()
    watching = observers(args, progress)
    passes = pipeline(Options()) if args.passes is None else parse_passes(args.passes, PASSES)
    graph = read(args.graph)
    report = run_passes(graph, passes, observers=watching)
    if args.verbose:
        for note in [*report.rewrites, *report.declines]:
            print(f"# {note}", file=sys.stderr)
    if args.draw:
        from q8c.ir.analysis import draw
        args.draw.write_text(draw(graph), encoding="utf-8")
    if args.output:
        write(graph, args.output)
    elif not args.draw:
        print(print_graph(graph), end="")
    return 0


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]


def read(path: Path) -> Graph:
    """A graph from text with its constants, or from ONNX. Raises UsageError and CompileError."""
    from q8c.cli.feeds import read_npz
    from q8c.ir import parse_graph
    if is_onnx(path):
        from q8c.extras import require_compiler
        from q8c.frontend import import_onnx
        require_compiler()
        return import_onnx(path)
    try:
        text = (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text; expected a graph as .q8ir text or a file called .onnx") from error
    beside = constants_file(path)
    return parse_graph(text, read_npz(beside) if str(path) != "-" and beside.exists() else None)


def write(graph: Graph, path: Path) -> None:
    """The graph as text, and its constants beside it where there are any."""
    from q8c.cli.feeds import write_npz, writing
    from q8c.ir import constant_data, print_graph
    constants = constant_data(graph)
    if constants:
        with writing(constants_file(path)) as file:
            write_npz(file, constants)
    else:
        constants_file(path).unlink(missing_ok=True)  # one of an earlier graph
    with writing(path) as file:
        file.write(print_graph(graph).encode())


def constants_file(path: Path) -> Path:
    """Where the constants of a graph's text lie."""
    return path.with_name(path.name + ".npz")
