"""A decoder as Optimum merges one, of a BART of two layers, hidden size 64 in 4 heads, 96 tokens, random weights: the
export of `text2text-generation-with-past`, opset 18."""
from __future__ import annotations

from pathlib import Path

from tests.families.stripped import read

MERGED = read(Path(__file__).parent / "bart-decoder.onnx.xz")
