"""The importers, by op family; importing this package registers all of them."""
from __future__ import annotations

from q8c.frontend.ops import constants, elementwise, movement, nn, reduce, shape

__all__ = ["constants", "elementwise", "movement", "nn", "reduce", "shape"]
