"""The CPU tiers code is generated for, and the gate that keeps LLVM from meeting an instruction a tier lacks.

LLVM ends the whole process when it cannot select an intrinsic, so `require` raises before one is built.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from q8c.errors import CompileError

TRIPLE = "x86_64-unknown-linux-gnu"

_AVX2 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt")
_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

EXTRAS = {"avx512bf16": "avx512f", "avx512vbmi": "avx512f", "amx-bf16": "amx-tile"}
"""LLVM features a tier may carry on top of its own (`Tier.with_extras`), and what it needs of its own for each."""


@dataclass(frozen=True)
class Tier:
    """What one generated object may assume of the CPU.

    `features` are LLVM's names; `vector_bits` is the width kernels are scheduled for; `registers` how many
    vector registers there are; `fast_extras` what `fast` numerics add, which every CPU of the tier has; `approximate`
    whether float functions may err by what int8 around them hides (`fast`).
    """

    name: str
    cpu: str
    features: tuple[str, ...]
    vector_bits: int
    registers: int
    fast_extras: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    approximate: bool = False

    @property
    def lanes(self) -> int:
        """32-bit lanes of one vector register."""
        return self.vector_bits // 32

    @property
    def has_vnni(self) -> bool:
        """Whether `vpdpbusd` exists at `vector_bits`."""
        return self.has("avxvnni") or self.has("avx512vnni")

    @property
    def feature_string(self) -> str:
        """For LLVM's target machine. Wide vectors are wanted where they exist, hence `-prefer-256-bit`."""
        return ",".join([f"+{f}" for f in (*self.features, *self.extras)] + ["-prefer-256-bit"])

    def has(self, feature: str) -> bool:
        """Whether code of this tier may use an LLVM feature."""
        return feature in self.features or feature in self.extras

    def with_extras(self, *extras: str) -> Tier:
        """This tier with optional features on top; CompileError for one that is unknown or does not fit."""
        for extra in extras:
            if extra not in EXTRAS or not self.has(EXTRAS[extra]):
                known = ", ".join(f"{name} on {needs}" for name, needs in EXTRAS.items())
                raise CompileError(f"tier {self.name} cannot have the extra {extra!r}; extras are {known}")
        return replace(self, extras=tuple(sorted({*self.extras, *extras})))

    def fast(self) -> Tier:
        """This tier with `fast` numerics."""
        return replace(self.with_extras(*self.fast_extras), approximate=True)


TIERS: dict[str, Tier] = {
    t.name: t
    for t in (
        Tier("avx2", "x86-64-v3", _AVX2, 256, 16),
        Tier("avx-vnni", "x86-64-v3", (*_AVX2, "avxvnni"), 256, 16),
        Tier("avx512-vnni", "x86-64-v4", (*_AVX2, *_AVX512, "avx512vnni"), 512, 32),
        Tier("amx-int8", "x86-64-v4", (*_AVX2, *_AVX512, "avx512vnni", "amx-tile", "amx-int8"), 512, 32,
             fast_extras=("amx-bf16", "avx512bf16", "avx512vbmi")),
    )
}
"""Every tier by name, from the oldest CPUs to the newest."""


def tier(name: str) -> Tier:
    """The tier of that name, or CompileError that lists them."""
    if name not in TIERS:
        raise CompileError(f"unknown target {name!r}; targets are {', '.join(TIERS)}")
    return TIERS[name]


# One row per target intrinsic in use: any of the features makes it legal.
_INTRINSIC_FEATURES: dict[str, tuple[str, ...]] = {
    "llvm.x86.sse.sfence": ("avx2",),
    "llvm.x86.avx2.packssdw": ("avx2",),
    "llvm.x86.avx2.packsswb": ("avx2",),
    "llvm.x86.avx2.gather.d.ps.256": ("avx2",),
    "llvm.x86.avx2.permps": ("avx2",),
    "llvm.x86.avx2.pmadd.ub.sw": ("avx2",),
    "llvm.x86.avx2.pmadd.wd": ("avx2",),
    "llvm.x86.avx512.packssdw.512": ("avx512bw",),
    "llvm.x86.avx512.packsswb.512": ("avx512bw",),
    "llvm.x86.avx512.mask.reduce.ps.512": ("avx512dq",),
    "llvm.x86.avx512.mask.scalef.ps.512": ("avx512f",),
    "llvm.x86.avx512.mask.gather.dps.512": ("avx512f",),
    "llvm.x86.avx512.permvar.qi.512": ("avx512vbmi",),
    "llvm.x86.avx512.permvar.sf.512": ("avx512f",),
    "llvm.x86.avx512.vpdpbusd.256": ("avxvnni", "avx512vnni"),
    "llvm.x86.avx512.vpdpbusd.512": ("avx512vnni",),
    "llvm.x86.avx512.vpdpwssd.256": ("avxvnni", "avx512vnni"),
    "llvm.x86.avx512.vpdpwssd.512": ("avx512vnni",),
    "llvm.x86.ldtilecfg": ("amx-tile",),
    "llvm.x86.tilerelease": ("amx-tile",),
    "llvm.x86.tilezero": ("amx-tile",),
    "llvm.x86.tileloadd64": ("amx-tile",),
    "llvm.x86.tileloaddt164": ("amx-tile",),
    "llvm.x86.tilestored64": ("amx-tile",),
    "llvm.x86.tdpbsud": ("amx-int8",),
    "llvm.x86.tdpbf16ps": ("amx-bf16",),
    "llvm.x86.avx512bf16.dpbf16ps.512": ("avx512bf16",),
    "llvm.x86.avx512bf16.cvtneps2bf16.512": ("avx512bf16",),
    "llvm.x86.avx512bf16.cvtne2ps2bf16.512": ("avx512bf16",),
}


def require(tier: Tier, intrinsic: str) -> None:
    """Raise CompileError unless code of `tier` may call the target intrinsic `llvm.x86.*`."""
    features = _INTRINSIC_FEATURES.get(intrinsic)
    if features is None:
        raise CompileError(f"{intrinsic} is not in the table of target intrinsics; add it with the feature it needs")
    if not any(tier.has(f) for f in features):
        raise CompileError(f"{intrinsic} needs {' or '.join(features)}, which tier {tier.name} lacks")
