"""Shapes as data, and ops that change only the shape."""
from __future__ import annotations

from q8c.frontend.computed_sizes import computed_sizes
from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, TensorList, from_size, from_sizes
from q8c.frontend.truncated import settled
from q8c.ir.dims import Dim, Expr, dim_max, floordiv, nonnegative, product
from q8c.ir.types import DType


@importer("Shape")
def shape(c: Call) -> Tensor:
    """The sizes of the axes from start to end."""
    x = c.input(0)
    start, end = c.attr_int("start", 0), c.attr("end", "INT")
    return from_sizes(x.shape[start:] if end is None else x.shape[start:end])


@importer("Size")
def size(c: Call) -> Tensor:
    """The number of elements."""
    return from_size(c.input(0).type.size)


@importer("Reshape")
def reshape(c: Call) -> Tensor:
    """The same elements in another shape: 0 keeps a size (unless allowzero), -1 is what remains.

    The standard keeps a size too where 0 turns out when the model runs. Where that gives another shape, the run is
    refused; where it gives none that fits, 0 is 0, as whoever wrote `x.view(batch * seq, -1)` meant it.
    """
    x = c.input(0)
    target = [settled(c.builder.graph, d) for d in c.sizes(1, "the shape")]
    allow_zero = c.attr_int("allowzero", 0)
    found: list[Dim] = []
    for i, d in enumerate(target):
        if d == 0 and not allow_zero:
            if i >= x.rank:
                c.fail(f"the shape {_text(target)} keeps axis {i}, but the operand is {x.type}")
            d = x.shape[i]
        found.append(d)
    if found.count(-1) > 1 or any(isinstance(d, int) and d < -1 for d in found):
        c.fail(f"the shape {_text(target)} is wrong")
    if -1 in found:
        rest = product(d for d in found if d != -1)
        if rest == 0:
            c.fail(f"the shape {_text(target)} leaves -1 open")
        found[found.index(-1)] = floordiv(x.type.size, rest)
    if not allow_zero:
        _keep_none(c, x, target)
    return c.builder.reshape(x, found)


def _keep_none(c: Call, x: Tensor, target: list[Dim]) -> None:
    """State that no size of a target turns out 0 where the operand's, which the standard keeps there, makes a shape
    that fits: one with another 0, or a -1 to find."""
    sizes = [d if d != 0 else x.shape[i] for i, d in enumerate(target)]
    for i, (d, kept) in enumerate(zip(target, x.shape, strict=False)):
        if not isinstance(d, Expr) or nonnegative(d - 1) or _vanishes_with(kept, d):
            continue
        for other in [0] if -1 in target else sizes[:i] + sizes[i + 1:]:
            factor = kept if isinstance(kept, Expr) else min(kept, 1)
            c.builder.same(factor * dim_max(1, d + other), factor * (d + other))


def _vanishes_with(size: Dim, other: Expr) -> bool:
    """Whether a size is 0 wherever another, a product, is."""
    if not isinstance(size, Expr) or len(size.terms) > 1 or len(other.terms) > 1:
        return size == other
    return set(other.terms[0][0]) <= set(size.terms[0][0])


def _text(sizes: list[Dim]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


@importer("Flatten")
def flatten(c: Call) -> Tensor:
    """A matrix: the axes before `axis`, and the others."""
    x = c.input(0)
    axis = c.attr_int("axis", 1)
    if not -x.rank <= axis <= x.rank:
        c.fail(f"axis {axis} is outside rank {x.rank}")
    axis = axis + x.rank if axis < 0 else axis
    return c.builder.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


def axes_of(c: Call, index: int = 1) -> list[int] | None:
    """The axes of a node: an attribute in old opsets, an operand in new ones; None if not given."""
    if c.has(index):
        return c.numbers(index, "axes")
    return c.attr_ints("axes")


@importer("Squeeze")
def squeeze(c: Call) -> Tensor:
    """Without the axes given, which are of size 1; without all axes of size 1 if none are given."""
    x = c.input(0)
    given = axes_of(c)
    if given is None:
        unknown = [d for d in x.shape if not isinstance(d, int)]
        if unknown:
            c.unsupported(f"no axes are given and {unknown[0]} may be 1 or not, so the rank is not known")
        given = [i for i, d in enumerate(x.shape) if d == 1]
    axes = c.axes(given, x.rank)
    for axis in axes:
        c.builder.same(x.shape[axis], 1)
    return c.builder.reshape(x, [d for i, d in enumerate(x.shape) if i not in axes])


@importer("Unsqueeze")
def unsqueeze(c: Call) -> Tensor:
    """With new axes of size 1 at the places given."""
    x = c.input(0)
    given = axes_of(c)
    if given is None:
        c.fail("no axes are given")
    axes = c.axes(given, x.rank + len(given))
    rest = iter(x.shape)
    return c.builder.reshape(x, [1 if i in axes else next(rest) for i in range(x.rank + len(axes))])


@importer("Expand")
def expand(c: Call) -> Tensor:
    """Broadcast with a shape, both ways."""
    x, found = c.input(0), computed_sizes(c.input(1)) if c.input(1).known is None else None
    shape = [settled(c.builder.graph, d) for d in c.sizes(1, "the shape")] if found is None else found
    for i in range(-min(x.rank, len(shape)), 0):
        if shape[i] != 1 and x.shape[i] not in (1, shape[i]) and nonnegative(1 - shape[i]):
            c.builder.same(shape[i], 1)  # 0 or 1, such as what x[:1] has, which fits many as 1 only
            shape[i] = 1
    return c.builder.broadcast(x, shape)


@importer("Tile")
def tile(c: Call) -> Tensor:
    """Every axis repeated."""
    x = c.input(0)
    repeats = c.sizes(1, "the repeats")
    if len(repeats) != x.rank:
        c.fail(f"{len(repeats)} repeats for {x.type}")
    if all(r == 1 for r in repeats):
        return x
    apart = [s for d in x.shape for s in (1, d)]
    spread = [s for r, d in zip(repeats, x.shape, strict=True) for s in (r, d)]
    wide = c.builder.broadcast(c.builder.reshape(x, apart), spread)
    return c.builder.reshape(wide, [d * r for d, r in zip(x.shape, repeats, strict=True)])


@importer("Identity")
def identity(c: Call) -> Tensor | TensorList:
    """The operand itself."""
    return c.sequence(0) if 0 in c.lists else c.input(0)


@importer("Dropout")
def dropout(c: Call) -> list[Tensor]:
    """The operand itself, as at inference, and a mask of all true."""
    x = c.input(0)
    training = c.optional(2)
    if training is not None and (training.known is None or training.known.any()):
        c.unsupported("training_mode; export the model for inference")
    mask = [c.builder.broadcast(c.builder.scalar(True, DType.bool), x.shape)] if c.outputs > 1 else []
    return [x, *mask]


@importer("DepthToSpace", "SpaceToDepth")
def depth_and_space(c: Call) -> Tensor:
    """Channels as blocks of space (DepthToSpace), or back; a block's place is the slowest channel axis (DCR) or the
    fastest (CRD)."""
    x, size, mode = c.input(0), c.attr_int("blocksize"), c.attr_str("mode", "DCR")
    if x.rank != 4 or size < 1 or mode not in ("DCR", "CRD"):
        c.fail(f"expected [batch, channels, height, width], blocks and DCR or CRD, got {x.type}, {size} and {mode!r}")
    batch, channels, height, width = x.shape
    if c.op == "DepthToSpace":
        depth = floordiv(channels, size * size)
        apart = (batch, size, size, depth) if mode == "DCR" else (batch, depth, size, size)
        order = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
        y = c.builder.transpose(c.builder.reshape(x, (*apart, height, width)), order)
        return c.builder.reshape(y, (batch, depth, height * size, width * size))
    rows, cols = floordiv(height, size), floordiv(width, size)
    y = c.builder.reshape(x, (batch, channels, rows, size, cols, size))
    y = c.builder.transpose(y, (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return c.builder.reshape(y, (batch, channels * size * size, rows, cols))
