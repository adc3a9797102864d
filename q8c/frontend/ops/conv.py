"""Convolutions whose patches do not overlap, as matrix products."""
from __future__ import annotations

from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor
from q8c.ir.dims import floordiv, product


@importer("Conv")
def conv(c: Call) -> Tensor:
    """x cut into patches of the kernel's size, times the kernel as a matrix, plus bias."""
    x, kernel, bias = c.input(0), c.input(1), c.optional(2)
    window = _window(c, x, kernel)
    batch, channels = x.shape[:2]
    grid = [floordiv(d, w) for d, w in zip(x.shape[2:], window, strict=True)]
    n = len(window)
    cut = c.builder.slice(x, [0] * x.rank, [batch, channels, *(g * w for g, w in zip(grid, window, strict=True))],
                          [1] * x.rank)
    apart = [d for g, w in zip(grid, window, strict=True) for d in (g, w)]
    patches = c.builder.reshape(cut, (batch, channels, *apart))
    patches = c.builder.transpose(patches, (0, *range(2, 2 * n + 2, 2), 1, *range(3, 2 * n + 2, 2)))
    outputs, depth = kernel.shape[0], product(kernel.shape[1:])
    rows = c.builder.reshape(patches, (batch, product(grid), depth))
    y = c.emit("matmul", rows, c.builder.transpose(c.builder.reshape(kernel, (outputs, depth)), (1, 0)))
    if bias is not None:
        y = c.emit("add", y, bias)
    return c.builder.reshape(c.builder.transpose(y, (0, 2, 1)), (batch, outputs, *grid))


def _window(c: Call, x: Tensor, kernel: Tensor) -> list[int]:
    """The kernel's spatial size, which must also be the stride. Reports what else it is."""
    if x.rank < 3 or kernel.rank != x.rank:
        c.fail(f"expected an image and a kernel of one rank, got {x.type} and {kernel.type}")
    window = [d for d in kernel.shape[2:] if isinstance(d, int)]
    n = x.rank - 2
    if len(window) < n:
        c.unsupported(f"a kernel of varying size {kernel.type}")
    strides, pads = c.attr_ints("strides") or [1] * n, c.attr_ints("pads") or [0] * 2 * n
    problems = [] if strides == window else [f"strides {strides} that are not the kernel {window}"]
    problems += [f"pads {pads}"] if any(pads) else []
    problems += ["dilations"] if any(d != 1 for d in c.attr_ints("dilations") or []) else []
    problems += [f"group {c.attr_int('group', 1)}"] if c.attr_int("group", 1) != 1 else []
    if c.attr_str("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        problems.append(f"auto_pad {c.attr_str('auto_pad')}")
    if problems:
        c.unsupported(f"{' and '.join(problems)}; expected patches that do not overlap, without padding")
    if c.attr_ints("kernel_shape") not in (None, window):
        c.fail(f"kernel_shape {c.attr_ints('kernel_shape')} is not that of {kernel.type}")
    return window
