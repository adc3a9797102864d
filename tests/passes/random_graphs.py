"""Random small graphs of elementwise ops, row ops and moves, for tests that must hold for any graph."""
from __future__ import annotations

import random

from q8c.ir import DType, Graph, TensorType, Value
from q8c.ir.dims import sym

ROWS, COLS = sym("n"), 8
MAX_VALUES = 400


def random_graph(seed: int, nodes: int) -> Graph:
    """A graph over f32[n, 8] and f32[n, 1] values with about `nodes` nodes, several outputs, and no dead nodes."""
    choose = random.Random(seed)
    graph = Graph("random")
    full = TensorType(DType.f32, (ROWS, COLS))
    values = [graph.add_input("x", full), graph.add_input("y", TensorType(DType.f32, (ROWS, 1)))]
    while len(graph.nodes) < nodes:
        values += _step(graph, choose, values[-MAX_VALUES:])
    unread = [v for v in values if not v.users and v.producer is not None]
    for value in dict.fromkeys([*unread, choose.choice(values[2:])]):
        graph.add_output(value)
    return graph


def _step(graph: Graph, choose: random.Random, values: list[Value]) -> list[Value]:
    x, y = choose.choice(values), choose.choice(values)
    kind = choose.randrange(8)
    if kind < 2:
        return [graph.add(choose.choice(["abs", "tanh", "sigmoid", "neg"]), [x]).output]
    if kind < 4:
        return [graph.add(choose.choice(["add", "min", "max"]), [x, y]).output]
    if kind == 4:
        return [graph.add(choose.choice(["reduce_max", "reduce_min"]), [x], {"axes": (1,)}).output]
    if kind == 5:
        q, scale, _ = graph.add("dynamic_quantize", [x]).outputs
        return [scale, graph.add("cast", [q], {"to": DType.f32}).output]
    if kind == 6:
        return [graph.add("slice", [x], {"starts": (0, 0), "sizes": (ROWS, 1), "steps": (1, 1)}).output]
    rank3 = graph.add("reshape", [x], {"shape": (1, *x.shape)}).output
    return [graph.add("reshape", [rank3], {"shape": x.shape}).output]
