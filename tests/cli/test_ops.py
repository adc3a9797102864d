"""`q8c ops`, and the page it prints."""
from __future__ import annotations

import json
import re

from q8c.frontend.support import supported_ops
from tests.cli.support import ROOT, Cli


def test_the_page_in_the_docs_is_what_is_supported(cli: Cli) -> None:
    page = cli("ops", "--markdown").out
    assert (ROOT / "docs/ops.md").read_text() == page, "run: python -m q8c ops --markdown > docs/ops.md"


def test_ops_by_name(cli: Cli) -> None:
    done = cli("ops", "gelu", "Loop", "MatMulNBits")
    assert done.code == 0
    rows = [re.split(r"  +", line.strip()) for line in done.out.splitlines()]
    assert rows == [["op", "domain", "since opset", "how"], ["Gelu", "ai.onnx", "20", "importer"],
                    ["Loop", "ai.onnx", "7", "written out"], ["Gelu", "com.microsoft", "1", "importer"],
                    ["MatMulNBits", "com.microsoft", "1", "importer"]]


def test_an_op_that_is_not_supported(cli: Cli) -> None:
    done = cli("ops", "StringSplit", "--json")
    assert done.code == 1
    assert json.loads(done.out)["ops"] == [{"domain": "ai.onnx", "op": "StringSplit", "since": None, "how": ""}]
    assert "no op is called 'NoSuchOp'" in cli.bad(1, "ops", "gelu", "NoSuchOp")


def test_definitions_by_other_ops_count_if_those_are_supported() -> None:
    how = {o.op: (o.since, o.how) for o in supported_ops() if o.domain == "ai.onnx"}
    assert how["HannWindow"] == (17, "other ops") and how["Elu"] == (7, "other ops")
    assert how["SequenceMap"] == (17, "other ops") and how["Bernoulli"] == (None, "")
