"""``resnet-onnx evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.gpu_options import check_tuning, tuning_options
from resnet_onnx.cli.options import (
    WholeNumbers,
    class_order_option,
    device_option,
    make_command,
    model_options,
    runtime_option,
    save_option,
    threads_option,
)
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from resnet_onnx.data.transforms import Crops
    from resnet_onnx.evaluation import EvaluationPlan
    from resnet_onnx.results.evaluate import Evaluate, EvaluateRow, OneCrop
    from resnet_onnx.workflow import Model, Request
    from runtimes.spec import RuntimeOptions

_CROPS: Mapping[str | None, Crops | None] = {None: None, "1": 1, "10": 10}


@make_command(
    "evaluate", example="resnet-onnx evaluate resnet50.onnx --data imagenet/ --runtime ort-cpu,openvino", polite=True
)
@model_options()
@click.option("--data", required=True, metavar="D", help="Labelled pictures: a folder, a .zip, digits or cifar10.")
@runtime_option(default="ort-cpu", several=True)
@click.option(
    "--crops",
    type=click.Choice(["1", "10"]),
    help="The centre of each picture, or the mean over corners, centre and their mirror images.  [default: 1]",
)
@click.option(
    "--scales",
    type=WholeNumbers("224,256,384,480,640"),
    help="The mean over whole pictures with these shorter sides, pixels; torch only. The paper's: 224,256,384,480,640.",
)
@click.option("--batch", "batch_size", type=click.IntRange(1, 4096), default=32, show_default=True,
              help="Pictures a run.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="At most so many pictures, spread evenly.")
@click.option("--workers", type=click.IntRange(0, 256), help="Processes that decode; chosen by default.")
@click.option("--skip-bad", is_flag=True, help="Leave out pictures that can't be decoded; they are counted and named.")
@class_order_option
@device_option
@threads_option
@tuning_options
@save_option
def command(
    terminal: Terminal,
    *,
    request: Request,
    runtimes: str,
    crops: str | None,
    scales: tuple[int, ...] | None,
    device: str | None,
    threads: int | None,
    tuning: RuntimeOptions,
    save: Path | None,
    **options: Any,
) -> None:
    """Measure accuracy on labelled pictures, on any runtime."""
    from resnet_onnx import workflow
    from resnet_onnx.evaluation import EvaluationPlan
    from resnet_onnx.results.writing import write
    from runtimes import registry

    names = registry.parse_names(runtimes, device=device)
    if scales is not None:
        _check_whole_pictures(names, request)
    plan = EvaluationPlan(
        device=device,
        options=replace(tuning, threads=threads),
        crops=_CROPS[crops],
        scales=scales or (),
        **options,
    )
    check_tuning(tuning, names, device=device)
    registry.require_all(names, device=device)
    model = workflow.resolve(request)
    workflow.insist_on_trained(model)
    if plan.scales:
        workflow.check_scales(model, plan.scales)
    names, left_out = workflow.runnable(model, names, chosen_by_all=registry.means_all(runtimes), device=device)
    notes = [f"{model.name}: {note}" for note in model.notes]
    for note in notes:
        terminal.note(note)
    if left_out:
        terminal.note(f"left out: {', '.join(left_out)}")
    results: list[EvaluateRow] = []
    with terminal.progress() as progress:
        for name in names:
            show = partial(_show, progress, progress.add_task(name, total=None))
            found = workflow.evaluate_on(model, name, plan, progress=show)
            results.append(found.row)
    document = _document(model, plan, results, resize=request.resize, notes=[*notes, *found.notes])
    _print(terminal, model, document)
    for note in found.notes:
        terminal.note(note)
    if save is not None:
        write(save, workflow.saved_result(model, document))
    terminal.emit(document)


def _check_whole_pictures(names: Sequence[str], request: Request) -> None:
    """Raises ``UsageError`` for runtimes that take pictures of one size only, and for what is for crops."""
    from runtimes import registry

    if request.resize is not None:
        raise UsageError("--scales looks at whole pictures, and --resize was given", fix="leave one of them out")
    others = [name for name in names if "torch" not in registry.adapter(name).opens]
    if others:
        able = ", ".join(registry.runtimes_that(lambda found: "torch" in found.opens))
        raise UsageError(
            f"--scales runs on {able} only, not on {' or '.join(others)}: they take pictures of one size",
            fix=f"--runtime {able}",
        )


def _document(
    model: Model, plan: EvaluationPlan, results: Sequence[EvaluateRow], *, resize: int | None, notes: Sequence[str]
) -> Evaluate:
    from resnet_onnx.results.evaluate import Evaluate

    crops, views = plan.crops or 1, f"scales {', '.join(map(str, plan.scales))}"
    if len(plan.scales) < 2:
        views = f"scale {plan.scales[0]}" if plan.scales else "1 crop" if crops == 1 else f"{crops} crops"
    return Evaluate(
        model=model.name,
        precision=model.precision,
        data=plan.data,
        views=views,
        crops=None if plan.scales else crops,
        resize=resize,
        scales=plan.scales or None,
        **{field.name: getattr(results[0], field.name) for field in fields(results[0])},
        notes=notes,
        results=results,
    )


def _print(terminal: Terminal, model: Model, document: Evaluate) -> None:
    terminal.line(
        f"{model.description} · {document.data}" + f" · shorter side {document.resize}" * (document.resize is not None)
    )
    _print_rows(terminal, document.results, str(document.views))
    for skipped in document.skipped:
        terminal.note(f"skipped: {skipped.reason}")


def _print_rows(terminal: Terminal, results: Sequence[EvaluateRow], views: str) -> None:
    several = views != "1 crop"
    rows = []
    for row in results:
        if row.one_crop is not None:
            rows.append([row.runtime, "1 crop", *_percent(row.one_crop), str(row.images), "–", "–"])
        measured = [str(row.images), str(len(row.skipped)), _speed(row.images_per_second)]
        rows.append([row.runtime, views, *_percent(row), *measured])
    headings = ["runtime", "views", "top-1 %", "top-5 %", "images", "skipped", "img/s"]
    if not several:
        headings, rows = [headings[0], *headings[2:]], [[row[0], *row[2:]] for row in rows]
    terminal.table(headings, rows, left=2 if several else 1)
    if several:
        terminal.line(
            f"{views[0].upper()}{views[1:]}: the mean of the views' probabilities (softmax) decides. "
            "1 crop: the centre of the same pictures, in the same run."
        )


def _speed(images_per_second: float) -> str:
    return f"{images_per_second:.0f}" if images_per_second >= 10 else f"{images_per_second:.2g}"


def _percent(found: EvaluateRow | OneCrop) -> list[str]:
    return ["–" if share is None else f"{100 * share:.2f}" for share in (found.top1, found.top5)]


def _show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)
