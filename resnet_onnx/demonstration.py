"""The whole way on bundled real data: train, export, prove, measure, predict."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_onnx import workflow
from resnet_onnx.report.words import counted
from runtimes import registry
from runtimes.environment import describe_machine

NETWORK, DATA = "cifar-resnet20", "digits"
REQUIRED_TOP1 = 0.97
"""Least accuracy on held-out digits; the recipe was measured at 98.4 %."""
SHOWN = 12
_SECONDS_A_ROW = 2.0

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """What the demonstration came to.

    Attributes:
        passed: Accuracy, export and parity are all as promised.
        report: The HTML page.
        figures: Everything measured, as plain values.
        seconds: Wall time.
    """

    passed: bool
    report: Path
    figures: dict[str, Any]
    seconds: float


def demonstrate(out: Path, *, seed: int = 0, tell: Tell = lambda _: None) -> Demonstration:
    """Trains a residual net on scikit-learn's digits and takes it all the way.

    A second call with the same folder takes the training up where it was, or as done.

    Args:
        out: Folder for checkpoint, ONNX file, pictures and report.
        seed: Of the training.
        tell: Told what is being done.

    Raises:
        FileProblem: `out` can't be written.
    """
    from resnet_onnx.data.datasets import open_dataset
    from resnet_onnx.prediction import draw, predict
    from resnet_onnx.training.loop import train
    from resnet_onnx.training.plan import TrainingPlan
    from resnet_onnx.training.recipes import default_recipe
    from resnet_onnx.training.splits import open_training_data

    start = time.monotonic()
    entry = workflow.training_entry(NETWORK)
    data = open_training_data(DATA)
    recipe = default_recipe(DATA, image_size=entry.image_size, pictures=len(data.train))
    # One thread: reproducible to the bit, and on a busy machine several times faster than two that wait for each other.
    tell(f"1/5  training {NETWORK} on {len(data.train)} digits, {counted(recipe.epochs, 'epoch')}")
    plan = TrainingPlan(entry=entry, data=data, recipe=recipe, out=out / "training", seed=seed, resume=True, threads=1)
    trained = train(plan)
    tell(f"     {100 * (trained.test_top1 or 0):.1f} % on held-out digits")

    tell("2/5  exporting to ONNX, verified against torch")
    model = workflow.resolve(workflow.Request(model=str(trained.checkpoint)))
    onnx = out / "digits.onnx"
    exported = workflow.export(model, onnx)
    model = workflow.resolve(workflow.Request(model=str(onnx)))
    tell(f"     {onnx}, relative RMSE {exported.verified.relative_rmse:.1e}")

    names = [n for n in registry.parse_names("all") if registry.adapter(n).default_device == "cpu"]
    tell(f"3/5  parity of {', '.join(names)} against torch in float64")
    parity = workflow.check_parity(model, names, data=DATA)
    for outcome in parity.outcomes:
        tell(f"     {outcome.reason}")

    tell("4/5  measuring each")
    speeds = _measure(model, names)
    for row in speeds:
        tell(f"     {row['runtime']:<9} {row['images_per_second']:>7,.0f} img/s at batch {row['batch']}")

    tell("5/5  predicting held-out digits")
    test = open_dataset(DATA, split="test")
    chosen = test.subset(np.linspace(0, len(test) - 1, SHOWN).astype(np.int64))
    picture = out / "predictions.png"
    with registry.open_runtime("ort-cpu", workflow.source(model, "ort-cpu")) as runtime:
        predictions = predict(runtime, chosen, entry.preprocessing, labels=model.labels)
    draw(predictions, picture)
    right = sum(p.top[0].label == chosen.classes[label] for p, label in zip(predictions, chosen.labels, strict=True))
    tell(f"     {right} of {SHOWN} right, drawn in {picture}")

    passed = parity.passed and (trained.test_top1 or 0.0) >= REQUIRED_TOP1
    seconds = time.monotonic() - start
    figures = {
        "test_top1": trained.test_top1,
        "required_top1": REQUIRED_TOP1,
        "training_images_per_second": trained.images_per_second,
        "export": exported,
        "parity": [
            {"runtime": o.runtime, "relative_rmse": o.relative_rmse, "budget": o.budget, "passed": o.passed}
            for o in parity.outcomes
        ],
        "bench": speeds,
        "predicted": {"shown": SHOWN, "right": right, "picture": str(picture)},
    }
    report = out / "report.html"
    _write_report(report, passed, figures, parity, speeds, trained, picture, seconds)
    return Demonstration(passed=passed, report=report, figures=figures, seconds=seconds)


def _measure(model: workflow.Model, names: list[str]) -> list[dict[str, Any]]:
    from resnet_onnx.bench import record
    from resnet_onnx.bench.measure import measure
    from resnet_onnx.bench.plan import BenchPlan
    from runtimes.spec import Target

    batches = (1, 64)
    feeds = workflow.sample_feeds(model, 16)
    targets = [Target(runtime=name, source=workflow.source(model, name)) for name in names]
    plan = BenchPlan(batches=batches, streams=(1,), duration_s=_SECONDS_A_ROW, scope="device")
    rows = []
    for row in measure(targets, feeds, plan):
        if row.error is not None:
            raise row.error
        speed = record.images_per_second(row)
        rows.append(
            {
                "runtime": row.target.runtime,
                "batch": row.batch,
                "images_per_second": speed[0] if speed else 0.0,
                "ci95": list(speed[1]) if speed and speed[1] else None,
            }
        )
    return sorted(rows, key=lambda r: (r["batch"], -r["images_per_second"]))


def _write_report(
    path: Path,
    passed: bool,
    figures: dict[str, Any],
    parity: Any,
    speeds: list[dict[str, Any]],
    trained: Any,
    picture: Path,
    seconds: float,
) -> None:
    from resnet_onnx.report.page import Section, write_page

    machine = describe_machine()
    top1 = figures["test_top1"] or 0.0
    verdict = (
        f"{100 * top1:.1f} % of held-out digits, and the same function on every runtime."
        if passed
        else f"Not as promised: {100 * top1:.1f} % of held-out digits, parity passed: {parity.passed}."
    )
    budget = next(iter(parity.budgets.values()))
    sections = [
        Section(
            heading="What it predicts",
            text="Digits that the network has never seen, through ONNX Runtime.",
            picture=picture,
            caption="Held-out digits with the network's answers",
        ),
        Section(
            heading="Does every runtime compute the same?",
            text=f"Gold: {parity.gold}, {parity.pictures} inputs. Budget: {budget.reason}.",
            columns=["runtime", "relative RMSE", "budget", "top-1 equal", "verdict"],
            rows=[
                [
                    o.runtime,
                    f"{o.relative_rmse:.1e}",
                    f"{o.budget:.1e}",
                    "–" if o.decisions is None else f"{o.decisions.equal} of {o.decisions.pictures}",
                    "pass" if o.passed else "FAIL",
                ]
                for o in parity.outcomes
            ],
            commands=[f"resnet-onnx parity {path.parent / 'digits.onnx'} --runtimes all --data digits"],
        ),
        Section(
            heading="How fast is it here?",
            columns=["runtime", "batch", "img/s", "95 % interval"],
            rows=[
                [
                    r["runtime"],
                    str(r["batch"]),
                    f"{r['images_per_second']:,.0f}",
                    "–" if r["ci95"] is None else f"{r['ci95'][0]:,.0f} – {r['ci95'][1]:,.0f}",
                ]
                for r in speeds
            ],
            commands=[f"resnet-onnx bench {path.parent / 'digits.onnx'} --runtime all --batch 1,64"],
        ),
        Section(
            heading="How it was trained",
            text=f"{NETWORK}, recipe {trained.recipe.name}, best epoch by validation {trained.best['epoch']}.",
            columns=["epoch", "training loss", "validation %", "img/s"],
            rows=[
                [
                    str(e["epoch"]),
                    f"{e['train_loss']:.4f}",
                    "–" if e["validation_top1"] is None else f"{100 * e['validation_top1']:.1f}",
                    f"{e['images_per_second']:.0f}",
                ]
                for e in trained.epochs
            ],
        ),
    ]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    write_page(
        path,
        title="resnet-onnx demo: a residual network on handwritten digits",
        verdict=verdict,
        passed=passed,
        sections=sections,
        footer=f"{machine['cpu']['model']}, {machine['cpu']['usable_cores']} cores · {libraries} · {seconds:.0f} s",
    )
