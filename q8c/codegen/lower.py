"""A final graph to one native function: every thread runs the same list of kernel calls with barriers between them."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import llvmlite.ir as ir

from q8c.codegen import frame as frames
from q8c.codegen.builder import I64, PTR, Builder
from q8c.codegen.builder import Value as Code
from q8c.codegen.constants import packed_name
from q8c.codegen.frame import Frame
from q8c.codegen.kernel import Kernel
from q8c.codegen.places import Place, find_places
from q8c.codegen.targets import Tier
from q8c.codegen.threads import emit_barrier
from q8c.errors import CompileError
from q8c.ir.dims import Dim, Expr, dim_max
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.memory import CACHE_LINE, round_up

EmitKernel = Callable[[ir.Module, Tier, Node], Kernel]
ENTRY = "q8c_run"
SCRATCH = Place("scratch")


@dataclass(frozen=True)
class Call:
    """One kernel call: pointers in parameter order, what it reads and writes, and the node's number in the manifest."""

    node: Node
    number: int
    kernel: Kernel
    pointers: tuple[tuple[Place, Value, int], ...]
    reads: frozenset[Place]
    writes: frozenset[Place]
    counter: int = 0


@dataclass
class Schedule:
    """The calls of a run in order, the frame they need, and how many nodes the graph has."""

    calls: list[Call]
    frame: Frame
    nodes: int


def schedule(graph: Graph, module: ir.Module, tier: Tier, kernels: Callable[[Node], EmitKernel],
             slots: Sequence[Dim]) -> Schedule:
    """Generate every node's kernel into `module` and lay out the frame. Equal kernels are generated once."""
    places = find_places(graph)
    calls: list[Call] = []
    counters = 0
    for number, node in enumerate(graph.nodes):
        if node.op == "reshape":
            continue
        kernel = kernels(node)(module, tier, node)
        operands = [(places[v], v, i) for i, v in enumerate(node.inputs) if v is not None]
        results = [(places[v], v, -1) for v in node.outputs]
        calls.append(Call(node, number, kernel, (*operands, *results), frozenset(p for p, _, _ in operands),
                          frozenset(p for p, _, _ in results), counters))
        counters += kernel.counter
    scratch = dim_max(0, *(round_up(c.kernel.scratch, CACHE_LINE) for c in calls if c.kernel.scratch is not None))
    sizes = [*(s for call in calls for s in call.kernel.sizes), scratch]
    frame = Frame(len(graph.inputs), len(graph.outputs), frames.distinct(sizes), tuple(slots), scratch, counters)
    return Schedule(calls, frame, len(graph.nodes))


@dataclass
class Entry:
    """Writes `q8c_run(frame, tid)` for a schedule; `offsets` are the constants' places in the weights section."""

    module: ir.Module
    tier: Tier
    plan: Schedule
    offsets: Mapping[str, int]
    pending_reads: set[Place] = field(default_factory=set)
    pending_writes: set[Place] = field(default_factory=set)

    def emit(self) -> None:
        """Write the function."""
        b = self.b = Builder(self.module, self.tier, ENTRY, [("frame", PTR), ("tid", I64)], I64)
        self.frame, self.tid = b.arg("frame"), b.arg("tid")
        self.barrier = emit_barrier(self.module)
        self.threads = self.word(frames.THREADS)
        self.weights = b.load(PTR, self.address(frames.WEIGHTS))
        self.arena = b.load(PTR, self.address(frames.ARENA))
        self.stamps = self.word(frames.STAMPS)
        self.timed = b.icmp("!=", self.stamps, 0)
        self.stamps = b.add(self.stamps, b.mul(self.tid, 16 * self.plan.nodes))
        for call in self.plan.calls:
            self.synchronize(call)
            self.call(call)
        b.ret(0)

    def address(self, word: int) -> Code:
        """The address of a frame word."""
        return self.b.at(self.frame, word, I64)

    def word(self, word: int) -> Code:
        """The integer in a frame word."""
        return self.b.load(I64, self.address(word))

    def size(self, size: Dim) -> Code:
        """A size as an i64."""
        return self.word(self.plan.frame.size(size)) if isinstance(size, Expr) else ir.Constant(I64, size)

    def pointer(self, place: Place, name: str = "") -> Code:
        """The address of a place; `name` says which layout of a constant."""
        frame = self.plan.frame
        if place.kind in ("slot", "scratch"):
            index = place.index if place.kind == "slot" else len(frame.slots)
            return self.b.at(self.arena, self.word(frame.slot(index)))
        if place.kind == "constant":
            return self.b.at(self.weights, self.offsets[name])
        word = frame.input(place.index) if place.kind == "input" else frame.output(place.index)
        return self.b.load(PTR, self.address(word))

    def synchronize(self, call: Call) -> None:
        """A barrier where the call touches what was written since the last one, or overwrites what was read."""
        if call.reads & self.pending_writes or call.writes & (self.pending_writes | self.pending_reads):
            self.wait()
        self.pending_reads |= call.reads
        self.pending_writes |= call.writes

    def wait(self) -> None:
        """All threads meet here."""
        self.b.ir.call(self.barrier, [self.frame, self.tid])
        self.pending_reads.clear()
        self.pending_writes.clear()

    def call(self, call: Call) -> None:
        """One kernel call."""
        kernel = call.kernel
        args = [self.pointer(place, packed_name(call.node, operand, value)) for place, value, operand in call.pointers]
        args += [self.size(s) for s in kernel.sizes]
        if kernel.scratch is not None:
            args.append(self.b.at(self.pointer(SCRATCH), self.b.mul(self.tid, self.size(self.plan.frame.scratch))))
        if kernel.reports:
            args += [self.frame, ir.Constant(I64, call.number)]
        if kernel.counter:
            args.append(self.address(self.plan.frame.counter(call.counter)))
        expected = [a.type for a in kernel.function.args]
        if [a.type for a in args] + [I64, I64] != expected:
            raise CompileError(f"{call.node}: the call of {kernel.function.name} does not fit its parameters")
        self.stamp(2 * call.number)
        self.b.ir.call(kernel.function, [*args, self.tid, self.threads])
        self.stamp(2 * call.number + 1)

    def stamp(self, index: int) -> None:
        """Note the time in the thread's stamps, if anybody wants it: else a branch that is always predicted."""
        with self.b.if_(self.timed, likely=False):
            self.b.store(self.b.clock(), self.b.ir.inttoptr(self.b.add(self.stamps, 8 * index), PTR))
