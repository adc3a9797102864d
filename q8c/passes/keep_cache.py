"""Let the cache of keys and values grow where it is."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.errors import OptionError
from q8c.ir.cache import appended, find_tokens, in_place
from q8c.ir.dims import Dim, as_symbol
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.key_rows import key_rows
from q8c.ir.types import DType
from q8c.passes.attention_heads import find_heads
from q8c.passes.fuse_attention import channels
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import sources, substitute
from q8c.passes.rules import attr, nodes_between, producer

FORMATS = ("f32", "int8")
LENGTHS, COUNTS = 5, 6
"""The operands of attention that say how many tokens of each sequence are kept, and how many are new."""


@dataclass(frozen=True)
class KeepCache(Pass):
    """Replaces present = concat(past, new) along the sequence axis by append(past, new, past_lengths) in place, where
    past is an input and present an output.

    Both are then one buffer of the caller's, in which the kept tokens are never moved; attentions read them there, and
    what else reads them gets a copy. Causal attentions to them take lengths, one for each sequence, and so do those to
    what is computed from them token by token; attentions of the new tokens to any others take new_counts. Lengths that
    the model computes hold unless a state says others. `format`: how rows are kept, f32 or int8.
    """

    name: ClassVar[str] = "keep-cache"
    format: str = "f32"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise OptionError(f"the KV cache's format {self.format!r} is unknown; expected {' or '.join(FORMATS)}")

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a cache was found."""
        inputs = set(graph.inputs)
        unchanged = {v for v in graph.outputs if v in inputs}
        kept: list[Node] = []
        for node in list(graph.nodes):
            if node.op == "attention":
                for value in unchanged & set(node.operands):
                    report.decline(node, f"%{value.name} goes in and comes out as it is: nothing is appended")
            if node.op not in ("concat", "append") or node.input(0) not in inputs or not graph.is_output(node.output) \
                    or in_place(node):
                continue
            problem = find_problem(graph, node) or differs(node, kept)
            if problem:
                report.decline(node, problem)
            else:
                kept.append(node)
        if kept:
            rewrite(graph, kept, self._formats(kept, report), report)
        return settle_lengths(graph) or bool(kept)

    def _formats(self, kept: list[Node], report: Report) -> list[str]:
        """How the rows of each cache are kept: in 8 bits where attention reads each as keys, or as values, alone."""
        outputs = {n.output for n in kept}
        formats = []
        for node in kept if self.format == "int8" else ():
            readers = [u for u in node.output.users if u.op == "attention"]
            roles = {i for u in readers for i in (1, 2) if u.inputs[i] is node.output}
            if len(roles) != 1 or len(readers) < len(node.output.users) or any(
                    u.inputs[i] not in outputs for u in readers for i in (1, 2)):
                report.decline(node, f"not in 8 bits: %{node.output.name} is not just keys, or values, or goes with "
                                     "some that do not grow in place")
                break
            formats.append("int8-keys" if roles == {1} else "int8-values")
        return formats if len(formats) == len(kept) else ["f32"] * len(kept)


def find_problem(graph: Graph, node: Node) -> str:
    """Why what a node puts together cannot grow in place; empty if it can."""
    past, present = node.input(0), node.output
    if past.dtype is not DType.f32 or past.type.rank != 4:
        return f"its past is {past.type}, expected f32[batch, heads, past, size] and new tokens behind it"
    if node.op == "concat" and (len(node.inputs) != 2 or attr(node, "axis") not in (2, -2)):
        return f"tokens are put along axis {attr(node, 'axis')}, expected new ones behind [batch, heads, past, size]"
    if as_symbol(past.shape[2]) is None or not all(isinstance(d, int) for d in past.shape[1::2]):
        return f"its past is {past.type}; heads and their size must be fixed, and the length free"
    if [u for u in past.users if u.op != "past_lengths"] != [node]:
        return f"%{past.name} is read elsewhere too"
    if graph.outputs.count(present) > 1 or graph.is_output(past):
        return f"%{present.name} is more than one output"
    if node.op == "append" and len(node.inputs) > 2 and counted(node) is None:
        return "its lengths are not said to be those of a past"
    if find_tokens(graph, [past], appended(node)) is None:
        return f"no input is as long as there are new tokens, {appended(node)}"
    return ""


def differs(node: Node, kept: list[Node]) -> str:
    """In what a cache differs from those found before; empty if in nothing."""
    for other in kept[:1]:
        for mine, theirs in ((node.input(0), other.input(0)), (node.output, other.output)):
            if mine.shape[::2] != theirs.shape[::2]:
                return f"%{mine.name} is {mine.type}, %{theirs.name} {theirs.type}: not as many tokens"
        if (counted(node) is None) != (counted(other) is None):
            return "the model computes how many tokens are kept of some caches and not of others"
    return ""


def counted(node: Node) -> Node | None:
    """The past_lengths an append gets its lengths from."""
    return producer(node.inputs[2], "past_lengths") if node.op == "append" and len(node.inputs) > 2 else None


def rewrite(graph: Graph, kept: list[Node], formats: list[str], report: Report) -> None:
    """Write the appends, and give their lengths to the attentions that can go by them."""
    held = lengths_if_held(graph, kept)
    for node, format in zip(kept, formats, strict=True):
        past, present = node.input(0), node.output
        lengths = node.input(2) if node.op == "append" and len(node.inputs) > 2 else held
        new, offset = new_rows(graph, node)
        heads, size = past.shape[1], past.shape[3]
        assert isinstance(heads, int) and isinstance(size, int)
        attrs = {"kv_heads": heads, "head_size": size, **({"offset": offset} if offset else {}), "in_place": True,
                 **({"rows": present.shape[2]} if node.attrs.get("rows") else {}),
                 **({"format": format} if format != "f32" else {})}
        source = sources(nodes_between(node, [past, new]))
        made = graph.add("append", [past, new, lengths], attrs, name=present.name, source=source, before=node)
        made.output.type = present.type
        substitute(graph, present, made.output)
        report.rewrote(made, f"%{past.name} grows in place into %{made.output.name}"
                             + ("" if format == "f32" else ", in 8 bits"))
        copied = copy_rows(graph, made)
        if copied is not None:
            report.decline(made, f"all of %{made.output.name} is copied in every run: {copied.users[0]} reads it")
        for reader in made.output.users:
            if reader.op == "attention" and attr(reader, "causal") and operand(reader, LENGTHS) is None:
                give(graph, reader, LENGTHS, lengths)
    rows = key_rows(graph)
    for node in graph.nodes:
        if node.op == "attention" and attr(node, "causal") and operand(node, LENGTHS) is None and node.input(1) in rows:
            give(graph, node, LENGTHS, held)
    count_queries(graph, held, appended(kept[0]))
    graph.prune()


def copy_rows(graph: Graph, made: Node) -> Value | None:
    """Give what is no attention to its keys and values a copy of what an append keeps; None if there is no such."""
    present = made.output
    others = [u for u in dict.fromkeys(present.users)
              if u.op != "attention" or present in (u.inputs[0], *u.inputs[3:])]
    if not others:
        return None
    copy = graph.add("kept", [present], name=f"{present.name}_kept", before=others[0]).output
    for reader in others:
        graph.set_inputs(reader, [copy if v is present else v for v in reader.inputs])
    return copy


def count_queries(graph: Graph, held: Value, tokens: Dim) -> None:
    """Tell attentions whose queries are new tokens, and whose keys may be more, how many are no padding: what the run
    says, where the model computes that itself without a state its numbers."""
    found = [n for n in graph.nodes if n.op == "attention" and n.input(0).shape[-2] != n.input(1).shape[-2]
             and graph.known_equal(n.input(0).shape[-2], tokens)]
    if not found:
        return
    assert held.producer is not None
    said = graph.add("new_counts", held.producer.inputs, {"tokens": tokens}, name="counts", before=found[0]).output
    counts: dict[Value | None, Value] = {None: said}
    for node in found:
        given = operand(node, COUNTS)
        if given is not None and given not in counts:
            counts[given] = unless_held(graph, held, given, said, node)
        give(graph, node, COUNTS, counts[given])


def operand(node: Node, index: int) -> Value | None:
    """An optional operand of a node."""
    return node.inputs[index] if index < len(node.inputs) else None


def give(graph: Graph, node: Node, index: int, value: Value) -> None:
    """Make a value an operand of a node, the others being as they are."""
    inputs = [*node.inputs, *[None] * (index + 1 - len(node.inputs))]
    inputs[index] = value
    graph.set_inputs(node, inputs)


def unless_held(graph: Graph, held: Value, given: Value, said: Value, before: Node) -> Value:
    """A number of each sequence that the model computes, but the one that a state says if there is one."""
    none = graph.add("less", [held, graph.constant(np.int64(0), "zero")], before=before).output
    source = given.producer.source if given.producer is not None else ()
    return graph.add("where", [none, given, said], source=source, before=before).output


def lengths_if_held(graph: Graph, kept: list[Node]) -> Value:
    """How many tokens of each sequence the appends find, those that a state says. Where the model computes them, these
    are its numbers without a state (then the state's are -1), everywhere in the model."""
    counts = [n for n in map(counted, kept) if n is not None]
    held = graph.add("past_lengths", [kept[0].input(0)], {"unknown": True} if counts else {}, name="lengths",
                     before=graph.nodes[0]).output
    found: dict[Value, Value] = {}
    for node in dict.fromkeys(counts):
        given = node.input(1)
        if given not in found:
            found[given] = unless_held(graph, held, given, held, node)
        graph.replace_uses(node.output, found[given])
    return held


def settle_lengths(graph: Graph) -> bool:
    """Replace past_lengths(past, given) by `given`; whether there were any."""
    found = [n for n in graph.nodes if n.op == "past_lengths" and len(n.inputs) > 1]
    for node in found:
        graph.replace_uses(node.output, node.input(1))
        graph.erase(node)
    return bool(found)


def new_rows(graph: Graph, node: Node) -> tuple[Value, int]:
    """The new tokens as [batch, seq, channels] and the channel their heads begin at, where they are cut from such; else
    as [batch, heads, seq, size]."""
    new = node.input(1)
    if new.type.rank == 3:
        return new, attr(node, "offset")
    found = find_heads(graph, new, (0, 1, 2, 3))
    if found is None or found.scale != 1 or found.repeat != 1 or (found.heads, found.size) != new.shape[1::2]:
        return new, 0
    return channels(graph, found, node), found.offset
