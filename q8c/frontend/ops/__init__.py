"""The importers, by op family; importing this package registers all of them."""
from __future__ import annotations

from q8c.frontend.ops import attention, constants, conv, einsum, elementwise, movement, nn, reduce, shape

__all__ = ["attention", "constants", "conv", "einsum", "elementwise", "movement", "nn", "reduce", "shape"]
