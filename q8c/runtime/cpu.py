"""What this machine can execute, and how many cores this process may use."""
from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Mapping

from q8c.errors import ArtifactError
from q8c.runtime import cgroup

_V3 = ("avx", "avx2", "bmi", "bmi2", "cx16", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sahf", "sse4.1", "sse4.2",
       "ssse3", "xsave")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

TIERS: dict[str, tuple[str, ...]] = {
    "amx-int8": (*_V4, "avx512vnni", "avx512vbmi", "avx512bf16", "amx-tile", "amx-int8", "amx-bf16"),
    "avx512-vnni": (*_V4, "avx512vnni"),
    "avx-vnni": (*_V3, "avxvnni"),
    "avx2": _V3,
}
"""Every tier, fastest first, and the CPU features (LLVM's names) its code may use without asking."""

# Linux's names where taking out "_" does not give LLVM's.
_LLVM_NAMES = {"abm": "lzcnt", "bmi1": "bmi", "lahf_lm": "sahf", "pni": "sse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2",
               "sha_ni": "sha", "amx_tile": "amx-tile", "amx_int8": "amx-int8", "amx_bf16": "amx-bf16",
               "pclmulqdq": "pclmul", "rdrand": "rdrnd"}
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18
_AMX = frozenset({"amx-tile", "amx-int8", "amx-bf16"})
_FIRST_CPU = 16384  # enough of /proc/cpuinfo for its first CPU; reading all of it is slow on large machines


def require_platform() -> None:
    """Raise ArtifactError unless this is Linux on x86-64."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "AMD64") or sys.maxsize < 2**32:
        raise ArtifactError(f"compiled models run on Linux on 64-bit x86 only, this is {sys.platform} on "
                            f"{platform.machine()}; run it on such a machine or in a container there")


def features(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str]:
    """Features of this CPU that the system lets programs use, in LLVM's names.

    Linux lists a vector extension only when it has enabled the register state it needs (XCR0), so no further test is
    due; but for AMX, whose state is large, a process must also ask. That is done here, and AMX left out if the system
    refuses. Empty where the file has no flags.
    """
    try:
        with open(cpuinfo, "rb") as file:
            text = file.read(_FIRST_CPU).decode("ascii", "replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            found = frozenset(_LLVM_NAMES.get(flag, flag.replace("_", "")) for flag in value.split())
            return found if "amx-tile" not in found or _may_use_tiles() else found - _AMX
    return frozenset()


@functools.cache
def _may_use_tiles() -> bool:
    """Whether the system gives this process (all its threads, and its forks) AMX's tile registers, asked once.

    It refuses where a thread has an alternate signal stack too small for them, or seccomp forbids the question.
    """
    libc = ctypes.CDLL(None)
    arguments = (ctypes.c_long(n) for n in (_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA))
    return int(libc.syscall(*arguments)) == 0


def pick(images: Mapping[str, tuple[str, ...]], wanted: str | None = None,
         available: frozenset[str] | None = None) -> str:
    """The fastest tier among `images` (tier to features its code uses beyond the tier's) that this CPU can execute.

    `wanted` forces one. Raises ArtifactError that says which tiers there are and what this CPU lacks for them.
    """
    if available is None:
        available = features()
    listed = [tier for tier in TIERS if tier in images]
    if wanted is not None and wanted not in listed:
        raise ArtifactError(f"the file has no code for tier {wanted!r}; it has {', '.join(listed) or 'none'}: "
                            "compile the model with that target")
    lacking = {tier: sorted({*TIERS[tier], *images[tier]} - available) for tier in listed}
    for tier in [wanted] if wanted is not None else listed:
        if not lacking[tier]:
            return tier
    reasons = "; ".join(f"{tier} needs {', '.join(lacking[tier])}" for tier in listed if wanted in (None, tier))
    able = [tier for tier, needs in TIERS.items() if available.issuperset(needs)]
    advice = f"compile the model for {able[0]}" if able else "run it on a CPU with AVX2"
    raise ArtifactError(f"this CPU cannot execute the file's code ({reasons or 'the file has none'}): {advice}")


def count() -> int:
    """Cores this process may use at once: its affinity, two hardware threads of a core counted once, and no more than
    the CPU quota of its cgroups allows (whole cores, at least one)."""
    allowed = os.sched_getaffinity(0)
    cores = len({_core(cpu) for cpu in allowed}) if _smt_active() else len(allowed)
    quota = cgroup.cpu_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def _smt_active() -> bool:
    try:
        with open("/sys/devices/system/cpu/smt/active") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def _core(cpu: int) -> str:
    """A name shared by the hardware threads of one core."""
    try:
        with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
            return file.read()
    except OSError:
        return f"cpu {cpu}"
