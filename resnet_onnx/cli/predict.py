"""``resnet-onnx predict``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_onnx.cli.gpu_options import check_tuning, tuning_options
from resnet_onnx.cli.options import (
    OutputFile,
    device_option,
    make_command,
    model_options,
    one_runtime,
    runtime_option,
    threads_option,
)
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import CheckFailed

if TYPE_CHECKING:
    from resnet_onnx.workflow import Model, Request
    from runtimes.spec import RuntimeOptions

_IMAGENET_CLASSES = 1000


@make_command("predict", example="resnet-onnx predict resnet50.onnx photo.jpg holiday/ --plot answers.png", polite=True)
@model_options()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@runtime_option(default="ort-cpu", several=False)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes a picture.")
@click.option("--plot", type=OutputFile(), help="Draw the pictures with their labels into a PNG.")
@click.option("--skip-bad", is_flag=True, help="Exit code 0 although pictures can't be decoded; they are named anyway.")
@device_option
@threads_option
@tuning_options
def command(
    terminal: Terminal,
    *,
    request: Request,
    images: tuple[Path, ...],
    runtimes: str,
    top: int,
    plot: Path | None,
    skip_bad: bool,
    device: str | None,
    threads: int | None,
    tuning: RuntimeOptions,
) -> None:
    """Say what pictures show; files and folders, any size or mode."""
    from resnet_onnx import workflow
    from resnet_onnx.prediction import draw
    from resnet_onnx.results.evaluate import Predict
    from runtimes import registry

    name = one_runtime(runtimes)
    check_tuning(tuning, [name], device=device)
    registry.require(name, device=device)
    with terminal.status("preparing the model"):
        model = workflow.resolve(request)
        workflow.insist_on_trained(model)
    notes = [f"{model.name}: {note}" for note in model.notes]
    for note in notes:
        terminal.note(note)
    with terminal.progress() as progress:
        task = progress.add_task("pictures", total=None)
        predictions = workflow.predict_on(
            model,
            name,
            images,
            top=top,
            skip_bad=skip_bad,
            device=device,
            options=replace(tuning, threads=threads),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    for prediction in predictions:
        terminal.line(prediction.image)
        for candidate in prediction.top:
            terminal.line(f"  {100 * candidate.probability:5.1f} %  {candidate.label}")
    if model.labels is None:
        terminal.note(_unnamed(model))
    for note in predictions.notes:
        terminal.note(note)
    for skipped in predictions.skipped:
        terminal.note(f"skipped: {skipped.reason}")
    failed = bool(predictions.skipped) and not skip_bad
    if failed:
        count = len(predictions.skipped)
        terminal.note(
            f"{count} of {count + len(predictions)} pictures can't be decoded: exit code 1 (0 with --skip-bad)"
        )
    if plot is not None:
        draw(predictions, plot)
        terminal.line(f"Drawn: {plot}")
    terminal.emit(
        Predict(
            model=model.name,
            runtime=name,
            predictions=predictions.records,
            skipped=predictions.skipped,
            plot=None if plot is None else str(plot),
            notes=[*notes, *predictions.notes],
        )
    )
    if failed:
        raise click.exceptions.Exit(CheckFailed.exit_code)


def _unnamed(model: Model) -> str:
    """Returns what to say of classes that are numbers."""
    from resnet_onnx.data.scores import class_axis

    labels = "imagenet" if class_axis(model.scores.settled()) == _IMAGENET_CLASSES else "FILE"
    return f"the model has no labels, so that classes are numbers: --labels {labels} names them"
