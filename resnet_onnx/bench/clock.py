"""The clock: times single runs of prepared work, and watches what else the machine did meanwhile.

This is the only place where time is taken.
"""

from __future__ import annotations

import gc
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from time import perf_counter, perf_counter_ns, sleep

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.results.bench import Breakdown, WarmUp
from runtimes.base import Prepared
from runtimes.environment import clock_mhz
from runtimes.nvidia import Sensors

Nanoseconds = NDArray[np.int64]

WARM_WITHIN = 0.02
"""Warm-up ends when the median of the last window of runs is this close to the one before."""

ENQUEUE_BOUND = 0.8
"""Share of a run that handing its work over may take; beyond it the device has done most of it by the time it is all
there, so that a faster device would not help."""

WARM_GPU_S = 0.1
"""How long a GPU is kept busy before it is measured: its clock falls whenever it has nothing to do (an H200's to 345
of 1980 MHz) and takes so long to rise."""

CPUS = Path("/sys/devices/system/cpu")
"""Where Linux describes its cores."""

_AWAKE_S = 0.001

_WINDOW_S, _MOST_IN_WINDOW = 0.2, 200


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """What the machine did beside the timed runs.

    Attributes:
        others_cpu_s: CPU time that other processes used on the cores that this one may use.
        stolen_cpu_s: CPU time that the hypervisor gave to other virtual machines.
        involuntary_switches: How often a thread of this process was made to give up its core.
        throttled: How often heat made the processor lower its clock, over the watched cores.
        clocks_mhz: The processor's clock at the end, where the system reports it.
        paces_s: What a fixed piece of work took before and after each slice (``pace``).
    """

    wall_s: float = 0.0
    others_cpu_s: float = 0.0
    stolen_cpu_s: float = 0.0
    involuntary_switches: int = 0
    throttled: int = 0
    clocks_mhz: tuple[float, ...] = ()
    paces_s: tuple[float, ...] = ()
    cores: int = 1

    def __add__(self, other: Disturbance) -> Disturbance:
        sums = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)}
        return Disturbance(**{**sums, "cores": max(self.cores, other.cores)})

    @property
    def others_share(self) -> float:
        """CPU time of others as a fraction of what the watched cores have."""
        return max(0.0, self.others_cpu_s) / (self.wall_s * self.cores) if self.wall_s > 0 else 0.0

    @property
    def stolen_share(self) -> float:
        """Stolen time as a fraction of what the watched cores have."""
        return self.stolen_cpu_s / (self.wall_s * self.cores) if self.wall_s > 0 else 0.0

    @property
    def switches_per_s(self) -> float:
        """Involuntary context switches per second."""
        return self.involuntary_switches / self.wall_s if self.wall_s > 0 else 0.0


class Watch:
    """Reads the machine's CPU counters at its start and returns on ``stop`` what others did since.

    With `family` the processes that this one started are not others.
    """

    def __init__(self, *, family: bool = False) -> None:
        self._cores = _watched_cores()
        self._family = family
        self._start = self._read()

    def _read(self) -> tuple[float, float, float, float, int, int]:
        import psutil

        busy = stolen = 0.0
        for index, times in enumerate(psutil.cpu_times(percpu=True)):
            if self._cores is None or index in self._cores:
                # "guest" is contained in "user" (man 5 proc), and waiting for a disk leaves the core free.
                busy += sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
                stolen += getattr(times, "steal", 0.0)
        own = os.times()
        used = own.user + own.system + (_used_by_children(own) if self._family else 0.0)
        now = perf_counter(), busy, stolen, used
        return *now, _involuntary_switches(), _throttle_events(self._cores)

    def stop(self) -> Disturbance:
        """Returns what happened since the start."""
        now = self._read()
        wall, busy, stolen, own, switches, throttled = (b - a for a, b in zip(self._start, now, strict=True))
        return Disturbance(
            wall_s=wall,
            # May come out slightly negative: the kernel counts both in ticks. Sums over slices even that out.
            others_cpu_s=busy - own,
            stolen_cpu_s=stolen,
            involuntary_switches=int(switches),
            throttled=int(throttled),
            clocks_mhz=() if (clock := clock_mhz()) is None else (clock,),
            cores=len(self._cores) if self._cores is not None else os.cpu_count() or 1,
        )


def _watched_cores() -> frozenset[int] | None:
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _throttle_events(cores: frozenset[int] | None) -> int:
    """Returns how often heat throttled the cores since the start of the machine; 0 where the system does not count it.

    Linux counts it for Intel's processors (Documentation/ABI/testing/sysfs-devices-system-cpu, ``thermal_throttle``),
    on both threads of a core alike. A limit of power is not counted there.
    """
    events: dict[str, int] = {}
    for core in cores or ():
        try:
            count = int((CPUS / f"cpu{core}" / "thermal_throttle" / "core_throttle_count").read_text())
        except (OSError, ValueError):
            return 0  # a virtual machine, or another maker's processor
        try:
            threads = (CPUS / f"cpu{core}" / "topology" / "thread_siblings_list").read_text().strip()
        except OSError:
            threads = str(core)
        events[threads] = max(count, events.get(threads, 0))
    return sum(events.values())


def _used_by_children(own: os.times_result) -> float:
    """Returns the CPU time that the children of this process used so far, those that are gone included."""
    import psutil

    used = own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        used += times.user + times.system
    return float(used)


def _involuntary_switches() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The samples of one round of one row.

    Attributes:
        times_ns: Time of each run; with several streams those of all streams, one stream after the other. In the
            offline scenario, the time of each whole set of runs.
        runs_per_s: Runs that were completed per second, all streams together.
        spent_s: Wall time, discarded runs included.
        sensors: What the GPU reported right after the last run, or None where none computed.
        energy_j: What the processor's packages or the GPU used meanwhile, or None where they don't tell.
    """

    times_ns: Nanoseconds
    runs_per_s: float
    spent_s: float
    disturbance: Disturbance
    sensors: Sensors | None = None
    energy_j: float | None = None


def warm_up(prepared: Sequence[Prepared], *, limit_s: float) -> WarmUp:
    """Runs until the times stop falling: two windows of runs with medians within ``WARM_WITHIN``, or `limit_s`."""
    start = perf_counter()
    runs, window = 0, 1
    before = None
    while True:
        times = _concurrently(prepared, partial(_repeat, count=window))
        now = float(np.median(np.concatenate(times))) / 1e9
        runs += window * len(prepared)
        seconds = perf_counter() - start
        settled = before is not None and abs(now - before) <= WARM_WITHIN * before
        if settled or seconds >= limit_s:
            return WarmUp(runs=runs, seconds=seconds, settled=settled, run_s=now)
        before = now
        window = int(np.clip(_WINDOW_S / max(now, 1e-9), 1, _MOST_IN_WINDOW))


def sample(prepared: Sequence[Prepared], *, seconds: float, discard: int = 1, warm_s: float = 0.0) -> Slice:
    """Times single runs for about `seconds`, none of which starts later; each stream makes at least one.

    Streams run at the same time, each in its own thread. The first `discard` runs are untimed: another process's work
    has just been in the caches. So are those of the first `warm_s` seconds.
    """
    return _watched(partial(_streams, prepared, seconds=seconds, discard=discard, warm_s=warm_s))


def _streams(
    prepared: Sequence[Prepared], *, seconds: float, discard: int, warm_s: float = 0.0
) -> tuple[Nanoseconds, float]:
    """Returns the times of the runs of all streams, and how many were completed per second."""
    _warm(prepared, warm_s)
    deadline = perf_counter_ns() + int(seconds * 1e9)
    times = _concurrently(prepared, partial(_until, deadline_ns=deadline, discard=discard))
    # Each stream's own: they do not end at the same moment, and the rest of one must not count as idling.
    return np.concatenate(times), float(sum(t.size / t.sum() * 1e9 for t in times))


def _warm(prepared: Sequence[Prepared], seconds: float) -> None:
    """Keeps the device busy for so long."""
    if seconds > 0:
        deadline = perf_counter_ns() + int(seconds * 1e9)
        _concurrently(prepared, partial(_until, deadline_ns=deadline, discard=0))


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A short stretch of runs of one side of a pair.

    Attributes:
        run_s: Seconds from one completed run to the next, all streams together.
        spent_s: Wall time of the turn.
    """

    run_s: float
    spent_s: float


def turn(prepared: Sequence[Prepared], *, seconds: float, discard: int, warm_s: float = 0.0) -> Turn:
    """Times single runs for about `seconds`, none of which starts later; each stream makes at least one.

    The first `discard` runs are untimed, and those of the first `warm_s` seconds.
    """
    begin = perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        _, runs_per_s = _streams(prepared, seconds=seconds, discard=discard, warm_s=warm_s)
    finally:
        if collecting:
            gc.enable()
    return Turn(run_s=1 / runs_per_s, spent_s=perf_counter() - begin)


def sample_sets(prepared: Sequence[Prepared], *, runs: int, seconds: float, warm_s: float = 0.0) -> Slice:
    """Times whole sets of `runs` that are handed over at once, each until its last run is done; at least one set.

    Each stream takes the next run of the set when it has done one. No set starts after `seconds`, which begin when
    runs were made for `warm_s` seconds.
    """

    def sets() -> tuple[Nanoseconds, float]:
        _warm(prepared, warm_s)
        deadline = perf_counter_ns() + int(seconds * 1e9)
        times = []
        while True:
            start = perf_counter_ns()
            _concurrently(prepared, partial(_shared, tickets=itertools.count(), runs=runs))
            end = perf_counter_ns()
            times.append(end - start)
            if end >= deadline:
                return np.array(times, np.int64), runs * len(times) / (sum(times) / 1e9)

    return _watched(sets)


def breakdown(prepared: Prepared, *, runs: int = 20, warm_s: float = 0.0) -> Breakdown:
    """Takes single runs of prepared work apart, after others for `warm_s` seconds."""
    _warm([prepared], warm_s)
    enqueued, whole = np.empty(runs, np.int64), np.empty(runs, np.int64)
    for index in range(runs):
        start = perf_counter_ns()
        prepared.enqueue()
        handed_over = perf_counter_ns()
        prepared.synchronize()
        enqueued[index], whole[index] = handed_over - start, perf_counter_ns() - start
    found = [phases for _ in range(runs) if (phases := prepared.phases()) is not None]
    phases_ms = {name: 1e3 * float(np.median([one[name] for one in found])) for name in (found[0] if found else ())}
    run_ms = float(np.median(whole)) / 1e6
    enqueue_ms = float(np.median(enqueued)) / 1e6 if prepared.returns_early else None
    return Breakdown(
        run_ms=run_ms,
        enqueue_ms=enqueue_ms,
        copy_in_ms=phases_ms.get("copy_in"),
        compute_ms=phases_ms.get("compute"),
        copy_out_ms=phases_ms.get("copy_out"),
        # Where the device waits for the host, hardly any work is left when all is handed over.
        enqueue_bound=None if enqueue_ms is None else enqueue_ms >= ENQUEUE_BOUND * run_ms,
    )


def _watched(work: Callable[[], tuple[Nanoseconds, float]]) -> Slice:
    """Does `work`, which returns times and runs per second, without garbage collection; notes what others did."""
    begin = perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        before = pace()
        watch = Watch()
        times_ns, runs_per_s = work()
        seen = watch.stop()
        return Slice(
            times_ns=times_ns,
            runs_per_s=runs_per_s,
            spent_s=perf_counter() - begin,
            disturbance=replace(seen, paces_s=(before, pace())),
        )
    finally:
        if collecting:
            gc.enable()


_PACE_SIDE, _PACE_PRODUCTS, _PACE_TRIES = 64, 40, 3
"""Products that BLAS computes on the calling thread, some 0.2 ms of them."""


def pace() -> float:
    """Returns the seconds that a fixed piece of arithmetic takes just now, the least of a few tries.

    What slows a virtual machine may be in none of its own counters: another one on the second thread of the same core
    has been seen to slow the same work by 40 % for seconds, without any steal time.
    """
    matrix = np.ones((_PACE_SIDE, _PACE_SIDE), np.float32)
    product = np.empty_like(matrix)
    least = float("inf")
    for _ in range(_PACE_TRIES):
        start = perf_counter()
        for _ in range(_PACE_PRODUCTS):
            np.matmul(matrix, matrix, out=product)
        least = min(least, perf_counter() - start)
    return least


def _shared(prepared: Prepared, tickets: Iterator[int], runs: int) -> Nanoseconds:
    # next() of a count is one step of the interpreter, so that no two streams draw the same ticket.
    while next(tickets) < runs:
        prepared.enqueue()
        prepared.synchronize()
    return np.empty(0, np.int64)


def _until(prepared: Prepared, deadline_ns: int, discard: int) -> Nanoseconds:
    enqueue, synchronize, clock = prepared.enqueue, prepared.synchronize, perf_counter_ns
    times: list[int] = []
    for _ in range(discard):
        enqueue()
        synchronize()
    while True:
        start = clock()
        enqueue()
        synchronize()
        end = clock()
        times.append(end - start)
        if end >= deadline_ns:
            return np.array(times, np.int64)


def _repeat(prepared: Prepared, count: int) -> Nanoseconds:
    enqueue, synchronize, clock = prepared.enqueue, prepared.synchronize, perf_counter_ns
    times = np.empty(count, np.int64)
    for index in range(count):
        start = clock()
        enqueue()
        synchronize()
        times[index] = clock() - start
    return times


_LANES: weakref.WeakKeyDictionary[Prepared, ThreadPoolExecutor] = weakref.WeakKeyDictionary()
"""The thread of each stream, kept for its life: libraries plan, cache and start threads of their own for each thread
that calls them (cuDNN's plans in torch, OpenMP's teams), and what a new one pays must not be timed."""


def _concurrently(prepared: Sequence[Prepared], work: Callable[[Prepared], Nanoseconds]) -> list[Nanoseconds]:
    """Does `work` on each, at the same time where there are several; an error of any is raised."""
    if len(prepared) == 1:
        return [work(prepared[0])]
    gate = threading.Barrier(len(prepared))

    def run(one: Prepared) -> Nanoseconds:
        gate.wait()
        return work(one)

    lanes = [_LANES.get(one) or _LANES.setdefault(one, ThreadPoolExecutor(1)) for one in prepared]
    runs = [lane.submit(run, one) for lane, one in zip(lanes, prepared, strict=True)]
    wait(runs)
    return [found.result() for found in runs]


class RealTime:
    """The time that a server lives in (``serving.ServerClock``)."""

    def now(self) -> float:
        """Seconds since some moment."""
        return perf_counter()

    def wait_until(self, moment: float) -> None:
        """Returns at a moment: sleeps, and looks at the clock for the last millisecond, which a sleep would miss."""
        left = moment - perf_counter()
        if left > _AWAKE_S:
            sleep(left - _AWAKE_S)
        while perf_counter() < moment:
            pass


class Stopwatch:
    """Wall time in seconds, for what is watched while it runs and not measured by repetition: a training's steps."""

    def __init__(self) -> None:
        self._start = perf_counter()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return perf_counter() - self._start
