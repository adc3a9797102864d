"""A small model in machine code, written by hand, for tests that need something real to load and run.

    ids: int64[batch], x: float32[batch, n]  ->  y: float32[batch, n]
    t = table[ids] * x                 a row to a piece, ids checked against the table
    y[i, j] = 2 * t[batch-1-i, n-1-j]  likewise, in a later phase, through per-thread scratch
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import llvmlite.ir as ir
import numpy as np
import numpy.typing as npt

from q8c.codegen.builder import F32, I32, I64, PTR
from q8c.codegen.draw import draw
from q8c.codegen.image import Image, link
from q8c.codegen.module import compile_module, new_module
from q8c.codegen.targets import TIERS
from q8c.codegen.threads import Body
from q8c.runtime import dims
from q8c.runtime.model import Constraint, Model, Node, Tensor
from q8c.runtime.writer import Writer

ROWS = 10
PHASES = 6
BATCH, N = ("$", 0), ("$", 1)
TABLE = np.arange(1, ROWS + 1, dtype=np.float32) / 4


def model(constraints: tuple[Constraint, ...] = ()) -> Model:
    """What the compiler would say of it."""
    return Model(
        name="scale-and-turn",
        inputs=(Tensor("ids", "int64", (BATCH,), ("batch",)), Tensor("x", "float32", (BATCH, N), ("batch", "n"))),
        outputs=(Tensor("y", "float32", (BATCH, N), ("batch", "n")),),
        symbols=("batch", "n"),
        dims=(BATCH, N, dims.freeze(["*", ["//", ["+", ["*", 4, ["$", 1]], 63], 64], 64], 2)),
        slots=(("*", 4, BATCH, N),),
        scratch=dims.freeze(["*", ["//", ["+", ["*", 4, ["$", 1]], 63], 64], 64], 2),
        cost=1 << 40,
        constraints=constraints,
        nodes=(Node("tok", "gather", f"token id {{detail}} is out of range [0, {ROWS})"),),
        options={"target": "all"}, tools={"test": "1"}, notes={"error": 0.5},
    )


def look_up(b: Body, frame: Any, i: Any) -> None:
    """Row i of t."""
    weights, arena = b.load(PTR, b.at(frame, 3, I64)), b.load(PTR, b.at(frame, 4, I64))
    ids, x = b.load(PTR, b.at(frame, 9, I64)), b.load(PTR, b.at(frame, 10, I64))
    n, turned = b.load(I64, b.at(frame, 13, I64)), b.at(arena, b.load(I64, b.at(frame, 15, I64)))
    token = b.load(I64, b.at(ids, i, I64))
    with b.if_(b.ucmp(">=", token, ROWS)):
        b.store(ir.Constant(I64, 1), b.at(frame, 1, I64))
        b.store(token, b.at(frame, 2, I64))
    row = b.select(b.ucmp("<", token, ROWS), token, 0)
    factor = b.load(F32, b.at(weights, row, F32))
    with b.range(0, n) as j:
        at = b.add(b.mul(i, n), j)
        b.store(b.mul(b.load(F32, b.at(x, at, F32)), factor), b.at(turned, at, F32))


def turn(b: Body, frame: Any, i: Any) -> None:
    """Row i of y."""
    arena, y = b.load(PTR, b.at(frame, 4, I64)), b.load(PTR, b.at(frame, 11, I64))
    batch, n, stride, turned, scratch = (b.load(I64, b.at(frame, word, I64)) for word in range(12, 17))
    turned, scratch = b.at(arena, turned), b.at(b.at(arena, scratch), b.mul(b.arg("tid"), stride))
    source = b.mul(b.sub(b.sub(batch, 1), i), n)
    with b.range(0, n) as j:
        at = b.add(source, b.sub(b.sub(n, 1), j))
        value = b.load(F32, b.at(turned, at, F32))
        b.store(b.add(value, value), b.at(scratch, j, F32))
    with b.range(0, n) as j:
        b.store(b.load(I32, b.at(scratch, j, F32)), b.at(y, b.add(b.mul(i, n), j), F32))


def image(tier: str = "avx2") -> Image:
    """Its code for one tier."""
    module = new_module("scale-and-turn")
    target = TIERS[tier]
    b = Body(module, target, PHASES)

    def each_row(frame: Any, body: Callable[[Any], None]) -> None:
        batch, queue = b.load(I64, b.at(frame, 12, I64)), b.queue()

        def row(drawn: list[Any]) -> list[Any]:
            body(drawn[0])
            return [draw(b, queue, batch)]
        b.while_([draw(b, queue, batch)], lambda drawn: b.icmp(">=", drawn[0], 0), row)

    for _ in range(PHASES // 3):
        with b.phase():
            pass
    with b.phase() as frame:
        each_row(frame, lambda i: look_up(b, frame, i))
    for _ in range(PHASES // 3):
        with b.phase():
            pass
    with b.phase() as frame:
        each_row(frame, lambda i: turn(b, frame, i))
    b.finish()
    return link(compile_module(module, target).object)


def write(path: Path, tiers: Iterable[str] = ("avx2",), described: Model | None = None,
          extra: Iterable[npt.NDArray[Any]] = ()) -> Path:
    """Its file, with any further constants behind the table."""
    with Writer(path) as writer:
        constants = [writer.constant("table", TABLE),
                     *(writer.constant(f"extra{i}", array) for i, array in enumerate(extra))]
        made = {tier: image(tier) for tier in tiers}
        images = [writer.image(tier, TIERS[tier].features, one.code, one.symbols) for tier, one in made.items()]
        writer.finish([writer.part(described or model(), constants, images, "graph @g() {}\n")])
    return path


def reference(ids: npt.NDArray[np.int64], x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What it must compute."""
    turned = (TABLE[ids][:, None] * x)[::-1, ::-1]
    return np.asarray(turned + turned, np.float32)


def feed(batch: int, n: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Random inputs."""
    rng = np.random.default_rng(seed)
    return {"ids": rng.integers(0, ROWS, batch), "x": rng.standard_normal((batch, n), np.float32)}
