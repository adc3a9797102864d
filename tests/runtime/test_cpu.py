"""Tier choice, feature names, core counts and cgroup limits, on made-up machines."""
from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from q8c.errors import ArtifactError
from q8c.runtime import cgroup, cpu

V3, V4, AMX = (frozenset(cpu.TIERS[name]) for name in ("avx2", "avx512-vnni", "amx-int8"))
ALL: dict[str, tuple[str, ...]] = dict.fromkeys(cpu.TIERS, ())


def test_the_fastest_tier_the_cpu_has_is_picked() -> None:
    assert cpu.pick(ALL, available=AMX) == "amx-int8"
    assert cpu.pick(ALL, available=V4) == cpu.pick(ALL, available=AMX - {"amx-tile"}) == "avx512-vnni"
    assert cpu.pick(ALL, available=V4 - {"avx512bw"}) == "avx2"
    assert cpu.pick(ALL, available=V3 | {"avxvnni"}) == "avx-vnni"
    assert cpu.pick(ALL, wanted="avx2", available=V4) == "avx2"
    assert cpu.pick({"avx2": (), "avx512-vnni": ("avx512bf16",)}, available=V4) == "avx2"


def test_a_cpu_without_any_tier_is_told_what_it_lacks_and_what_to_do() -> None:
    with pytest.raises(ArtifactError, match="avx512-vnni needs avx512vnni.*compile the model for avx2"):
        cpu.pick({"avx512-vnni": ()}, available=V4 - {"avx512vnni"})
    with pytest.raises(ArtifactError, match="avx2 needs avx2.*run it on a CPU with AVX2"):
        cpu.pick(ALL, available=V3 - {"avx2"})
    with pytest.raises(ArtifactError, match="no code for tier 'avx-vnni'; it has avx2"):
        cpu.pick({"avx2": ()}, wanted="avx-vnni", available=V4)
    with pytest.raises(ArtifactError, match="avx-vnni needs avxvnni"):
        cpu.pick(ALL, wanted="avx-vnni", available=V4)


def test_features_are_the_first_cpus_in_llvms_names(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: avx2 avx512_vnni avx_vnni abm bmi1 sse4_2 lahf_lm avx512_bf16\n"
                    "processor\t: 1\nflags\t\t: amx_tile\n")
    assert cpu.features(str(info)) == {
        "avx2", "avx512vnni", "avxvnni", "lzcnt", "bmi", "sse4.2", "sahf", "avx512bf16"}
    assert cpu.features(str(tmp_path / "none")) == frozenset()


@pytest.mark.parametrize("granted", [True, False])
def test_tile_registers_are_there_only_if_the_system_grants_them(
        granted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "_may_use_tiles", lambda: granted)
    info = tmp_path / "cpuinfo"
    info.write_text("flags\t\t: avx2 avx512_vnni amx_tile amx_int8 amx_bf16\n")
    tiles = {"amx-tile", "amx-int8", "amx-bf16"} if granted else set()
    assert cpu.features(str(info)) == {"avx2", "avx512vnni"} | tiles


def test_who_has_no_tile_registers_does_not_ask_for_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ask() -> bool:
        raise AssertionError("asked")
    monkeypatch.setattr(cpu, "_may_use_tiles", ask)
    (tmp_path / "cpuinfo").write_text("flags\t\t: avx2 avx512_vnni\n")
    assert cpu.features(str(tmp_path / "cpuinfo")) == {"avx2", "avx512vnni"}


def test_this_machine() -> None:
    cpu.require_platform()
    assert {"sse2", "cx16"} <= cpu.features()
    assert 1 <= cpu.count() <= len(os.sched_getaffinity(0))


def test_affinity_and_quota_limit_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4, 5})
    monkeypatch.setattr(cpu, "_smt_active", lambda: False)
    for quota, expected in ((None, 6), (4.0, 4), (2.5, 2), (0.5, 1), (64.0, 6)):
        monkeypatch.setattr(cgroup, "cpu_quota", lambda quota=quota: quota)
        assert cpu.count() == expected
    monkeypatch.setattr(cpu, "_smt_active", lambda: True)
    monkeypatch.setattr(cpu, "_core", lambda c: str(c // 2))
    assert cpu.count() == 3


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64")])
def test_other_platforms_get_one_clear_error(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(ArtifactError, match=f"Linux on 64-bit x86 only, this is {system} on {machine}"):
        cpu.require_platform()


class Machine:
    """A fake /proc/self and cgroup trees below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        self.proc.mkdir()
        self.mounts: list[str] = []
        self.groups: list[str] = []

    def mount(self, name: str, kind: str, options: str, part: str = "/") -> None:
        self.mounts.append(f"31 23 0:28 {part} {self.root / name} rw shared:1 - {kind} {kind} rw,{options}")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def done(self) -> str:
        (self.proc / "cgroup").write_text("".join(f"{g}\n" for g in self.groups))
        (self.proc / "mountinfo").write_text("".join(f"{m}\n" for m in self.mounts))
        return str(self.proc)


def test_quota_of_version_2_is_the_tightest_up_the_tree(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.mount("cg", "cgroup2", "nsdelegate")
    machine.groups.append("0::/pod/app")
    machine.write("cg/pod/app/cpu.max", "max 100000\n")
    machine.write("cg/pod/cpu.max", "350000 100000\n")
    assert cgroup.cpu_quota(machine.done()) == 3.5
    machine.write("cg/pod/app/cpu.max", "50000 100000\n")
    assert cgroup.cpu_quota(machine.done()) == 0.5


def test_quota_of_version_1(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.mount("cpu", "cgroup", "cpu,cpuacct", part="/docker/1")
    machine.groups += ["4:memory:/docker/1", "3:cpu,cpuacct:/docker/1/inner"]
    machine.write("cpu/inner/cpu.cfs_quota_us", "-1\n")
    machine.write("cpu/inner/cpu.cfs_period_us", "100000\n")
    machine.write("cpu/cpu.cfs_quota_us", "200000\n")
    machine.write("cpu/cpu.cfs_period_us", "100000\n")
    assert cgroup.cpu_quota(machine.done()) == 2.0


def test_a_group_outside_of_the_mount_counts_as_the_mount(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.mount("cg", "cgroup2", "rw", part="/kubepods/pod1")
    machine.groups.append("0::/../../other")
    machine.write("cg/cpu.max", "100000 100000\n")
    assert cgroup.cpu_quota(machine.done()) == 1.0


def test_no_cgroups_no_limit(tmp_path: Path) -> None:
    assert cgroup.cpu_quota(str(tmp_path)) is None
    assert cgroup.available_memory(str(tmp_path), str(tmp_path / "none")) is None


def test_memory_left_counts_file_cache_as_free(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.mount("cg", "cgroup2", "rw")
    machine.mount("mem", "cgroup", "memory")
    machine.groups += ["0::/a", "5:memory:/b"]
    machine.write("meminfo", "MemTotal: 999 kB\nMemAvailable:    1000 kB\n")
    assert cgroup.available_memory(machine.done(), str(tmp_path / "meminfo")) == 1024000
    machine.write("cg/a/memory.max", "500000\n")
    machine.write("cg/a/memory.current", "400000\n")
    machine.write("cg/a/memory.stat", "anon 1\ninactive_file 30000\n")
    assert cgroup.available_memory(machine.done(), str(tmp_path / "meminfo")) == 130000
    machine.write("mem/b/memory.limit_in_bytes", "9223372036854771712\n")
    machine.write("mem/b/memory.usage_in_bytes", "1\n")
    machine.write("mem/memory.limit_in_bytes", "90000\n")
    machine.write("mem/memory.usage_in_bytes", "95000\n")
    machine.write("mem/memory.stat", "inactive_file 1\ntotal_inactive_file 20000\n")
    assert cgroup.available_memory(machine.done(), str(tmp_path / "meminfo")) == 15000
