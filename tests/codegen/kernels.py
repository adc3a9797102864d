"""Runs one node's kernel as the compiled model does, and compares it with the reference interpreter."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numpy.typing import NDArray

from q8c.codegen.builder import Builder
from q8c.codegen.conv import conv_kernel
from q8c.codegen.kernel import Kernel
from q8c.codegen.last_token import last_token_kernel
from q8c.codegen.lookup import lookup_kernel
from q8c.codegen.loop import loop_kernel
from q8c.codegen.movement import MOVEMENT_OPS, movement_kernel
from q8c.codegen.plain_matmul import plain_matmul
from q8c.codegen.rotary import rotary_kernel
from q8c.codegen.targets import Tier
from q8c.ir import Graph, interpret, parse_graph
from q8c.ir.dims import evaluate
from q8c.ir.interpret import bind_sizes
from q8c.ir.memory import is_wide, r8_pitch
from tests.codegen.jit import Loaded, both_widths, build, guarded

Arrays = list[NDArray[Any]]
NODE = 5
"""The number the tests give their node."""


@dataclass
class Compiled:
    """A graph of one node, its kernel and the loaded code.

    `packed` are operands as they lie in memory, where that is not how the graph sees them.
    """

    graph: Graph
    kernel: Kernel
    loaded: Loaded
    packed: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __call__(self, threads: int = 1, frame: NDArray[np.int64] | None = None, **feeds: NDArray[Any]) -> Arrays:
        """The node's outputs for the graph's inputs, all threads one after the other. Every buffer ends at a page that
        must not be touched; R8 outputs come without their padding, which must be 0, but wide ones as they lie.
        """
        node = self.graph.nodes[0]
        sizes = bind_sizes(self.graph, feeds)
        memory = {**feeds, **self.packed}
        operands = [guarded(memory[v.name] if v.name in memory else v.array()) for v in node.operands]
        outputs = []
        for value in node.outputs:
            shape = tuple(evaluate(d, sizes) for d in value.shape)
            if is_r8(self.graph, value.name):
                shape = (*shape[:-1], evaluate(r8_pitch(value), sizes))
            outputs.append(guarded(np.full(shape, 77, value.dtype.numpy)))
        args: list[NDArray[Any] | int] = [*operands, *outputs, *(evaluate(d, sizes) for d in self.kernel.sizes)]
        if self.kernel.scratch is not None:
            args.append(np.full(evaluate(self.kernel.scratch, sizes) + 64, 77, np.uint8))
        if self.kernel.reports:
            args += [np.zeros(8, np.int64) if frame is None else frame, NODE]
        for tid in range(threads):
            self.loaded("run", *args, tid, threads)
        return [self._plain(value.name, y, sizes) for value, y in zip(node.outputs, outputs, strict=True)]

    def _plain(self, name: str, y: NDArray[Any], sizes: Mapping[str, int]) -> NDArray[Any]:
        value = next(v for v in self.graph.nodes[0].outputs if v.name == name)
        if not is_r8(self.graph, name) or is_wide(value):
            return y
        cols = evaluate(value.shape[-1], sizes)
        assert not y[..., cols:].any(), "the padding of R8 rows is not 0"
        return y[..., :cols]

    def expected(self, **feeds: NDArray[Any]) -> Arrays:
        """What the reference interpreter gives."""
        with np.errstate(all="ignore"):
            return interpret(self.graph, feeds)


def is_r8(graph: Graph, name: str) -> bool:
    """Whether an output of the graph's node holds R8 rows."""
    node = graph.nodes[0]
    index = [v.name for v in node.outputs].index(name)
    if node.body is None:
        return False
    value = node.body.outputs[index]
    return value.producer is not None and value.producer.op == "dynamic_quantize" and value.producer.output is value


def loop_text(inputs: Mapping[str, str], lines: str, outputs: Mapping[str, str]) -> str:
    """A graph of one loop: operands and results by name with their types, and the body's nodes."""
    params = ", ".join(f"%{n}: {t}" for n, t in inputs.items())
    results = ", ".join(f"%{n}: {t}" for n, t in outputs.items())
    returned = ", ".join(f"%{n}" for n in outputs)
    return f"""graph @g({params}) {{
      {results} = loop({", ".join(f"%{n}" for n in inputs)}) body ({params}) {{
        {lines}
        return {returned}
      }}
      return {returned}
    }}"""


_cache: dict[tuple[Tier, str], Compiled] = {}


def compiled(tier: Tier, text: str) -> Compiled:
    """The kernel of the one node of a graph in text."""
    key = (tier, text)
    if key not in _cache:
        graph = parse_graph(text)
        node, = graph.nodes
        kernels: list[Kernel] = []
        make: Callable[..., Kernel] = {"conv": conv_kernel, "last_token": last_token_kernel, "lookup": lookup_kernel,
                                       "matmul": plain_matmul, "rotary": rotary_kernel}.get(
            node.op, movement_kernel if node.op in MOVEMENT_OPS else loop_kernel)

        def emit(module: ir.Module, tier: Tier) -> None:
            kernel = make(module, tier, node)
            kernels.append(kernel)
            params = [(f"a{n}", a.type) for n, a in enumerate(kernel.function.args)]
            b = Builder(module, tier, "run", params)
            b.ir.call(kernel.function, [b.arg(name) for name, _ in params])
            b.ret()

        loaded = build(tier, emit)
        _cache[key] = Compiled(graph, kernels[0], loaded)
    return _cache[key]


def check_kernel(text: str, **feeds: NDArray[Any]) -> None:
    """The kernel of the one node of a graph gives what the reference gives, on one thread and on several."""
    for tier in both_widths():
        kernel = compiled(tier, text)
        for threads in (1, 3):
            for y, expected in zip(kernel(threads, **feeds), kernel.expected(**feeds), strict=True):
                assert y.dtype == expected.dtype
                np.testing.assert_array_equal(y, expected)
