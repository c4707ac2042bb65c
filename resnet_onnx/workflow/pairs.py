"""Two models, or one in two environments, measured in turns: what each side opens, the rows, the document."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from resnet_onnx.bench.paired import (
    PairedMeasurement,
    PairedPlan,
    PairedRun,
    Side,
    SideReport,
    measure_pair,
)
from resnet_onnx.parity.sides import compare_outputs, rounding_limit
from resnet_onnx.results.compare import FAIL_ON, Compare, ComparedRow, ComparedSide, FailOn, PairedBlocks, PairedModel
from resnet_onnx.results.document import Environment
from resnet_onnx.results.writing import typed
from resnet_onnx.workflow.feeds import sample_feeds
from resnet_onnx.workflow.measuring import MOST_PICTURES, about_model, fixed_batch
from resnet_onnx.workflow.onnx_form import graph_path
from resnet_onnx.workflow.opening import runnable, target
from resnet_onnx.workflow.request import UNTUNED, Model
from runtimes.errors import UsageError
from runtimes.spec import RuntimeOptions

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PairsPlan:
    """What to compare of two models, on what.

    Attributes:
        batches: None is the models' own fixed batch, or 1.
        streams: Numbers of concurrent runs.
        threads: Numbers of CPU threads over all streams together; None is all usable cores.
        base_python: Interpreter of another environment for BASE, or None; as `new_python`.
        fail_on: What makes the comparison fail.
    """

    pair: PairedPlan = field(default_factory=PairedPlan)
    runtimes: tuple[str, ...]
    batches: tuple[int, ...] | None = None
    streams: tuple[int, ...] = (1,)
    threads: tuple[int | None, ...] = (None,)
    device: str | None = None
    options: RuntimeOptions = UNTUNED
    base_python: Path | None = None
    new_python: Path | None = None
    fail_on: tuple[FailOn, ...] = FAIL_ON
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.runtimes:
            raise UsageError("a plan needs at least one runtime")


@dataclass(frozen=True, kw_only=True)
class _Arrangement:
    runtime: str
    batch: int
    streams: int
    threads: int | None


def compare_models(base: Model, new: Model, plan: PairsPlan, *, progress: Progress = lambda _: None) -> Compare:
    """Compares two models in turns, a row for each runtime, batch, number of streams and of threads.

    Raises:
        UsageError: The models have other fixed batches than the plan or each other.
        ToolkitError: Not one row could be measured; the first one's error.
    """
    from resnet_onnx.bench.compare import judged

    for model in (base, new):
        runnable(model, plan.runtimes, chosen_by_all=False, device=plan.device)
    arrangements = [
        _Arrangement(runtime=runtime, batch=batch, streams=streams, threads=threads)
        for runtime, batch, streams, threads in itertools.product(
            plan.runtimes, _batches(base, new, plan.batches), plan.streams, plan.threads
        )
    ]
    measured = []
    for index, arranged in enumerate(arrangements, 1):
        which = f"row {index} of {len(arrangements)}: " if len(arrangements) > 1 else ""
        measured.append(
            measure_pair(
                _side(base, plan, arranged, plan.base_python),
                _side(new, plan, arranged, plan.new_python),
                plan.pair,
                progress=lambda text, which=which: progress(which + text),  # type: ignore[misc]
            )
        )
    if not any(found.run.blocks for found in measured):
        raise next(error for found in measured for error in (found.base.error, found.new.error) if error is not None)
    limit = rounding_limit([graph_path(base), graph_path(new)], [base.precision, new.precision])
    rows = [
        _row(base, new, arranged, found, plan.pair, limit)
        for arranged, found in zip(arrangements, measured, strict=True)
    ]
    return judged(
        paired=True,
        rows=rows,
        fail_on=plan.fail_on,
        tolerance=plan.pair.tolerance,
        missing=[],
        extra=[],
        different_work=[],
        environment_differs=_differences(arrangements, measured),
        base=_about(base, plan.base_python, [found.base for found in measured]),
        new=_about(new, plan.new_python, [found.new for found in measured]),
    )


def _batches(base: Model, new: Model, requested: Sequence[int] | None) -> tuple[int, ...]:
    fixed = {name: size for name, size in ((base.name, fixed_batch(base)), (new.name, fixed_batch(new))) if size}
    wanted = tuple(requested or sorted(set(fixed.values())) or (1,))
    for name, size in fixed.items():
        if wanted != (size,):
            others = ",".join(map(str, requested)) if requested else " and ".join(map(str, wanted))
            raise UsageError(
                f"{name} has a fixed batch of {size}, and "
                + (f"--batch {others} was given" if requested else f"the two have {others}"),
                fix="compare models of the same batch, or export them with --batch dynamic",
            )
    return wanted


def _side(model: Model, plan: PairsPlan, arranged: _Arrangement, python: Path | None) -> Side:
    options = replace(plan.options, streams=arranged.streams, threads=arranged.threads or plan.options.threads)
    return Side(
        target=target(
            model, arranged.runtime, device=plan.device, options=options, batches=plan.batches or (arranged.batch,)
        ),
        feeds=sample_feeds(model, fixed_batch(model) or min(arranged.batch, MOST_PICTURES), seed=plan.seed),
        batch=arranged.batch,
        python=python,
    )


def _row(
    base: Model, new: Model, arranged: _Arrangement, found: PairedMeasurement, plan: PairedPlan, limit: float
) -> ComparedRow:
    from resnet_onnx.bench import record

    run, opened = found.run, found.new.opened
    outputs = None
    if found.base.outputs is not None and found.new.outputs is not None:
        outputs = compare_outputs(
            found.base.outputs, found.new.outputs, limit, scores=base.scores.output.name if base.scores.output else None
        )
    complete = found.base.error is None and found.new.error is None
    interval = run.found if complete else None
    return ComparedRow(
        model=new.name,
        precision=new.precision,
        scope="device",
        runtime=arranged.runtime,
        batch=arranged.batch,
        streams=arranged.streams,
        device=opened.device if opened is not None else None,
        threads=arranged.threads,
        scenario="latency" if arranged.streams == 1 else "throughput",
        verdict=run.verdict(plan.tolerance) if complete else "inconclusive",
        ratio=interval.ratio if interval is not None else None,
        ci95=interval.ends if interval is not None else None,
        base_images_per_second=_rate([block.base_s for block in run.blocks]),
        new_images_per_second=_rate([block.new_s for block in run.blocks]),
        failed=found.new.error is not None and found.base.error is None,
        notes=_notes(found, plan),
        measured_s=run.spent_s,
        seconds_to_decide=run.seconds_to_decide(plan.tolerance) if complete else None,
        outputs=outputs,
        base=_compared_side(found.base),
        new=_compared_side(found.new),
        disturbance=record.disturbance(found.disturbance),
        blocks=_blocks(run),
    )


def _rate(seconds: Sequence[float]) -> float | None:
    return 1 / float(np.median(seconds)) if seconds else None


def _notes(found: PairedMeasurement, plan: PairedPlan) -> list[str]:
    from resnet_onnx.bench.record import OTHERS_LIMIT

    notes = [
        f"{which} not measured to its end: {side.error.message}"
        for which, side in (("BASE", found.base), ("NEW", found.new))
        if side.error is not None
    ]
    run, seen = found.run, found.disturbance
    if run.found is not None and not notes and run.verdict(plan.tolerance) == "inconclusive":
        needed = run.seconds_to_decide(plan.tolerance)
        if needed is not None:
            notes.append(f"undecided after {run.spent_s:.0f} s; some {needed:.0f} s would decide (--duration)")
        elif run.found.ends is not None:
            notes.append("the ratio lies on the edge of the tolerance: more time will hardly decide it")
        else:
            notes.append(f"{len(run.blocks)} blocks are too few for an interval: measure longer (--duration)")
    if seen.others_share > OTHERS_LIMIT:
        busy = f"other programs used {seen.others_share * seen.cores:.1f} of {seen.cores} cores"
        notes.append(f"{busy} meanwhile: it took longer, and the interval allows for it")
    return notes


def _compared_side(side: SideReport) -> ComparedSide:
    from resnet_onnx.bench import record

    opened = side.opened
    return ComparedSide(
        version=opened.version if opened is not None else None,
        device=opened.device if opened is not None else None,
        recorded=dict(opened.recorded) if opened is not None else {},
        warm_up=side.warm_up,
        error=None if side.error is None else record.error_record(side.error),
    )


def _blocks(run: PairedRun) -> PairedBlocks:
    return PairedBlocks(
        orders=[block.order for block in run.blocks],
        turns_s=[block.turns_s for block in run.blocks],
        spent_s=[block.spent_s for block in run.blocks],
    )


def _about(model: Model, python: Path | None, reports: Sequence[SideReport]) -> PairedModel:
    machine = next((report.machine for report in reports if report.machine is not None), None)
    return PairedModel(
        model=about_model(model, graph_path(model)),
        python=str(python) if python is not None else None,
        environment=typed(Environment, machine) if machine is not None else None,
    )


def _differences(arrangements: Sequence[_Arrangement], measured: Sequence[PairedMeasurement]) -> list[str]:
    """Returns what differs between the two environments and between the settings of the runtimes."""
    from resnet_onnx.bench import compare

    found: list[str] = []
    for arranged, pair in zip(arrangements, measured, strict=True):
        if pair.base.machine is not None and pair.new.machine is not None:
            machines = [typed(Environment, machine) for machine in (pair.base.machine, pair.new.machine)]
            found += compare.machine_differences(*machines)
        if pair.base.opened is not None and pair.new.opened is not None:
            found += compare.setting_differences(arranged.runtime, pair.base.opened.recorded, pair.new.opened.recorded)
    return list(dict.fromkeys(found))
