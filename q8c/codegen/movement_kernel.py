"""The common part of movement kernels: parameters, names, and one function per distinct code."""
from __future__ import annotations

import hashlib
from collections.abc import Callable

import llvmlite.ir as ir

from q8c.codegen.builder import I64, PTR, Builder
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_space import Sizes
from q8c.codegen.targets import Tier
from q8c.codegen.units import shared
from q8c.ir.graph import Node


class Movement:
    """A kernel in the making. Its pointer parameters are p0, p1, ... for operands, then outputs.

    Attributes:
        sizes: the run-time sizes it takes; complete before `kernel` is called.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.pointers = [f"p{n}" for n in range(len(list(node.operands)) + len(node.outputs))]
        self.sizes = Sizes()

    def kernel(self, module: ir.Module, tier: Tier, key: str, emit: Callable[[Builder], None],
               reports: bool = False) -> Kernel:
        """The kernel whose code `emit` writes; `key` is equal exactly where the code is. With `reports` it also has
        the parameters `frame` and `node`.
        """
        params = [(p, PTR) for p in self.pointers] + self.sizes.params()
        params += [("frame", PTR), ("node", I64)] if reports else []
        params += [("piece", I64), ("pieces", I64)]
        digest = hashlib.sha256(f"{key} {len(params)}".encode()).hexdigest()[:10]
        name = f"q8c_{self.node.op}_{digest}__{tier.name.replace('-', '')}"

        def emit_all(unit: ir.Module) -> None:
            b = Builder(unit, tier, name, params, internal=True)
            emit(b)
            b.ret()

        function, = shared(module, [name], emit_all)
        return Kernel(function, tuple(self.sizes.dims), reports=reports)
