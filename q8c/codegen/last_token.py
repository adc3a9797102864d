"""last_token: the row of each sequence's last token that is no padding."""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.builder import F32, I64, Builder, Value, sizeof
from q8c.codegen.core import is_float
from q8c.codegen.kernel import Kernel
from q8c.codegen.loop_memory import load_scalar
from q8c.codegen.loop_space import Space, each_item
from q8c.codegen.movement_copy import copy_row
from q8c.codegen.movement_gather import report
from q8c.codegen.movement_kernel import Movement
from q8c.codegen.targets import Tier
from q8c.ir.graph import Node
from q8c.ir.types import DType


def last_token_kernel(module: ir.Module, tier: Tier, node: Node) -> Kernel:
    """y[batch, 0] = x[batch, the last token whose mask is not 0]; no tokens are reported."""
    batch, tokens, channels = node.input(0).shape
    mask = node.inputs[1] if len(node.inputs) > 1 else None
    lengths = len(node.inputs) > 2
    width = None if mask is None else mask.shape[1]
    space = Space((batch,), ((tokens * channels,), (1,), (channels,)))
    m = Movement(node)
    m.sizes.need_space(space)
    m.sizes.need(tokens, channels, *([] if width is None else [width]))
    result = f"p{len(m.pointers) - 1}"

    def emit(b: Builder) -> None:
        count = m.sizes.value(b, tokens)

        def item(offsets: list[Value]) -> None:
            last = b.sub(count, 1)
            if mask is not None and width is not None:
                columns = m.sizes.value(b, width)
                first = b.load(I64, b.at(b.arg("p2"), offsets[1], I64)) if lengths else b.sub(columns, count)
                start = b.mul(b.add(b.mul(offsets[1], columns), first), mask.dtype.itemsize)
                last = _find(b, mask.dtype, b.at(b.arg("p1"), start), last)
            row = b.add(offsets[0], b.mul(last, m.sizes.value(b, channels)))
            copy_row(b, sizeof(F32), b.at(b.arg("p0"), row, F32), b.at(b.arg(result), offsets[2], F32),
                     channels if isinstance(channels, int) else m.sizes.value(b, channels))

        none = b.icmp("<=", count, 0)
        report(b, none, count)
        with b.if_(b.xor(none, 1)):
            each_item(b, m.sizes, space, item)

    names = [m.sizes.name(d) for d in (tokens, channels, *([] if width is None else [width]))]
    key = f"{m.sizes.space_name(space)} of {names} {None if mask is None else mask.dtype} {lengths}"
    return m.kernel(module, tier, key, emit, reports=True)


def _find(b: Builder, dtype: DType, mask: Value, last: Value) -> Value:
    """The last token up to `last` whose element of the mask is not 0; `last` itself if there is none."""
    def is_padding(state: list[Value]) -> Value:
        there = b.icmp(">=", state[0], 0)
        x = load_scalar(b, dtype, b.at(mask, b.mul(b.select(there, state[0], 0), dtype.itemsize)))
        gone = b.fcmp("==", x, 0.0) if is_float(x.type) else b.icmp("==", x, ir.Constant(x.type, 0))
        return b.and_(gone, there)

    found, = b.while_([last], is_padding, lambda state: [b.sub(state[0], 1)])
    return b.select(b.icmp(">=", found, 0), found, last)
