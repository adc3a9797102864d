"""Floors and shares: their arithmetic on made-up machines, and the probes on this one."""
from __future__ import annotations

from pathlib import Path

import pytest

from q8c import ceilings
from q8c.ceilings import Ceilings, Level, Rate, cache_sizes, floor_of
from q8c.codegen import probes
from q8c.codegen.targets import TIERS
from q8c.ir import parse_graph
from q8c.runtime import cpu

MACHINE = Ceilings(
    2,
    (Rate("tiles", "int8", ("amx-int8",), 8e9), Rate("dots", "int8", ("avx512vnni",), 1e9),
     Rate("halves", "bf16", ("avx512bf16",), 0.5e9), Rate("floats", "f32", ("avx512f", "fma"), 0.8e9)),
    (Level("L1", 1000, False, 100e9), Level("L2", 10_000, False, 10e9), Level("L3", 100_000, True, 2e9),
     Level("DRAM", 0, True, 1e9)))
GRAPH = """
graph @g(%x: f32[n, 64], %q: f32[1, n, 64]) {
  const %w: f32[64, 32] = @w
  %y: f32[n, 32] = linear(%x, %w)
  %z: f32[1, n, 64] = attention(%q, %q, %q) {heads = 2, kv_heads = 2, head_size = 32, scale = 1.0}
  return %y, %z
}
"""


def test_the_unit_is_the_fastest_that_may_be_used() -> None:
    def unit(kind: str, *features: str) -> str | None:
        rate = MACHINE.for_work(kind, features or None)
        return None if rate is None else rate.unit

    assert unit("int8") == "tiles" and unit("int8", "avx512vnni", "avx512f") == "dots"
    assert unit("attention") == "floats"  # bf16 is slower here, as it is on some CPUs
    assert unit("attention", "avx512bf16") == "halves" and unit("f32", "avx512bf16") is None


def test_each_byte_is_read_from_the_smallest_memory_that_has_room() -> None:
    assert MACHINE.level(1999).name == "L1" and MACHINE.level(20_000).name == "L2"  # of two threads
    assert MACHINE.level(100_000).name == "L3" and MACHINE.level(100_001).name == "DRAM"
    assert MACHINE.read_seconds(0) == 0 and MACHINE.read_seconds(2000) == pytest.approx(2000 / 100e9)
    assert MACHINE.read_seconds(20_000) == pytest.approx(2000 / 100e9 + 18_000 / 10e9)
    assert MACHINE.read_seconds(300_000) == pytest.approx(
        2000 / 100e9 + 18_000 / 10e9 + 80_000 / 2e9 + 200_000 / 1e9)


def test_work_takes_the_longer_of_computing_and_reading() -> None:
    assert MACHINE.seconds("int8", 8_000, 0) == pytest.approx(1e-6)
    assert MACHINE.seconds("int8", 8_000, 0, {"avx512vnni"}) == pytest.approx(8e-6)
    assert MACHINE.seconds("int8", 8, 2000) == MACHINE.seconds("", 0, 2000) == pytest.approx(2000 / 100e9)


def test_the_floor_of_a_model() -> None:
    graph = parse_graph(GRAPH)
    floor = floor_of(graph, {"n": 100}, MACHINE)
    assert floor is not None
    assert floor.compute == pytest.approx(100 * 64 * 32 / 8e9 + 2 * 100 * 100 * 64 / 0.8e9)
    assert floor.memory == pytest.approx(MACHINE.read_seconds(64 * 32)) and floor.seconds == floor.compute
    assert (floor.int8, floor.attention, floor.level) == ("tiles", "floats", "L2")
    slow = floor_of(graph, {"n": 100}, MACHINE, {"avx512vnni", "avx512bf16"})
    assert slow is not None and slow.compute == pytest.approx(100 * 64 * 32 / 1e9 + 2 * 100 * 100 * 64 / 0.5e9)
    assert floor_of(graph, {"n": 100}, MACHINE, {"fma"}) is None
    small = floor_of(graph, {"n": 0}, MACHINE)
    assert small is not None and small.seconds == small.memory > 0


def test_ceilings_as_json_and_back() -> None:
    assert Ceilings.from_json(MACHINE.to_json()) == MACHINE


def test_cache_sizes_are_what_the_system_says(tmp_path: Path) -> None:
    for index, (level, kind, size) in enumerate([("1", "Data", "48K"), ("1", "Instruction", "64K"),
                                                 ("2", "Unified", "2048K"), ("3", "Unified", "1G")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(text + "\n")
    (tmp_path / "index9").mkdir()
    assert cache_sizes(tmp_path) == {"L1": 48 << 10, "L2": 2 << 20, "L3": 1 << 30}
    assert set(cache_sizes(tmp_path / "none")) == {"L1", "L2", "L3"}


def test_every_unit_has_a_probe_that_translates() -> None:
    assert {u.kind for u in probes.UNITS} == {"int8", "bf16", "f32"}
    for unit in probes.UNITS:
        assert len(unit.code()) > 50 and unit.macs > 0
        assert set(unit.features) & {*unit.tier.features, *unit.tier.extras}
    assert all(len(probes.reader(tier)) > 50 for tier in TIERS.values())


def test_probes_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_SLICE", 1e-4)
    monkeypatch.setattr(ceilings, "_DRAM", 1 << 20)
    ceilings.measure.cache_clear()
    found = ceilings.measure(1)
    ceilings.measure.cache_clear()
    units = [u.name for u in probes.UNITS if {*u.tier.features, *u.tier.extras} <= cpu.features()]
    assert [r.unit for r in found.rates] == units
    assert all(1e8 < r.macs < 1e14 for r in found.rates) and all(1e8 < level.read < 1e13 for level in found.levels)
    assert [level.name for level in found.levels] == ["L1", "L2", "L3", "DRAM"]
    for features in (TIERS["avx2"].features, None):
        assert found.for_work("f32", features) is not None and found.for_work("int8", features) is not None
