"""Every family of transformers, as PyTorch's exporters write it: int8 and float, at several shapes in one session."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import q8c
from q8c.accuracy import error
from q8c.compiler import compile_model
from q8c.frontend import import_onnx
from q8c.ir import Graph, clone, interpret
from q8c.passes.manager import run_passes
from q8c.passes.pipeline import Options, pipeline
from q8c.products import Product, product_names, products_of
from q8c.runtime.session import Session
from tests.families.family import Array, Family, Form, Padding, feed
from tests.families.stripped import path_of, read
from tests.families.table import FAMILIES, models

Run = Callable[[Mapping[str, Array]], Sequence[Array]]
F32_L2 = 3e-6
TOO_SMALL = "too small to pay for quantizing rows"  # heads of a few classes, mostly


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.compiled])
def test_compiled(name: str, tmp_path: Path) -> None:
    """The first form of each, as int8 code."""
    family = FAMILIES[name]
    proto = read(path_of(name, family.forms[0]))
    result = compile_model(proto, tmp_path / "m.q8c")
    with q8c.load(result.path, threads=2) as session:
        compare(family, proto, lambda given: session.run(None, given), family.int8_error)
        if "append" in family.kernels:
            check_state(family, session)


@pytest.mark.parametrize(("name", "form"), models())
def test_passes(name: str, form: Form) -> None:
    """Every form: what the passes make of it, float and exact, and int8 by the products that are."""
    family, proto = FAMILIES[name], read(path_of(name, form))
    graph = import_onnx(proto)
    names, exact = product_names(graph), clone(graph)
    report = run_passes(graph, pipeline(Options()))
    check_products(family, graph, products_of(graph, names, report, True))
    run_passes(exact, pipeline(Options(quantize=False)))
    compare(family, proto, lambda given: interpret(exact, given), F32_L2)


def check_products(family: Family, graph: Graph, products: Sequence[Product]) -> None:
    """Attention is fused and all other products are int8, but for those that the table names."""
    for product in products:
        if product.form == "float" and TOO_SMALL not in product.reason:
            assert any(part in product.name and reason in product.reason
                       for part, reason in family.float_products.items()), product
    assert any(product.form == "int8" for product in products)
    attentions = [node for node in graph.nodes if node.op == "attention"]
    assert len(attentions) == family.attentions
    for attr, count in (("causal", family.causal), ("window", family.windows)):
        assert sum(bool(node.attrs.get(attr)) for node in attentions) == count
    counts = Counter(node.op for node in graph.nodes)
    assert {op: counts[op] for op in family.kernels} == family.kernels


def check_state(family: Family, session: Session) -> None:
    """Prompts and steps on a state give what all tokens at once do; of unequal lengths where a mask may say so."""
    seq = 9
    given = feed(family, {**family.sizes[0], "seq": seq, "past": 0, "total": seq}, "none")
    [wanted] = session.run(["logits"], given)
    state = session.new_state(seq, len(wanted))
    read = {name: a for name, a in given.items() if "encoder" in name}
    behind = np.array([0, 2]) if "attention_mask" in given else np.zeros(2, int)
    for first, end in ((0, 5), (5, 6), (6, seq)):
        tokens = [np.arange(max(first - late, 0), end - late) for late in behind]
        ids = np.zeros((2, end - first), np.int64)
        for row, own in enumerate(tokens):
            ids[row, :len(own)] = given["input_ids"][row, own]
        padded = {"attention_mask": np.array([[1] * 5, [1, 1, 1, 0, 0]])} if not first and behind.any() else {}
        [found] = session.run(None, {"input_ids": ids, **padded, **read}, state=state)
        for row, own in enumerate(tokens):
            assert error(found[row, :len(own)], wanted[row, own]).relative_l2 <= family.int8_error
    assert (state.lengths == seq - behind).all()


def compare(family: Family, proto: onnx.ModelProto, run: Run, budget: float) -> None:
    """Run every size, padded on either side in turn, and compare what belongs to tokens with ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    peer = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for i, sizes in enumerate(family.sizes):
        padding: Padding = "left" if i % 2 else "right"
        given = feed(family, sizes, padding)
        for output, y, wanted in zip(family.outputs, run(given), peer.run(None, dict(given)), strict=True):
            assert y.dtype == wanted.dtype
            found = error(tokens(family, given, y), tokens(family, given, np.asarray(wanted)))
            assert found.relative_l2 <= budget, (output, sizes, padding, found)


def tokens(family: Family, given: Mapping[str, Array], output: Array) -> Array:
    """What an output says of tokens that are there; all of it if it is not by tokens."""
    for name, one in family.inputs.items():
        if one.kind == "mask" and given[name].shape == output.shape[:2]:
            return np.asarray(output[given[name] != 0])
    return output
