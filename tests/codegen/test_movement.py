"""Movement kernels against the reference: exact, for every element size, at the edge of unreadable memory."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from q8c.codegen.frame import DETAIL, STATUS
from q8c.errors import InputError
from q8c.ir.types import DType
from tests.codegen.jit import runnable_tiers
from tests.codegen.kernels import NODE, Compiled, check_kernel, compiled

SIZES = ["u8", "f16", "f32", "i64"]
"""One element type of every size."""


def graph(inputs: dict[str, str], result: str, op: str, attrs: str = "") -> str:
    """A graph of one node."""
    params = ", ".join(f"%{n}: {t}" for n, t in inputs.items())
    return f"graph @g({params}) {{ %y: {result} = {op}({', '.join(f'%{n}' for n in inputs)}) {attrs} return %y }}"


def numbers(dtype: str, *shape: int) -> NDArray[Any]:
    """Different numbers, as far as the type has them."""
    return (np.arange(int(np.prod(shape))) % 251).reshape(shape).astype(DType[dtype].numpy)


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("perm", [(0, 2, 1, 3), (0, 2, 3, 1), (3, 2, 1, 0), (0, 1, 3, 2)])
def test_transpose(perm: tuple[int, ...], dtype: str) -> None:
    dims = ["a", "b", "3", "c"]
    text = graph({"x": f"{dtype}[{', '.join(dims)}]"}, f"{dtype}[{', '.join(dims[p] for p in perm)}]", "transpose",
                 f"{{perm = {perm}}}")
    for shape in ((2, 7, 3, 9), (1, 8, 3, 16), (2, 1, 3, 17), (2, 30, 3, 1), (0, 2, 3, 2)):
        check_kernel(text, x=numbers(dtype, *shape))


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_transpose_of_any_rank(data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, 5))
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 8, 11]), min_size=rank, max_size=rank))
    perm = data.draw(st.permutations(range(rank)))
    dims = [f"n{i}" if data.draw(st.booleans()) else str(n) for i, n in enumerate(sizes)]
    shown = f"({', '.join(map(str, perm))})"
    check_kernel(graph({"x": f"f32[{', '.join(dims)}]"}, f"f32[{', '.join(dims[p] for p in perm)}]", "transpose",
                f"{{perm = {shown}}}"), x=numbers("f32", *sizes))


@pytest.mark.parametrize("dtype", SIZES)
def test_broadcast_to(dtype: str) -> None:
    mask = graph({"x": f"{dtype}[b, 1, 1, s]"}, f"{dtype}[b, 3, s, s]", "broadcast_to", "{shape = (b, 3, s, s)}")
    rows = graph({"x": f"{dtype}[s, 1]"}, f"{dtype}[2, s, 37]", "broadcast_to", "{shape = (2, s, 37)}")
    for s in (1, 16, 21):
        check_kernel(mask, x=numbers(dtype, 2, 1, 1, s))
        check_kernel(rows, x=numbers(dtype, s, 1))


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("attrs, result", [
    ("{starts = (0, 1, 0), sizes = (b, s - 1, 20), steps = (1, 1, 1)}", "[b, s - 1, 20]"),
    ("{starts = (0, 0, 3), sizes = (b, s, 12), steps = (1, 1, 3)}", "[b, s, 12]"),
    ("{starts = (b - 1, s - 1, 39), sizes = (b, s, 20), steps = (-1, -1, -2)}", "[b, s, 20]"),
    ("{starts = (0, 0, 0), sizes = (0, s, 40), steps = (1, 1, 1)}", "[0, s, 40]")])
def test_slice(attrs: str, result: str, dtype: str) -> None:
    text = graph({"x": f"{dtype}[b, s, 40]"}, dtype + result, "slice", attrs)
    for s in (1, 6):
        check_kernel(text, x=numbers(dtype, 2, s, 40))


@pytest.mark.parametrize("dtype", SIZES)
def test_concat(dtype: str) -> None:
    last = graph({"x": f"{dtype}[b, s, 5]", "z": f"{dtype}[b, s, 70]"}, f"{dtype}[b, s, 75]", "concat", "{axis = -1}")
    check_kernel(last, x=numbers(dtype, 2, 3, 5), z=numbers(dtype, 2, 3, 70))
    inputs = {"x": f"{dtype}[b, p, 6]", "z": f"{dtype}[b, s, 6]"}
    middle = graph(inputs, f"{dtype}[b, p + s, 6]", "concat", "{axis = 1}")
    check_kernel(middle, x=numbers(dtype, 2, 0, 6), z=numbers(dtype, 2, 9, 6))
    column = graph({"x": f"{dtype}[b, 1]", "z": f"{dtype}[b, 1]"}, f"{dtype}[b, 2]", "concat", "{axis = 1}")
    check_kernel(column, x=numbers(dtype, 9, 1), z=numbers(dtype, 9, 1))


@pytest.mark.parametrize("dtype", SIZES)
def test_copy_and_pad(dtype: str) -> None:
    check_kernel(graph({"x": f"{dtype}[b, s]"}, f"{dtype}[b, s]", "copy"), x=numbers(dtype, 3, 50))
    check_kernel(graph({"x": f"{dtype}[n]"}, f"{dtype}[n]", "copy"), x=numbers(dtype, 40001))
    text = graph({"x": f"{dtype}[b, 2, s]"}, f"{dtype}[b + 3, 2, s + 7]", "pad",
                 "{before = (1, 0, 3), after = (2, 0, 4), value = 5.0}")
    for s in (1, 30):
        check_kernel(text, x=numbers(dtype, 2, 2, s))


def test_pad_and_copy_of_scalars() -> None:
    x = np.array(3, np.float32)
    check_kernel(graph({"x": "f32[]"}, "f32[]", "copy"), x=x)
    padded = graph({"x": "f32[]"}, "f32[]", "pad", "{before = (), after = ()}")
    assert compiled(runnable_tiers()[0], padded)(x=x)[0] == x


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("index", ["i64", "i32"])
def test_gather(dtype: str, index: str) -> None:
    rng = np.random.default_rng(1)
    table = graph({"x": f"{dtype}[v, 37]", "i": f"{index}[b, s]"}, f"{dtype}[b, s, 37]", "gather")
    kind = DType[index].numpy
    check_kernel(table, x=numbers(dtype, 11, 37), i=rng.integers(-11, 11, (2, 5)).astype(kind))
    check_kernel(table, x=numbers(dtype, 0, 37), i=np.zeros((2, 0), kind))
    middle = graph({"x": f"{dtype}[b, s, d]", "i": f"{index}[]"}, f"{dtype}[b, d]", "gather", "{axis = 1}")
    check_kernel(middle, x=numbers(dtype, 3, 4, 5), i=np.array(-1, kind))
    last = graph({"x": f"{dtype}[b, s]", "i": f"{index}[3]"}, f"{dtype}[b, 3]", "gather", "{axis = -1}")
    check_kernel(last, x=numbers(dtype, 3, 4), i=np.array([3, -4, 0], kind))


@pytest.mark.parametrize("dtype", ["f32", "bool"])
def test_gather_nd(dtype: str) -> None:
    rng = np.random.default_rng(2)
    pairs = graph({"x": f"{dtype}[b, s, 3]", "i": "i64[k, 2]"}, f"{dtype}[k, 3]", "gather_nd")
    check_kernel(pairs, x=numbers(dtype, 2, 6, 3), i=rng.integers(-2, 2, (7, 2)))
    batched = graph({"x": f"{dtype}[b, s, t]", "i": "i64[b, k, 1]"}, f"{dtype}[b, k, t]", "gather_nd",
                    "{batch_dims = 1}")
    check_kernel(batched, x=numbers(dtype, 3, 6, 2), i=rng.integers(-6, 6, (3, 4, 1)))
    whole = graph({"x": f"{dtype}[b, s]", "i": "i64[k, m, 2]"}, f"{dtype}[k, m]", "gather_nd")
    check_kernel(whole, x=numbers(dtype, 4, 5), i=rng.integers(-4, 4, (3, 2, 2)))


_GATHER = graph({"x": "f32[v, 8]", "i": "i64[n]"}, "f32[n, 8]", "gather")
_GATHER_ND = graph({"x": "f32[v, 8]", "i": "i64[n, 2]"}, "f32[n]", "gather_nd")


@settings(max_examples=20, deadline=None)
@given(bad=st.one_of(st.integers(5, 2**63 - 1), st.integers(-2**63, -6)), at=st.integers(0, 3), rows=st.just(5))
def test_an_index_out_of_range_is_reported(bad: int, at: int, rows: int) -> None:
    """Never a wild read: the row is taken from index 0, and the frame says which node met which index."""
    indices = np.array([1, 4, -5, 2])
    indices[at] = bad
    x = numbers("f32", rows, 8)
    for text, i in ((_GATHER, indices), (_GATHER_ND, np.stack([indices, np.zeros(4, np.int64)], 1))):
        for tier in runnable_tiers():
            kernel = compiled(tier, text)
            with pytest.raises(InputError, match=str(bad)):
                _raise_for(kernel, x=x, i=i)
            frame = np.zeros(8, np.int64)
            y, = kernel(2, frame, x=x, i=i)
            assert frame[STATUS] == NODE + 1 and frame[DETAIL] == bad
            np.testing.assert_array_equal(y[at], x[0] if text is _GATHER else x[0, 0])
            frame = np.zeros(8, np.int64)
            frame[STATUS], frame[DETAIL] = 1, 99  # an earlier node has failed: its report stays
            kernel(1, frame, x=x, i=i)
            assert frame[STATUS] == 1 and frame[DETAIL] == 99


def _raise_for(kernel: Compiled, **feeds: NDArray[Any]) -> None:
    try:
        kernel.expected(**feeds)
    except InputError as error:
        if "gather_nd" in str(error):
            raise InputError(str(feeds["i"])) from error
        raise


def test_indices_into_nothing_are_reported() -> None:
    for text, i in ((_GATHER, np.zeros(3, np.int64)), (_GATHER_ND, np.zeros((3, 2), np.int64))):
        frame = np.zeros(8, np.int64)
        compiled(runnable_tiers()[0], text)(1, frame, x=numbers("f32", 0, 8), i=i)
        assert frame[STATUS] == NODE + 1 and frame[DETAIL] == 0


def test_iota_and_sizes() -> None:
    x = numbers("u8", 3, 70)
    for dtype in ("i64", "i32", "f32", "u8"):
        check_kernel(graph({"x": "u8[b, s]"}, f"{dtype}[b * s]", "iota", f"{{size = b * s, dtype = {dtype}}}").replace(
            "iota(%x)", "iota()"), x=x)
    check_kernel(graph({"x": "u8[b, s]"}, "i64[3]", "sizes", "{values = (b * s - 1, 7, b)}").replace(
        "sizes(%x)", "sizes()"), x=x)


def test_equal_nodes_share_one_kernel() -> None:
    tier = runnable_tiers()[0]
    first = compiled(tier, graph({"x": "f32[a, b, 8]"}, "f32[b, a, 8]", "transpose", "{perm = (1, 0, 2)}"))
    second = compiled(tier, graph({"x": "i32[p, q, 8]"}, "i32[q, p, 8]", "transpose", "{perm = (1, 0, 2)}"))
    other = compiled(tier, graph({"x": "f32[a, b, 9]"}, "f32[b, a, 9]", "transpose", "{perm = (1, 0, 2)}"))
    assert first.kernel.function.name == second.kernel.function.name != other.kernel.function.name
