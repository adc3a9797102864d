"""Which inputs and outputs of a graph are a cache of keys and values that grows in place, and what follows from it."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from q8c.ir.dims import Call, Dim, Expr, as_symbol, symbols
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.key_rows import key_rows
from q8c.ir.nested import names_in
from q8c.ir.ops.registry import attributes
from q8c.ir.types import DType


@dataclass(frozen=True)
class Cache:
    """A graph's cache: `pairs` are the numbers of an input (what is kept) and the output it grows into, `formats` how
    the rows of each are kept.

    `tokens` are the number of an input and its axis that is as long as there are new tokens. `mask` is the input
    [batch, past + new] that is not 0 where a key may be seen, `positions` the one [batch, new] that says where in their
    sequence new tokens stand; None where there is no such. `uniform`: something is computed from the number of kept
    tokens, which is one for all sequences, so that results are right only if all have that many. `given`: inputs say
    how many tokens of each sequence are kept, unless a state does. `window`: no token sees keys so many or more before
    it; 0 where one may see all.
    """

    pairs: tuple[tuple[int, int], ...]
    formats: tuple[str, ...]
    tokens: tuple[int, int]
    mask: int | None
    positions: int | None
    uniform: bool
    given: bool = False
    window: int = 0


def in_place(node: Node) -> bool:
    """Whether a node appends to a cache that stays where it is."""
    return node.op == "append" and bool(node.attrs.get("in_place"))


def find_cache(graph: Graph) -> Cache | None:
    """The cache of a graph that keep-cache has passed, None if it has none."""
    appends = [n for n in graph.nodes if in_place(n)]
    if not appends:
        return None
    past, present = appends[0].input(0), appends[0].output
    pasts = [n.input(0) for n in appends]
    new = appended(appends[0])
    tokens = find_tokens(graph, pasts, new)
    assert tokens is not None, "keep-cache declines without"
    batch, others = past.shape[0], [v for v in graph.inputs if v not in pasts and not v.dtype.is_float]
    keys = (present.shape[2], *_one_of(present.shape[2]))
    mask = _one(v for v in others if "mask" in v.name.lower() and any(_fits(graph, v, (batch, n)) for n in keys))
    positions = _one(v for v in others if "position" in v.name.lower() and v.dtype in (DType.i32, DType.i64)
                     and _fits(graph, v, (batch, new)))
    pairs = tuple((graph.inputs.index(n.input(0)), graph.outputs.index(n.output)) for n in appends)
    numbers = [None if v is None else graph.inputs.index(v) for v in (mask, positions)]
    given = any(n.op == "past_lengths" and n.attrs.get("unknown") for n in graph.nodes)
    formats = tuple(str(attributes(n)["format"]) for n in appends)
    uniform = _is_uniform(graph, past, mask)
    window = 0 if uniform or given else _window(appends)
    return Cache(pairs, formats, tokens, numbers[0], numbers[1], uniform, given, window)


def appended(node: Node) -> Dim:
    """How many tokens an append or a concat puts behind those that are kept."""
    new = node.input(1)
    return new.shape[2 if new.type.rank == 4 else 1]


def find_tokens(graph: Graph, pasts: Iterable[Value], new: Dim) -> tuple[int, int] | None:
    """The number of an input that is no past and its axis of size `new`, integers (ids) before floats."""
    kept = set(pasts)
    for floats in (False, True):
        for index, value in enumerate(graph.inputs):
            if value not in kept and value.dtype.is_float is floats and new in value.shape:
                return index, value.shape.index(new)
    return None


def _one_of(size: Dim) -> tuple[Dim, ...]:
    """The sizes of which a size is the largest; none if it is no such."""
    (factors, coefficient), *more = size.terms if isinstance(size, Expr) else [((), 0)]
    found = factors[0] if len(factors) == 1 and coefficient == 1 and not more else None
    return found.args if isinstance(found, Call) and found.op == "max" else ()


def _one(values: Iterable[Value]) -> Value | None:
    """The value, if there is just one."""
    found = list(values)
    return found[0] if len(found) == 1 else None


def _fits(graph: Graph, value: Value, shape: tuple[Dim, ...]) -> bool:
    return value.type.rank == len(shape) and all(map(graph.known_equal, value.shape, shape))


def _is_uniform(graph: Graph, past: Value, mask: Value | None) -> bool:
    """Whether anything but the attentions to the cache, each up to the sequence's own length, sees how long it is."""
    name = as_symbol(past.shape[2])
    assert name is not None, "keep-cache declines without"
    told = {name} | {n for a, b in graph.assumptions for x, y in ((a, b), (b, a))
                     if name in symbols(y) and (n := as_symbol(x)) is not None}
    kept = {v for n in graph.nodes if in_place(n) for v in (n.input(0), n.output)}
    masks, rows = _casts(graph, mask), set(key_rows(graph))
    counting = _for_lengths(graph)
    for value in graph.inputs:
        if value not in kept and value is not mask and names_in(value.shape) & told:
            return True
    for node in graph.nodes:
        if in_place(node) or node.op in ("past_lengths", "new_counts", "kept") or node in counting:
            continue
        if rows.issuperset(node.outputs):
            if any(names_in(v.shape) & told for v in node.operands if v not in rows):
                return True
            continue
        if (node.op == "attention" and node.inputs[5:6] not in ([], [None]) and node.inputs[3] is None
                or node.op == "last_token" and len(node.inputs) > 2):
            seen = kept | masks | rows
        else:
            seen = masks if node.output in masks else set()
        touched = [v for v in (*node.operands, *node.outputs) if v not in seen]
        if any(names_in(v.shape) & told for v in touched) or names_in(node.attrs.values()) & told:
            return True
    return False


def _window(appends: Iterable[Node]) -> int:
    """How far back tokens see, themselves counted; 0 where one sees all, or where a key's place in the cache is more
    than how far back it is: it is in a mask, or something else is computed from the lengths."""
    found = 0
    for node in appends:
        for reader in node.output.users:
            if reader.op != "attention":
                return 0
            attrs, mask = attributes(reader), reader.inputs[3:4]
            if not attrs["causal"] or not attrs["window"] or mask not in ([], [None]):
                return 0
            found = max(found, attrs["window"])
        if any(reader.op not in ("append", "attention", "last_token") for reader in node.input(2).users):
            return 0
    return found


def _for_lengths(graph: Graph) -> set[Node]:
    """The nodes that only compute the lengths of appends and how many tokens are new, which a state says whatever the
    inputs are."""
    lengths: set[Value | None] = {n.input(2) for n in graph.nodes if in_place(n)}
    lengths |= {v for n in graph.nodes if n.op == "attention" for v in n.inputs[6:7]}
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if all(v in lengths or v.users and found.issuperset(v.users) and not graph.is_output(v) for v in node.outputs):
            found.add(node)
    return found


def _casts(graph: Graph, mask: Value | None) -> set[Value]:
    """A mask and the same elements under other types."""
    found = set() if mask is None else {mask}
    for node in graph.nodes:
        body = [node] if node.body is None else node.body.nodes
        if found & set(node.operands) and all(n.op == "cast" for n in body):
            found.update(node.outputs)
    return found
