"""Kernels for ops that move elements: one strided copy or several, gathers, scans, and reductions over any axes."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir

from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_space import Space, broadcast_strides, dense_strides
from q8c.codegen.movement_copy import Copy, emit_copy
from q8c.codegen.movement_gather import gather, gather_elements, gather_nd
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.movement_make import iota, pad, sizes
from q8c.codegen.movement_pack import packing, unpack
from q8c.codegen.movement_reduce import REDUCE_OPS, reduce
from q8c.codegen.movement_route import route
from q8c.codegen.movement_scan import argument, cumsum
from q8c.codegen.movement_select import scatter_nd, top_k
from q8c.codegen.targets import Tier
from q8c.errors import CompileError
from q8c.ir.dims import Dim
from q8c.ir.graph import Node
from q8c.ir.ops import attributes


def movement_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """The kernel of a node of `MOVEMENT_OPS`. Raises CompileError for any other."""
    found = _OPS.get(node.op)
    if found is None:
        raise CompileError(f"{node}: no movement kernel; expected one of {', '.join(sorted(MOVEMENT_OPS))}")
    return found(module, tier, node)


def _copies(describe: Callable[[Node, dict[str, Any]], list[Copy]]) -> Callable[[ir.Module, Tier, Node], Kernel]:
    def kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
        m = Movement(node)
        copies = describe(node, attributes(node))
        for copy in copies:
            copy.need(m.sizes)

        def emit(b: Any) -> None:
            for copy in copies:
                emit_copy(b, copy, m.sizes)

        return m.kernel(module, tier, "\n".join(copy.key(m.sizes) for copy in copies), emit)
    return kernel


def _copy(node: Node, attrs: dict[str, Any]) -> list[Copy]:
    x = node.input(0)
    dense = dense_strides(x.shape)
    return [Copy(0, 1, x.dtype.itemsize, Space(x.shape, (dense, dense)))]


def _transpose(node: Node, attrs: dict[str, Any]) -> list[Copy]:
    x, y = node.input(0), node.output
    source = dense_strides(x.shape)
    turned = tuple(source[p] for p in attrs["perm"])
    return [Copy(0, 1, x.dtype.itemsize, Space(y.shape, (turned, dense_strides(y.shape))))]


def _broadcast_to(node: Node, attrs: dict[str, Any]) -> list[Copy]:
    x, y = node.input(0), node.output
    strides = (broadcast_strides(x.shape, y.type.rank), dense_strides(y.shape))
    return [Copy(0, 1, x.dtype.itemsize, Space(y.shape, strides))]


def _slice(node: Node, attrs: dict[str, Any]) -> list[Copy]:
    x, y = node.input(0), node.output
    source = dense_strides(x.shape)
    steps = tuple(s * step for s, step in zip(source, attrs["steps"], strict=True))
    offset: Dim = 0
    for start, stride in zip(attrs["starts"], source, strict=True):
        offset = offset + start * stride
    return [Copy(0, 1, x.dtype.itemsize, Space(y.shape, (steps, dense_strides(y.shape))), offset)]


def _concat(node: Node, attrs: dict[str, Any]) -> list[Copy]:
    y = node.output
    target = dense_strides(y.shape)
    axis = attrs["axis"] % y.type.rank
    copies: list[Copy] = []
    offset: Dim = 0
    for n, x in enumerate(node.operands):
        space = Space(x.shape, (dense_strides(x.shape), target))
        copies.append(Copy(n, len(node.inputs), x.dtype.itemsize, space, 0, offset))
        offset = offset + x.shape[axis] * target[axis]
    return copies


_OPS: dict[str, Callable[[ir.Module, Tier, Node], Kernel]] = {
    "copy": _copies(_copy), "reshape": _copies(_copy), "transpose": _copies(_transpose),
    "broadcast_to": _copies(_broadcast_to), "slice": _copies(_slice), "concat": _copies(_concat),
    "gather": gather, "gather_nd": gather_nd, "gather_elements": gather_elements, "pad": pad, "iota": iota,
    "sizes": sizes, "cumsum": cumsum, "cumprod": cumsum, "packing": packing, "unpack": unpack,
    "argmax": argument, "argmin": argument, "scatter_nd": scatter_nd, "top_k": top_k, "route": route,
    **dict.fromkeys(REDUCE_OPS, reduce)}

MOVEMENT_OPS = frozenset(_OPS)
"""The ops `movement_kernel` has kernels for."""
