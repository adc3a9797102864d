"""GroupQueryAttention compared with ONNX Runtime: pasts of any length in each row, in a buffer or not."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import q8c
from q8c.errors import InputError
from q8c.frontend import import_onnx
from q8c.ir import interpret
from tests.frontend.support import F32, I64, Array, Shape, model, node, normal

HEADS, KV_HEADS, SIZE = 4, 2, 16
WIDTH, KV_WIDTH = HEADS * SIZE, KV_HEADS * SIZE
PAST: Shape = ["batch", KV_HEADS, "past", SIZE]
# sequences, new tokens, rows of the past (0: there is none), keys of the longest sequence, of each less 1
RUNS = {"prompt": (2, 5, 0, 5, [4, 2]), "prompt in a buffer": (2, 5, 12, 5, [4, 2]), "decode": (2, 1, 7, 8, [7, 4]),
        "decode in a buffer": (3, 1, 12, 8, [7, 4, 0]), "decode in a full buffer": (2, 1, 8, 8, [7, 3]),
        "prompt continued": (1, 3, 7, 10, [9]), "prompt continued in a buffer": (1, 3, 16, 10, [9])}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {}, "rotary": {"rotary": True}, "interleaved": {"rotary": True, "rotary_interleaved": 1},
    "packed": {"rotary": True, "packed": True}, "positions": {"rotary": True, "positions": True},
    "window": {"local_window_size": 3}, "softcap": {"softcap": 1.5}, "smooth": {"smooth_softmax": 1},
    "sink": {"sink": True}, "bias": {"bias": True}, "mask": {"rotary": True, "mask": True},
    "half": {"dtype": np.float16}, "near": {"local_window_size": 3, "softcap": 1.5},
    "much": {"rotary": True, "packed": True, "local_window_size": 2, "softcap": 2.0, "sink": True, "bias": True}}


def group_model(past: bool, total: int | None, rotary: bool = False, packed: bool = False, positions: bool = False,
                sink: bool = False, bias: bool = False, mask: bool = False, dtype: Any = F32,
                **attrs: Any) -> onnx.ModelProto:
    """One node; its lengths are operands, or computed from an `attention_mask`."""
    widths = {"q": WIDTH + 2 * KV_WIDTH} if packed else {"q": WIDTH, "k": KV_WIDTH, "v": KV_WIDTH}
    inputs: dict[str, tuple[Any, Shape]] = {n: (dtype, ["batch", "seq", width]) for n, width in widths.items()}
    inputs |= {n: (dtype, PAST) for n in ("pk", "pv") if past}
    inputs |= {"positions": (I64, ["batch", "seq"])} if positions else {}
    inputs |= {"bias": (dtype, [1, HEADS, "seq", "total"])} if bias else {}
    inputs |= {"attention_mask": (I64, ["batch", "total"])} if mask else {"last": (np.int32, ["batch"])}
    table = normal(64, SIZE // 2, seed=9)
    constants = {"cos": np.cos(table), "sin": np.sin(table)} if rotary else {}
    constants = {n: a.astype(dtype) for n, a in (constants | ({"sink": normal(HEADS)} if sink else {})).items()}
    constants |= {"one": np.array([1]), "second": np.array(1)} if mask else {"all": np.array(total, np.int32)}
    counted = [node("ReduceSum", "attention_mask one", "ones", keepdims=0), node("Sub", "ones one", "wide"),
               node("Cast", "wide", "last", to=onnx.TensorProto.INT32), node("Shape", "attention_mask", "sizes"),
               node("Gather", "sizes second", "total"), node("Cast", "total", "all", to=onnx.TensorProto.INT32)]
    operands = ["q", *("--" if packed else "kv"), *(("pk", "pv") if past else "--"), "last", "all",
                *(("cos", "sin") if rotary else "--"), "positions" if positions else "-", "bias" if bias else "-",
                "sink" if sink else "-"]
    while operands[-1] == "-":
        operands.pop()
    group = node("GroupQueryAttention", " ".join(operands), "y key value", domain="com.microsoft", num_heads=HEADS,
                 kv_num_heads=KV_HEADS, do_rotary=int(rotary), **attrs)
    return model([*(counted if mask else []), group], inputs, dict.fromkeys(("y", "key", "value"), dtype), constants,
                 opset=17, opset_imports=[helper.make_opsetid("com.microsoft", 1)])


def group_feed(proto: onnx.ModelProto, batch: int, seq: int, past: int, total: int,
               last: list[int]) -> dict[str, Array]:
    """Random inputs for rows of last[b] + 1 keys."""
    sizes = {"batch": batch, "seq": seq, "past": past, "total": total}
    ends = np.array(last)[:, None]
    feed: dict[str, Array] = {
        "last": np.array(last, np.int32), "attention_mask": (np.arange(total) <= ends).astype(I64),
        "positions": np.arange(seq) + np.maximum(ends + 1 - seq, 0)}
    for seed, given in enumerate(proto.graph.input):
        dims = given.type.tensor_type.shape.dim
        dtype = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        random = normal(*(sizes.get(d.dim_param, d.dim_value) for d in dims), seed=seed).astype(dtype)
        feed[given.name] = feed.get(given.name, random)
    return {given.name: feed[given.name] for given in proto.graph.input}


def expect(got: list[Any], wanted: list[Any], seq: int, last: list[int], behind: bool = False) -> None:
    """Results of tokens that are no padding, and all that is kept; with `behind`, also the zeros after that."""
    tolerance = 2e-5 if wanted[0].dtype == F32 else 4e-3
    assert [(a.shape, a.dtype) for a in got] == [(a.shape, a.dtype) for a in wanted]
    for b, end in enumerate(last):
        np.testing.assert_allclose(got[0][b, :end + 1][:seq], wanted[0][b, :end + 1][:seq], atol=tolerance)
        for mine, theirs in zip(got[1:], wanted[1:], strict=True):
            rows = slice(None if behind else end + 1)
            np.testing.assert_allclose(mine[b, :, rows], theirs[b, :, rows], atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_meaning(form: str) -> None:
    for batch, seq, past, total, last in RUNS.values():
        proto = group_model(past > 0, total, **FORMS[form])
        feed = group_feed(proto, batch, seq, past, total, last)
        wanted = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feed)
        expect([np.asarray(a) for a in interpret(import_onnx(proto), feed)], wanted, seq, last)


@pytest.mark.parametrize("form", ["near", "much", "half"])
def test_one_file_serves_prompts_and_decoding_whatever_the_past_has_room_for(form: str, tmp_path: Path) -> None:
    proto = group_model(True, 8, **FORMS["mask"] | FORMS[form])
    path = q8c.compile(proto, tmp_path / "group.q8c", target="avx2", quantize=False)
    theirs = onnxruntime.InferenceSession(proto.SerializeToString())
    with q8c.load(path, threads=2) as session:
        for batch, seq, past, total, last in RUNS.values():
            feed = group_feed(proto, batch, seq, past, total, last)
            expect(session.run(None, feed), theirs.run(None, feed), seq, last, behind=True)
        with pytest.raises(InputError, match="7"):  # a total the past has no room for
            session.run(None, group_feed(proto, 1, 1, 7, 10, [7]))


def test_a_length_without_room_is_refused(tmp_path: Path) -> None:
    proto = group_model(True, 8)
    with q8c.load(q8c.compile(proto, tmp_path / "group.q8c", target="avx2", quantize=False)) as session:
        with pytest.raises(InputError, match="length leaves no room"):
            session.run(None, group_feed(proto, 2, 1, 8, 8, [7, 8]))


@pytest.mark.parametrize("kv_cache", ["f32", "int8"])
def test_a_state_says_the_lengths(tmp_path: Path, kv_cache: str) -> None:
    proto = group_model(True, None, rotary=True, packed=True, mask=True)
    rng = np.random.default_rng(5)
    parts = [rng.standard_normal((2, n, WIDTH + 2 * KV_WIDTH)).astype(F32) for n in (4, 1, 1)]
    lengths = [4, 2]
    path = q8c.compile(proto, tmp_path / "group.q8c", target="avx2", quantize=False, kv_cache=kv_cache)
    with q8c.load(path) as session:
        state = session.new_state(max_tokens=9, batch=2)
        mask = (np.arange(4) < np.array(lengths)[:, None]).astype(I64)
        found = [session.run(None, {"q": parts[0], "attention_mask": mask}, state=state)[0]]
        found += [session.run(None, {"q": part}, state=state)[0] for part in parts[1:]]
        for b, length in enumerate(lengths):
            tokens = np.concatenate([parts[0][b:b + 1, :length], *(p[b:b + 1] for p in parts[1:])], axis=1)
            none = {n: np.zeros((1, KV_HEADS, 0, SIZE), F32) for n in ("pk", "pv")}
            alone = session.run(None, {"q": tokens, "attention_mask": np.ones((1, length + 2), I64), **none})[0][0]
            mine = np.concatenate([found[0][b, :length], *(f[b] for f in found[1:])])
            np.testing.assert_array_equal(mine, alone)
