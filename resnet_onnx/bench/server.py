"""Measures the server scenario: the capacity of each target, one after the other, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from resnet_onnx.bench.capacity import Found, find_capacity
from resnet_onnx.bench.clock import Disturbance, Slice
from resnet_onnx.bench.measure import Progress
from resnet_onnx.bench.plan import BenchPlan
from resnet_onnx.bench.row import Row
from resnet_onnx.bench.serving import BatchPolicy, Seconds
from resnet_onnx.bench.worker_process import WorkerProcess
from runtimes.errors import ToolkitError
from runtimes.spec import Feeds, Target


class _WorkerEngine:
    """An engine in a worker process, behind the server's loop."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self.disturbances: list[Disturbance] = []

    def serve(self, arrivals_s: Sequence[float], policy: BatchPolicy) -> Seconds:
        """Returns the latency of each picture, seconds."""
        latencies: Seconds
        latencies, disturbance = self._worker.call("serve", arrivals_s=list(arrivals_s), policy=policy)
        self.disturbances.append(disturbance)
        return latencies


def measure_capacity(
    targets: Sequence[Target], feeds: Feeds, plan: BenchPlan, *, progress: Progress = lambda _: None
) -> list[Row]:
    """Finds the capacity of every target with every number of threads; batches are of at most the plan's largest.

    Returns:
        A row each, with what was found in ``capacity``; its one slice has the latencies of the arrivals that confirmed
        it. A row that failed has its ``error`` set.
    """
    rows = []
    for target in targets:
        for threads in plan.threads:
            options = replace(target.options, streams=1, threads=threads or target.options.threads)
            row = Row(
                target=replace(target, options=options),
                batch=max(plan.batches),
                streams=1,
                scope=plan.scope,
                requested="server",
            )
            rows.append(row)
            try:
                find_row_capacity(row, feeds, plan, progress)
            except ToolkitError as error:
                row.error = error
    return rows


def find_row_capacity(row: Row, feeds: Feeds, plan: BenchPlan, progress: Progress) -> None:
    """Opens a row's target in a process of its own and finds its capacity, by the plan's limit.

    Raises:
        ToolkitError: It can't be opened, or failed.
    """
    assert plan.limit_s is not None
    with WorkerProcess(row.target.runtime) as worker:
        progress(f"opening {row}")
        row.opened = worker.call("open", target=row.target)
        progress(f"taking the times of batches of {row}")
        times = worker.call(
            "prepare_server",
            feeds=feeds,
            largest=row.batch,
            scope=row.scope,
            limit_s=2 * plan.warm_up_limit_s,
        )
        engine = _WorkerEngine(worker)
        row.capacity = find_capacity(
            engine,
            times,
            limit_s=plan.limit_s,
            duration_s=plan.duration_s,
            seed=plan.seed,
            progress=lambda text: progress(f"{row.target.runtime}: {text}"),
        )
    row.slices = [_slice(row.capacity, times, engine.disturbances)]


def _slice(found: Found, times: dict[int, Seconds], disturbances: Sequence[Disturbance]) -> Slice:
    """Returns the latencies that the capacity was confirmed by; of an engine that is always late, its single runs."""
    trial = found.confirmation
    latencies = trial.latencies_s if trial is not None else times[min(times)]
    spent_s = sum(each.wall_s for each in disturbances)
    return Slice(
        times_ns=np.round(1e9 * latencies).astype(np.int64),
        runs_per_s=found.rate or 1 / float(np.mean(latencies)),
        spent_s=spent_s,
        disturbance=sum(disturbances, Disturbance()),
    )
