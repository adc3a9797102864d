"""What a loop reads of its operands: an operand, or columns cut from a wider one, which stay where they are."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from q8c.codegen.loop_space import broadcast_strides
from q8c.ir.dims import Dim
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops import attributes


@dataclass(frozen=True)
class Read:
    """The body's value for what is read: operand number `operand` itself, or its columns from `column` on. `pitch`, if
    not 0, is how many elements lie from one of its rows to the next."""

    value: Value
    operand: int
    column: int
    whole: Value
    pitch: int

    def strides(self, rank: int) -> tuple[Dim, ...]:
        """Elements from one index to the next in a space of `rank` axes: 0 on missing axes and those of extent 1."""
        shape = self.whole.shape
        return broadcast_strides((*shape[:-1], self.pitch) if self.pitch else shape, rank)


def reads_of(body: Graph, pitches: Sequence[int] = ()) -> list[Read]:
    """Everything a body reads, in order of its operands; `pitches` are their `row_pitch` where some have one."""
    reads: list[Read] = []
    for operand, (value, pitch) in enumerate(zip(body.inputs, pitches or [0] * len(body.inputs), strict=True)):
        cuts = [n for n in body.nodes if is_read(body, n) and n.input(0) is value]
        if len(cuts) < len(value.users) or body.is_output(value) or not cuts:
            reads.append(Read(value, operand, 0, value, pitch))
        reads += [Read(n.output, operand, attributes(n)["starts"][-1], value, pitch) for n in cuts]
    return reads


def is_read(body: Graph, node: Node) -> bool:
    """Whether a node of a body cuts several columns, one beside the other, from all rows of an operand."""
    if node.op != "slice" or node.input(0) not in body.inputs or node.output.type.rank == 0:
        return False
    a, lead = attributes(node), node.input(0).shape[:-1]
    return (a["starts"][:-1] == (0,) * len(lead) and a["sizes"][:-1] == lead and set(a["steps"]) == {1}
            and isinstance(a["starts"][-1], int) and node.output.shape[-1] != 1)
