"""The passes that change no result, on random graphs: the same bits before and after."""
from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q8c.ir import Graph, clone
from q8c.ir.feeds import random_feeds
from q8c.passes.canonicalize import Canonicalize
from q8c.passes.eliminate_dead_code import EliminateDeadCode
from q8c.passes.fold_constants import FoldConstants
from q8c.passes.manager import Pass, Report, run_passes
from q8c.passes.share_common import ShareCommon
from tests.ir.graphs import graphs
from tests.passes.support import compare, normal_text

EXACT: tuple[Pass, ...] = (Canonicalize(), FoldConstants(), ShareCommon(), EliminateDeadCode())


@pytest.mark.parametrize("item", EXACT, ids=str)
@given(graph=graphs(), sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)))
@settings(max_examples=60, deadline=None)
def test_results_keep_their_bits(item: Pass, graph: Graph, sizes: tuple[int, int]) -> None:
    before = clone(graph)
    run_passes(graph, [item])
    compare(before, graph, random_feeds(before, sizes={"n": sizes[0], "m": sizes[1]}))


@given(graphs(max_nodes=25))
@settings(max_examples=60, deadline=None)
def test_a_second_run_finds_nothing_more(graph: Graph) -> None:
    for item in EXACT:
        item.run(graph, Report())
        text = normal_text(graph)
        assert not item.run(graph, Report()) and normal_text(graph) == text
