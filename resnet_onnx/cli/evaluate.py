"""``resnet-onnx evaluate``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_onnx.cli.gpu_options import check_tuning, tuning_options
from resnet_onnx.cli.options import (
    device_option,
    make_command,
    model_options,
    runtime_option,
    save_option,
    threads_option,
)
from resnet_onnx.cli.terminal import Terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from resnet_onnx.workflow import Request
    from runtimes.spec import RuntimeOptions


@make_command(
    "evaluate", example="resnet-onnx evaluate resnet50.onnx --data imagenet/ --runtime ort-cpu,openvino", polite=True
)
@model_options()
@click.option("--data", required=True, metavar="D", help="Labelled pictures: a folder, a .zip, digits or cifar10.")
@runtime_option(default="ort-cpu", several=True)
@click.option("--batch", type=click.IntRange(1, 4096), default=32, show_default=True, help="Pictures a run.")
@click.option("--limit", type=click.IntRange(1), help="At most so many pictures, spread evenly.")
@click.option("--workers", type=click.IntRange(0, 256), help="Processes that decode; chosen by default.")
@click.option("--skip-bad", is_flag=True, help="Leave out pictures that can't be decoded; they are counted and named.")
@device_option
@threads_option
@tuning_options
@save_option
def command(
    terminal: Terminal,
    *,
    request: Request,
    data: str,
    runtimes: str,
    batch: int,
    limit: int | None,
    workers: int | None,
    skip_bad: bool,
    device: str | None,
    threads: int | None,
    tuning: RuntimeOptions,
    save: Path | None,
) -> None:
    """Measure accuracy on labelled pictures, on any runtime."""
    from resnet_onnx import workflow
    from runtimes import files, registry

    names = registry.parse_names(runtimes, device=device)
    check_tuning(tuning, names, device=device)
    registry.require_all(names, device=device)
    model = workflow.resolve(request)
    workflow.insist_on_trained(model)
    names, left_out = workflow.runnable(model, names, chosen_by_all=registry.means_all(runtimes))
    for note in model.notes:
        terminal.note(f"{model.name}: {note}")
    if left_out:
        terminal.note(f"left out: {', '.join(left_out)}")
    results = []
    with terminal.progress() as progress:
        for name in names:
            task = progress.add_task(f"{name}", total=None)
            evaluation = workflow.evaluate_on(
                model,
                name,
                data,
                batch_size=batch,
                limit=limit,
                workers=workers,
                skip_bad=skip_bad,
                device=device,
                threads=threads,
                tuning=tuning,
                progress=partial(_show, progress, task),
            )
            results.append({"runtime": name, **evaluation.to_json()})
    terminal.line(f"{model.description} · {data}")
    terminal.table(
        ["runtime", "top-1 %", "top-5 %", "images", "skipped", "img/s"],
        [
            [
                str(r["runtime"]),
                f"{100 * float(r['top1']):.2f}",
                "–" if r["top5"] is None else f"{100 * float(r['top5']):.2f}",
                str(r["images"]),
                str(len(r["skipped"])),
                f"{float(r['images_per_second']):.0f}",
            ]
            for r in results
        ],
    )
    for skipped in results[0]["skipped"]:
        terminal.note(f"skipped: {skipped['image']}: {skipped['reason']}")
    document = {"model": model.name, "precision": model.precision, "data": data, **results[0], "results": results}
    if save is not None:
        files.write_json(save, workflow.saved_result("evaluate", model, document))
    terminal.emit(document)


def _show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)
