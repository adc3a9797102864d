"""What this machine can do at most: multiply-adds of each unit and reads of each cache, measured by generated code."""
from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from q8c.codegen import probes
from q8c.codegen.probes import Unit
from q8c.codegen.targets import TIERS
from q8c.errors import Error
from q8c.ir.dims import evaluate
from q8c.ir.graph import Graph
from q8c.ir.work import total_work
from q8c.runtime import cpu
from q8c.runtime.cgroup import available_memory
from q8c.runtime.code import make_executable
from q8c.runtime.memory import address_of_map, anonymous

_SLICE = 2e-3   # seconds of one timed call: long beside its overhead, short beside a scheduler's turn
_SLICES = 12
_LINE = 1024    # the reader works in pieces of this size
_DRAM = 256 << 20  # the largest buffer: first use of memory costs some virtual machines 5 s a gigabyte
_TYPICAL = {"L1": 32 << 10, "L2": 1 << 20, "L3": 16 << 20}  # where the system does not tell
_PROBE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True)
class Rate:
    """What one unit can do: multiply-adds a second, over all threads. `features`: any of them is enough to have it."""

    unit: str
    kind: str
    features: tuple[str, ...]
    macs: float


@dataclass(frozen=True)
class Level:
    """One level of the memory: its size in bytes (`shared` by all threads or each thread's own; 0: no end), and bytes
    read a second over all threads."""

    name: str
    size: int
    shared: bool
    read: float


@dataclass(frozen=True)
class Ceilings:
    """What `threads` threads can do at once. A share of these is what kernels and models are measured by."""

    threads: int
    rates: tuple[Rate, ...]
    levels: tuple[Level, ...]

    def best(self, kinds: Collection[str], features: Collection[str] | None = None) -> Rate | None:
        """The fastest unit for one of these kinds of operands; if told, one that code with these features may use."""
        able = [r for r in self.rates if r.kind in kinds and (features is None or set(r.features) & set(features))]
        return max(able, key=lambda r: r.macs, default=None)

    def for_work(self, kind: str, features: Collection[str] | None = None) -> Rate | None:
        """The fastest unit for the products of a node (`Work.kind`): attention may use bf16, float weights are fp32."""
        return self.best({"int8": {"int8"}, "attention": {"bf16", "f32"}}.get(kind, {"f32"}), features)

    def capacity(self, level: Level) -> float:
        """The bytes a level holds for all threads together."""
        return level.size * (1 if level.shared else self.threads) or float("inf")

    def level(self, nbytes: float) -> Level:
        """The smallest level that holds so many bytes."""
        return next(level for level in self.levels if nbytes <= self.capacity(level))

    def read_seconds(self, nbytes: float) -> float:
        """The least time to read so many bytes once more, as many as it holds from each level but the rest."""
        seconds = held = 0.0
        for level in self.levels:
            part = min(nbytes, self.capacity(level)) - held
            if part > 0:
                seconds, held = seconds + part / level.read, held + part
        return seconds

    def seconds(self, kind: str, macs: float, nbytes: float, features: Collection[str] | None = None) -> float:
        """The least time for a node's work: its products or its bytes, whichever takes longer."""
        rate = self.for_work(kind, features) if macs else None
        return max(macs / rate.macs if rate else 0.0, self.read_seconds(nbytes))

    @staticmethod
    def from_json(value: dict[str, Any]) -> Ceilings:
        """What `to_json` gave."""
        rates = tuple(Rate(r["unit"], r["kind"], tuple(r["features"]), r["macs"]) for r in value["rates"])
        return Ceilings(value["threads"], rates, tuple(Level(**level) for level in value["levels"]))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"threads": self.threads, "rates": [asdict(r) for r in self.rates],
                "levels": [asdict(level) for level in self.levels]}


@dataclass(frozen=True)
class Floor:
    """The least time a model can take, in seconds: its weight products on the int8 unit and its attention on the float
    unit, or reading its weights once, whichever is longer; with the units it counts on."""

    seconds: float
    compute: float
    memory: float
    int8: str
    attention: str
    level: str


def floor_of(graph: Graph, sizes: dict[str, int], ceilings: Ceilings,
             features: Collection[str] | None = None) -> Floor | None:
    """The floor of a model for these sizes, on the best units of the CPU or those that `features` allow; None where
    there is no such unit. Weights count one byte an element."""
    total = total_work(graph)
    macs, attention, weights = (evaluate(d, sizes) for d in (total.weight_macs, total.attention_macs,
                                                             total.weight_bytes))
    int8, other = ceilings.for_work("int8", features), ceilings.for_work("attention", features)
    if int8 is None or other is None:
        return None
    compute, memory = macs / int8.macs + attention / other.macs, ceilings.read_seconds(weights)
    return Floor(max(compute, memory), compute, memory, int8.unit, other.unit, ceilings.level(weights).name)


def tier_features(tier: str, extras: Sequence[str] = ()) -> frozenset[str]:
    """The features code of a tier and its extras may use."""
    return frozenset({*TIERS[tier].features, *extras})


@cache
def measure(threads: int = 1) -> Ceilings:
    """Measure every unit and memory of this CPU with so many threads at once, each on a core of its own; takes about
    a tenth of a second for each. The first answer is kept. Raises Error where there are fewer cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    if len(cores) < threads:
        raise Error(f"{threads} threads are to be measured and this process may use {len(cores)} cores")
    rates = [_rate(unit, cores) for unit in probes.UNITS if _has(unit)]
    return Ceilings(threads, tuple(rates), tuple(_levels(cores)))


def _has(unit: Unit) -> bool:
    """Whether this CPU can run the unit's probe."""
    return {*unit.tier.features, *unit.tier.extras} <= cpu.features()


def _rate(unit: Unit, cores: Sequence[int]) -> Rate:
    probe = _Probe(unit.code())
    rate = sum(_together(cores, lambda: probe.rate(probes.BUFFER, 0)))
    return Rate(unit.name, unit.kind, unit.features, rate * unit.macs)


def _levels(cores: Sequence[int]) -> list[Level]:
    """Read bandwidth of the caches, in buffers that fit them well, and of a buffer that fits none."""
    probe = _Probe(_reader())
    sizes = cache_sizes()
    buffers = {"L1": sizes["L1"] // 2, "L2": sizes["L2"] // 2,
               "L3": min(16 * sizes["L2"], sizes["L3"] // (2 * len(cores)))}
    found = [Level(name, sizes[name], name == "L3", _read(probe, size, cores)) for name, size in buffers.items()]
    left = available_memory() or 4 * _DRAM
    size = min(max(2 * sizes["L3"], 64 << 20), _DRAM, left // 4) // len(cores)
    return [*found, Level("DRAM", 0, True, _read(probe, size, cores))]


def _reader() -> bytes:
    """The reader's code for the best tier this CPU has."""
    return probes.reader(next(t for t in reversed(TIERS.values()) if cpu.features().issuperset(t.features)))


def _read(probe: _Probe, size: int, cores: Sequence[int]) -> float:
    size = size // _LINE * _LINE
    return size * sum(_together(cores, lambda: probe.rate(size, size)))


def cache_sizes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """Bytes of the data caches L1, L2, L3 as Linux tells them; a guess where it does not."""
    found = dict(_TYPICAL)
    for index in folder.glob("index*"):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction":
                found[f"L{level}"] = int(size.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[-1]]
        except (OSError, ValueError, KeyError):
            continue
    return found


class Reader:
    """Reads `size` bytes of memory from end to end whenever it is called, a part in each of so many threads: what is
    streamed once a run, as a model's weights are, can be had no faster. `size` is that in whole pieces."""

    def __init__(self, size: int, threads: int = 1) -> None:
        self._probe = _Probe(_reader())
        self._part = max(size // (threads * _LINE), 1) * _LINE
        self.size = self._part * threads
        self._buffer = _written(self.size)
        first = address_of_map(self._buffer)
        self._others = [first + self._part * i for i in range(1, threads)]
        self._first = first
        self._pool = ThreadPoolExecutor(max(len(self._others), 1))

    def __call__(self) -> None:
        waiting = [self._pool.submit(self._read, address) for address in self._others]
        self._read(self._first)
        for other in waiting:
            other.result()

    def _read(self, address: int) -> None:
        self._probe.seconds(address, 1, self._part)


class _Probe:
    """Machine code of a probe in executable memory."""

    def __init__(self, code: bytes) -> None:
        self._memory = anonymous(len(code))
        self._memory[:len(code)] = code
        address = address_of_map(self._memory)
        make_executable(address, len(self._memory))
        self._call = _PROBE(address)

    def rate(self, size: int, argument: int) -> float:
        """Passes a second on a buffer of its own: the best of some slices."""
        buffer = _written(size)
        address = address_of_map(buffer)
        count = 1
        # The least of three: one that lost its core for a while would end the search far too early.
        while (seconds := min(self.seconds(address, count, argument) for _ in range(3))) < _SLICE / 2:
            count *= 4
        slices = _SLICES if seconds < 4 * _SLICE else 1
        return count / min(seconds, *(self.seconds(address, count, argument) for _ in range(slices)))

    def seconds(self, address: int, count: int, argument: int) -> float:
        """The time of so many passes on a buffer."""
        start = time.perf_counter()
        self._call(address, count, argument)
        return time.perf_counter() - start


def _written(size: int) -> mmap.mmap:
    """Memory that was written: pages that never were are all one page of zeros, which the first cache holds."""
    buffer = anonymous(size)
    ctypes.memset(address_of_map(buffer), 0, size)
    return buffer


def _together(cores: Sequence[int], call: Callable[[], float]) -> list[float]:
    """What the call gives in threads on these cores that start at once."""
    results = [0.0] * len(cores)
    ready = threading.Barrier(len(cores))

    def work(index: int) -> None:
        os.sched_setaffinity(0, {cores[index]})  # of this thread alone
        ready.wait()
        results[index] = call()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(cores))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results
