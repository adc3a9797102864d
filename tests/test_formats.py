"""Every weight format, compiled: what its scales allow, odd rows, and the same bits whatever else a run holds."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import q8c
from q8c.codegen.targets import TIERS
from q8c.ir import q8
from q8c.runtime import cpu
from tests import models
from tests.models import Array

FORMATS = list(q8.FORMATS)
HERE = [name for name, needs in cpu.TIERS.items() if cpu.features().issuperset(needs)]
HALF_STEP = 0.5 + 1e-4  # tests/ir/test_q8.py says why
F32 = 2.0**-23
COLS, DEPTH = 24, 161
RNG = np.random.default_rng(5)
Session = Any


def linear(depth: int, relu: bool) -> tuple[onnx.ModelProto, Array]:
    """y = x w, or relu(x) w, whose rows want a zero point; and w, with columns of zeros and of other sizes."""
    rng = np.random.default_rng(depth)
    w = (rng.standard_normal((depth, COLS)) * 10.0 ** rng.integers(-3, 4, COLS)).astype(np.float32)
    w[:, 3] = 0
    nodes = [helper.make_node("Relu", ["x"], ["r"])] if relu else []
    nodes.append(helper.make_node("MatMul", ["r" if relu else "x", "w"], ["y"], name="product"))
    return models.model(nodes, {"x": ("rows", depth)}, {"y": ("rows", COLS)}, {"w": w}), w


def odd_rows(depth: int) -> Array:
    """Rows of every kind that is finite."""
    rows = [RNG.standard_normal(depth), np.full(depth, 2.5), np.full(depth, -1e-3), np.zeros(depth),
            RNG.uniform(-1e-40, 1e-40, depth), RNG.uniform(3, 4, depth), RNG.standard_normal(depth) - 3,
            np.where(np.arange(depth) == depth // 2, 1e20, RNG.standard_normal(depth))]
    return np.stack(rows).astype(np.float32)


def spread(per_block: Array, block: int, depth: int) -> Array:
    return np.repeat(per_block.astype(np.float64), block or depth, axis=-1)[..., :depth]


@pytest.mark.parametrize(("depth", "relu"), [(DEPTH, True), (130, False)], ids=["zero point", "symmetric"])
@pytest.mark.parametrize("format", FORMATS)
def test_each_element_is_as_close_as_its_scales_say(format: str, depth: int, relu: bool, tmp_path: Path) -> None:
    """|y - x w| <= sum |dx| |w| + |x| |dw| + |dx| |dw|, with |dx| and |dw| half a step each."""
    proto, w = linear(depth, relu)
    session = q8c.load(q8c.compile(proto, tmp_path / "m.q8c", weights=format, balance=False), threads=1)
    text = session.artifact.ir()
    assert "q8_linear" in text and ("zero_point = true" in text) == relu
    x = odd_rows(depth)
    y = session(x=x)["y"].astype(np.float64)
    block = q8.block_size(format)
    taken = np.maximum(x, 0) if relu else x
    scale = (q8.quantize_rows_zero if relu else q8.quantize_rows)(taken, block)[1]
    dx = HALF_STEP * spread(scale, block, depth)
    dw = HALF_STEP * spread(np.atleast_2d(q8.quantize_weight(w, block)[1]).T, block, depth).T
    size, weight = np.abs(taken.astype(np.float64)), np.abs(w.astype(np.float64))
    allowed = dx @ weight + size @ dw + dx @ dw + 8 * F32 * (size + dx) @ (weight + dw)
    assert (np.abs(y - taken.astype(np.float64) @ w.astype(np.float64)) <= allowed).all()
    assert (y[3] == 0).all() and (y[:, 3] == 0).all()


@pytest.mark.parametrize("format", FORMATS)
def test_a_depth_of_1_stays_float(format: str, tmp_path: Path) -> None:
    proto, w = linear(1, False)
    session = q8c.load(q8c.compile(proto, tmp_path / "m.q8c", weights=format), threads=1)
    x = odd_rows(1)
    np.testing.assert_allclose(session(x=x)["y"], x @ w, rtol=F32, atol=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ReLU and a linear whose depth no block divides, in each format, for every tier and the same on each; scales are
    not balanced for rows that are not like those of the tests."""
    folder = tmp_path_factory.mktemp("formats")
    proto, _ = linear(DEPTH, True)
    return {format: q8c.compile(proto, folder / f"{format}.q8c", weights=format, balance=False, target="all",
                                numerics="reproducible")
            for format in FORMATS}


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bits_on_every_tier_with_any_threads_and_beside_any_rows(format: str, files: dict[str, Path]) -> None:
    x = RNG.standard_normal((61, DEPTH)).astype(np.float32)
    x[7] *= 1e6
    first = q8c.load(files[format], threads=1, tier=HERE[0])(x=x)["y"]
    assert "zero_point = true" in q8c.load(files[format]).artifact.ir()
    for tier in HERE:
        for threads in (1, 2, 3):
            with q8c.load(files[format], threads=threads, tier=tier) as session:
                assert session(x=x)["y"].tobytes() == first.tobytes(), (tier, threads)
                for part in (slice(0, 1), slice(7, 8), slice(5, 18), slice(30, 61)):
                    assert session(x=x[part])["y"].tobytes() == first[part].tobytes(), (tier, threads, part)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(format: str, bad: float, files: dict[str, Path]) -> None:
    x = RNG.standard_normal((14, DEPTH)).astype(np.float32)
    for tier in HERE:
        session: Session = q8c.load(files[format], threads=2, tier=tier)
        good = session(x=x)["y"]
        spoilt = x.copy()
        spoilt[5, DEPTH - 1] = bad
        y = session(x=spoilt)["y"]
        assert np.isnan(y[5]).all()
        assert np.delete(y, 5, 0).tobytes() == np.delete(good, 5, 0).tobytes()


def test_finer_formats_are_closer(files: dict[str, Path]) -> None:
    x = (RNG.standard_normal((200, DEPTH)) * 10 ** RNG.normal(0, 0.5, (200, DEPTH))).astype(np.float32)
    w = linear(DEPTH, True)[1]
    exact, sizes = np.maximum(x, 0).astype(np.float64) @ w, np.abs(w).max(axis=0) + 1e-9  # no column counts for all
    errors = {f: float(np.linalg.norm((q8c.load(path)(x=x)["y"] - exact) / sizes)) for f, path in files.items()}
    assert errors["q8-block32"] < errors["q8-block64"] < errors["q8-block128"] < errors["q8-channel"]


def test_every_tier_was_compiled(files: dict[str, Path]) -> None:
    for path in files.values():
        assert [i.tier for i in q8c.load(path).artifact.manifest.parts[0].images] == list(TIERS)
