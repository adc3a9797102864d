"""Build a compiled file's code anew from the graph inside and compare it with the code it carries.

A checksum shows damage, not malice: a file that verifies runs the code this compiler makes of its graph. It needs the
compiler of the version that wrote the file.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from q8c.cli.common import Progress, add_json_argument, print_json


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    verb.add_argument("model", type=Path, help="a compiled model")
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Rebuild, compare, and say which tiers are as they should be; exit code 1 if one is not."""
    from q8c.extras import require_compiler
    require_compiler()
    from q8c.rebuild import compare
    progress = Progress()
    try:
        same = compare(args.model, progress)
    finally:
        progress.clear()
    if args.json:
        print_json({"path": str(args.model), "tiers": same})
    else:
        for tier, equal in same.items():
            print(f"{tier}: {'the code is what this compiler makes of the graph' if equal else 'THE CODE DIFFERS'}")
    return 0 if all(same.values()) else 1
