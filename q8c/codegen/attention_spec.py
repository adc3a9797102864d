"""What an attention kernel computes: the static half of its contract, its name, its sizes."""
from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from q8c.codegen.builder import LANES
from q8c.codegen.targets import Tier
from q8c.errors import CompileError
from q8c.ir.dims import Dim
from q8c.ir.graph import Node, Value
from q8c.ir.memory import kept_in_bytes, rows_held
from q8c.ir.ops import attributes
from q8c.ir.ops.fused import value_size

SPAN = 256
"""Keys whose weights, and weighted values, are added up in one go; sums of spans are then added in order."""
WIDEST = 32
"""Queries of the widest tile of any tier, and how many keys are gathered at a time."""
MOST_KEYS = 2**31
"""No sequence has as many."""
MASK_SIZES = ("mask_batch", "mask_head", "mask_query")


@dataclass(frozen=True)
class AttentionSpec:
    """softmax(scale * q k^T + mask) v per head, float32; batch and sequence lengths are run-time values.

    Attributes:
        heads, kv_heads: query heads, key and value heads (a divisor).
        head_size, value_size: channels of a head's query or key, and of its value.
        strides, offsets: of q, k, v in elements: from one token to the next, and to the first head's channels.
        split: whether q, k, v are [batch, heads, seq, size], a head's tokens together, and not [batch, seq, channels].
        mask: None, or which of its axes are there beside batch and heads: "", "q", "k" or "qk" (others have size 1).
        causal: query i sees keys up to its own, i + (keys - queries), with `lengths` i + the length of its batch item.
        window: a query sees keys less than so many away from its own; 0: any.
        nan_to_zero: a query that sees no key, or whose weights are NaN, gets 0 instead of NaN.
        packed: q, k and v are rows of one sequence after the other, which attend to their own.
        key_mask: the element type of the mask of keys that are seen (not 0), if there is one.
        spread: a query that sees no key gets the mean of all values up to the last key any query may see.
        counts: how many queries of each batch item are no padding is given.
        sinks: softmax is over one more score for each head, whose weight goes nowhere.
        cached: there may be more keys than queries.
        int8: keys and values are kept in 8 bits (`KeptRows`).
        softcap: what bounds scores before the mask, by softcap * tanh(score / softcap); 0 for no bound.
    """

    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    scale: float
    strides: tuple[int, int, int]
    offsets: tuple[int, int, int]
    mask: str | None = None
    causal: bool = False
    nan_to_zero: bool = False
    split: tuple[bool, bool, bool] = (False, False, False)
    packed: bool = False
    key_mask: str | None = None
    lengths: bool = False
    counts: bool = False
    sinks: bool = False
    spread: bool = False
    cached: bool = False
    int8: bool = False
    softcap: float = 0.0
    window: int = 0

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by: scores then are scaled, and ready for tanh where there is a bound."""
        return self.scale / (self.softcap or 1.0)

    @property
    def group(self) -> int:
        """Query heads that share keys and values."""
        return self.heads // self.kv_heads

    @property
    def two_steps(self) -> bool:
        """Whether there are steps that leave something to each other."""
        return not self.packed

    @property
    def by_place(self) -> bool:
        """Whether a query sees keys by where it stands."""
        return self.causal or self.window > 0

    @property
    def reach(self) -> int:
        """How many keys behind its own a query sees, in a window."""
        return 0 if self.causal else self.window - 1

    @property
    def channels(self) -> int:
        """Elements of one token of the result."""
        return self.heads * self.value_size

    def size(self, operand: int) -> int:
        """Channels of a head of q, k or v."""
        return self.value_size if operand == 2 else self.head_size

    def pitch(self, operand: int) -> int:
        """Elements from a head's row of q, k or v to the next in scratch."""
        return -(-self.size(operand) // LANES) * LANES

    def row_pitch(self, operand: int) -> int:
        """The same where keys and values are floats in scratch: behind one in 8 bits stands its scale."""
        return self.pitch(operand) + (LANES if self.int8 else 0)

    def step(self, operand: int) -> int:
        """Elements from a head's row of k or v to that of the next token."""
        return self.size(operand) if self.split[operand] else self.strides[operand]

    @property
    def mask_has_queries(self) -> bool:
        """Whether the mask differs from query to query."""
        return self.mask is not None and "q" in self.mask

    @property
    def mask_has_keys(self) -> bool:
        """Whether the mask differs from key to key."""
        return self.mask is not None and "k" in self.mask

    def symbol(self, tier: Tier, tile: str = "", products: str = "f32") -> str:
        """The name of the kernel, or of one of its tiles: operation, format, heads x size, where q, k and v lie, scale
        (its float32 bits), mask and the rest, tile (queries x keys), tier."""
        places = [f"{n}split" if split else f"{n}{stride}at{offset}"
                  for n, split, stride, offset in zip("qkv", self.split, self.strides, self.offsets, strict=True)]
        heads = f"{self.heads}x{self.head_size}"
        if self.value_size != self.head_size:
            heads += f"to{self.value_size}"
        if self.kv_heads != self.heads:
            heads += f"by{self.kv_heads}"
        parts = [f"q8c_attention_{products}", heads, *places, f"scale{struct.pack('>f', self.scale).hex()}"]
        parts += [f"mask{self.mask}"] if self.mask is not None else []
        parts += ["causal"] if self.causal else []
        parts += [f"window{self.window}"] if self.window else []
        parts += ["nan0"] if self.nan_to_zero else []
        parts += [f"keys{self.key_mask}"] if self.key_mask is not None else []
        flags = ("lengths", "counts", "sinks", "spread", "packed", "cached", "int8")
        parts += [flag for flag in flags if getattr(self, flag)]
        parts += [f"cap{struct.pack('>f', self.softcap).hex()}"] if self.softcap else []
        parts += [tile] if tile else []
        return f"{'_'.join(parts)}__{tier.name.replace('-', '')}"


def attention_spec(node: Node) -> AttentionSpec:
    """The spec of an `attention` or `packed_attention` node."""
    a = attributes(node)
    q, k, v = (int(str(node.input(i).shape[-1])) for i in range(3))  # type inference has refused symbolic ones
    split = (node.input(0).type.rank == 4, node.input(1).type.rank == 4, node.input(2).type.rank == 4)
    mask, key_mask, lengths, counts, sinks = _optional(node)
    axes = None if mask is None else "".join(n for n, size in zip("qk", mask.shape[2:], strict=True) if size != 1)
    packed = node.op == "packed_attention"
    return AttentionSpec(
        a["heads"], a["kv_heads"], a["head_size"], value_size(a), a["scale"], (q, k, v), a["offsets"], axes,
        a["causal"], a["nan_to_zero"], split, packed, None if key_mask is None else key_mask.dtype.value,
        lengths is not None, counts is not None, sinks is not None, a["spread"],
        not packed and node.input(0).shape[-2] != node.input(1).shape[-2], _in_bytes(node), a["softcap"],
        a["window"] if a["window"] < MOST_KEYS else 0)


def _in_bytes(node: Node) -> bool:
    kept = {kept_in_bytes(node.input(i)) for i in (1, 2)}
    if len(kept) > 1:
        raise CompileError(f"{node}: keys and values must both be kept in 8 bits, or neither")
    return kept == {True}


def _optional(node: Node) -> Sequence[Value | None]:
    """Mask, key mask, lengths, counts and sinks."""
    found: list[Value | None] = [] if node.op == "packed_attention" else list(node.inputs[3:])
    return (*found, *[None] * 5)[:5]


def size_names(spec: AttentionSpec) -> list[str]:
    """The names of `attention_sizes`, and of `gathered_bytes` where there are two steps."""
    rows = [f"{n}_rows" for n, split in zip("kv", spec.split[1:], strict=True) if split and not spec.packed]
    return ["batch", "queries", "keys", *rows, *(MASK_SIZES if spec.mask is not None else []),
            *(["key_mask_batch"] if spec.key_mask is not None else []), *(["gathered"] if spec.two_steps else [])]


def attention_sizes(node: Node) -> tuple[Dim, ...]:
    """Batch, queries, keys; of k and v whose heads are split off, rows from one head to the next; with a mask, elements
    from one batch item, head and query to the next (0: shared); with a key mask, from one batch item to the next.
    Queries and keys of packed rows are the most a sequence can have."""
    if node.op == "packed_attention":
        longest = attributes(node)["longest"]
        return node.input(3).shape[0] - 1, longest, longest
    q, k = node.input(0), node.input(1)
    sizes: list[Dim] = [q.shape[0], q.shape[-2], k.shape[-2]]
    sizes += [rows_held(v) for v in (k, node.input(2)) if v.type.rank == 4]
    mask, key_mask, *_ = _optional(node)
    if mask is not None:
        _, heads, queries, keys = mask.shape
        steps: list[Dim] = [heads * queries * keys, queries * keys, keys]
        sizes += [0 if size == 1 else step for size, step in zip(mask.shape[:3], steps, strict=True)]
    if key_mask is not None:
        sizes.append(0 if key_mask.shape[0] == 1 else key_mask.shape[1])
    return tuple(sizes)
