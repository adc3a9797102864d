"""Pieces of work: each is drawn once, a thread's own part first, whoever comes and whenever."""
from __future__ import annotations

import threading
from functools import cache

import llvmlite.ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from q8c.codegen.builder import I64, PTR, Builder
from q8c.codegen.draw import draw
from q8c.codegen.targets import TIERS, Tier
from tests.codegen.jit import Loaded, build
from tests.codegen.queues import Queues


@cache
def code() -> Loaded:
    def emit(module: ir.Module, tier: Tier) -> None:
        b = Builder(module, tier, "next", [("queue", PTR), ("count", I64)], I64)
        b.ret(draw(b, b.arg("queue"), b.arg("count")))
    return build(TIERS["avx2"], emit)


@given(st.integers(1, 9), st.integers(0, 40), st.lists(st.integers(0, 8), max_size=60))
def test_each_piece_once_in_any_order_of_threads(threads: int, count: int, order: list[int]) -> None:
    queues = Queues(threads)
    for kernel in (1, 2, 9):
        queues.start(kernel)
        drawn = [code()("next", queues[t % threads], count) for t in order]
        drawn += [code()("next", queues[0], count) for _ in range(count + 1)]
        assert sorted(d for d in drawn if d >= 0) == list(range(count))
        assert all(code()("next", queues[t], count) == -1 for t in range(threads))


@pytest.mark.parametrize("count", [1, 7, 8, 64])
def test_own_part_first_and_the_same_stretch_for_any_count(count: int) -> None:
    threads = 4
    for thread in range(threads):
        queues = Queues(threads)
        first, last = count * thread // threads, count * (thread + 1) // threads
        own = [code()("next", queues[thread], count) for _ in range(last - first)]
        assert own == list(range(first, last))
        others = [code()("next", queues[thread], count) for _ in range(count - len(own))]
        assert others == [*range(last, count), *range(first)]


def test_a_thread_that_is_late_finds_nothing_of_a_kernel_that_is_over() -> None:
    queues = Queues(2)
    assert [code()("next", queues[0], 6) for _ in range(7)] == [0, 1, 2, 3, 4, 5, -1]
    queues.queues[0, 1] = 2
    assert code()("next", queues[0], 6) == 0
    assert code()("next", queues[0], 6) == 1
    assert code()("next", queues[1], 6) == -1  # still at kernel 1
    queues.start(2)
    assert [code()("next", queues[1], 6) for _ in range(5)] == [3, 4, 5, 2, -1]


def test_threads_at_the_same_time() -> None:
    queues, kernels, count = Queues(3), 40, 50
    drawn: list[list[tuple[int, int]]] = [[] for _ in range(3)]

    def work(thread: int) -> None:
        for kernel in range(1, kernels):
            queues.queues[thread, 1] = kernel
            while (piece := code()("next", queues[thread], count)) >= 0:
                drawn[thread].append((kernel, piece))
    workers = [threading.Thread(target=work, args=(t,)) for t in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = sorted(d for own in drawn for d in own)
    assert found == [(k, p) for k in range(1, kernels) for p in range(count)]
