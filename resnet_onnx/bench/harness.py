"""Measures targets by another's rules: MLPerf's LoadGen, one target after the other.

LoadGen runs each test in one piece, so that these rows don't take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from resnet_onnx.bench.loadgen import SAMPLES_PER_QUERY, Harnessed, MLPerfScenario, ServerRules
from resnet_onnx.bench.measure import Progress
from resnet_onnx.bench.plan import BenchPlan, Scenario
from resnet_onnx.bench.row import Row
from resnet_onnx.bench.server import find_row_capacity
from resnet_onnx.bench.worker_process import WorkerProcess
from runtimes import files
from runtimes.cores import usable_cores
from runtimes.errors import ToolkitError
from runtimes.spec import Feeds, Target

_TESTS: tuple[tuple[MLPerfScenario, Scenario, int | None], ...] = (
    ("SingleStream", "latency", 1),
    ("MultiStream", "latency", 1),
    ("Offline", "offline", None),
    ("Server", "server", 1),
)
"""LoadGen's scenario, ours that it is alike, and the streams that a runtime is arranged for."""

_SERVER_STEPS = (1.0, 0.95, 0.9, 0.8)
"""Rates that its Server is asked, as shares of our own capacity, until one is VALID."""


def measure_by_loadgen(
    targets: Sequence[Target],
    feeds: Feeds,
    plan: BenchPlan,
    *,
    logs: Path | None = None,
    progress: Progress = lambda _: None,
) -> list[Row]:
    """Runs LoadGen's tests on every target.

    SingleStream has one sample a query, MultiStream eight (where the plan has so large a batch), Offline the plan's
    largest batch; Server runs where the plan has a limit, at the rate that our own search finds, or at the first below
    it that is VALID. LoadGen measures for the plan's ``duration_s`` at least; its logs go into folders in `logs`.

    Returns:
        A row for each target and test, with what LoadGen reported in ``harness``, and our own capacity in ``capacity``
        beside its Server.
    """
    rows = []
    for target in targets:
        for test, scenario, streams in _TESTS:
            if test == "Server" and plan.limit_s is None:
                continue
            if test == "MultiStream" and max(plan.batches) < SAMPLES_PER_QUERY:
                continue
            options = replace(target.options, streams=streams, threads=plan.threads[0] or target.options.threads)
            row = Row(
                target=replace(target, options=options),
                batch={"SingleStream": 1, "MultiStream": SAMPLES_PER_QUERY}.get(test, max(plan.batches)),
                streams=streams or usable_cores(),
                scope="end-to-end",
                requested=scenario,
            )
            rows.append(row)
            progress(f"LoadGen {test} on {target.runtime} · at least {plan.duration_s:g} s")
            try:
                found = _serve(row, feeds, plan, progress) if test == "Server" else _run(row, feeds, test, plan)
            except ToolkitError as error:
                row.error = error
                continue
            row.warm_up, row.slices, row.harness = found.warm_up, [found.part], found.reported
            if logs is not None:
                for name, content in found.logs.items():
                    files.write_bytes(logs / f"{target.runtime}-{test}" / name, content)
    return rows


def _serve(row: Row, feeds: Feeds, plan: BenchPlan, progress: Progress) -> Harnessed:
    """Finds our own capacity, then the largest rate near it that LoadGen's Server calls VALID."""
    find_row_capacity(row, feeds, plan, progress)
    assert row.capacity is not None
    assert plan.limit_s is not None
    found = None
    for share in _SERVER_STEPS:
        rules = ServerRules(rate=max(share * row.capacity.rate, 1.0), limit_s=plan.limit_s, policy=row.capacity.policy)
        progress(f"LoadGen Server on {row.target.runtime} at {rules.rate:.3g} queries a second")
        found = _run(row, feeds, "Server", plan, rules)
        if found.reported.valid:
            break
    assert found is not None
    return found


def _run(row: Row, feeds: Feeds, test: MLPerfScenario, plan: BenchPlan, server: ServerRules | None = None) -> Harnessed:
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
            server=server,
        )
    return found
