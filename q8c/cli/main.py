"""`q8c VERB ...`: parses the words, runs the verb, turns q8c's own errors into one line and an exit code."""
from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from q8c import Error, __version__
from q8c.cli import bench, check, compile, explain, inspect, ops, opt, profile, run, verify
from q8c.cli.common import UsageError, add_verbose_argument, one_line
from q8c.errors import OptionError

VERBS = (compile, run, inspect, explain, check, bench, profile, opt, verify, ops)
EPILOG = """\
the usual way:
  q8c compile model.onnx              writes model.q8c for this CPU
  q8c check model.q8c model.onnx      how far its answers are from fp32
  q8c run model.q8c -i inputs.npz     its answers
  q8c bench model.q8c -m model.onnx   its speed, beside ONNX Runtime where that is installed
  q8c profile model.q8c --by kernel   where its time goes

exit codes: 0 all is well, 1 q8c refuses (one line says why), 2 the command line is wrong
"""


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the words."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"q8c: {one_line(message)}; see {self.prog} --help\n")


class Terminated(BaseException):
    """SIGTERM came; unwinds like KeyboardInterrupt, so that files half made vanish."""


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="q8c", description="Compile ONNX transformers into fused int8 kernels for x86 CPUs, and run them.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"q8c {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in VERBS:
        name = module.__name__.rpartition(".")[2]
        text = (module.__doc__ or "").strip()
        verb = verbs.add_parser(name, help=text.split("\n")[0].rstrip("."), description=text,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
        module.configure(verb)
        add_verbose_argument(verb)
        verb.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    # The threads of numpy's matrix products spin while they wait: on a busy machine they made passes six times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files and nodes may be unprintable in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminable():
            code: int = _run(parser().parse_args(argv))
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        _silence_output()
        return 1
    except OSError as error:
        _silence_output()
        return _fail(_about_file(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Terminated:
        return _fail("terminated", 143)


def _run(args: argparse.Namespace) -> int:
    if args.verbose:
        import logging
        logging.basicConfig(level=logging.DEBUG if args.verbose > 1 else logging.INFO, format="q8c: %(message)s")
    try:
        code: int = args.run(args)
        return code
    except (UsageError, OptionError) as error:
        _trace(args)
        return _fail(str(error), 2)
    except Error as error:
        _trace(args)
        return _fail(str(error), 1)
    except OSError:
        _trace(args)
        raise
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed; this verb needs it: pip install 'q8c[compile]'", 1)
    except MemoryError:
        return _fail("out of memory; use smaller sizes, or a machine with more", 1)
    except Exception as error:
        if not _trace(args):
            return _fail(f"internal error: {type(error).__name__}: {error}; -vv shows where; please report it", 1)
        return _fail(f"internal error: {type(error).__name__}: {error}", 1)


def _fail(message: str, code: int) -> int:
    print(f"q8c: {one_line(message)}", file=sys.stderr)
    return code


def _trace(args: argparse.Namespace) -> bool:
    """With -vv, show where an error came from; whether it did."""
    shown: bool = args.verbose > 1
    if shown:
        import traceback
        traceback.print_exc()
    return shown


def _about_file(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else reason


def _silence_output() -> None:
    """If standard output takes no more, let the interpreter's last flush, which would complain again, go nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises Terminated in the block, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
