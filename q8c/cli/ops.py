"""Print which ONNX ops can be compiled, since which opset.

The table follows from the importers that are there, and from ONNX's own definitions of ops by other ops.
"""
from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import q8c
from q8c.cli.common import add_json_argument, print_json, table

if TYPE_CHECKING:
    from q8c.frontend.support import SupportedOp


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    verb.add_argument("op", nargs="*", help="only these ops")
    verb.add_argument("--markdown", action="store_true", help="print the page docs/ops.md")
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Print the table; exit code 1 if an op that was asked for is not supported."""
    from q8c.extras import require_compiler
    require_compiler()
    from q8c.frontend.support import supported_ops
    found = supported_ops()
    if args.markdown:
        print(page(found), end="")
        return 0
    wanted = {name.lower() for name in args.op}
    shown = [o for o in found if not wanted or o.op.lower() in wanted]
    unknown = [name for name in args.op if name.lower() not in {o.op.lower() for o in shown}]
    if unknown:
        raise q8c.InputError(f"no op is called {unknown[0]!r}; `q8c ops` lists those there are")
    missing = wanted - {o.op.lower() for o in shown if o.since is not None}
    if args.json:
        print_json({"ops": [o.to_json() for o in shown]})
    elif shown:
        print(table([("op", "domain", "since opset", "how"), *(_row(o) for o in shown)], right=[2]))
    return 1 if missing else 0


def _row(o: SupportedOp) -> Sequence[str]:
    return o.op, o.domain, "not supported" if o.since is None else str(o.since), o.how


def page(found: Sequence[SupportedOp]) -> str:
    """docs/ops.md."""
    lines = ["# Supported ops", "", "Printed by `q8c ops --markdown` from the importers that are there.", "",
             "An op is imported by an importer of its own, by ONNX's definition of it by *other ops*, or, where it has",
             "subgraphs, those *written out*: trip counts must follow from shapes and constants, and so must shapes,",
             "axes, pads and the like; the condition of an If may be one that only a run knows. The standard's own",
             "tests of all ops run through `q8c.onnx_backend`; what it refuses of them, and why, is listed in",
             "[tests/onnx/unsupported.txt](../tests/onnx/unsupported.txt). It compiles for the elements of inputs that",
             "shapes follow from, once for equal ones."]
    for domain in dict.fromkeys(o.domain for o in found):
        lines += ["", f"## {domain}", "", "| op | since opset | how |", "| --- | ---: | --- |"]
        lines += [f"| {o.op} | {o.since} | {o.how} |" for o in found if o.domain == domain and o.since is not None]
        absent = [o.op for o in found if o.domain == domain and o.since is None]
        lines += ["", *textwrap.wrap(f"Not supported: {', '.join(absent)}.", 110)] if absent else []
    return "\n".join(lines) + "\n"
