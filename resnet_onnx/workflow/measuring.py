"""A model measured on several runtimes: what each opens, the rows, the machine's limits, and the document of it all."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_onnx.bench import roofline
from resnet_onnx.bench.layers import beside_ideal
from resnet_onnx.bench.plan import BenchPlan
from resnet_onnx.results.bench import Bench, BenchModel, BenchRow, SkippedRow
from resnet_onnx.results.document import Environment, Peaks
from resnet_onnx.results.writing import typed
from resnet_onnx.version import __version__
from resnet_onnx.workflow.feeds import sample_feeds, specs
from resnet_onnx.workflow.onnx_form import graph_path
from resnet_onnx.workflow.opening import runnable, target
from resnet_onnx.workflow.request import UNTUNED, Model
from runtimes import onnx_gate
from runtimes.cores import usable_cores
from runtimes.environment import describe_machine
from runtimes.errors import UsageError
from runtimes.spec import Feeds, RuntimeOptions, TensorSpec

if TYPE_CHECKING:
    from resnet_onnx.bench.row import Row

DEFAULT_BATCHES = (1, 8)

MOST_PICTURES = 16
"""Distinct sample pictures in a batch; a larger batch repeats them, since the time of a run does not depend on them."""


@dataclass(frozen=True, kw_only=True)
class MeasuringPlan:
    """What to measure of a model, on what, and by whose rules.

    Attributes:
        chosen_by_all: Whether they were not named one by one, so that one that can't open the model is left out.
        options: What changes speed or arithmetic; streams and threads are ``bench``'s.
        harness: Whether MLPerf's LoadGen measures in place of our own rounds; streams, scenario and cut-off of
            ``bench`` are then its business, and its scope is ``end-to-end``.
        harness_logs: Folder that keeps its logs, or None.
        price: Of the machine per hour, or None.
    """

    bench: BenchPlan
    runtimes: tuple[str, ...]
    chosen_by_all: bool = False
    device: str | None = None
    options: RuntimeOptions = UNTUNED
    seed: int = 0
    harness: bool = False
    harness_logs: Path | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        if not self.runtimes:
            raise UsageError("a plan needs at least one runtime")
        if self.harness and self.bench.scope != "end-to-end":
            raise UsageError(
                f"a harness copies every sample in and out, and the scope is {self.bench.scope}",
                fix="use the scope end-to-end",
            )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of one model.

    Attributes:
        rows: By runtime, batch, streams and threads, in the order of the plan, with those that the cut-off left out.
        left_out: Runtimes that ``all`` meant and that can't open this model.
        peaks: The machine's, by number of threads; None where they can't be measured.
    """

    model: Model
    path: Path | None
    plan: BenchPlan
    rows: Sequence[Row]
    left_out: Sequence[str]
    work: Mapping[int, roofline.Work | None]
    shapes: Mapping[int, Mapping[str, tuple[int, ...]]]
    peaks: Mapping[int, Peaks | None]
    environment: Environment
    made: str
    price: float | None = None

    def results(self, *, raw: bool) -> list[BenchRow]:
        """Returns the measured rows as the document has them; `raw` with every sample of all of them."""
        from resnet_onnx.bench import record

        return record.mark([self._result(row, raw) for row in self.rows if not row.cut_off])

    @property
    def skipped(self) -> list[Row]:
        """Rows that the cut-off left out."""
        return [row for row in self.rows if row.cut_off]

    def document(self, *, raw: bool) -> Bench:
        """Returns the whole result: rows, and what is needed to trust and repeat them."""
        from resnet_onnx.bench import record

        peaks = {str(threads): found for threads, found in self.peaks.items() if found is not None}
        return Bench(
            made=self.made,
            tool=f"resnet-onnx {__version__}",
            command=["resnet-onnx", *sys.argv[1:]],
            model=about_model(self.model, self.path),
            environment=replace(self.environment, peaks=peaks),
            settings=replace(record.settings(self.plan), price_per_hour=self.price),
            skipped=[SkippedRow(row=str(row), reason=row.cut_off) for row in self.skipped],
            notes=[f"{self.model.name}: {note}" for note in self.model.notes],
            results=self.results(raw=raw),
        )

    @property
    def peaks_disturbed(self) -> bool:
        """Whether other programs used the cores while a peak was measured: shares of it then come out too high."""
        return any(found is not None and not found.undisturbed for found in self.peaks.values())

    def _result(self, row: Row, raw: bool) -> BenchRow:
        from resnet_onnx.bench import record

        work, peaks = self.work[row.batch], self.peaks.get(cpu_threads(row))
        precision, runs_per_s = _precision(row, self.model), _runs_per_s(row)
        made = record.result(
            row,
            model=self.model.name,
            precision=precision,
            utilization=replace(
                roofline.utilization(work, runs_per_s, peaks, precision),
                multiply_adds=work.multiply_adds // row.batch if work else None,
            ),
            raw=raw,
            limit_s=self.plan.limit_s,
            layers=None
            if row.layers is None
            else beside_ideal(row.layers, self.path, self.shapes[row.batch], peaks, precision),
        )
        return replace(made, cost_per_million=record.cost_per_million(made, self.price))


def measure_model(
    model: Model, plan: MeasuringPlan, *, progress: Callable[[str], None] = lambda _: None
) -> Measurement:
    """Measures a model on several runtimes, in turns.

    Raises:
        UsageError: The plan has a batch other than the model's fixed one.
        ToolkitError: Not one row could be measured; the first one's error.
    """
    from resnet_onnx.bench.harness import measure_by_loadgen
    from resnet_onnx.bench.loadgen import SAMPLES_PER_QUERY
    from resnet_onnx.bench.measure import measure
    from resnet_onnx.bench.server import measure_capacity

    sizes = batch_sizes(model, plan.bench.batches)
    names, left_out = runnable(model, plan.runtimes, chosen_by_all=plan.chosen_by_all, device=plan.device)
    fixed = fixed_batch(model)
    feeds = sample_feeds(model, min(max(sizes), MOST_PICTURES) if fixed is None else fixed, seed=plan.seed)
    path = graph_path(model)
    targets = [
        target(model, name, device=plan.device, options=plan.options, batches=plan.bench.batches) for name in names
    ]
    counted = {1, *sizes, *((SAMPLES_PER_QUERY,) if plan.harness else ())}
    shapes = {size: _shapes(feeds, specs(model), size) for size in counted}
    work = {size: roofline.count_work(path, found) if path else None for size, found in shapes.items()}
    if plan.harness:
        _check_single(model)
        rows = measure_by_loadgen(targets, feeds, plan.bench, logs=plan.harness_logs, progress=progress)
    elif plan.bench.scenario == "server":
        rows = measure_capacity(targets, feeds, plan.bench, progress=progress)
    else:
        rows = measure(targets, feeds, plan.bench, progress=progress)
    if not any(row.slices for row in rows):
        raise next(row.error for row in rows if row.error is not None)
    progress("measuring the machine's peak")
    counts = {cpu_threads(row) for row in rows if row.slices}
    return Measurement(
        model=model,
        path=path,
        plan=plan.bench,
        rows=rows,
        left_out=left_out,
        work=work,
        shapes=shapes,
        peaks={count: _ceiling(count, rows, model, work) for count in sorted(counts - {0})},
        environment=typed(Environment, describe_machine()),
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        price=plan.price,
    )


def _ceiling(threads: int, rows: Sequence[Row], model: Model, work: Mapping[int, roofline.Work | None]) -> Peaks | None:
    """Returns the peaks of so many threads, none of which is below what a row with them achieved."""
    found = roofline.peaks(threads)
    for row in rows:
        counted, runs_per_s = work[row.batch], _runs_per_s(row)
        if counted is not None and runs_per_s is not None and cpu_threads(row) == threads:
            achieved = 2 * counted.multiply_adds * runs_per_s / 1e9
            found = roofline.raised(found, _precision(row, model), achieved, f"{row} of {model.name} itself")
    return found


def _precision(row: Row, model: Model) -> str:
    """Returns what a row multiplies in: the file's precision, or that of torch's autocast."""
    narrow = row.opened.recorded.get("autocast") if row.opened is not None else None
    return str(narrow or model.precision)


def _runs_per_s(row: Row) -> float | None:
    from resnet_onnx.bench import record

    speed = record.images_per_second(row)
    return speed[0] / row.batch if speed else None


def batch_sizes(model: Model, requested: Sequence[int] | None = None) -> tuple[int, ...]:
    """Returns the batch sizes to measure a model at: those requested, its own fixed one, or ``DEFAULT_BATCHES``.

    Raises ``UsageError`` where another than the fixed one was requested.
    """
    fixed = fixed_batch(model)
    if fixed is None:
        return tuple(requested or DEFAULT_BATCHES)
    if requested is not None and tuple(requested) != (fixed,):
        raise UsageError(
            f"{model.name} has a fixed batch of {fixed}, and --batch {','.join(map(str, requested))} was given",
            fix=f"--batch {fixed}, or export it with --batch dynamic",
        )
    return (fixed,)


def fixed_batch(model: Model) -> int | None:
    """Returns the batch that a model's inputs are fixed to, or None where one of them leaves it open.

    A table or a scale may stand beside the samples; of fixed inputs, the one with most dimensions sets the batch.
    """
    shapes = [spec.shape for spec in specs(model) if spec.shape]
    if any(isinstance(shape[0], str) for shape in shapes):
        return None
    return next((int(shape[0]) for shape in sorted(shapes, key=len, reverse=True)), 1)


def _check_single(model: Model) -> None:
    first = fixed_batch(model)
    if first not in (None, 1):
        raise UsageError(
            f"LoadGen's SingleStream runs one sample at a time, and {model.name} has a fixed batch of {first}",
            fix="export it with --batch dynamic",
        )


def _shapes(feeds: Feeds, inputs: Sequence[TensorSpec], batch: int) -> dict[str, tuple[int, ...]]:
    free = {spec.name for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    return {name: (batch, *array.shape[1:]) if name in free else array.shape for name, array in feeds.items()}


def cpu_threads(row: Row) -> int:
    """Returns how many CPU threads a row computed with, 0 where it did not run on the CPU."""
    if row.opened is None or row.opened.device != "cpu":
        return 0
    threads = row.opened.recorded.get("threads")
    return min(usable_cores(), threads) if isinstance(threads, int) else usable_cores()


def about_model(model: Model, path: Path | None) -> BenchModel:
    """Returns a model as documents have it; `path` is that of its graph."""
    checked = onnx_gate.check_onnx(path) if path is not None else None
    network = model.network
    return BenchModel(
        name=model.name,
        description=model.description,
        precision=model.precision,
        sha256=checked.sha256 if checked else None,
        engine=str(model.engine) if model.engine else None,
        weights_sha256=network.weights_sha256 if network else None,
        weights=network.weights_source if network else None,
        weights_license=network.weights_license if network else None,
        inputs=[str(spec) for spec in specs(model)],
        opset=checked.opset if checked else None,
    )
