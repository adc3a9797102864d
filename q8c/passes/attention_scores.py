"""Finding the scores behind a softmax, and what was added to them or put in their place."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from q8c.ir.dims import Dim, product
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops import OPS
from q8c.ir.types import DType, TensorType
from q8c.passes.attention_heads import scaling
from q8c.passes.loop_body import broadcast
from q8c.passes.padding_mask import PADDED
from q8c.passes.rules import orders, uniform

# From here on a float32 fill swallows any score added to it, so that adding it and putting it in place are the same.
ABSORBS = -1e30


@dataclass(frozen=True)
class Added:
    """A mask that is added, times `factor`, to scores of the shape `scores`, whose batch and heads may be one axis, or
    batch several."""

    mask: Value
    scores: tuple[Dim, ...]
    factor: float = 1.0

    def scaled(self, factor: float) -> Added:
        """What is added to scores that are a factor of what they were, if all are multiplied by it now."""
        return replace(self, factor=self.factor * factor)


@dataclass(frozen=True)
class Filled:
    """A condition, and the number put in place of a score where it is `where`. `scores`: as for `Added`. `unseen`: such
    a score's weight becomes 0 even where a query sees no other."""

    condition: Value
    fill: Value
    where: bool
    scores: tuple[Dim, ...]
    unseen: bool = False

    def scaled(self, factor: float) -> Filled | None:
        """As for `Added`; None where the number would no longer leave a score no weight."""
        fill = uniform(self.fill)
        return self if fill is not None and fill * factor <= PADDED else None

    @property
    def number(self) -> float:
        """The number to add instead. If it is less, weights are the same: 0 beside keys that are seen, and alike where
        a query sees none."""
        return -math.inf if self.unseen else min(float(uniform(self.fill)), ABSORBS)


@dataclass(frozen=True)
class Raised:
    """The least that scores become, so low that what is raised to it was masked: masks that were added may be lower."""

    least: float

    def scaled(self, factor: float) -> Raised | None:
        """As for `Added`; None where the number would no longer leave a score no weight."""
        return Raised(self.least * factor) if self.least * factor <= ABSORBS else None


Step: TypeAlias = "Added | Filled | Raised"


@dataclass(frozen=True)
class Scores:
    """scale * q k^T with masks applied in order, or why it is not of that form; with `softcap`, bounded before by
    softcap * tanh(scale * q k^T / softcap)."""

    product: Node
    scale: float = 1.0
    masks: tuple[Step, ...] = ()
    problem: str = ""
    softcap: float = 0.0


def find_scores(graph: Graph, value: Value) -> Scores | None:
    """What a value that goes into a softmax was made of; None if there is no product of two computed values in it."""
    node = value.producer
    if node is None:
        return None
    if node.op == "matmul":
        return None if node.input(0).is_constant or node.input(1).is_constant else Scores(node)
    scaled = scaling(node)
    if scaled is not None:
        x, factor = scaled
        found = find_scores(graph, x)
        if found is None:
            return None
        masks = tuple(m for step in found.masks if factor > 0 and (m := step.scaled(factor)) is not None)
        lost = "the scores are scaled after a mask was applied" if len(masks) < len(found.masks) else ""
        return replace(found, scale=found.scale * factor, softcap=found.softcap * factor, masks=masks,
                       problem=found.problem or lost)
    if node.op == "tanh":
        found = find_scores(graph, node.input(0))
        if found is None:
            return None
        problem = found.problem or ("masked scores are bounded" if found.masks or found.softcap else "")
        return replace(found, softcap=1.0, problem=problem)
    if node.op == "reshape" and node.input(0).shape[-2:] == node.output.shape[-2:]:
        return find_scores(graph, node.input(0))
    shape = node.output.shape
    if node.op == "add":
        a, b = node.input(0), node.input(1)
        return _masked(graph, node, [(a, Added(b, shape)), (b, Added(a, shape))])
    if node.op == "sub":
        return _masked(graph, node, [(node.input(0), Added(node.input(1), shape, -1.0))])
    if node.op == "max":
        return _masked(graph, node, [(x, Raised(float(least))) for x, bound in orders(node)
                                     if (least := uniform(bound)) is not None and least <= ABSORBS])
    if node.op == "where":
        condition, a, b = node.input(0), node.input(1), node.input(2)
        return _masked(graph, node, [(a, Filled(condition, b, False, shape)), (b, Filled(condition, a, True, shape))])
    return None


def _masked(graph: Graph, node: Node, choices: Sequence[tuple[Value, Step]]) -> Scores | None:
    for scores, step in choices:
        found = find_scores(graph, scores)
        if found is None:
            continue
        problem = found.problem
        if not same_sizes(graph, scores.shape, node.output.shape):
            problem = problem or "a mask is larger than the scores"
        masks = found.masks if isinstance(step, Raised) and not found.masks else (*found.masks, step)
        return replace(found, masks=masks, problem=problem or _unlike_added(masks))
    return None


def same_sizes(graph: Graph, a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two shapes are known to be equal, however their sizes are called."""
    return len(a) == len(b) and all(map(graph.known_equal, a, b))


def _unlike_added(masks: Sequence[Step]) -> str:
    """Why a number that is put in place of scores is not the same as one that is added to them, empty if it is."""
    fills = dict.fromkeys(uniform(step.fill) if isinstance(step, Filled) else ABSORBS for step in masks)
    for fill in fills:
        if fill is None or not fill <= PADDED:
            return f"masked scores become {fill}, which is not the same as adding it"
        if fill > ABSORBS and len(fills) > 1:
            return f"masked scores become {fill:g}, which weighs something beside what other masks make of them"
    return ""


def batch_of(scores: tuple[Dim, ...]) -> Dim:
    """The batch of scores [..., heads, queries, keys]."""
    return product(scores[:-3])


def aligned(mask: Value, scores: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape of a mask with ones in front, as many axes as the scores have."""
    return (1,) * (len(scores) - mask.type.rank) + mask.shape


@dataclass
class Masks:
    """Makes one additive f32 mask of rank 4 from the steps applied to scores; equal steps give the same mask.

    `lead` are the sizes of batch and heads.
    """

    graph: Graph
    before: Node
    made: dict[object, Value]
    lead: tuple[Dim, Dim]

    def build(self, steps: Sequence[Step]) -> Value | None:
        """The mask, new nodes put before `before`; None for no steps."""
        total: Value | None = None
        for step in steps:
            key = (step, total, self.lead)
            if key not in self.made:
                self.made[key] = self._apply(step, total)
            total = self.made[key]
        return total

    def _apply(self, step: Step, total: Value | None) -> Value:
        if isinstance(step, Added):
            mask = self.four(step.mask, step.scores)
            mask = mask if step.factor == 1 else self.add("mul", mask, self.scalar(step.factor))
            return mask if total is None else self.add("add", total, mask)
        if isinstance(step, Raised):
            assert total is not None, "_masked leaves out what comes before all masks"
            return self.add("max", total, self.scalar(step.least))
        condition = self.four(step.condition, step.scores)
        keep = self.scalar(0.0) if total is None else total
        fill = self.scalar(step.number)
        return self.add("where", condition, *((fill, keep) if step.where else (keep, fill)))

    def add(self, op: str, *inputs: Value, **attrs: object) -> Value:
        """The output of a new node."""
        node = self.graph.add(op, inputs, attrs, name="mask", before=self.before)  # type: ignore[arg-type]
        return node.output

    def scalar(self, x: float) -> Value:
        """A constant."""
        return self.graph.constant(x, "mask_value", type=TensorType(DType.f32, ()))

    def four(self, value: Value, scores: tuple[Dim, ...]) -> Value:
        """What broadcasts to the same elements, of rank 4: axes of size 1 in front, batch and heads apart."""
        value = self.narrow(value)
        if len(scores) > 4:
            return self.one_batch(value, scores)
        shape = (1,) * (4 - value.type.rank) + value.shape
        if len(scores) == 3 and value.type.rank == 3 and value.shape[0] != 1:
            shape = (*self.lead, *value.shape[1:])
            node = value.producer
            if node is not None and node.op == "reshape" and node.input(0).shape == shape:
                return self.narrow(node.input(0))
        return value if value.shape == shape else self.add("reshape", value, shape=shape)

    def one_batch(self, value: Value, scores: tuple[Dim, ...]) -> Value:
        """A mask of scores whose batch is several axes, such as images and their windows, with one."""
        batch, own = scores[:-3], aligned(value, scores)
        one = all(d == 1 for d in own[:-3])
        if not one and own[:-3] != batch:
            value = self.add("reshape", value, shape=own)
            value = self.add("broadcast_to", value, shape=(*batch, *own[-3:]))
        return self.add("reshape", value, shape=(1 if one else batch_of(scores), *own[-3:]))

    def narrow(self, value: Value) -> Value:
        """A value that broadcasts to the same elements, computed without the broadcasts behind it where possible."""
        node = value.producer
        if node is None or value in self.made:
            return self.made.get(value, value)
        self.made[value] = value
        if node.op == "broadcast_to":
            found = self.narrow(node.input(0))
            shape = (1,) * (value.type.rank - found.type.rank) + found.shape
            self.made[value] = found if found.shape == shape else self.add("reshape", found, shape=shape)
        elif OPS[node.op].elementwise:
            operands = [self.narrow(v) for v in node.operands]
            if broadcast([v.shape for v in operands]) != value.shape:
                self.made[value] = self.add(node.op, *operands, **node.attrs)
        return self.made[value]
