"""What several verbs share: progress, sizes and feeds from the command line, tables, JSON."""
from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from q8c.runtime.session import Session


class UsageError(Exception):
    """The command line is wrong; exit code 2."""


class Progress:
    """One line on a terminal that says what is going on and for how long; silent elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._start = time.perf_counter()

    def __call__(self, stage: str) -> None:
        if self._live:
            seconds = time.perf_counter() - self._start
            print(f"\r\033[K{seconds:5.1f} s  {stage} ...", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Wipe the line."""
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def add_feed_arguments(verb: argparse.ArgumentParser) -> None:
    """`-i` and `--size`: where a verb's inputs come from."""
    verb.add_argument("-i", "--inputs", type=Path, metavar="FILE.npz",
                      help="arrays by input name; made up if not given")
    verb.add_argument("-s", "--size", action="append", default=[], metavar="NAME=N",
                      help="size of a free dimension for made-up inputs, such as seq=128; may be repeated")


def add_json_argument(verb: argparse.ArgumentParser) -> None:
    """`--json`: for scripts."""
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def threads_argument(verb: argparse.ArgumentParser) -> None:
    """`--threads N`."""
    verb.add_argument("-t", "--threads", type=positive, metavar="N",
                      help="threads to use (default: the cores this process may use)")


def positive(text: str) -> int:
    """An integer >= 1 from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def sizes(items: Sequence[str]) -> dict[str, int]:
    """`["batch=2", "seq=16"]` as a dict. Raises UsageError."""
    found: dict[str, int] = {}
    for item in items:
        name, _, value = item.partition("=")
        if not name or not value.isdigit():
            raise UsageError(f"--size expected NAME=N, got {item!r}")
        found[name] = int(value)
    return found


def load_feeds(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file by name; a prefix `in:` is dropped and arrays called `out:...` are left out."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {n.removeprefix("in:"): data[n] for n in data.files if not n.startswith("out:")}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise UsageError(f"cannot read {path}: {error}; expected an .npz of arrays by input name") from error
    except Exception as error:  # zipfile and zlib have errors of their own
        raise UsageError(f"cannot read {path}: {error}") from error


def feeds_for(session: Session, args: argparse.Namespace) -> dict[str, Any]:
    """The feeds the command line asks for: read from a file, or made up for the session's inputs.

    Made-up floats are standard normal, made-up integers 0 or 1, which are valid ids, types and masks alike.
    """
    from q8c.ir.dims import parse_dim, symbols
    if args.inputs is not None:
        return load_feeds(args.inputs)
    chosen = sizes(args.size)
    free = {d for item in session.get_inputs() for d in item.shape if isinstance(d, str)}
    names = set[str]().union(*(symbols(parse_dim(d)) for d in free))
    if set(chosen) - names:
        raise UsageError(f"no free size {', '.join(sorted(set(chosen) - names))}; there are {', '.join(sorted(names))}")
    rng = np.random.default_rng(0)
    return {item.name: made_up(item.dtype, [_size(d, chosen) for d in item.shape], rng)
            for item in session.get_inputs()}


def made_up(dtype: Any, shape: Sequence[int], rng: np.random.Generator) -> Any:
    """An array of a kind that most models accept."""
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


_DEFAULT_SIZES = {"batch": 1, "batch_size": 1}


def _size(d: int | str, chosen: Mapping[str, int]) -> int:
    from q8c.ir.dims import evaluate, parse_dim, symbols
    if isinstance(d, int):
        return d
    expression = parse_dim(d)
    return evaluate(expression, {n: chosen.get(n, _DEFAULT_SIZES.get(n, 16)) for n in symbols(expression)})


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, indent=2, default=str))


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows as aligned columns; `right` lists columns aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def megabytes(n: int) -> str:
    """Bytes for people."""
    return f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"
