"""Measures contenders by another's rules: MLPerf's LoadGen, SingleStream and Offline, one contender after the other.

LoadGen runs each test in one piece, so that these rows don't take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from resnet_onnx.bench.loadgen import Harnessed, MLPerfScenario
from resnet_onnx.bench.measure import LONGEST_WARM_UP_S, Contender, Plan, Progress, Row, Scenario
from resnet_onnx.bench.processes import Child
from runtimes import files
from runtimes.base import usable_cores
from runtimes.errors import ToolkitError
from runtimes.spec import Feeds

_TESTS: tuple[tuple[MLPerfScenario, Scenario, int | None], ...] = (
    ("SingleStream", "latency", 1),
    ("Offline", "offline", None),
)
"""LoadGen's scenario, ours that it is alike, and the streams that a runtime is arranged for."""


def measure_by_loadgen(
    contenders: Sequence[Contender],
    feeds: Feeds,
    plan: Plan,
    *,
    logs: Path | None = None,
    progress: Progress = lambda _: None,
) -> list[Row]:
    """Runs LoadGen's SingleStream (one sample a query) and Offline (the plan's largest batch) on every contender.

    Args:
        contenders: The runtimes.
        feeds: Distinct samples.
        plan: Its ``duration_s`` is the least that LoadGen measures for.
        logs: Folder for LoadGen's own logs, a folder a run in it; None keeps none.
        progress: Told what is going on.

    Returns:
        Two rows a contender, with what LoadGen said in ``harness``.
    """
    rows = []
    for contender in contenders:
        for test, scenario, streams in _TESTS:
            options = replace(contender.options, streams=streams, threads=plan.threads[0] or contender.options.threads)
            row = Row(
                contender=replace(contender, options=options),
                batch=1 if test == "SingleStream" else max(plan.batches),
                streams=streams or usable_cores(),
                scope="end-to-end",
                asked=scenario,
            )
            rows.append(row)
            progress(f"LoadGen {test} on {contender.runtime} · at least {plan.duration_s:g} s")
            try:
                found = _run(row, feeds, test, plan)
            except ToolkitError as error:
                row.error = error
                continue
            row.warm_up, row.slices, row.harness = found.warm_up, [found.part], found.said
            if logs is not None:
                for name, content in found.logs.items():
                    files.write_bytes(logs / f"{contender.runtime}-{test}" / name, content)
    return rows


def _run(row: Row, feeds: Feeds, test: MLPerfScenario, plan: Plan) -> Harnessed:
    contender = row.contender
    with Child(contender.runtime) as child:
        row.opened = child.call("open", **contender.opening)
        row.streams = row.opened.streams
        found: Harnessed = child.call(
            "loadgen",
            feeds=feeds,
            batch=row.batch,
            scenario=test,
            duration_s=plan.duration_s,
            warm_up_s=min(LONGEST_WARM_UP_S, plan.duration_s),
        )
    return found
