"""Models whose branches inputs choose when they run: one file with a part for each way, and weights once."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.helper import make_graph, make_node

import q8c
from q8c.accuracy import error
from q8c.compiler import compile_model
from q8c.errors import ArtifactError, CompileError, Error, InputError, UnsupportedError
from q8c.frontend import import_parts
from q8c.frontend.choices import Choice
from q8c.ir import Array
from q8c.passes.pipeline import Options
from q8c.rebuild import compare, rebuild
from q8c.runtime import strict_json
from q8c.runtime.session import Session
from tests.frontend.support import BOOL, F32, I64, model, node, value
from tests.merged.decoder import MERGED
from tests.runtime.files import manifest_of, save, with_junk, with_manifest

BATCH, ENCODED = 2, 5


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return q8c.compile(MERGED, tmp_path_factory.mktemp("merged") / "both.q8c", target="avx2")


@pytest.fixture(scope="module")
def session(merged: Path) -> Session:
    return q8c.load(merged, threads=2)


def feed(cached: bool, past: int, tokens: int) -> dict[str, Array]:
    """Inputs of the merged decoder, those that a branch does not read among them."""
    rng = np.random.default_rng(past)
    sizes = {"batch_size": BATCH, "encoder_sequence_length": ENCODED, "decoder_sequence_length": tokens}
    made: dict[str, Array] = {}
    for one in MERGED.graph.input:
        tensor = one.type.tensor_type
        shape = [d.dim_value or sizes.get(d.dim_param, past) for d in tensor.shape.dim]
        made[one.name] = rng.standard_normal(shape).astype(F32)
        if "mask" in one.name or tensor.elem_type != onnx.TensorProto.FLOAT:
            made[one.name] = np.ones(shape, I64) if "mask" in one.name else rng.integers(3, 90, shape)
    return made | {"use_cache_branch": np.array([cached])}


@pytest.mark.parametrize(("cached", "past", "tokens"), [(True, 4, 1), (True, 0, 2), (False, 0, 3), (False, 1, 3)])
def test_each_branch_gives_what_onnx_runtime_gives(session: Session, cached: bool, past: int, tokens: int) -> None:
    given = feed(cached, past, tokens)
    expected = onnxruntime.InferenceSession(MERGED.SerializeToString()).run(None, given)
    for name, result, wanted in zip([o.name for o in session.get_outputs()], session.run(None, given), expected,
                                    strict=True):
        assert result.shape == wanted.shape, name
        assert not wanted.size or error(result, wanted).relative_l2 < 0.03, name


def test_weights_are_there_once(merged: Path, tmp_path: Path) -> None:
    """The file's weights are those of the branch with more: it also makes keys and values of the encoder's states."""
    one = q8c.compile(MERGED, tmp_path / "one.q8c", target="avx2", set_inputs={"use_cache_branch": False})
    alone, both = (q8c.load(path).artifact.manifest for path in (one, merged))
    assert alone.weights.size <= both.weights.size < 1.05 * alone.weights.size
    assert sum(c.nbytes for part in both.parts for c in part.constants) > 1.8 * both.weights.size


def test_inputs_of_the_other_branch_may_be_left_out(session: Session) -> None:
    given = feed(False, 0, 3)
    less = {name: a for name, a in given.items() if not name.startswith("past")}
    assert np.array_equal(session.run(["logits"], less)[0], session.run(["logits"], given)[0])
    assert np.array_equal(session(**less)["logits"], session.run(None, given)[0])
    assert {a.name for a in session.get_inputs()} == set(given)
    assert {a.name: a.shape for a in session.get_outputs()}["present.0.decoder.key"] == [
        "batch_size", 4, "decoder_sequence_length + past_decoder_sequence_length or decoder_sequence_length", 16]


def test_a_state_goes_on_in_the_branch_that_keeps_one(session: Session) -> None:
    first, ids = feed(False, 0, 4), feed(True, 0, 4)["input_ids"]
    presents = {o.name: a for o, a in zip(session.get_outputs(), session.run(None, first), strict=True)}
    known = {"encoder_attention_mask": first["encoder_attention_mask"], **{
        name.replace("present", "past_key_values"): a for name, a in presents.items() if ".encoder." in name}}
    state = session.new_state(8, BATCH)
    for choice in ({}, {"use_cache_branch": [True]}):
        before = {n: presents[n.replace("past_key_values", "present")][:, :, :0] for n in first if ".decoder." in n}
        whole = session.run(["logits"], {**known, **before, "input_ids": ids, "use_cache_branch": [True]})[0]
        state.truncate(0)
        steps = [session.run(["logits"], {**known, **choice, "input_ids": ids[:, i:i + 1]}, state=state)[0]
                 for i in range(4)]
        assert np.array_equal(np.concatenate(steps, axis=1), whole)
        assert state.lengths.tolist() == [4, 4]
    with pytest.raises(InputError, match="keeps nothing in place"):
        session.run(None, {**first}, state=state)


@pytest.mark.parametrize(("change", "problem"), [
    (lambda f: f.pop("use_cache_branch"), "lacks 'use_cache_branch', which chooses a branch"),
    (lambda f: f.update(use_cache_branch=np.array([True, False])), "'use_cache_branch': dimension 0 must be 1"),
    (lambda f: f.update(use_cache_branch=np.array([1.5])), "'use_cache_branch'"),
    (lambda f: f.pop("past_key_values.1.decoder.value"), "lacks 'past_key_values.1.decoder.value'"),
    (lambda f: f.update(more=1), "unknown 'more'")])
def test_wrong_feeds_are_refused(session: Session, change: Callable[[dict[str, Array]], Any], problem: str) -> None:
    given = feed(True, 2, 1)
    change(given)
    with pytest.raises(InputError, match=problem):
        session.run(None, given)


def test_a_file_is_rebuilt_part_by_part(merged: Path, tmp_path: Path) -> None:
    again = rebuild(merged, tmp_path / "again.q8c", target="avx2")
    assert again.read_bytes() == merged.read_bytes()


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no choice": (lambda m: m.update(choice=0), "each in it once"),
    "a part twice": (lambda m: m.update(choice=[2, 0, 0]), "each in it once"),
    "a part beyond": (lambda m: m.update(choice=[2, 0, 3]), "each in it once"),
    "a giant": (lambda m: m.update(choice=[2, 0, 1 << 60]), r"choice.2. must be an integer"),
    "a branch decides": (lambda m: m.update(choice=[0, 1, 2]), "each in it once"),
    "two of three": (lambda m: m.update(choice=[2, 0]), "condition, choice, choice"),
    "endless": (lambda m: m.update(choice=_deep(20)), "at most 8 deep"),
    "nothing but refusals": (lambda m: m.update(choice="all"), "each in it once"),
    "no condition": (lambda m: m["parts"][2].update(model=m["parts"][1]["model"]), "a condition, with one output"),
    "other outputs": (lambda m: m["parts"][0]["model"]["outputs"][0].update(name="z"), "the same outputs"),
    "another type": (lambda m: m["parts"][1]["model"]["inputs"][1].update(dtype="int32"), "of one type each"),
    "code for fewer": (lambda m: m["parts"][1]["images"].clear(), "the same tiers"),
    "one part's code is another's": (lambda m: m["parts"][1].update(images=m["parts"][0]["images"]), "does not lie"),
}


def _deep(levels: int) -> Any:
    return [2, 0, _deep(levels - 1)] if levels else 1


@pytest.mark.parametrize("name", CHANGES)
def test_nonsense_in_the_manifest_is_refused(merged: Path, tmp_path: Path, name: str) -> None:
    change, message = CHANGES[name]
    manifest: Any = manifest_of(merged.read_bytes())
    change(manifest)
    with pytest.raises(ArtifactError, match=message):
        q8c.load(save(tmp_path, with_manifest(merged.read_bytes(), strict_json.dumps(manifest))))


def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    """A branch that gives what its last node gives."""
    return make_graph(nodes, name, [], [value(nodes[-1].output[0], F32, None)])


def ways(conditions: int, same: bool = False) -> onnx.ModelProto:
    """A chain of Ifs that sizes decide: each doubles x or negates it. Written out again for each, or all the `same`."""
    nodes: list[onnx.NodeProto] = [node("Shape", "x", "s")]
    for i in range(conditions):
        nodes += [node("Gather", f"s {'zero' if same else f'at{i}'}", f"n{i}"), node("Greater", f"n{i} two", f"c{i}"),
                  node("If", f"c{i}", f"y{i}" if i < conditions - 1 else "y",
                       then_branch=branch(f"t{i}", make_node("Add", [f"y{i - 1}" if i else "x"] * 2, [f"t{i}"])),
                       else_branch=branch(f"e{i}", make_node("Neg", [f"y{i - 1}" if i else "x"], [f"e{i}"])))]
    constants = {"two": np.array(2), "zero": np.array(0), **{f"at{i}": np.array(i) for i in range(conditions)}}
    return model(nodes, {"x": (F32, [f"d{i}" for i in range(conditions)])}, {"y": F32}, constants)


def test_sizes_may_decide_one_after_the_other(tmp_path: Path) -> None:
    path = q8c.compile(ways(2), tmp_path / "m.q8c", target="avx2")
    assert compare(path) == {"avx2": True}
    with q8c.load(path) as session:
        for shape in ((1, 1), (1, 4), (4, 1), (3, 3)):
            x = np.ones(shape, F32)
            factor = np.prod([2 if n > 2 else -1 for n in shape])
            assert np.array_equal(session.run(None, {"x": x})[0], factor * x)
    parts = import_parts(ways(2))
    assert [p.when for p in parts.ways] == ["c0 and c1", "c0 and not c1", "not c0 and c1", "not c0 and not c1"]
    assert parts.choice == (4, (5, 0, 1), (6, 2, 3)) and len(parts.conditions) == 3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return q8c.compile(ways(1), tmp_path_factory.mktemp("small") / "m.q8c", target="avx2")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_member_of_the_manifest_may_be_anything(small: Path, tmp_path: Path, data: st.DataObject) -> None:
    try:
        with q8c.load(save(tmp_path, with_junk(small.read_bytes(), data))) as session:
            session.get_inputs(), session.get_outputs()
    except ArtifactError as problem:
        assert "\n" not in str(problem)


def test_one_condition_written_often_is_one(tmp_path: Path) -> None:
    parts = import_parts(ways(6, same=True))
    assert (len(parts.ways), parts.choice) == (2, (2, 0, 1))


def test_too_many_conditions_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="computed from data.*after 4 other such conditions"):
        import_parts(ways(5))


@pytest.mark.parametrize(("proto", "problem"), [
    (model([node("Cast", "x", "c", to=onnx.TensorProto.INT64), node("If", "c", "y", then_branch=branch(
        "t", make_node("Neg", ["x"], ["t"])), else_branch=branch("e", make_node("Abs", ["x"], ["e"])))],
        {"x": (F32, [])}, {"y": F32}), r"condition is i64\[\], expected bool"),
    (model([node("If", "c", "y", then_branch=branch("t", make_node("Unique", ["x"], ["t"])), else_branch=branch(
        "e", make_node("Unique", ["x"], ["e"])))], {"x": (F32, ["n"]), "c": (BOOL, [])}, {"y": F32}), "Unique .* 't'")])
def test_what_cannot_be_compiled_is_said(proto: onnx.ModelProto, problem: str) -> None:
    with pytest.raises(Error, match=problem):
        import_parts(proto)


def test_a_branch_that_cannot_be_compiled_is_refused_when_it_is_chosen(tmp_path: Path) -> None:
    """The others compile; what only it reads may be in the feed. A file is rebuilt, and calibrated, without it."""
    proto = model([node("If", "c", "y", then_branch=branch("t", make_node("Neg", ["x"], ["t"])), else_branch=branch(
        "e", make_node("Add", ["x", "z"], ["s"]), make_node("Unique", ["s"], ["e"])))],
        {"x": (F32, ["n"]), "z": (F32, ["n"]), "c": (BOOL, [])}, {"y": F32})
    result = compile_model(proto, tmp_path / "m.q8c", target="avx2")
    [reason] = result.refused
    assert reason.startswith("where not c: cannot compile 1 node of this model: Unique")
    assert len(result.parts) == len(result.conditions) == 1 and compare(result.path) == {"avx2": True}
    feed = {"x": np.ones(3, F32), "z": np.ones(3, F32), "c": np.array(True)}
    with q8c.load(result.path) as session:
        assert np.array_equal(session.run(None, feed)[0], -feed["x"])
        with pytest.raises(InputError, match="a branch that is not compiled, where not c: cannot compile.*Unique"):
            session.run(None, {**feed, "c": np.array(False)})
    feeds = ({**feed, "c": np.array(False)},)
    with pytest.raises(InputError, match="a branch that is not compiled"):
        compile_model(proto, tmp_path / "n.q8c", target="avx2", options=Options(feeds=feeds))


def test_a_condition_may_be_computed(tmp_path: Path) -> None:
    """From what floats hold, in code of its own; calibration inputs go to the branch that they choose."""
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(F32)
    nodes = [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum zero", "positive"),
             node("If", "positive", "y", then_branch=branch("t", make_node("MatMul", ["x", "w"], ["t"])),
                  else_branch=branch("e", make_node("Neg", ["x"], ["e"])))]
    proto = model(nodes, {"x": (F32, ["n", 32])}, {"y": F32}, {"zero": np.zeros((), F32), "w": weight})
    x = np.ones((3, 32), F32)
    options = Options(feeds=({"x": x}, {"x": -x}), keep=("t",))
    result = compile_model(proto, tmp_path / "m.q8c", target="avx2", options=options)
    assert [part.options.feeds[0]["x"][0, 0] for part in result.parts] == [1, -1]
    assert [part.options.keep for part in result.parts] == [("t",), ()]
    with q8c.load(result.path) as session:
        assert np.array_equal(session.run(None, {"x": -x})[0], x)
        assert error(session.run(None, {"x": x})[0], x @ weight).relative_l2 < 1e-6
    with pytest.raises(CompileError, match="no matmul comes from node 'u'"):
        compile_model(proto, tmp_path / "n.q8c", target="avx2", options=Options(keep=("u",)))


def test_the_numbers_of_a_choice_are_those_of_the_parts() -> None:
    parts = import_parts(ways(3))

    def numbers(choice: Choice) -> list[int]:
        assert not isinstance(choice, str)
        return [choice] if isinstance(choice, int) else [choice[0], *numbers(choice[1]), *numbers(choice[2])]

    assert sorted(numbers(parts.choice)) == list(range(len(parts.parts))) == list(range(15))
