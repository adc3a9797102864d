"""`q8c VERB ...`: parses the words, runs the verb, turns q8c's own errors into one line and an exit code."""
from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from q8c import Error, __version__
from q8c.cli import bench, check, compile, inspect, opt, run, verify
from q8c.cli.common import UsageError

VERBS = (compile, run, inspect, check, bench, opt, verify)
EPILOG = """\
the usual way:
  q8c compile model.onnx              writes model.q8c for this CPU
  q8c check model.q8c model.onnx      how far its answers are from fp32
  q8c run model.q8c -i inputs.npz     its answers
  q8c bench model.q8c -m model.onnx   its speed, beside ONNX Runtime where that is installed

exit codes: 0 all is well, 1 q8c refuses (one line says why), 2 the command line is wrong
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="q8c", description="Compile ONNX transformers into fused int8 kernels for x86 CPUs, and run them.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"q8c {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in VERBS:
        name = module.__name__.rpartition(".")[2]
        text = (module.__doc__ or "").strip()
        verb = verbs.add_parser(name, help=text.split("\n")[0].rstrip("."), description=text,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
        verb.add_argument("-v", "--verbose", action="count", default=0, help="say more on stderr; -vv says all")
        module.configure(verb)
        verb.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    args = parser().parse_args(argv)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(args.verbose, 2)]
    logging.basicConfig(level=level, format="q8c: %(message)s", stream=sys.stderr)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _fail(str(error), 2)
    except Error as error:
        return _fail(str(error), 1)
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed; this verb needs it: pip install 'q8c[compile]'", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.filename or 'i/o'}: {error.strerror or error}", 1)
    except MemoryError:
        return _fail("out of memory; use smaller sizes, or a machine with more", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(message: str, code: int) -> int:
    print(f"q8c: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
