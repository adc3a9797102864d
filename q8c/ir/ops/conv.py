"""Convolutions of groups of channels, of operands that are padded already."""
from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q8c.ir.graph import Array
from q8c.ir.ops.registry import AttrSpec, Level, OpDef, Operands, register
from q8c.ir.types import DType, TensorType


def _conv(o: Operands) -> Sequence[TensorType]:
    x, w, a = o.type(0), o.type(1), o.attrs
    o.expect(x.dtype is w.dtype is DType.f32 and x.rank == w.rank >= 3,
             "expected (f32[batch, channels, ...], f32[outputs, channels / groups, ...])")
    fixed = [d for d in w.shape if isinstance(d, int)]
    o.expect(len(fixed) == w.rank and 0 not in fixed, "expected a kernel of fixed size")
    o.expect(a["groups"] > 0 and fixed[0] % a["groups"] == 0, f"{fixed[0]} outputs do not split into {a['groups']}")
    o.expect(len(a["strides"]) == len(a["dilations"]) == len(a["counts"]) == x.rank - 2 and min(
        (*a["strides"], *a["dilations"])) > 0, "expected a stride, a dilation and a count per axis")
    o.same(x.shape[1], fixed[1] * a["groups"])
    return [TensorType(DType.f32, (x.shape[0], w.shape[0], *a["counts"]))]


def conv(args: Sequence[Any], attrs: Mapping[str, Any]) -> Sequence[Array]:
    """y[b, o, i, ...] = sum over channels c of o's group and places k of x[b, c, i * stride + k * dilation, ...] *
    w[o, c, k, ...], for as many i as `counts` says."""
    x, w = args
    groups, counts = attrs["groups"], attrs["counts"]
    kernels = w.reshape(groups, -1, *w.shape[1:])
    y = np.zeros((x.shape[0], groups, kernels.shape[1], *counts), np.float32)
    for place in itertools.product(*map(range, w.shape[2:])):
        seen = [slice(None)] * 2
        seen += [slice(k * d, k * d + (n - 1) * s + 1, s) if n else slice(0)
                 for k, d, s, n in zip(place, attrs["dilations"], attrs["strides"], counts, strict=True)]
        part = x[tuple(seen)]
        part = part.reshape(len(x), groups, w.shape[1], *part.shape[2:])
        with np.errstate(all="ignore"):
            y += np.einsum("bgc...,goc->bgo...", part, kernels[(slice(None),) * 3 + place])
    return [y.reshape(len(x), w.shape[0], *counts)]


register(OpDef("conv", "x w", _conv, conv, {
    "groups": AttrSpec("int", 1), "strides": AttrSpec("ints"), "dilations": AttrSpec("ints"),
    "counts": AttrSpec("dims")}, Level.tensor,
    doc="A convolution by groups of channels, without padding: of many outputs a group it is a product instead."))
