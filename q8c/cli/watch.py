"""What `--print-after`, `--dump-dir` and `--verify-each` ask to see of the passes."""
from __future__ import annotations

import argparse
import sys

from q8c.cli.common import Progress, UsageError
from q8c.passes.manager import Observer
from q8c.passes.observers import dump_to, print_after, verify_each
from q8c.passes.pipeline import PASSES


def observers(args: argparse.Namespace, progress: Progress) -> list[Observer]:
    """Observers for `run_passes`. Raises UsageError for a pass there is none of."""
    found: list[Observer] = []
    if args.print_after:
        names = [name.strip() for name in args.print_after.split(",")]
        unknown = [name for name in names if name not in {*PASSES, "all", "input"}]
        if unknown:
            raise UsageError(f"--print-after: there is no pass {unknown[0]!r}; expected all or some of "
                             f"{', '.join(sorted(PASSES))}")

        def write(text: str) -> None:
            progress.clear()
            print(text, end="", file=sys.stderr)

        found.append(print_after(names, write))
    if args.dump_dir:
        found.append(dump_to(args.dump_dir))
    if args.verify_each:
        found.append(verify_each())
    return found
