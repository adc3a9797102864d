"""Import takes time linear in nodes, in weights next to none, and does not recurse over a graph."""
from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from q8c.frontend import import_onnx
from tests.frontend.support import F32, load, model, node


def chain(length: int) -> onnx.ModelProto:
    ops = ("Tanh", "Add", "Shape", "Reshape")
    nodes = []
    for i in range(length // 4):
        nodes += [node(ops[0], f"v{i}", f"a{i}"), node(ops[1], f"a{i} w", f"b{i}"), node(ops[2], f"b{i}", f"s{i}"),
                  node(ops[3], f"b{i} s{i}", f"v{i + 1}")]
    return model(nodes, {"v0": (F32, ["n", 8])}, {f"v{length // 4}": F32}, {"w": np.ones(8, F32)})


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def test_ten_thousand_nodes_in_a_chain() -> None:
    proto = chain(10_000)
    assert len(load(proto).nodes) == 5_000
    assert seconds(lambda: import_onnx(proto)) < 20


def test_time_grows_linearly() -> None:
    small, large = chain(1_000), chain(8_000)
    import_onnx(small)
    assert seconds(lambda: import_onnx(large)) < 8 * 3 * min(seconds(lambda: import_onnx(small)) for _ in range(3))


def test_many_inputs_with_unnamed_sizes_need_one_more_import() -> None:
    """As many as decoders have caches: every one gets the first one's size."""
    count = 60
    nodes = [node("Add", f"x0 x{i}", f"y{i}") for i in range(1, count)]
    proto = model(nodes, {f"x{i}": (F32, [None, None, 4]) for i in range(count)},
                  {f"y{i}": F32 for i in range(1, count)})
    graph = load(proto)
    assert {str(v.type) for v in graph.inputs} == {"f32[x0_0, x0_1, 4]"} and not graph.assumptions
    assert seconds(lambda: import_onnx(proto)) < 2


def test_large_weights_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    names = [f"w{i}" for i in range(8)]
    nodes = [node("MatMul", f"v{i} {name}", f"v{i + 1}") for i, name in enumerate(names)]
    shared = np.ones((2048, 2048), F32)
    onnx.save(model(nodes, {"v0": (F32, ["n", 2048])}, {"v8": F32}, dict.fromkeys(names, shared)), path)
    assert path.stat().st_size > 2**27
    import_onnx(path)
    assert seconds(lambda: import_onnx(path)) < 0.5
