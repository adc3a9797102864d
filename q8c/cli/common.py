"""What several verbs share: arguments, progress, tables, JSON. Imports nothing heavy, so that --help is instant."""
from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"\d+")


class UsageError(Exception):
    """The command line is wrong; exit code 2."""


class Progress:
    """One line on a terminal that says what is going on and since when; silent elsewhere."""

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


def add_verbose_argument(verb: argparse.ArgumentParser) -> None:
    """`-v`, `-vv`."""
    verb.add_argument("-v", "--verbose", action="count", default=0,
                      help="say more; -vv says all, with the origin of errors")


def add_model_argument(verb: argparse.ArgumentParser) -> None:
    """What is to run."""
    verb.add_argument("model", type=Path, help="a compiled model, or an ONNX file (compiled into the cache first)")


def add_feed_arguments(verb: argparse.ArgumentParser) -> None:
    """`-i`, `--size` and `--set`: where a verb's inputs come from."""
    verb.add_argument("-i", "--inputs", type=Path, metavar="FILE.npz",
                      help="arrays by input name; made up if not given")
    verb.add_argument("-s", "--size", action="append", default=[], metavar="NAME=N",
                      help="size of a free dimension for made-up inputs, such as seq=128; may be repeated")
    verb.add_argument("--set", action="append", default=[], type=setting, metavar="NAME=VALUE",
                      help="every element of a made-up input, such as use_cache_branch=false; may be repeated")


def add_json_argument(verb: argparse.ArgumentParser) -> None:
    """`--json`: for scripts."""
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_threads_argument(verb: argparse.ArgumentParser) -> None:
    """`--threads N`."""
    verb.add_argument("-t", "--threads", type=thread_count, metavar="N",
                      help="threads to use (default: the cores this process may use)")


def add_watch_arguments(verb: argparse.ArgumentParser) -> None:
    """What is to be seen of the passes; `watch.observers` makes it so."""
    verb.add_argument("--print-after", metavar="PASS|all", help="print the graph to stderr after a pass")
    verb.add_argument("--dump-dir", type=Path, metavar="DIR",
                      help="write the graph after each pass that changed it as numbered files")
    verb.add_argument("--verify-each", action="store_true",
                      help="run the graph in the reference interpreter after every pass and compare (slow)")


def add_state_argument(verb: argparse.ArgumentParser) -> None:
    """`--state N`."""
    verb.add_argument("--state", type=positive, metavar="N",
                      help="run on a state that holds N tokens of each sequence, and rewind it after each run")


def add_setting_arguments(verb: argparse.ArgumentParser) -> None:
    """`--set NAME=VALUE` and `--shape NAME=SIZE,...`, each as a list of pairs."""
    verb.add_argument("--set", action="append", default=[], type=setting, metavar="NAME=VALUE",
                      help="make an input of the model a constant, such as use_cache_branch=true, which chooses a "
                           "branch; may be repeated")
    verb.add_argument("--shape", action="append", default=[], type=shape, metavar="NAME=SIZE,...",
                      help="the shape of an input, numbers and names, for a model that does not say, or to fix sizes, "
                           "such as input_ids=batch,128; may be repeated")


def shape(text: str) -> tuple[str, tuple[int | str, ...]]:
    """A name and its sizes from the command line; none for a scalar."""
    name, equals, sizes = text.rpartition("=")
    words = [word.strip() for word in sizes.split(",")] if sizes else []
    if not name or not all(words):
        raise argparse.ArgumentTypeError(f"expected NAME=SIZE,..., got {text!r}")
    return name, tuple(int(word) if word.isdecimal() else word for word in words)


def setting(text: str) -> tuple[str, bool | int | float]:
    """A name and its value from the command line: true, false or a number."""
    name, _, value = text.rpartition("=")
    words: dict[str, bool] = {"true": True, "false": False}
    for read in (lambda v: words[v.lower()], int, float):
        with contextlib.suppress(ValueError, KeyError):
            if name:
                return name, read(value)
    raise argparse.ArgumentTypeError(f"expected NAME=true, NAME=false or NAME=NUMBER, got {text!r}")


def positive(text: str) -> int:
    """An integer >= 1 from the command line."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return value


def thread_count(text: str) -> int:
    """A number of threads from the command line."""
    from q8c.runtime.threads import MAX_THREADS
    value = positive(text)
    if value > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"expected at most {MAX_THREADS}, got {text!r}")
    return value


def is_onnx(path: Path) -> bool:
    """Whether a path is taken for an ONNX file rather than a compiled one."""
    return path.suffix.lower() == ".onnx"


def one_line(message: str) -> str:
    """The text without line breaks."""
    return " ".join(message.split())


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout; NaN and infinities, which JSON has not, become null."""
    import json
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows as aligned columns; `right` lists columns aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def alike(names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Of names, each with what is to be said of it, those that differ in their first number alone under one title,
    `past_key_values.{0..29}.key`, where that are three or more of which the same is said; all others under their own.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name, said in names:
        groups.setdefault((_NUMBER.sub("#", name, count=1), said), []).append(name)
    titles: dict[str, list[str]] = {}
    for (pattern, _), group in groups.items():
        numbers = [int(found[0]) for name in group if (found := _NUMBER.search(name))]
        if len(numbers) >= 3 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            titles[pattern.replace("#", f"{{{numbers[0]}..{numbers[-1]}}}", 1)] = group
        else:
            titles.update((name, [name]) for name in group)
    return titles


def count(n: int, what: str) -> str:
    """So many of something."""
    return f"{n} {what}{'s' * (n != 1)}"


def size_text(n: int) -> str:
    """Bytes for people."""
    return f"{n / 1e6:.1f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"
