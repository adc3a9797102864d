"""Run a compiled model on given or made-up inputs.

Prints name, type and a few numbers of each output; -o keeps them all.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import q8c
from q8c.cli.common import add_feed_arguments, add_json_argument, feeds_for, print_json, threads_argument


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    verb.add_argument("model", type=Path, help="a compiled model, or an ONNX file (compiled into the cache first)")
    add_feed_arguments(verb)
    verb.add_argument("-o", "--output", type=Path, metavar="FILE.npz", help="write the outputs by name")
    threads_argument(verb)
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Run once and show the outputs."""
    session = q8c.load(args.model, threads=args.threads)
    results = session(**feeds_for(session, args))
    if args.output:
        with open(args.output, "wb") as file:
            np.savez(file, allow_pickle=False, **results)
    if args.json:
        print_json({"outputs": {name: facts(array) for name, array in results.items()}})
    else:
        for name, array in results.items():
            print(f"{name}: {array.dtype}{list(array.shape)}")
            print(np.array2string(array, threshold=12, edgeitems=3, precision=5, prefix="  "))
    return 0


def facts(array: Any) -> dict[str, Any]:
    """An output in a few numbers."""
    found: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size:
        found |= {"min": array.min().item(), "max": array.max().item(), "mean": float(array.mean())}
    return found
