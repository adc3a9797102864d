"""The whole pipeline on a small BERT: what is left per layer, and that the results are the model's."""
from __future__ import annotations

from pathlib import Path

import minilm
import numpy as np
import pytest

from q8c.frontend import import_onnx
from q8c.ir import Graph, clone, interpret
from q8c.ir.memory import slot_sizes
from q8c.passes.manager import run_passes
from q8c.passes.pipeline import Options, pipeline
from tests.examples.bert_folder import CONFIG, random_weights, write_folder

LAYER = ["loop: dynamic_quantize", "q8_linear", "loop: add layer_norm dynamic_quantize", "q8_linear",
         "loop: gelu dynamic_quantize", "q8_linear"]
EMBED = "loop: add add layer_norm dynamic_quantize"
FLOAT_TOLERANCE = 2e-6
INT8_ERROR = 0.06  # relative L2; rows of 24 and 40 with random weights, so near what whole models have


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The import of a two-layer encoder with random weights."""
    folder = write_folder(Path(tmp_path_factory.mktemp("bert")), CONFIG, random_weights(CONFIG))
    return import_onnx(minilm.build(folder))


def kinds(graph: Graph) -> list[str]:
    """The nodes that compute, in order, loops with what is in them.

    What makes masks and tables is left out, and so are factors that balance channels before they are quantized.
    """
    found = [f"loop: {' '.join(n.op for n in node.body.nodes if n.op != 'mul')}" if node.body else node.op
             for node in graph.nodes]
    return [k for k in found if k not in ("reshape", "slice", "gather") and "cast" not in k]


def feeds(batch: int, seq: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """Random tokens; the end of the last row is masked."""
    rng = np.random.default_rng(batch)
    mask = np.ones((batch, seq), np.int64)
    mask[-1, seq // 2:] = 0
    return {"input_ids": rng.integers(0, 50, (batch, seq)), "attention_mask": mask,
            "token_type_ids": rng.integers(0, 2, (batch, seq))}


def test_int8_kernels_per_layer(encoder: Graph) -> None:
    graph = clone(encoder)
    run_passes(graph, pipeline(Options()))
    first, rest = ["q8_linear", "attention"], ["loop: add layer_norm dynamic_quantize", "q8_linear", "attention"]
    assert kinds(graph) == [EMBED, *first, *LAYER, *rest, *LAYER, "loop: add layer_norm"]
    for shape in ((1, 1), (2, 7), (3, 16)):
        expected, = interpret(encoder, feeds(*shape))
        got, = interpret(graph, feeds(*shape))
        assert np.linalg.norm(got - expected) <= INT8_ERROR * np.linalg.norm(expected)


def test_float_kernels_give_the_models_results(encoder: Graph) -> None:
    graph = clone(encoder)
    run_passes(graph, pipeline(Options(quantize=False)))
    assert {n.op for n in graph.nodes} <= {"linear", "attention", "loop", "gather", "slice", "reshape"}
    expected, = interpret(encoder, feeds(2, 9))
    got, = interpret(graph, feeds(2, 9))
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT_TOLERANCE * np.abs(expected).max())


def test_layers_share_their_slots(encoder: Graph) -> None:
    graph = clone(encoder)
    run_passes(graph, pipeline(Options()))
    assert len(slot_sizes(graph)) <= 9
