"""Inputs of a model from the command line, and arrays in files."""
from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from q8c.cli.common import UsageError, one_line
from q8c.errors import Error
from q8c.ir import parse_graph
from q8c.ir.feeds import typical_feeds
from q8c.runtime.atomic import replacing
from q8c.runtime.session import Session
from q8c.runtime.state import State

Array = npt.NDArray[Any]
_PROMPT = 256
"""Tokens a state is given at a time."""
OUTPUT = "out:"
"""Prefix of reference outputs in an inputs file."""
_ARRAYS = (b"PK", b"\x93N")  # how files of several arrays and of one begin


def feeds_for(session: Session, args: argparse.Namespace) -> dict[str, Array]:
    """The feeds `-i`, `--size` and `--set` ask for: read from a file, or made up, the same ones every time.

    Made-up ids are drawn from the whole table they pick rows of, masks are 1, bools true, floats standard normal; where
    inputs choose a branch of the model, those of all branches are there. Raises UsageError for words that do not fit
    the model.
    """
    chosen = sizes(args.size)
    if args.inputs is not None:
        if chosen or args.set:
            raise UsageError("--size and --set are for made-up inputs; the ones in a file have their sizes and values")
        return read_feeds(args.inputs)
    graphs = [parse_graph(session.artifact.ir(part)) for part in range(len(session.artifact.manifest.parts))]
    known = list(dict.fromkeys(name for graph in graphs for name in graph.symbols()))
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise UsageError(f"no free size is called {', '.join(unknown)}; the model has {', '.join(known) or 'none'}")
    feeds: dict[str, Array] = {}
    for graph in graphs:
        own = {name: size for name, size in chosen.items() if name in graph.symbols()}
        feeds = {**typical_feeds(graph, sizes=own), **feeds}
    for name, value in args.set:
        if name not in feeds:
            raise UsageError(f"the model has no input {name!r} to set; its inputs are {', '.join(feeds) or 'none'}")
        feeds[name] = np.full_like(feeds[name], value)
    return feeds


def runner(session: Session, feeds: dict[str, Array],
           held: int | None) -> tuple[Callable[[], object], dict[str, Array]]:
    """A call of the model that can be repeated, on the feeds or on a state that holds `held` tokens; what it passes."""
    if held is None:
        return lambda: session.run(None, feeds), feeds
    left, state = state_for(session, feeds, held)

    def call() -> None:
        session.run(None, left, state=state)
        state.truncate(held)

    return call, left


def state_for(session: Session, feeds: dict[str, Array], held: int) -> tuple[dict[str, Array], State]:
    """A state that holds `held` tokens of each sequence and has room for those of the feeds; the feeds that go with it.

    The tokens held are those of the feeds, again and again. Raises UsageError for a model whose tokens cannot be
    repeated so.
    """
    model = next((part.model for part in session.artifact.manifest.ways if part.model.cache), None)
    if model is None or model.cache is None:
        raise UsageError("--state is for models that keep keys and values in place; this one does not")
    cache = model.cache
    derived = {i for i, _ in cache.pairs} | {cache.mask, cache.positions}
    left = {t.name: feeds[t.name] for i, t in enumerate(model.inputs) if i not in derived}
    name, axis = model.inputs[cache.tokens[0]].name, cache.tokens[1]
    tokens = left[name]
    if list(left) != [name] or tokens.ndim != 2 or axis != 1 or not tokens.size:
        raise UsageError("--state is for models that need nothing but token ids [batch, tokens] beside the state")
    state = session.new_state(held + tokens.shape[1], tokens.shape[0])
    for start in range(0, held, _PROMPT):
        some = np.resize(tokens[0], (len(tokens), min(_PROMPT, held - start)))
        session.run(None, {name: some}, state=state)
    return left, state


def sizes(items: Sequence[str]) -> dict[str, int]:
    """`["batch=2", "seq=16"]` as a dict. Raises UsageError."""
    found: dict[str, int] = {}
    for item in items:
        name, _, value = item.rpartition("=")
        if not name or not (value.isascii() and value.isdigit()) or len(value) > 15:
            raise UsageError(f"--size expected NAME=N, got {item!r}")
        found[name] = int(value)
    return found


def read_feeds(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name; a prefix `in:` is dropped and arrays called `out:...` are left out."""
    return {n.removeprefix("in:"): a for n, a in read_npz(path).items() if not n.startswith(OUTPUT)}


def read_outputs(path: Path) -> dict[str, Array]:
    """The arrays called `out:NAME` of an inputs file, by NAME."""
    return {n.removeprefix(OUTPUT): a for n, a in read_npz(path).items() if n.startswith(OUTPUT)}


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of an .npz file by name. Raises UsageError if it is none, or holds more than plain arrays."""
    try:
        with open(path, "rb") as file:
            if file.read(2) not in _ARRAYS:  # numpy would take it for a pickle
                raise UsageError(f"{path} holds no arrays; expected an .npz of arrays by name")
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise UsageError(f"{path} holds one array without a name; expected an .npz of arrays by name")
        with loaded as data:
            return {name: data[name] for name in data.files}
    except (UsageError, MemoryError):
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or one_line(str(error))}") from error
    except Exception as error:  # numpy, zipfile and zlib have many ways to say so
        raise UsageError(f"cannot read {path} ({one_line(str(error))}); expected an .npz of arrays by name") from error


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes `path`'s place when the block ends well. Raises q8c.Error where it cannot be written."""
    try:
        with replacing(str(path)) as file:
            yield file
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror or error}") from error


def write_npz(file: BinaryIO, arrays: Mapping[str, Array]) -> None:
    """Arrays of any name in numpy's .npz form; the same arrays give the same bytes. (`np.savez` takes names as keywords
    and so cannot write an array called `file`.)"""
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
