"""Limits that control groups (containers, systemd units, job schedulers) put on this process, versions 1 and 2."""
from __future__ import annotations

import os
from collections.abc import Iterator

_UNLIMITED = 1 << 60  # version 1 writes "no limit" as some number near 2**63


def cpu_quota(proc: str = "/proc/self") -> float | None:
    """CPUs' worth of time this process may use, or None where nothing limits it."""
    limits = []
    for folder, version in _groups("cpu", proc):
        if version == 2:
            quota, period = (*_read(f"{folder}/cpu.max").split(), "", "")[:2]
        else:
            quota, period = _read(f"{folder}/cpu.cfs_quota_us").strip(), _read(f"{folder}/cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def available_memory(proc: str = "/proc/self", meminfo: str = "/proc/meminfo") -> int | None:
    """Bytes this process can still use before the system or its cgroup starts to kill, or None if nobody says.

    File cache counts as available, as it is given back under pressure.
    """
    limits = []
    for line in _read(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    for folder, version in _groups("memory", proc):
        limit, usage = ("memory.max", "memory.current") if version == 2 else (
            "memory.limit_in_bytes", "memory.usage_in_bytes")
        most, used = _read(f"{folder}/{limit}").strip(), _read(f"{folder}/{usage}").strip()
        if most.isdigit() and used.isdigit() and int(most) < _UNLIMITED:
            limits.append(max(0, int(most) - int(used) + _file_cache(folder)))
    return min(limits, default=None)


def _groups(controller: str, proc: str) -> Iterator[tuple[str, int]]:
    """Folders of the process's group for a controller and of its parents, each with its cgroup version."""
    paths: dict[int, str] = {}
    for line in _read(f"{proc}/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(","):
            paths[1] = path
        elif not controllers:
            paths[2] = path
    for line in _read(f"{proc}/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(" "), tail.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        version = 2 if kind[0] == "cgroup2" else 1 if kind[0] == "cgroup" and controller in kind[2].split(",") else 0
        if version in paths:
            yield from ((folder, version) for folder in _ancestors(paths[version], fields[3], fields[4]))


def _ancestors(path: str, root: str, mount: str) -> Iterator[str]:
    """Folders under a mount point from the group at `path` up to the mount; only the mount if the group lies outside
    the part of the tree that is mounted (as in a container)."""
    relative = os.path.relpath(path, root) if path.startswith("/") else ".."
    if relative.startswith(".."):
        relative = "."
    folder = os.path.normpath(os.path.join(mount, relative))
    while folder.startswith(mount) and len(folder) >= len(mount):
        yield folder
        folder = os.path.dirname(folder)
        if folder == "/":
            return


def _file_cache(folder: str) -> int:
    pairs = (line.split(" ") for line in _read(f"{folder}/memory.stat").splitlines())
    return max((int(pair[1]) for pair in pairs
                if pair[0] in ("inactive_file", "total_inactive_file") and len(pair) == 2 and pair[1].isdigit()),
               default=0)


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
