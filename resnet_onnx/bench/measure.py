"""Measures rows in interleaved rounds, each runtime in a process of its own.

A row is one runtime at one batch size and number of streams. Rows take turns in short slices, in another order each
round, so that a drift of clocks or of neighbours hits all of them alike.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.bench.child import Opened
from resnet_onnx.bench.clock import Disturbance, Slice, Split, WarmUp
from resnet_onnx.bench.processes import Child, ChildDied
from resnet_onnx.bench.statistics import Interval, median_interval, samples_needed
from resnet_onnx.bench.supply import Supply
from runtimes.base import usable_cores
from runtimes.errors import ToolkitError, UsageError
from runtimes.nvidia import Sensors
from runtimes.registry import adapter
from runtimes.spec import Feeds, LayerTime, ModelSource, RuntimeOptions, Scope

Scenario = Literal["latency", "throughput", "offline"]
"""One run at a time; several beside each other; or all samples handed over at once, timed until the last is done."""

Progress = Callable[[str], None]

PRECISION_TARGET = 0.01
FEWEST_ROUNDS = 3
"""One round sees no drift; two can't tell it from noise."""

ENOUGH_SAMPLES = samples_needed(90)
"""A row goes on until p90 can be reported, where `duration` allows it."""

_PROFILE_S, _FEWEST_PROFILED, _MOST_PROFILED = 1.0, 3, 50
_SLICES_PER_ROW, _SLICE_S, _RUNS_PER_SLICE = 8, (0.05, 1.0), 3
LONGEST_WARM_UP_S = 5.0

_DISCARD_UP_TO_S = 0.25
"""The first run of a slice, which finds the caches full of another process's data, is discarded where runs are shorter.
Reading a network's weights anew takes some milliseconds: little against longer runs, and too few of those fit into a
row to throw one in three away."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model on a runtime, to be opened in a process of its own.

    Attributes:
        runtime: Its name.
        source: The model.
        device: Where, or None for the runtime's default.
        options: Threads and precision switches.
    """

    runtime: str
    source: ModelSource
    device: str | None = None
    options: RuntimeOptions = field(default_factory=RuntimeOptions)

    @property
    def opening(self) -> dict[str, Any]:
        """What a child process is told to open it."""
        return {"runtime": self.runtime, "source": self.source, "device": self.device, "options": self.options}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, and for how long.

    Attributes:
        batches: Batch sizes.
        streams: Numbers of concurrent runs; None is as many as each runtime does best with.
        threads: Numbers of CPU threads over all streams together; None is all usable cores.
        duration_s: Measuring time of a row at most, its warm-up excluded.
        scope: ``device`` or ``end-to-end``.
        supply: What makes the feeds of each run, which is then timed too, or None; its scope is ``end-to-end``.
        scenario: What a sample is; None: ``latency`` with one stream, ``throughput`` with several.
        cut_off: The least growth of throughput, as a fraction, with which the next larger batch is still measured;
            None measures all.
        profile: Whether each row of one run at a time is profiled by layer after it was measured.
        precision_target: Half-width of the 95 % interval of the median, as a fraction of it, at which a row is done.
        seed: Of the order in which rows take turns.
    """

    batches: tuple[int, ...] = (1, 8)
    streams: tuple[int | None, ...] = (1,)
    threads: tuple[int | None, ...] = (None,)
    duration_s: float = 5.0
    scope: Scope = "device"
    supply: Supply | None = None
    scenario: Scenario | None = None
    cut_off: float | None = None
    profile: bool = False
    precision_target: float = PRECISION_TARGET
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("batch", self.batches), ("streams", self.streams), ("threads", self.threads)):
            if not values or any(value is not None and value < 1 for value in values):
                raise UsageError(f"{name} must be at least 1, not {', '.join(map(str, values)) or 'nothing'}")
        if self.supply is not None and self.scope != "end-to-end":
            raise UsageError(
                f"{' and '.join(self.supply.includes)} begins in host memory, and scope {self.scope} was asked for",
                fix="use the scope end-to-end",
            )
        if not 0 < self.duration_s < math.inf:
            raise UsageError(f"duration must be a number of seconds above 0, not {self.duration_s}")


@dataclass(kw_only=True)
class Row:
    """One row while it is measured, and what came of it.

    Attributes:
        contender: Which model on which runtime, with its streams and threads among the options.
        batch: Batch size.
        streams: Concurrent runs.
        scope: What a run covers.
        includes: What else it covers: ``decode``.
        asked: The scenario that was asked for, or None.
        opened: What the runtime says of itself, or None where it was never opened.
        warm_up: How the warm-up went, or None.
        slices: The samples, a slice per round.
        error: Why the row could not be measured to its end, or None.
        cut_off: Why it was not measured although nothing went wrong, or "".
        harness: What another's harness said of it, or None where it was measured by our own rules.
        split: Where the time of a run on a GPU goes, or None on the CPU, where a run is done when it was handed over.
        layers: Times by the runtime's own profiler, or None where it was not profiled.
        unprofiled: Why it could not be profiled, or "".
    """

    contender: Contender
    batch: int
    streams: int
    scope: Scope
    includes: tuple[str, ...] = ()
    asked: Scenario | None = None
    opened: Opened | None = None
    warm_up: WarmUp | None = None
    slices: list[Slice] = field(default_factory=list)
    error: ToolkitError | None = None
    cut_off: str = ""
    harness: Mapping[str, Any] | None = None
    split: Split | None = None
    layers: Sequence[LayerTime] | None = None
    unprofiled: str = ""

    def __str__(self) -> str:
        return f"{self.contender.runtime} batch {self.batch}{self._arrangement()}"

    def _arrangement(self) -> str:
        streams = f", {self.streams} streams" if self.streams > 1 else ""
        threads = self.contender.options.threads
        return streams + ("" if threads is None else f", {threads} thread{'' if threads == 1 else 's'}")

    @property
    def scenario(self) -> Scenario:
        """What a sample is."""
        return self.asked or ("latency" if self.streams == 1 else "throughput")

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
        """What the GPU said after each slice; empty where none computed."""
        return [part.sensors for part in self.slices if part.sensors is not None]

    def seconds_per_run(self) -> Interval | None:
        """Returns what the images per second are computed from, or None without samples.

        With one stream that is the time of a run; with several, the time from one completed run to the next, one value
        a round: they share the machine, so that their single times say nothing of it. In the offline scenario it is the
        time of a whole set over its runs.
        """
        if not self.slices:
            return None
        if self.scenario == "offline":
            return median_interval(self.times_ns / 1e9 / self.at_once)
        if self.streams > 1:
            return median_interval(np.array([1 / part.runs_per_s for part in self.slices]))
        return median_interval(self.times_ns / 1e9)


def measure(
    contenders: Sequence[Contender], feeds: Feeds, plan: Plan, *, progress: Progress = lambda _: None
) -> list[Row]:
    """Measures every contender at every batch size, number of streams and number of threads.

    Each number of streams and threads has a process of its own: a runtime arranges itself for them when it opens.

    Args:
        contenders: The runtimes; the plan's streams and, where it has any, threads take the place of their own.
        feeds: Inputs of any number of samples; a row repeats them up to its batch.
        plan: Sizes, times and targets.
        progress: Told what is going on, between the slices.

    Returns:
        Rows by contender, batch, streams and threads, in the order asked. A row that ran out of memory, failed, or
        whose process died has its ``error`` set; the others are not affected.
    """
    rows = [
        Row(
            contender=arranged,
            batch=batch,
            streams=arranged.options.streams or usable_cores(),  # its own choice is known when it is opened
            scope=plan.scope,
            includes=plan.supply.includes if plan.supply is not None else (),
            asked=plan.scenario,
        )
        for arrangements in (_arrangements(contender, plan) for contender in contenders)
        for batch in plan.batches
        for arranged in arrangements
    ]
    with _Crew(rows, feeds, plan) as crew:
        progress(f"opening {', '.join(dict.fromkeys(c.runtime for c in contenders))}")
        crew.open()
        _warm_up(crew, rows, plan, progress)
        _rounds(crew, rows, plan, progress)
        if plan.profile:
            for index, row in enumerate(rows):
                if row.slices and row.error is None and row.scenario == "latency":
                    progress(f"profiling {row}")
                    crew.profile(index)
    return rows


def _warm_up(crew: _Crew, rows: Sequence[Row], plan: Plan, progress: Progress) -> None:
    """Prepares all rows, the smaller batches first; where there is a cut-off, as many as it allows.

    The warm-ups decide, so that the rows which are measured still take turns from the first round on.
    """
    best: dict[int, float] = {}
    ended: dict[int, str] = {}
    for index in sorted(range(len(rows)), key=lambda index: rows[index].batch):
        row = rows[index]
        key = id(row.contender)
        if key in ended:
            row.cut_off = ended[key]
            continue
        progress(f"warming up {row}")
        crew.prepare(index)
        if plan.cut_off is None or row.opened is None:
            continue
        now, before = row.expected_images_per_second, best.get(key)
        if now is None:
            ended[key] = f"batch {row.batch} failed already"
        elif before is not None and now < before * (1 + plan.cut_off):
            ended[key] = f"batch {row.batch} brought {100 * (now / before - 1):+.1f} % throughput"
        best[key] = max(now or 0.0, before or 0.0)


def _arrangements(contender: Contender, plan: Plan) -> list[Contender]:
    """Returns a contender once for every number of streams and threads; threads of the CPU change nothing on a GPU."""
    on_cpu = adapter(contender.runtime).resolve_device(contender.device) == "cpu"
    own = contender.options.threads
    return [
        replace(contender, options=replace(contender.options, streams=streams, threads=threads or own))
        for streams in plan.streams
        for threads in (plan.threads if on_cpu else plan.threads[:1])
    ]


def _rounds(crew: _Crew, rows: Sequence[Row], plan: Plan, progress: Progress) -> None:
    order = random.Random(plan.seed)
    waiting = [index for index, row in enumerate(rows) if row.error is None and not row.cut_off]
    number = 0
    while waiting:
        number += 1
        order.shuffle(waiting)
        for index in waiting:
            if rows[index].error is None:
                left = sum(max(0.0, plan.duration_s - rows[i].spent_s) for i in waiting if rows[i].error is None)
                progress(f"round {number}: {rows[index]} · at most {math.ceil(left)} s left")
                crew.sample(index, slice_seconds(rows[index], plan))
        waiting = [index for index in waiting if not _done(rows[index], plan)]


def slice_seconds(row: Row, plan: Plan) -> float:
    """Returns how long the next slice of a row may take: short, a few runs long, within what is left.

    Several streams give one value a slice, however many runs are in it: they need many slices, not long ones.
    """
    shortest, longest = _SLICE_S
    run_s = row.warm_up.run_s if row.warm_up else 0.0
    least = 0.0 if row.streams > 1 and row.scenario != "offline" else _RUNS_PER_SLICE * run_s
    wanted = max(min(max(plan.duration_s / _SLICES_PER_ROW, shortest), longest), least)
    # The last run may start just before the end.
    return max(0.0, min(wanted, plan.duration_s - row.spent_s - run_s))


def _discarded_runs(row: Row) -> int:
    return 1 if row.warm_up is None or row.warm_up.run_s <= _DISCARD_UP_TO_S else 0


def _done(row: Row, plan: Plan) -> bool:
    if row.error is not None or not row.slices:
        return row.error is not None
    run_s = row.warm_up.run_s if row.warm_up else 0.0
    if row.spent_s + (_discarded_runs(row) + 1) * run_s >= plan.duration_s:
        return True  # no further timed run fits
    # The times of whole sets are few, and no percentiles of anybody's waiting time.
    enough = 0 if row.scenario == "offline" else ENOUGH_SAMPLES
    if len(row.slices) < FEWEST_ROUNDS or row.times_ns.size < enough:
        return False
    interval = row.seconds_per_run()
    return interval is not None and interval.relative_half_width <= plan.precision_target


class _Crew:
    """The child processes of one measurement, one per contender."""

    def __init__(self, rows: Sequence[Row], feeds: Feeds, plan: Plan) -> None:
        self._rows, self._feeds, self._plan = rows, feeds, plan
        self._children: dict[int, Child] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def open(self) -> None:
        """Starts all processes and opens the models in them, at the same time: nothing is timed yet."""
        contenders = {id(row.contender): row.contender for row in self._rows}
        for key, contender in contenders.items():
            self._start(key, contender)
        for key in contenders:
            self._opened(key)

    def prepare(self, index: int) -> None:
        """Prepares a row and warms it up, unless its runtime could not be opened."""
        row = self._rows[index]
        if row.error is not None:
            return
        method, more = "prepare", {}
        if row.scenario == "offline":  # a row that is prepared anew keeps its set
            method, more = "prepare_set", {"at_once": row.warm_up.at_once if row.warm_up else None}
        with self._recorded(index):
            row.warm_up = self._child(row).call(
                method,
                row=index,
                feeds=self._feeds,
                batch=row.batch,
                scope=row.scope,
                supply=self._plan.supply,
                limit_s=min(LONGEST_WARM_UP_S, self._plan.duration_s),
                **more,
            )

    def sample(self, index: int, seconds: float) -> None:
        """Takes one slice of a row, and frees the row where it was its last."""
        row = self._rows[index]
        with self._recorded(index):
            discard = _discarded_runs(row)
            row.slices.append(self._child(row).call("sample", row=index, seconds=seconds, discard=discard))
            if _done(row, self._plan):
                if row.opened is not None and row.opened.device != "cpu":
                    row.split = self._child(row).call("split", row=index)
                self._child(row).call("release", row=index)

    def profile(self, index: int) -> None:
        """Asks the runtime's own profiler for the layers of a row that was measured."""
        row = self._rows[index]
        run_s = row.warm_up.run_s if row.warm_up else 1.0
        runs = min(_MOST_PROFILED, max(_FEWEST_PROFILED, int(_PROFILE_S / run_s)))
        try:
            row.layers = self._child(row).call("profile", feeds=self._feeds, batch=row.batch, runs=runs)
        except ChildDied as error:
            row.unprofiled = error.message
            self._children[id(row.contender)].close()
            self._start(id(row.contender), row.contender)
            with contextlib.suppress(ToolkitError):  # the next row says it, if it has the same trouble
                self._children[id(row.contender)].receive()
        except ToolkitError as error:  # what was measured stays as it is
            row.unprofiled = error.message

    def _child(self, row: Row) -> Child:
        return self._children[id(row.contender)]

    def _start(self, key: int, contender: Contender) -> None:
        child = self._stack.enter_context(Child(contender.runtime))
        self._children[key] = child
        child.send("open", **contender.opening)

    def _opened(self, key: int) -> None:
        rows = [
            row for row in self._rows if id(row.contender) == key and row.error is None and not _done(row, self._plan)
        ]
        try:
            opened = self._children[key].receive()
        except ToolkitError as error:
            for row in rows:
                row.error = error
        else:
            for row in rows:
                row.opened, row.streams = opened, opened.streams

    @contextlib.contextmanager
    def _recorded(self, index: int) -> Iterator[None]:
        """Keeps an error with the row; a process that died takes only the row that it was working on with it."""
        row = self._rows[index]
        try:
            yield
        except ChildDied as error:
            row.error = error
            self._revive(row.contender)
        except ToolkitError as error:
            row.error = error

    def _revive(self, contender: Contender) -> None:
        key = id(contender)
        self._children[key].close()
        others = [i for i, row in enumerate(self._rows) if id(row.contender) == key and row.error is None]
        unfinished = [i for i in others if not _done(self._rows[i], self._plan)]
        prepared = [i for i in unfinished if self._rows[i].warm_up is not None]
        if not unfinished and not self._plan.profile:
            return
        self._start(key, contender)
        self._opened(key)
        for index in prepared:
            self.prepare(index)


def describe(row: Row) -> dict[str, Any]:
    """Returns what the runtime said of itself, for the record."""
    opened = row.opened
    if opened is None:
        return {"version": None, "device": row.contender.device, "recorded": {}, "placement": {}}
    return {
        "version": opened.version,
        "device": opened.device,
        "recorded": dict(opened.recorded),
        "placement": dict(opened.placement),
    }
