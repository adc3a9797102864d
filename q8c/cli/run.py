"""Run a compiled model on given or made-up inputs.

Prints name, type and some elements of each output; -o keeps them all.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import q8c
from q8c.cli.common import add_feed_arguments, add_json_argument, add_model_argument, add_threads_argument, print_json


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_model_argument(verb)
    add_feed_arguments(verb)
    verb.add_argument("-o", "--output", type=Path, metavar="FILE.npz", help="write the outputs by name")
    add_threads_argument(verb)
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Run once and show the outputs."""
    from q8c.cli.feeds import feeds_for, write_npz, writing
    session = q8c.load(args.model, threads=args.threads)
    names = [o.name for o in session.get_outputs()]
    results = dict(zip(names, session.run(None, feeds_for(session, args)), strict=True))
    if args.output:
        with writing(args.output) as file:
            write_npz(file, results)
    if args.json:
        print_json({"tier": session.tier, "threads": session.threads,
                    "outputs": {name: facts(array) for name, array in results.items()}})
        return 0
    import numpy as np
    for name, array in results.items():
        print(f"{name}: {array.dtype}{list(array.shape)}")
        print(np.array2string(array, threshold=12, edgeitems=3, precision=5))
    return 0


def facts(array: Any) -> dict[str, Any]:
    """An output in a few numbers."""
    found: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size:
        found |= {"min": array.min().item(), "max": array.max().item(), "mean": float(array.mean(dtype="float64"))}
    return found
