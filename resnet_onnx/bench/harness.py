"""Measures targets by another's rules: MLPerf's LoadGen, SingleStream and Offline, one target after the other.

LoadGen runs each test in one piece, so that these rows don't take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from resnet_onnx.bench.loadgen import Harnessed, MLPerfScenario
from resnet_onnx.bench.measure import Progress
from resnet_onnx.bench.plan import BenchPlan, Scenario
from resnet_onnx.bench.row import Row
from resnet_onnx.bench.worker_process import WorkerProcess
from runtimes import files
from runtimes.cores import usable_cores
from runtimes.errors import ToolkitError
from runtimes.spec import Feeds, Target

_TESTS: tuple[tuple[MLPerfScenario, Scenario, int | None], ...] = (
    ("SingleStream", "latency", 1),
    ("Offline", "offline", None),
)
"""LoadGen's scenario, ours that it is alike, and the streams that a runtime is arranged for."""


def measure_by_loadgen(
    targets: Sequence[Target],
    feeds: Feeds,
    plan: BenchPlan,
    *,
    logs: Path | None = None,
    progress: Progress = lambda _: None,
) -> list[Row]:
    """Runs LoadGen's SingleStream (one sample a query) and Offline (the plan's largest batch) on every target.

    LoadGen measures for the plan's ``duration_s`` at least; its own logs go into a folder a run in `logs`. Returns two
    rows a target, with what LoadGen reported in ``harness``.
    """
    rows = []
    for target in targets:
        for test, scenario, streams in _TESTS:
            options = replace(target.options, streams=streams, threads=plan.threads[0] or target.options.threads)
            row = Row(
                target=replace(target, options=options),
                batch=1 if test == "SingleStream" else max(plan.batches),
                streams=streams or usable_cores(),
                scope="end-to-end",
                requested=scenario,
            )
            rows.append(row)
            progress(f"LoadGen {test} on {target.runtime} · at least {plan.duration_s:g} s")
            try:
                found = _run(row, feeds, test, plan)
            except ToolkitError as error:
                row.error = error
                continue
            row.warm_up, row.slices, row.harness = found.warm_up, [found.part], found.reported
            if logs is not None:
                for name, content in found.logs.items():
                    files.write_bytes(logs / f"{target.runtime}-{test}" / name, content)
    return rows


def _run(row: Row, feeds: Feeds, test: MLPerfScenario, plan: BenchPlan) -> Harnessed:
    with WorkerProcess(row.target.runtime) as worker:
        row.opened = worker.call("open", target=row.target)
        row.streams = row.opened.streams
        found: Harnessed = worker.call(
            "loadgen",
            feeds=feeds,
            batch=row.batch,
            scenario=test,
            duration_s=plan.duration_s,
            warm_up_s=plan.warm_up_limit_s,
        )
    return found
