"""Whether the packages that only compiling needs are installed."""
from __future__ import annotations

from importlib.util import find_spec

from q8c.errors import CompileError

COMPILER = ("llvmlite", "onnx")


def require_compiler() -> None:
    """Raise CompileError that says what is missing, and how to get it, unless models can be compiled here."""
    missing = [name for name in COMPILER if find_spec(name) is None]
    if missing:
        raise CompileError(f"compiling needs {' and '.join(missing)}, not installed here: pip install 'q8c[compile]'")
