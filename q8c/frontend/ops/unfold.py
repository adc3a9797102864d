"""What undoes windows: Col2Im, MaxUnpool."""
from __future__ import annotations

import itertools
import math

import numpy as np

from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, constant
from q8c.ir.dims import floordiv, product

_LIMIT = 1 << 24  # elements that blocks of an image have together

@importer("Col2Im", since=18)
def col_to_image(c: Call) -> Tensor:
    """The image whose windows are the columns, what several of them cover added up."""
    x, image, block = c.input(0), c.numbers(1, "the image's shape"), c.numbers(2, "the block's shape")
    n = len(image)
    strides, dilations = (c.attr_ints(name) or [1] * n for name in ("strides", "dilations"))
    pads = c.attr_ints("pads") or [0] * 2 * n
    if x.rank != 3 or not n == len(block) == len(strides) == len(dilations) == len(pads) // 2:
        c.fail(f"image {image}, block {block}, strides {strides}, dilations {dilations} and pads {pads} do not fit")
    wide = [d + b + a for d, b, a in zip(image, pads[:n], pads[n:], strict=True)]
    if math.prod(wide) * math.prod(block) > _LIMIT:
        c.unsupported(f"an image of {wide} from blocks of {block}")
    counts = [(d - (k - 1) * e - 1) // s + 1 for d, k, e, s in zip(wide, block, dilations, strides, strict=True)]
    places = [np.ravel_multi_index([np.arange(g).reshape([-1 if i == j else 1 for j in range(n)]) * s + o * e
                                    for i, (g, s, o, e) in enumerate(zip(counts, strides, at, dilations, strict=True))],
                                   wide).reshape(-1) for at in itertools.product(*map(range, block))]
    index = np.concatenate(places).astype(np.int64).reshape(-1, 1)
    batch, channels = x.shape[0], floordiv(x.shape[1], len(places))
    rows = c.builder.reshape(x, (batch, channels, len(index)))
    rows = c.builder.reshape(c.builder.transpose(rows, (2, 0, 1)), (len(index), batch * channels))
    empty = c.builder.broadcast(c.scalar(0, x), (product(wide), batch * channels))
    y = c.emit("scatter_nd", empty, constant(index), rows, reduction="add")
    y = c.builder.reshape(c.builder.transpose(y, (1, 0)), (batch, channels, *wide))
    return c.builder.slice(y, [0, 0, *pads[:n]], [batch, channels, *image], [1] * (n + 2))


@importer("MaxUnpool", since=9)
def max_unpool(c: Call) -> Tensor:
    """Zeros, and the elements in the places of the flattened result they were taken from."""
    x, places = c.input(0), c.input(1)
    n, kernel = x.rank - 2, c.attr_ints("kernel_shape") or []
    strides, pads = c.attr_ints("strides") or [1] * n, c.attr_ints("pads") or [0] * 2 * n
    if not n == len(kernel) == len(strides) == len(pads) // 2:
        c.fail(f"kernel {kernel}, strides {strides} and pads {pads} do not fit {x.type}")
    natural = (*x.shape[:2], *((d - 1) * s - b - a + k for d, s, b, a, k in zip(
        x.shape[2:], strides, pads[:n], pads[n:], kernel, strict=True)))
    count = x.type.size
    flat = c.builder.broadcast(c.scalar(0, x), (product(natural),))
    y = c.emit("scatter_nd", flat, c.builder.reshape(places, (count, 1)), c.builder.reshape(x, (count,)))
    y = c.builder.reshape(y, natural)
    if not c.has(2):
        return y
    shape = c.sizes(2, "the output's shape")
    after = tuple(wanted - d for wanted, d in zip(shape, natural, strict=True))
    return c.emit("pad", y, before=(0,) * x.rank, after=after)
