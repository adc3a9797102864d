"""What else ONNX Runtime's optimizer writes: embeddings with their norm, biases with what follows them."""
from __future__ import annotations

from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor
from q8c.ir.types import DType


@importer("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(c: Call) -> list[Tensor | None]:
    """The norm of word, position and segment embeddings added up; how many tokens the mask leaves; the sum itself."""
    ids, segments = c.input(0), c.optional(1)
    return embed(c, ids, segments, (c.input(2), c.input(3), c.optional(4)), (c.input(5), c.input(6)),
                 c.optional(7), c.optional(8))


def embed(c: Call, ids: Tensor, segments: Tensor | None, tables: tuple[Tensor, Tensor, Tensor | None],
          norm: tuple[Tensor, Tensor], mask: Tensor | None, positions: Tensor | None) -> list[Tensor | None]:
    """What EmbedLayerNormalization and its quantized form give, tables and norm being float."""
    words, places, kinds = tables
    if positions is None:
        positions = c.emit("iota", size=ids.shape[1], dtype=DType.i64)
    total = c.emit("add", c.emit("gather", words, ids, axis=0), c.emit("gather", places, positions, axis=0))
    if segments is not None and kinds is not None:
        total = c.emit("add", total, c.emit("gather", kinds, segments, axis=0))
    y = c.emit("layer_norm", total, *norm, epsilon=c.attr_float("epsilon", 1e-12))
    if mask is None:
        counts = c.emit("broadcast_to", c.scalar(0, DType.i32), shape=ids.shape[:1])
    else:
        kept = c.builder.cast(c.emit("equal", mask, c.scalar(1, mask)), DType.i32)
        counts = c.emit("reduce_sum", kept, axes=(1,), keepdims=False)
    return [y, counts, total]


@importer("BiasAdd", domain=MICROSOFT)
def bias_add(c: Call) -> Tensor:
    """x + bias + residual."""
    return c.emit("add", c.emit("add", c.input(0), c.input(1)), c.input(2))


@importer("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(c: Call) -> Tensor:
    """The first half of the channels of x + bias times the gelu of the second half."""
    x = c.emit("add", c.input(0), c.input(1))
    width = x.shape[-1]
    if not isinstance(width, int) or width % 2:
        c.unsupported(f"{width} channels; expected an even number")
    left, right = (c.builder.slice_axis(x, x.rank - 1, start, width // 2) for start in (0, width // 2))
    return c.emit("mul", left, c.emit("gelu", right))
