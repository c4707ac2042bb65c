"""A row: one target at one batch size and number of streams, its samples, and when it has enough of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.bench.capacity import Found
from resnet_onnx.bench.clock import Disturbance, Slice
from resnet_onnx.bench.plan import BenchPlan, Scenario
from resnet_onnx.bench.statistics import Interval, median_interval, samples_needed
from resnet_onnx.bench.worker import Opened
from resnet_onnx.results.bench import Breakdown, HarnessRecord, WarmUp
from runtimes.errors import ToolkitError
from runtimes.nvidia import Sensors
from runtimes.spec import LayerTime, Scope, Target

FEWEST_ROUNDS = 3
"""One round sees no drift; two can't distinguish it from noise."""

ENOUGH_SAMPLES = samples_needed(90)
"""A row goes on until p90 can be reported, where `duration` allows it."""

_SLICES_PER_ROW, _SLICE_S, _RUNS_PER_SLICE = 8, (0.05, 1.0), 3

_DISCARD_UP_TO_S = 0.25
"""The first run of a slice, which finds the caches full of another process's data, is discarded where runs are shorter.
Reading a network's weights anew takes some milliseconds: little against longer runs, and too few of those fit into a
row to throw one in three away."""


@dataclass(kw_only=True)
class Row:
    """One row while it is measured, and what came of it.

    Attributes:
        includes: What else it covers: ``decode``.
        requested: The scenario that was requested, or None.
        opened: What the runtime reports of itself, or None where it was never opened.
        cut_off: Why it was not measured although nothing went wrong, or "".
        harness: What another's harness reported of it, or None where it was measured by our own rules.
        capacity: What was found in the server scenario; its slice has latencies from arrival to answer.
        breakdown: Where the time of a run on a GPU goes, or None on the CPU, where a run is done when it was handed
            over.
    """

    target: Target
    batch: int
    streams: int
    scope: Scope
    includes: tuple[str, ...] = ()
    requested: Scenario | None = None
    opened: Opened | None = None
    warm_up: WarmUp | None = None
    slices: list[Slice] = field(default_factory=list)
    error: ToolkitError | None = None
    cut_off: str = ""
    harness: HarnessRecord | None = None
    breakdown: Breakdown | None = None
    layers: Sequence[LayerTime] | None = None
    unprofiled: str = ""
    capacity: Found | None = None

    def __str__(self) -> str:
        streams = f", {self.streams} streams" if self.streams > 1 else ""
        threads = self.target.options.threads
        cpu = "" if threads is None else f", {threads} thread{'' if threads == 1 else 's'}"
        return f"{self.target.runtime} batch {self.batch}{streams}{cpu}"

    @property
    def scenario(self) -> Scenario:
        """What a sample is."""
        return self.requested or ("latency" if self.streams == 1 else "throughput")

    @property
    def at_once(self) -> float:
        """Runs that are handed over together: 1, except in the offline scenario."""
        return self.warm_up.at_once if self.warm_up is not None else 1

    @property
    def expected_images_per_second(self) -> float | None:
        """What the warm-up promises, or None where there was none."""
        if self.warm_up is None:
            return None
        together = self.at_once if self.scenario == "offline" else self.streams
        return self.batch * together / self.warm_up.run_s

    @property
    def spent_s(self) -> float:
        """Measuring time so far."""
        return sum(part.spent_s for part in self.slices)

    @property
    def times_ns(self) -> NDArray[np.int64]:
        """All samples in order."""
        return np.concatenate([part.times_ns for part in self.slices]) if self.slices else np.empty(0, np.int64)

    @property
    def disturbance(self) -> Disturbance:
        """What the machine did beside, over all slices."""
        return sum((part.disturbance for part in self.slices), Disturbance())

    @property
    def sensors(self) -> list[Sensors]:
        """What the GPU reported after each slice; empty where none computed."""
        return [part.sensors for part in self.slices if part.sensors is not None]

    def seconds_per_run(self) -> Interval | None:
        """Returns what the images per second are computed from, or None without samples.

        With one stream that is the time of a run; with several, the time from one completed run to the next, one value
        a round: they share the machine, so that their single times do not show it. In the offline scenario it is the
        time of a whole set over its runs.
        """
        if not self.slices:
            return None
        if self.scenario == "offline":
            return median_interval(self.times_ns / 1e9 / self.at_once)
        if self.streams > 1:
            return median_interval(np.array([1 / part.runs_per_s for part in self.slices]))
        return median_interval(self.times_ns / 1e9)

    @property
    def discarded_runs(self) -> int:
        """Untimed runs at the start of each slice."""
        return 1 if self.warm_up is None or self.warm_up.run_s <= _DISCARD_UP_TO_S else 0

    def slice_seconds(self, plan: BenchPlan) -> float:
        """Returns how long the next slice may take: short, a few runs long, within what is left.

        Several streams give one value a slice, however many runs are in it: they need many slices, not long ones.
        """
        shortest, longest = _SLICE_S
        run_s = self.warm_up.run_s if self.warm_up else 0.0
        least = 0.0 if self.streams > 1 and self.scenario != "offline" else _RUNS_PER_SLICE * run_s
        wanted = max(min(max(plan.duration_s / _SLICES_PER_ROW, shortest), longest), least)
        # The last run may start just before the end.
        left = plan.duration_s - self.spent_s - run_s
        return wanted if left <= 0 and self.times_ns.size < plan.fewest_samples else max(0.0, min(wanted, left))

    def is_done(self, plan: BenchPlan) -> bool:
        """Returns whether the row failed, is precise enough, or has no time left for a further run."""
        if self.error is not None or not self.slices:
            return self.error is not None
        if self.times_ns.size < plan.fewest_samples and self.scenario != "offline":
            return False
        run_s = self.warm_up.run_s if self.warm_up else 0.0
        if self.spent_s + (self.discarded_runs + 1) * run_s >= plan.duration_s:
            return True
        # The times of whole sets are few, and no percentiles of anybody's waiting time.
        enough = 0 if self.scenario == "offline" else ENOUGH_SAMPLES
        if len(self.slices) < FEWEST_ROUNDS or self.times_ns.size < enough:
            return False
        interval = self.seconds_per_run()
        return interval is not None and interval.relative_half_width <= plan.precision_target
