"""The list of passes: complete, named after files, and right on small models of every exporter's making."""
from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABCMeta
from collections import Counter

import numpy as np
import pytest

import q8c.passes
from q8c.errors import CompileError
from q8c.ir import DType, Graph, TensorType, Value, clone, interpret
from q8c.ir.dims import sym
from q8c.ir.feeds import random_feeds
from q8c.passes.manager import Pass, parse_passes, run_passes
from q8c.passes.observers import verify_each
from q8c.passes.pipeline import PASSES, Options, pipeline

SEQ, WIDTH, HEADS = sym("seq"), 32, 4


def test_every_pass_is_listed_and_named_after_its_file() -> None:
    found: dict[str, type[Pass]] = {}
    for module in pkgutil.iter_modules(q8c.passes.__path__):
        members = vars(importlib.import_module(f"q8c.passes.{module.name}")).values()
        for kind in members:
            if type(kind) is ABCMeta and issubclass(kind, Pass) and kind.__module__.endswith(f".{module.name}") \
                    and not inspect.isabstract(kind):
                assert kind.name == module.name.replace("_", "-")
                assert kind.run.__doc__ and kind.__doc__
                found[kind.name] = kind
    assert found == PASSES


@pytest.mark.parametrize("options", [Options(), Options(quantize=False), Options(keep=("a", "b"))])
def test_the_pipeline_can_be_written_down(options: Options) -> None:
    passes = pipeline(options)
    assert parse_passes(",".join(map(str, passes)), PASSES) == passes


def test_an_unknown_weight_format_is_an_error() -> None:
    with pytest.raises(CompileError, match="weight format 'q3' is unknown; expected one of q8-channel"):
        pipeline(Options(weights="q3"))


def encoder_layer(seed: int = 0) -> Graph:
    """A BERT layer as PyTorch's exporter below opset 17 writes it: norm and GELU in parts, the mask expanded."""
    rng = np.random.default_rng(seed)
    graph = Graph("layer")
    ids = graph.add_input("ids", TensorType(DType.i64, (sym("batch"), SEQ)))
    mask = graph.add_input("mask", TensorType(DType.i64, (sym("batch"), SEQ)))

    def weight(*shape: int) -> Value:
        return graph.constant((rng.standard_normal(shape) / 4).astype(np.float32))

    def op(name: str, *inputs: Value, **attrs: object) -> Value:
        return graph.add(name, inputs, attrs).output  # type: ignore[arg-type]

    def scalar(x: float) -> Value:
        return graph.constant(np.float32(x))

    def linear(x: Value, cols: int) -> Value:
        return op("add", weight(cols), op("matmul", x, weight(int(str(x.shape[-1])), cols)))

    def heads(x: Value) -> Value:
        split = op("reshape", x, shape=(*x.shape[:2], HEADS, WIDTH // HEADS))
        return op("transpose", split, perm=(0, 2, 1, 3))

    def norm(x: Value) -> Value:
        deviation = op("sub", x, op("reduce_mean", x, axes=(-1,)))
        variance = op("reduce_mean", op("pow", deviation, scalar(2)), axes=(-1,))
        y = op("div", deviation, op("sqrt", op("add", variance, scalar(1e-12))))
        return op("add", op("mul", y, weight(WIDTH)), weight(WIDTH))

    x = norm(op("gather", weight(8, WIDTH), ids, axis=0))
    square = (sym("batch"), 1, SEQ, SEQ)
    wide = op("broadcast_to", op("reshape", mask, shape=(sym("batch"), 1, 1, SEQ)), shape=square)
    absent = op("sub", scalar(1), op("cast", wide, to=DType.f32))
    bias = op("where", op("cast", absent, to=DType.bool), scalar(-1e9), absent)
    q, k, v = (heads(linear(x, WIDTH)) for _ in range(3))
    scores = op("div", op("matmul", q, op("transpose", k, perm=(0, 1, 3, 2))), scalar((WIDTH // HEADS)**0.5))
    mixed = op("matmul", op("softmax", op("add", scores, bias), axis=3), v)
    joined = op("reshape", op("transpose", mixed, perm=(0, 2, 1, 3)), shape=x.shape)
    x = norm(op("add", linear(joined, WIDTH), x))
    h = linear(x, 2 * WIDTH)
    erf = op("erf", op("div", h, scalar(2**0.5)))
    gelu = op("mul", op("mul", h, op("add", erf, scalar(1))), scalar(0.5))
    graph.add_output(norm(op("add", linear(gelu, WIDTH), x)), "hidden")
    return graph


def feeds_for(graph: Graph) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    feeds = random_feeds(graph, seed=3, sizes={"batch": 3, "seq": 9})
    feeds["mask"][:, 0] = 1  # a row without any key is a mean over all of them, of which rounding decides
    return feeds


def test_a_layer_in_float_keeps_its_results() -> None:
    graph = encoder_layer()
    before = clone(graph)
    feeds = feeds_for(graph)
    run_passes(graph, pipeline(Options(quantize=False)), observers=[verify_each(feeds, tolerance=1e-5)])
    ops = Counter(n.op for n in graph.nodes)
    assert ops["linear"] == 4 and ops["attention"] == 1 and not {"matmul", "softmax", "erf", "sqrt"} & set(ops)
    x, y = interpret(before, feeds)[0], interpret(graph, feeds)[0]
    np.testing.assert_allclose(y, x, rtol=0, atol=2e-5)


def test_a_quantized_layer_stays_close() -> None:
    graph = encoder_layer()
    before = clone(graph)
    feeds = feeds_for(graph)
    report = run_passes(graph, pipeline(Options()), observers=[verify_each(feeds)])
    ops = Counter(n.op for n in graph.nodes)
    assert ops["q8_linear"] == 4 and ops["attention"] == 1 and "linear" not in ops
    x, y = interpret(before, feeds)[0], interpret(graph, feeds)[0]
    assert 0 < np.linalg.norm(y - x) / np.linalg.norm(x) < 0.05
    assert {n.pass_name for n in report.rewrites} >= {"fuse-gelu", "fuse-layer-norm", "fuse-attention", "fold-weights"}
