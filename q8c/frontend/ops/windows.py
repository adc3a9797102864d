"""What convolutions and pooling share: windows that slide over the spatial axes of [batch, channels, ...]."""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from q8c.frontend.extent import ceil_div
from q8c.frontend.registry import Call
from q8c.frontend.tensor import Tensor
from q8c.ir.dims import Dim, dim_max, floordiv, product

MOST_IN_WINDOW = 4096
"""Elements of a window that are written out; each is a node of its own."""
_AUTO = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Windows:
    """Per spatial axis: the window's size, how far windows and the elements in one are apart, the padding before and
    after, how much more the last window wants (`ceil_mode`), and the number of windows."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Dim, ...]
    after: tuple[Dim, ...]
    extra: tuple[Dim, ...]
    counts: tuple[Dim, ...]

    @property
    def size(self) -> int:
        """Elements in a window."""
        found = product(self.kernel)
        assert isinstance(found, int)
        return found

    @property
    def pads(self) -> bool:
        """Whether any window may reach beyond the operand."""
        return any(d != 0 for d in (*self.before, *self.after, *self.extra))

    @property
    def apart(self) -> bool:
        """Whether windows lie side by side, so that they are the operand cut into pieces."""
        return self.kernel == self.strides and all(d == 1 for d in self.dilations)

    def padded(self, c: Call, x: Tensor, value: float = 0.0, pads: bool = True) -> Tensor:
        """x with all that windows reach; `pads` False says that x has the padding already, but for `extra`."""
        lead = (0,) * (x.rank - len(self.kernel))
        before = (*lead, *(self.before if pads else (0,) * len(self.kernel)))
        after = (*lead, *(a + e if pads else e for a, e in zip(self.after, self.extra, strict=True)))
        if all(d == 0 for d in (*before, *after)):
            return x
        return c.emit("pad", x, before=before, after=after, value=value)

    def shifted(self, c: Call, padded: Tensor) -> list[Tensor]:
        """The first element of all windows, the second, and so on: `size` tensors [batch, channels, *counts].

        Raises UnsupportedError for windows of more than `MOST_IN_WINDOW` elements.
        """
        if self.size > MOST_IN_WINDOW:
            c.unsupported(f"windows of {self.size} elements; expected up to {MOST_IN_WINDOW}")
        lead = padded.rank - len(self.kernel)
        steps = [1] * lead + list(self.strides)
        sizes = [*padded.shape[:lead], *self.counts]
        return [c.builder.slice(padded, [0] * lead + [o * d for o, d in zip(offset, self.dilations, strict=True)],
                                sizes, steps)
                for offset in itertools.product(*map(range, self.kernel))]


def windows(c: Call, x: Tensor, kernel: Sequence[int]) -> Windows:
    """The node's windows over x."""
    n = x.rank - 2
    strides, dilations = (c.attr_ints(name) or [1] * n for name in ("strides", "dilations"))
    pads: Sequence[Dim] = c.attr_ints("pads") or [0] * 2 * n
    auto = c.attr_str("auto_pad", "NOTSET")
    if n < 1 or not n == len(kernel) == len(strides) == len(dilations) == len(pads) // 2 or len(pads) % 2:
        c.fail(f"kernel {list(kernel)}, strides {strides}, dilations {dilations} and pads {pads} do not fit {x.type}")
    if min(*kernel, *strides, *dilations) < 1 or auto not in _AUTO:
        c.fail(f"kernel {list(kernel)}, strides {strides}, dilations {dilations} or auto_pad {auto!r} is wrong")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if auto.startswith("SAME"):
        pads = _same_pads(x.shape[2:], reach, strides, lower=auto == "SAME_LOWER")
    elif auto == "VALID":
        pads = [0] * 2 * n
    ceil = bool(c.attr_int("ceil_mode", 0))
    counts: list[Dim] = []
    extra: list[Dim] = []
    for d, r, s, b, a in zip(x.shape[2:], reach, strides, pads[:n], pads[n:], strict=True):
        count, more = _count(c, d, r, s, b, a, ceil)
        counts.append(count)
        extra.append(more)
    return Windows(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads[:n]), tuple(pads[n:]), tuple(extra),
                   tuple(counts))


def _same_pads(shape: Sequence[Dim], reach: Sequence[int], strides: Sequence[int], lower: bool) -> list[Dim]:
    """Padding for as many windows as strides fit, before the operand half of it, or the larger half."""
    totals = [dim_max(0, (ceil_div(d, s) - 1) * s + r - d) for d, r, s in zip(shape, reach, strides, strict=True)]
    small = [floordiv(t, 2) for t in totals]
    large = [t - h for t, h in zip(totals, small, strict=True)]
    return [*large, *small] if lower else [*small, *large]


def _count(c: Call, size: Dim, reach: int, stride: int, before: Dim, after: Dim, ceil: bool) -> tuple[Dim, Dim]:
    """How many windows fit, and what the last one wants beyond the padding; none starts behind the operand."""
    span = size + before + after - reach
    if not ceil:
        if isinstance(span, int) and span < 0:
            c.fail(f"a window of {reach} does not fit into {size + before + after}")
        return floordiv(span, stride) + 1, 0
    if not (isinstance(span, int) and isinstance(size, int) and isinstance(before, int)):
        c.unsupported(f"ceil_mode over the size {size}; it must be the same for all sizes")
    count = -(-span // stride) + 1
    if (count - 1) * stride >= size + before:
        count -= 1
    return count, max(0, (count - 1) * stride - span)
