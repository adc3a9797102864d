"""Compiled files kept by content, so that the same model is compiled once. The folder may be emptied at any time."""
from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

import q8c
from q8c.errors import ArtifactError, CompileError
from q8c.extras import require_compiler
from q8c.runtime.session import Session, load


def folder() -> Path:
    """Where compiled files are kept: $Q8C_CACHE, else q8c in the user's cache folder; made if it is not there.

    What lies there is run as code, so a folder made here is the user's own. Raises CompileError.
    """
    try:
        base = os.environ.get("Q8C_CACHE")
        path = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "q8c"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CompileError(f"cannot make the cache folder {path}: {error.strerror}; set Q8C_CACHE") from error
    except RuntimeError as error:
        raise CompileError(f"no place for the cache ({error}); set Q8C_CACHE to a folder") from error
    return path


def load_onnx(model: str, *, threads: int | None = None, tier: str | None = None, fresh: bool = False) -> Session:
    """A session of an ONNX file, which is compiled unless the cache has it for this content, compiler and CPU tier.

    A file in the cache that does not load is made anew, and any with `fresh`.
    """
    require_compiler()
    from q8c.compiler import compile_model, tiers_of
    target = tiers_of(tier or "native", {})[0].name
    path = _place(model, target)
    if path.exists() and not fresh:
        try:
            return load(path, threads=threads, tier=tier)
        except ArtifactError:
            pass  # made anew, and if it is the machine that cannot run it, that is said below
    return load(compile_model(model, path, target=target).path, threads=threads, tier=tier)


def rebuilt(path: str, sha256: str | None, tier: str | None) -> Path:
    """A compiled file with its code made anew from the graph inside; never taken from an earlier time."""
    require_compiler()
    from q8c.rebuild import rebuild
    key = hashlib.sha256(f"{os.path.abspath(path)} {tier}".encode(errors="surrogateescape")).hexdigest()
    return rebuild(path, folder() / f"{Path(path).stem}-{key[:24]}-rebuilt.q8c", target=tier or "native", sha256=sha256)


def _place(model: str, target: str) -> Path:
    from q8c.frontend import content_digest
    key = hashlib.sha256(f"{content_digest(model)} {target} {compiler_digest()}".encode()).hexdigest()
    return folder() / f"{Path(model).stem[:100]}-{key[:24]}.q8c"


def compiler_digest() -> str:
    """What the bytes of a compiled file depend on besides the model: the versions, and the compiler's own source."""
    digest = hashlib.sha256()
    root = Path(q8c.__file__).parent
    for source in sorted([*root.rglob("*.py"), *root.glob("compiler.pack")]):
        digest.update(str(source.relative_to(root)).encode() + source.read_bytes())
    return f"{q8c.__version__} {version('llvmlite')} {version('onnx')} {digest.hexdigest()}"
