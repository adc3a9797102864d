"""q8c: compiles ONNX transformers into fused int8 kernels for x86 CPUs, and runs them.

    path = q8c.compile("model.onnx")
    session = q8c.load(path)
    outputs = session.run(None, {"input_ids": ids, "attention_mask": mask})

Running needs numpy alone; compiling needs the extra `q8c[compile]`.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8c.errors import ArtifactError, CompileError, Error, InputError, UnsupportedError

if TYPE_CHECKING:
    import onnx

    from q8c.runtime.session import Session

__version__ = "0.1.0"
__all__ = ["ArtifactError", "CompileError", "Error", "InputError", "UnsupportedError", "__version__", "compile", "load"]

# Where q8c is installed, this file holds all but the run time (see setup.py); a clone has folders instead.
_compiler = os.path.join(os.path.dirname(__file__), "compiler.pack")
if os.path.exists(_compiler):
    from q8c.packed import Packed
    sys.meta_path.append(Packed(__name__, _compiler))


def compile(model: str | os.PathLike[str] | bytes | onnx.ModelProto, output: str | os.PathLike[str] | None = None, *,
            target: str = "native", weights: str = "default", quantize: bool = True, numerics: str = "fast",
            keep: Sequence[str] = (), calibrate: Iterable[Mapping[str, Any]] | None = None, balance: bool = True,
            max_error: float | None = None, max_layer_error: float | None = None, pack: bool | str = False,
            embeddings: str = "q8", last_logits: bool = False,
            set_inputs: Mapping[str, bool | int | float] | None = None, kv_cache: str = "f32",
            shapes: Mapping[str, Sequence[int | str]] | None = None) -> Path:
    """Compile an ONNX model into one file and return its path.

    Args:
        model: path, bytes or ModelProto.
        output: the file to write; beside a model given by path, with the suffix .q8c, if not stated.
        target: `native` (the best tier of this CPU), `all`, or names of tiers separated by commas.
        weights: the weight format; `q8-channel` has one scale per output channel, `q8-block128`, `q8-block64` and
            `q8-block32` one for so many steps of depth, each slower and closer than the one before; `auto` is the
            fastest of them for each product, or float, that keeps the model's error under `max_error`; `default` is
            `q8-block32` for decoders and `q8-channel` for all else.
        quantize: False keeps everything fp32.
        numerics: `reproducible` gives the same bits on every CPU tier; `fast` may use what only some tiers have.
        keep: names of nodes of the model to leave float.
        calibrate: feeds (dicts of arrays by input name) like those the model is for; inputs made up from the model's
            signature serve nearly as well.
        balance: False leaves the scales of activations and weights as they are.
        max_error: with weights "auto", the largest relative L2 error of the outputs on those feeds (0.02 if not given).
        max_layer_error: products whose int8 results would be farther off than this (relative L2, on those feeds) stay
            float (0.2 if not given; `math.inf` for none).
        pack: leave padding out: only rows where the padding mask is not 0 are computed, results there are the same
            bits as those of each sequence alone, and padded positions of outputs read zero. True finds the input that
            is the mask, a text names it; a model this cannot be done for is compiled as it is.
        embeddings: `q8` keeps large tables of embeddings in 8 bits, one for embeddings and head where those are tied;
            `float` leaves them as they are.
        last_logits: compute logits [batch, 1, vocabulary] of each sequence's last token only, where a padding mask is
            not 0; for generating, which needs no others.
        set_inputs: inputs of the model to make constants of these values, such as the condition that chooses one of
            two branches; what only the other branch reads is no input either.
        kv_cache: `int8` keeps the keys and values in a state in 8 bits, one scale for each row of a head: nearly a
            quarter of the memory, and faster over long contexts; `f32` as they are.

        shapes: shapes of inputs to take in place of what the model says, for one that does not, or to fix sizes:
            `{"input_ids": ["batch", 128]}`, numbers and names.

    Raises CompileError, InputError for feeds that do not fit the model, and UnsupportedError that lists every node q8c
    has no kernel for; nothing is left under the output's name then.
    """
    from q8c.extras import require_compiler
    require_compiler()
    from q8c.compiler import compile_model
    from q8c.passes.calibration import as_feeds
    from q8c.passes.pipeline import Options
    if isinstance(keep, str) or not isinstance(keep, Iterable):
        raise CompileError(f"keep must be a list of names, got {keep!r}")
    options = Options(quantize=quantize, weights=weights, numerics=numerics, keep=tuple(keep), balance=balance,
                      feeds=() if calibrate is None else as_feeds(calibrate), max_error=max_error,
                      max_layer_error=max_layer_error, pack=pack, embeddings=embeddings, last_logits=last_logits,
                      set_inputs=tuple((set_inputs or {}).items()), kv_cache=kv_cache,
                      shapes=tuple((shapes or {}).items()))
    return compile_model(model, output, target=target, options=options).path


def load(path: str | os.PathLike[str], *, threads: int | None = None, sha256: str | None = None,
         rebuild: bool = False, tier: str | None = None) -> Session:
    """Open a compiled file for running.

    Args:
        path: a compiled file; or an ONNX file (.onnx), which is compiled into the cache first, by content.
        threads: how many to use; the cores this process may use if not stated.
        sha256: the compiled file's SHA-256 in hexadecimal, to accept this very file only.
        rebuild: ignore the code in the file and compile the graph in it afresh (needs the compiler); for an ONNX file,
            ignore the cache.
        tier: force a CPU tier instead of the best one.

    Raises ArtifactError for a file that is damaged, altered or not for this CPU, and what `compile` does for ONNX.
    """
    from q8c.runtime.session import load as load_compiled
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise ArtifactError(f"expected the path of a compiled model, got {type(path).__name__}") from None
    if name.lower().endswith(".onnx"):
        from q8c.cache import load_onnx
        if sha256 is not None:
            raise ArtifactError("sha256 pins a compiled file, and this is an ONNX file; compile it first")
        return load_onnx(name, threads=threads, tier=tier, fresh=rebuild)
    if rebuild:
        from q8c.cache import rebuilt
        return load_compiled(rebuilt(name, sha256, tier), threads=threads, tier=tier)
    return load_compiled(name, threads=threads, sha256=sha256, tier=tier)
