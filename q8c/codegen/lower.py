"""A final graph to one native function: phases of kernel calls, whose work threads share.

A phase ends where a kernel touches what another one wrote, or overwrites what another one read.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen import frame as frames
from q8c.codegen.builder import I64, PTR
from q8c.codegen.builder import Value as Code
from q8c.codegen.calls import helpers
from q8c.codegen.constants import packed_name
from q8c.codegen.cost import cost_of
from q8c.codegen.draw import draw
from q8c.codegen.frame import Frame
from q8c.codegen.kernel import Kernel
from q8c.codegen.places import Place, find_places
from q8c.codegen.targets import Tier
from q8c.codegen.threads import Body
from q8c.errors import CompileError
from q8c.ir.dims import Dim, Expr, dim_max, floordiv
from q8c.ir.graph import Graph, Node, Value, view_root
from q8c.ir.memory import CACHE_LINE, round_up, stored_bytes
from q8c.ir.work import NO_CODE

EmitKernel = Callable[[ir.Module, Tier, Node], Kernel]
SHARED = Place("shared")
"""The last slot, for what steps of a kernel leave to each other; as every call that uses it writes it, those of two
nodes are never in a phase together."""
PIECE = 1500
"""Nanoseconds of work that are worth drawing (some 100 ns where threads meet at the counter)."""


@dataclass(frozen=True)
class Call:
    """One kernel call: pointers in parameter order, what it reads and writes, the node's number in the manifest, and
    how many pieces it is worth."""

    node: Node
    number: int
    kernel: Kernel
    pointers: tuple[tuple[Place, Value, int], ...]
    reads: frozenset[Place]
    writes: frozenset[Place]
    pieces: Dim


@dataclass
class Schedule:
    """The phases of a run in order, each of calls in order; the frame they need, and how many nodes the graph has."""

    phases: list[list[Call]]
    frame: Frame
    nodes: int


def schedule(graph: Graph, module: ir.Module, tier: Tier, kernels: Callable[[Node], EmitKernel],
             slots: Sequence[Dim]) -> Schedule:
    """Generate every node's kernel into `module` and lay out the frame. Equal kernels are generated once."""
    places = find_places(graph)
    calls: list[Call] = []
    for number, node in enumerate(graph.nodes):
        if node.op in NO_CODE:
            continue
        operands = [(places[v], v, i) for i, v in enumerate(node.inputs) if v is not None]
        results = [(places[v], v, -1) for v in node.outputs]
        for kernel in kernels(node)(module, tier, node).steps:
            written = {p for p, _, _ in results} | ({SHARED} if kernel.shared is not None else set())
            calls.append(Call(node, number, kernel, (*operands, *results), frozenset(p for p, _, _ in operands),
                              frozenset(written), floordiv(cost_of(node), PIECE) + 1))
    scratch = dim_max(0, *(round_up(c.kernel.scratch, CACHE_LINE) for c in calls if c.kernel.scratch is not None))
    shared = dim_max(0, *(c.kernel.shared for c in calls if c.kernel.shared is not None))
    pieces = [c.pieces for c in calls if not c.kernel.draws]
    starts = [start_in_slot(v, slots) for call in calls for place, v, _ in call.pointers if place.kind == "slot"]
    sizes = [*(s for call in calls for s in call.kernel.sizes), *pieces, *starts, scratch]
    frame = Frame(len(graph.inputs), len(graph.outputs), frames.distinct(sizes),
                  (*slots, *([shared] if shared != 0 else [])), scratch)
    return Schedule(phases_of(calls), frame, len(graph.nodes))


def start_in_slot(value: Value, slots: Sequence[Dim]) -> Dim:
    """Where in its arena slot a value begins, in bytes: in the middle of it, so that each of two threads writes its
    share of the rows of any value where it wrote its share of others. Lines that the other core has just written
    would have to come from there (4 ns each, twice as long as from the last-level cache)."""
    root = view_root(value)
    assert root.slot is not None
    return floordiv(slots[root.slot] - stored_bytes(root), 2 * CACHE_LINE) * CACHE_LINE


def phases_of(calls: Sequence[Call]) -> list[list[Call]]:
    """Calls in order, those together that threads may make at the same time."""
    phases: list[list[Call]] = []
    reads: set[Place] = set()
    writes: set[Place] = set()
    for call in calls:
        if not phases or call.reads & writes or call.writes & (writes | reads):
            phases.append([])
            reads, writes = set(), set()
        phases[-1].append(call)
        reads |= call.reads
        writes |= call.writes
    return phases


class Entry:
    """Writes a schedule's entries into a module; `offsets` are the constants' places in the weights section."""

    def __init__(self, module: ir.Module, tier: Tier, plan: Schedule, offsets: Mapping[str, int]) -> None:
        self.plan, self.offsets = plan, offsets
        self.b = Body(module, tier, len(plan.phases))
        self.helpers = helpers(module, tier)

    def emit(self) -> None:
        """Write the functions."""
        for calls in self.plan.phases:
            with self.b.phase() as frame:
                self.phase(frame, calls)
        self.b.finish()

    def phase(self, frame: Code, calls: Sequence[Call]) -> None:
        """The calls of one phase."""
        b, self.frame, self.tid = self.b, frame, self.b.arg("tid")
        self.threads = self.word(frames.THREADS)
        self.weights = b.load(PTR, self.address(frames.WEIGHTS))
        self.arena = b.load(PTR, self.address(frames.ARENA))
        self.stamps = b.mul(self.tid, 16 * self.plan.nodes)
        for call in calls:
            self.call(call)

    def address(self, word: int) -> Code:
        """The address of a frame word."""
        return self.b.at(self.frame, word, I64)

    def word(self, word: int) -> Code:
        """The integer in a frame word."""
        return self.b.load(I64, self.address(word))

    def size(self, size: Dim) -> Code:
        """A size as an i64."""
        return self.word(self.plan.frame.size(size)) if isinstance(size, Expr) else ir.Constant(I64, size)

    def pointer(self, place: Place, value: Value, name: str) -> Code:
        """The address of a value at a place; `name` says which layout of a constant."""
        frame = self.plan.frame
        if place.kind == "slot":
            start = self.size(start_in_slot(value, frame.slots))
            return self.b.at(self.arena, self.b.add(self.word(frame.slot(place.index)), start))
        if place.kind == "constant":
            return self.b.at(self.weights, self.offsets[name])
        if place.kind in ("lengths", "counts"):
            return self.b.load(PTR, self.address(frames.LENGTHS if place.kind == "lengths" else frames.COUNTS))
        word = frame.input(place.index) if place.kind == "input" else frame.output(place.index)
        return self.b.load(PTR, self.address(word))

    def call(self, call: Call) -> None:
        """One kernel call, or one for each piece this thread draws."""
        b, kernel = self.b, call.kernel
        args = [self.pointer(place, value, packed_name(call.node, operand, view_root(value)))
                for place, value, operand in call.pointers]
        args += [self.size(s) for s in kernel.sizes]
        if kernel.scratch is not None:
            frame = self.plan.frame
            first = b.at(self.arena, self.word(frame.slot(len(frame.slots))))
            args.append(b.at(first, b.mul(self.tid, self.size(frame.scratch))))
        if kernel.shared is not None:
            args.append(b.at(self.arena, self.word(self.plan.frame.slot(len(self.plan.frame.slots) - 1))))
        if kernel.reports:
            args += [self.frame, ir.Constant(I64, call.number)]
        b.ir.call(self.helpers.begun, [self.frame, b.add(self.stamps, 16 * call.number)])
        if kernel.draws:
            self.call_kernel(call, [*args, self.threads, b.queue(kernel.turns)])
        else:
            self.pieces(call, args)
        b.ir.call(self.helpers.ended, [self.frame, b.add(self.stamps, 16 * call.number + 8)])

    def pieces(self, call: Call, args: Sequence[Code]) -> None:
        """Draw pieces until there are no more."""
        b, queue = self.b, self.b.queue()
        count = b.ir.call(self.helpers.pieces, [self.threads, self.size(call.pieces)])

        def make(drawn: Sequence[Code]) -> list[Code]:
            self.call_kernel(call, [*args, drawn[0], count])
            return [draw(b, queue, count)]

        b.while_([draw(b, queue, count)], lambda drawn: b.icmp(">=", drawn[0], 0), make)

    def call_kernel(self, call: Call, args: Sequence[Code]) -> None:
        """Call the generated function."""
        function = call.kernel.function
        if [a.type for a in args] != [a.type for a in function.args]:
            raise CompileError(f"{call.node}: the call of {function.name} does not fit its parameters")
        self.b.ir.call(function, args)
