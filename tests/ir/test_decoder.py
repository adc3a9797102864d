"""Ops of decoders against formulas written down independently, and what they refuse."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from q8c.errors import CompileError, InputError
from q8c.ir import interpret, parse_graph, print_graph, verify
from tests.ir.test_ops import run

RNG = np.random.default_rng(0)
TEXT = """graph @g(%x: f32[batch, seq, 20], %cos: f32[1, seq, 2], %sin: f32[batch, seq, 2], \
%k: f32[batch, 2, past, 6], %mask: i64[batch, past + seq], %lengths: i64[batch]) {
  %q: f32[batch, seq, 12] = rotary(%x, %cos, %sin) {heads = 2, head_size = 6, rotary_size = 4, interleaved = true}
  %keys: f32[batch, 2, past + seq, 6] = append(%k, %x, %lengths) {kv_heads = 2, head_size = 6, offset = 8}
  %y: f32[batch, seq, 12] = attention(%q, %keys, %keys, -, %mask, %lengths) {heads = 2, kv_heads = 2, head_size = 6, \
scale = 0.5, causal = true, spread = true}
  return %y
}
"""


def normal(*shape: int) -> NDArray[np.float32]:
    """Random floats."""
    return RNG.standard_normal(shape).astype(np.float32)


def test_text_comes_back() -> None:
    graph = parse_graph(TEXT)
    verify(graph)
    assert print_graph(graph) == TEXT and not graph.assumptions
    feeds = {"x": normal(3, 4, 20), "cos": normal(1, 4, 2), "sin": normal(3, 4, 2), "k": normal(3, 2, 5, 6),
             "mask": np.ones((3, 9), np.int64), "lengths": np.array([0, 3, 5])}
    assert interpret(graph, feeds)[0].shape == (3, 4, 12)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_rotary_turns_pairs_as_complex_numbers(interleaved: bool, split: bool) -> None:
    angle = RNG.uniform(0, 6, (2, 5, 3)).astype(np.float32)
    heads = normal(2, 4, 5, 8)
    flat = heads.transpose(0, 2, 1, 3).reshape(2, 5, 32)
    x = heads if split else np.concatenate([normal(2, 5, 7), flat, normal(2, 5, 1)], axis=-1)
    y = run("rotary", x, np.cos(angle), np.sin(angle), heads=4, head_size=8, rotary_size=6, offset=0 if split else 7,
            interleaved=interleaved).reshape(2, 5, 4, 8).transpose(0, 2, 1, 3)
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + 3) for i in range(3)]
    for i, (a, b) in enumerate(pairs):
        wanted = (heads[..., a] + 1j * heads[..., b]) * np.exp(1j * angle[:, None, :, i])
        np.testing.assert_allclose(y[..., a] + 1j * y[..., b], wanted, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(y[..., 6:], heads[..., 6:])


def test_rotary_positions_may_be_those_of_all_sequences() -> None:
    x, cos, sin = normal(2, 3, 4), normal(1, 3, 1), normal(2, 3, 1)
    attrs: dict[str, Any] = {"heads": 2, "head_size": 2, "rotary_size": 2}
    y = run("rotary", x, cos, sin, **attrs)
    np.testing.assert_array_equal(y, run("rotary", x, np.repeat(cos, 2, axis=0), sin, **attrs))
    assert (run("rotary", x, cos, sin[:1], **attrs)[0] == y[0]).all()


def test_append_puts_tokens_behind_those_kept() -> None:
    past, new = normal(2, 3, 4, 2), normal(2, 2, 9)
    heads = new[:, :, 2:8].reshape(2, 2, 3, 2).transpose(0, 2, 1, 3)
    attrs: dict[str, Any] = {"kv_heads": 3, "head_size": 2}
    y = run("append", past, new, **attrs, offset=2)
    np.testing.assert_array_equal(y, np.concatenate([past, heads], axis=2))
    np.testing.assert_array_equal(y, run("append", past, heads, **attrs))
    short = run("append", past, heads, np.array([1, 4]), **attrs)
    np.testing.assert_array_equal(short[0, :, :3], np.concatenate([past[0, :, :1], heads[0]], axis=1))
    np.testing.assert_array_equal(short[1], y[1])
    for length in (-1, 5):
        with pytest.raises(InputError, match=f"{length} tokens of sequence 1 are kept, expected 0 to 4"):
            run("append", past, heads, np.array([1, length]), **attrs)


@pytest.mark.parametrize("format", ["int8-keys", "int8-values"])
def test_appended_rows_may_be_of_8_bits(format: str) -> None:
    past, new, lengths = normal(2, 3, 4, 5), normal(2, 3, 2, 5), np.array([1, 4])
    attrs: dict[str, Any] = {"kv_heads": 3, "head_size": 5, "format": format}
    y = run("append", past, new, lengths, **attrs)
    first = run("append", past, new[:, :, :1], lengths, **attrs)  # a token at a time: what is kept stays as it is
    second = run("append", first, new[:, :, 1:], lengths + 1, **attrs)
    for row, end in enumerate(lengths + 2):
        np.testing.assert_array_equal(second[row, :, :end], y[row, :, :end])
    exact = run("append", past, new, lengths, **attrs | {"format": "f32"})
    step = np.abs(exact).max(axis=-1, keepdims=True) / 127
    assert (np.abs(y - exact) <= 0.51 * step).all() and (y != exact).any()
    with pytest.raises(CompileError, match="format is none of f32, int8-keys, int8-values"):
        run("append", past, new, **attrs | {"format": "int4"})


def attend(q: Any, keys: Any, values: Any, seen: list[Any], **more: Any) -> Any:
    """One head of two channels, and what `seen` adds: a mask, a key mask, lengths."""
    return run("attention", q, keys, values, *seen, heads=1, kv_heads=1, head_size=2, scale=0.5, **more)


def test_lengths_say_what_each_sequence_sees() -> None:
    q, k, v = normal(2, 2, 2), normal(2, 5, 2), normal(2, 5, 2)
    zero = np.zeros((1, 1, 1, 1), np.float32)
    ones = np.ones((1, 5), bool)
    k[0, 3:], v[0, 3:] = np.nan, np.nan  # what lies behind the tokens says nothing
    y = attend(q, k, v, [zero, ones, np.array([1, 3])], causal=True)
    for row, length in enumerate((1, 3)):
        part = slice(row, row + 1), slice(0, length + 2)
        np.testing.assert_array_equal(y[part[0]], attend(q[part[0]], k[part], v[part], [], causal=True))


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.int32, np.float32])
def test_a_key_mask_hides_keys(dtype: Any) -> None:
    q, k, v = normal(2, 3, 2), normal(2, 4, 2), normal(2, 4, 2)
    key_mask = np.array([[1, 0, 1, 1], [0, 1, 1, 0]]).astype(dtype)
    zero = np.zeros((1, 1, 1, 1), np.float32)
    y = attend(q, k, v, [zero, key_mask])
    for row, kept in enumerate(([0, 2, 3], [1, 2])):
        alone = attend(q[row:row + 1], k[row:row + 1, kept], v[row:row + 1, kept], [])
        np.testing.assert_allclose(y[row:row + 1], alone, rtol=1e-6, atol=1e-7)
    filled = np.where(key_mask[:, None, None] != 0, np.float32(0), np.float32(-3.4e38))
    np.testing.assert_array_equal(y, attend(q, k, v, [filled]))
    np.testing.assert_array_equal(attend(q[:1], k[:1], v[:1], [zero, key_mask[:1]]), y[:1])


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_hides_keys_that_are_far(causal: bool) -> None:
    q, k, v = normal(2, 3, 2), normal(2, 6, 2), normal(2, 6, 2)
    zero, ones = np.zeros((1, 1, 1, 1), np.float32), np.ones((1, 6), bool)
    places = np.array([3, 2 if causal else 3])[:, None] + np.arange(3)
    away = places[:, :, None] - np.arange(6)
    hidden = np.where((np.abs(away) < 2) & ((away >= 0) | (not causal)), 0, -np.inf).astype(np.float32)
    lengths = [places[:, 0]] if causal else []
    y = attend(q, k, v, [zero, ones, *lengths], causal=causal, window=2)
    np.testing.assert_array_equal(y, attend(q, k, v, [hidden[:, None]]))
    blind = ones & (np.arange(6) < 1)
    spread = attend(q, k, v, [zero, blind, *lengths], causal=causal, window=2, spread=True)
    for row, end in enumerate(places[:, -1] + 1 if causal else (6, 6)):
        np.testing.assert_allclose(spread[row], np.repeat(v[row, :end].mean(0)[None], 3, axis=0), rtol=1e-5, atol=1e-6)


def test_a_query_that_sees_no_key() -> None:
    q, v = normal(1, 3, 2), normal(1, 4, 2)
    zero, hidden = np.zeros((1, 1, 1, 1), np.float32), np.array([[0, 0, 1, 1]])
    attrs: dict[str, Any] = {"causal": True}
    y = attend(q, v, v, [zero, hidden], **attrs)
    assert np.isnan(y[0, 0]).all() and not np.isnan(y[0, 1:]).any()  # the first query sees two keys, both hidden
    assert attend(q, v, v, [zero, hidden], **attrs, nan_to_zero=True)[0, 0].tolist() == [0, 0]
    spread = attend(q, v, v, [zero, hidden], **attrs, spread=True)
    np.testing.assert_array_equal(spread[0, 1:], y[0, 1:])
    np.testing.assert_allclose(spread[0, 0], v[0].mean(0), rtol=1e-6)
    # the model's own way: the lowest float in place of a score, which all keys of such a query share
    seen = (np.arange(4) <= 1 + np.arange(3)[:, None]) & (hidden != 0)
    filled = np.where(seen, np.float32(0), np.finfo(np.float32).min)[None, None]
    np.testing.assert_allclose(spread, attend(q, v, v, [filled]), rtol=1e-6)
    short = attend(q[:, :1], v, v, [zero, hidden, np.array([1])], **attrs, spread=True)
    np.testing.assert_allclose(short[0, 0], v[0, :2].mean(0), rtol=1e-6)


@pytest.mark.parametrize(("old", "new", "problem"), [
    ("rotary_size = 4", "rotary_size = 3", "rotary_size must be even"),
    ("rotary_size = 4", "rotary_size = 8", "rotary_size must be even and at most"),
    ("rotary_size = 4", "rotary_size = 2", r"expected cos and sin as f32\[batch or 1, seq, 1\]"),
    ("heads = 2, head_size = 6, rotary", "heads = 4, head_size = 6, rotary", "4 heads of 6 at offset 0 do not fit"),
    ("append(%k,", "append(%sin,", r"expected what is kept as f32\[batch, 2, past, 6\]"),
    ("offset = 8", "offset = 9", "2 heads of 6 at offset 9 do not fit"),
    ("%lengths: i64[batch]", "%lengths: i32[batch]", r"expected lengths as i64\[batch\]"),
    ("%mask: i64[batch, past + seq]", "%mask: i64[batch, 1, past + seq]", r"expected the key mask as \[batch or 1"),
    ("causal = true, ", "", "lengths go with causal attention")])
def test_what_does_not_fit(old: str, new: str, problem: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(CompileError, match=problem):
        parse_graph(TEXT.replace(old, new))


def test_sizes_that_must_be_equal_are_assumed() -> None:
    graph = parse_graph(TEXT.replace("%mask: i64[batch, past + seq]", "%mask: i64[batch, total]", 1).replace(
        "{\n", "{\n  assume total == past + seq\n", 1))
    assert [tuple(map(str, pair)) for pair in graph.assumptions] == [("total", "past + seq")]
