"""The whole way on bundled real data: train, export, prove, measure, predict, optimize."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnet_onnx import workflow
from resnet_onnx.report.words import counted
from resnet_onnx.results.bench import Bench, BenchRow
from resnet_onnx.results.commands import Demo, DemoParity, DemoPredicted, DemoSpeed, Finding
from resnet_onnx.results.document import Saved
from resnet_onnx.results.optimize import Optimize
from resnet_onnx.results.parity import Parity
from resnet_onnx.results.reading import AnyResult
from resnet_onnx.results.writing import write
from runtimes import registry

if TYPE_CHECKING:
    from resnet_onnx.training.plan import TrainingResult

NETWORK, DATA = "cifar-resnet20", "digits"
REQUIRED_TOP1 = 0.97
"""Least accuracy on held-out digits; the recipe was measured at 98.4 %."""
SHOWN = 12
_SECONDS_A_ROW = 2.0
_SEARCH_S = 20.0

Tell = Callable[[str], None]


def demonstrate(out: Path, *, seed: int = 0, tell: Tell = lambda _: None) -> Demo:
    """Trains a residual net on scikit-learn's digits and takes it all the way.

    A second call with the same folder takes the training up where it was, or as done.

    Args:
        out: Folder for checkpoint, ONNX file, saved results, pictures and report.
        seed: Of the training.
        tell: Told what is being done.

    Raises:
        FileProblem: `out` can't be written.
    """
    start = time.monotonic()
    trained = _train(out / "training", seed, tell)

    tell("2/6  exporting to ONNX, verified against torch")
    onnx = out / "digits.onnx"
    exported = workflow.export(workflow.resolve(workflow.Request(model=str(trained.checkpoint))), onnx)
    model = workflow.resolve(workflow.Request(model=str(onnx)))
    tell(f"     {onnx}, relative RMSE {exported.verified.relative_rmse:.1e}")

    names = [n for n in registry.parse_names("all") if registry.adapter(n).default_device == "cpu"]
    tell(f"3/6  parity of {', '.join(names)} against torch in float64")
    parity = _prove(model, names)
    write(out / "parity.json", parity)
    for outcome in parity.result.results:
        tell(f"     {outcome.reason}")

    tell("4/6  measuring each")
    bench = _measure(model, names)
    write(out / "bench.json", bench)
    speeds = sorted(bench.results, key=lambda row: (row.batch, -row.speed))
    for row in speeds:
        tell(_speed(row))
    for row in speeds:
        if row.unstable_reason and not row.stable:
            tell(f"     ~ {row.runtime}, batch {row.batch}: {row.unstable_reason}")

    tell("5/6  predicting held-out digits")
    predicted = _predict(model, out / "predictions.png")
    tell(f"     {predicted.right} of {SHOWN} right, drawn in {predicted.picture}")

    tell("6/6  looking for the fastest engine that computes the same and keeps the accuracy")
    search = _search(model, names)
    write(out / "optimize.json", search)
    answer = search.result.answer
    none = f"none can be shown to keep the limits in {_SEARCH_S:.0f} s; the nearest: {search.result.nearest}"
    tell(f"     {answer.sentence if answer is not None else none}")

    passed = parity.result.passed and (trained.test_top1 or 0.0) >= REQUIRED_TOP1
    report = out / "report.html"
    _report(report, [bench, parity, search], trained, Path(predicted.picture), passed=passed)
    return Demo(
        report=str(report),
        passed=passed,
        seconds=time.monotonic() - start,
        test_top1=trained.test_top1,
        required_top1=REQUIRED_TOP1,
        training_images_per_second=trained.images_per_second,
        export=exported,
        parity=[
            DemoParity(runtime=o.runtime, relative_rmse=o.relative_rmse, budget=o.budget, passed=o.passed)
            for o in parity.result.results
        ],
        bench=[
            DemoSpeed(runtime=r.runtime, batch=r.batch, images_per_second=r.speed, ci95=r.images_per_second_ci95)
            for r in speeds
        ],
        predicted=predicted,
        answer=None if answer is None else answer.sentence,
    )


def _train(out: Path, seed: int, tell: Tell) -> TrainingResult:
    from resnet_onnx.training.loop import train
    from resnet_onnx.training.plan import TrainingPlan
    from resnet_onnx.training.recipes import default_recipe
    from resnet_onnx.training.splits import open_training_data

    entry = workflow.training_entry(NETWORK)
    data = open_training_data(DATA)
    recipe = default_recipe(DATA, image_size=entry.image_size, pictures=len(data.train))
    # One thread: reproducible to the bit, and on a busy machine several times faster than two that wait for each other.
    tell(f"1/6  training {NETWORK} on {len(data.train)} digits, {counted(recipe.epochs, 'epoch')}")
    trained = train(TrainingPlan(entry=entry, data=data, recipe=recipe, out=out, seed=seed, resume=True, threads=1))
    tell(f"     {100 * (trained.test_top1 or 0):.1f} % on held-out digits")
    return trained


def _prove(model: workflow.Model, names: list[str]) -> Saved[Parity]:
    from resnet_onnx.parity import record

    report = workflow.check_parity(model, workflow.ParityPlan(runtimes=names, data=DATA))
    return workflow.saved_result(model, record.document(report, model=model.name, precision=model.precision))


def _measure(model: workflow.Model, names: list[str]) -> Bench:
    from resnet_onnx.bench.plan import BenchPlan

    plan = BenchPlan(batches=(1, 64), streams=(1,), duration_s=_SECONDS_A_ROW, scope="device")
    measured = workflow.measure_model(model, workflow.MeasuringPlan(bench=plan, runtimes=tuple(names)))
    for row in measured.rows:
        if row.error is not None:
            raise row.error
    return measured.document(raw=True)


def _speed(row: BenchRow) -> str:
    """Returns a row with how sure it is, as ``bench`` shows it; ~ marks one that is not stable."""
    interval = row.images_per_second_ci95
    sure = f" ({interval[0]:,.0f}–{interval[1]:,.0f})" if interval else ""
    return f"     {row.runtime:<9} {row.speed:>7,.0f} img/s{sure} at batch {row.batch}{'' if row.stable else ' ~'}"


def _search(model: workflow.Model, names: list[str]) -> Saved[Optimize]:
    from resnet_onnx.optimization.optimizing import optimize_model
    from resnet_onnx.optimization.plan import OptimizePlan

    plan = OptimizePlan(
        data=DATA,
        runtimes=tuple(names),
        precisions=("fp32", "int8"),
        batches=(1, 64),
        streams=(1,),
        time_budget_s=_SEARCH_S,
    )
    return workflow.saved_result(model, optimize_model(model, plan))


def _predict(model: workflow.Model, picture: Path) -> DemoPredicted:
    from resnet_onnx.data.datasets import open_dataset
    from resnet_onnx.prediction import draw, predict

    test = open_dataset(DATA, split="test")
    chosen = test.subset(np.linspace(0, len(test) - 1, SHOWN).astype(np.int64))
    preprocessing = workflow.training_entry(NETWORK).preprocessing
    with registry.open_runtime("ort-cpu", workflow.source(model, "ort-cpu")) as runtime:
        predictions = predict(runtime, chosen, preprocessing, labels=model.labels)
    draw(predictions, picture)
    right = sum(p.top[0].label == chosen.classes[label] for p, label in zip(predictions, chosen.labels, strict=True))
    return DemoPredicted(shown=SHOWN, right=right, picture=str(picture))


def _report(path: Path, results: Sequence[AnyResult], trained: TrainingResult, picture: Path, *, passed: bool) -> None:
    from resnet_onnx.report.assemble import write_report
    from resnet_onnx.report.page import Section

    top1 = 100 * (trained.test_top1 or 0.0)
    text = f"{top1:.1f} % of held-out digits, and the same function on every runtime."
    if not passed:
        text = f"Not as promised: {top1:.1f} % of held-out digits, at least {100 * REQUIRED_TOP1:.0f} % are expected."
    predicted = Section(
        heading="What it predicts",
        text="Digits that the network has never seen, through ONNX Runtime.",
        picture=picture,
        caption="Held-out digits with the network's answers",
    )
    training = Section(
        heading="How it was trained",
        text=f"{NETWORK}, recipe {trained.recipe.name}, best epoch by validation {trained.best['epoch']}.",
        columns=["epoch", "training loss", "validation %", "img/s"],
        rows=[
            [
                str(epoch["epoch"]),
                f"{epoch['train_loss']:.4f}",
                "–" if epoch["validation_top1"] is None else f"{100 * epoch['validation_top1']:.1f}",
                f"{epoch['images_per_second']:.0f}",
            ]
            for epoch in trained.epochs
        ],
    )
    write_report(
        path,
        results,
        title="resnet-onnx demo: a residual network on handwritten digits",
        verdict=Finding(state="good" if passed else "bad", text=text),
        sections=[predicted, training],
    )
