"""Compiled files kept by content, so that the same model is compiled once."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path

from q8c import __version__
from q8c.errors import CompileError


def folder() -> Path:
    """Where compiled files are kept: $Q8C_CACHE, else q8c in the user's cache folder; made if it is not there."""
    base = os.environ.get("Q8C_CACHE")
    path = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "q8c"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompileError(f"cannot make the cache folder {path}: {error.strerror}; set Q8C_CACHE") from error
    return path


def compiled(model: str | os.PathLike[str], tier: str | None = None) -> Path:
    """The compiled form of an ONNX file, made unless it is there for this content, compiler and CPU tier."""
    from q8c.compiler import compile_model, tiers_of
    from q8c.frontend import content_digest
    target = tier or tiers_of("native")[0].name
    key = hashlib.sha256(f"{content_digest(model)} {target} {_compiler()}".encode()).hexdigest()
    path = folder() / f"{Path(model).stem}-{key[:24]}.q8c"
    return path if path.exists() else compile_model(model, path, target=target).path


def rebuilt(path: str | os.PathLike[str], sha256: str | None, tier: str | None) -> Path:
    """A compiled file with its code made anew from the graph inside; never taken from an earlier time."""
    from q8c.rebuild import rebuild
    name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:24]
    return rebuild(path, folder() / f"rebuilt-{name}.q8c", target=tier or "native", sha256=sha256)


def _compiler() -> str:
    """What the bytes of a compiled file depend on besides the model: the versions, and the compiler's own source."""
    import llvmlite
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for source in sorted(root.rglob("*.py")):
        digest.update(str(source.relative_to(root)).encode() + source.read_bytes())
    return f"{__version__} {llvmlite.__version__} {digest.hexdigest()}"
