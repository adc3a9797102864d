"""Where values lie in their arena slots, and what decides how many threads a run gets."""
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from q8c.codegen.cost import total_cost
from q8c.codegen.lower import start_in_slot
from q8c.ir import parse_graph
from q8c.ir.dims import evaluate
from q8c.ir.memory import CACHE_LINE, slot_sizes, stored_bytes

SHARED = parse_graph("""graph @shared(%x: f32[n, 96], %bytes: i8[n, 30]) {
    %wide: f32[n, 192] @0 = concat(%x, %x) {axis = -1}
    %few: f32[n, 96] @0 = neg(%x)
    %narrow: i8[n, 60] @0 = concat(%bytes, %bytes) {axis = -1}
    %last: f32[n, 96] = neg(%few)
    return %last
}""")


@given(st.integers(0, 300))
def test_values_lie_in_the_middle_of_their_slot(n: int) -> None:
    """So that the first half of one is in the first half of another, but for a cache line."""
    sizes = slot_sizes(SHARED)
    for value in (node.output for node in SHARED.nodes[:3]):
        size, slot = evaluate(stored_bytes(value), {"n": n}), evaluate(sizes[0], {"n": n})
        start = evaluate(start_in_slot(value, sizes), {"n": n})
        assert start % CACHE_LINE == 0 and 0 <= start <= slot - size
        assert abs(2 * start + size - slot) <= 2 * CACHE_LINE


def test_a_row_costs_what_its_weights_take_to_arrive() -> None:
    graph = parse_graph("""graph @g(%x: f32[n, 1024]) {
        const %w: f32[1024, 4096] = @w
        %y: f32[n, 4096] = linear(%x, %w)
        return %y
    }""")
    one, two, many = (evaluate(total_cost(graph), {"n": n}) for n in (1, 2, 1000))
    assert one == two > 200_000
    assert many > 50 * one
