"""A BERT encoder that ONNX Runtime's tools optimized and quantized: the kernels of the plain one, no larger error."""
from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime import quantization

import q8c
from q8c.compiler import Result, compile_model
from tests.models import Array, bert, bert_feed

pytestmark = pytest.mark.slow
FEED = bert_feed(3, 17)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    onnx.save(bert(folder), folder / "bert.onnx")
    return folder / "bert.onnx"


def optimized(path: Path, to: Path) -> Path:
    """What ONNX Runtime makes of a model before it runs it, with its own ops."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(to)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return to


def theirs(path: Path) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(FEED))[0])


def distance(y: Array, wanted: Array) -> float:
    """Relative L2 of the rows that are tokens."""
    there = FEED["attention_mask"] != 0
    return float(np.linalg.norm(y[there] - wanted[there]) / np.linalg.norm(wanted[there]))


def kernels(result: Result) -> dict[str, int]:
    counts = Counter(n.op for n in result.parts[0].graph.nodes)
    return {op: counts[op] for op in ("q8_linear", "attention", "linear", "matmul")}


@pytest.fixture(scope="module")
def expected(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    found = kernels(compile_model(plain, tmp_path_factory.mktemp("plain") / "m.q8c"))
    assert found == {"q8_linear": 8, "attention": 2, "linear": 0, "matmul": 0}
    return found


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_the_same_kernels_and_no_larger_error(plain: Path, expected: dict[str, int], tmp_path: Path, quantized: bool,
                                              fused: bool) -> None:
    path = plain
    if quantized:
        path = tmp_path / "quantized.onnx"
        quantization.quantize_dynamic(plain, path)
    path = optimized(path, tmp_path / "optimized.onnx") if fused else path
    result = compile_model(path, tmp_path / "m.q8c")
    assert kernels(result) == expected
    exact = theirs(plain)
    bound = distance(theirs(path), exact) if quantized else 0.02
    assert distance(q8c.load(result.path).run(None, FEED)[0], exact) <= bound
