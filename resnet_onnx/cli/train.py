"""``resnet-onnx train``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.options import (
    OutputFile,
    Triple,
    make_command,
    threads_option,
    training_data_option,
    workers_option,
)
from resnet_onnx.cli.terminal import Terminal
from resnet_onnx.report.words import counted
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from resnet_onnx.models.catalog import CatalogEntry
    from resnet_onnx.training.distributed import Peers
    from resnet_onnx.training.loop import Progress, TrainingResult
    from resnet_onnx.training.recipes import Recipe
    from resnet_onnx.training.splits import TrainingData


@make_command("train", example="resnet-onnx train --model cifar-resnet20 --data digits --out runs/digits")
@click.option("--model", "name", default="cifar-resnet20", show_default=True, metavar="NAME", help="Network to train.")
@training_data_option
@click.option("--recipe", "recipe_name", metavar="NAME", help="Named recipe; chosen by data and network by default.")
@click.option("--list-recipes", is_flag=True, help="List the recipes and leave.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the data; the recipe's by default.")
@click.option("--batch", type=click.IntRange(1), help="Pictures a step, over all processes; the recipe's by default.")
@click.option(
    "--batch-per-process",
    type=click.IntRange(1),
    help="Pictures a step of each process; the learning rate grows with the whole batch.",
)
@click.option("--lr", type=float, help="Peak learning rate; the recipe's by default.")
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="Arithmetic; the recipe's by default."
)
@click.option("--freeze", multiple=True, metavar="PATTERN", help="Layers that stay as they are (layer[12]); repeat it.")
@click.option("--sync-batch-norm", is_flag=True, help="Batch norm over the pictures of all processes; on GPUs.")
@click.option(
    "--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="Any other field of the recipe; repeat it."
)
@click.option("--image-size", type=click.IntRange(8, 4096), help="Side of the input picture, pixels.")
@click.option("--mean", type=Triple(), help="Mean per channel, as fractions of 255.")
@click.option("--std", type=Triple(), help="Standard deviation per channel, as fractions of 255.")
@click.option("--weights", metavar="imagenet|PATH", help="Start from trained weights; a fitting head is kept.")
@click.option(
    "--skip-bad", type=click.IntRange(0), default=0, metavar="N", help="Leave out up to N pictures that can't be read."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; runs/MODEL-DATA by default.")
@click.option("--plot", type=OutputFile(), help="Draw error and loss of every epoch: .png, .svg or .pdf.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard logs into OUT/tensorboard too.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out; start where there is none.")
@workers_option
@click.option("--device", help="cpu, cuda or cuda:N; a GPU where there is one by default.")
@threads_option
def command(
    terminal: Terminal,
    *,
    name: str,
    data: str | None,
    recipe_name: str | None,
    list_recipes: bool,
    epochs: int | None,
    batch: int | None,
    batch_per_process: int | None,
    lr: float | None,
    precision: str | None,
    freeze: tuple[str, ...],
    sync_batch_norm: bool,
    assignments: tuple[str, ...],
    image_size: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    weights: str | None,
    skip_bad: int,
    out: Path | None,
    plot: Path | None,
    tensorboard: bool,
    seed: int,
    resume: bool,
    workers: int | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Train a network on labelled pictures, by a named recipe.

    The checkpoint of the best epoch by validation is in OUT/best, the last one in OUT/last, the figures of every epoch
    in OUT/history.csv. Pictures of the test split never choose anything.

    In several processes: torchrun --nproc-per-node N -m resnet_onnx train …
    """
    from resnet_onnx.training.distributed import Peers

    peers = Peers.from_environment()
    terminal.mute, terminal.final = not peers.first, peers.final
    if list_recipes:
        _list_recipes(terminal)
        return

    from resnet_onnx import workflow
    from resnet_onnx.training import curves, tensorboard_logs
    from resnet_onnx.training.recipes import default_recipe, lookup_recipe, read_assignments
    from resnet_onnx.training.splits import open_training_data

    spec = data or "digits"

    def prepare() -> tuple[CatalogEntry, TrainingData, Recipe, workflow.Start | None]:
        if batch is not None and batch_per_process is not None:
            raise UsageError(
                "--batch is the whole batch and --batch-per-process a part of it; both were given", fix="give one"
            )
        if plot is not None:
            curves.check_format(plot)
        if tensorboard:
            tensorboard_logs.load()
        entry = workflow.training_entry(name, image_size=image_size, mean=mean, std=std)
        recipe = lookup_recipe(recipe_name, depth=entry.depth) if recipe_name else None
        opened = open_training_data(spec)
        recipe = recipe or default_recipe(spec, image_size=entry.image_size, pictures=len(opened.train))
        recipe = recipe.override(**read_assignments(assignments))
        recipe = recipe.override(epochs=epochs, batch_size=batch, learning_rate=lr, precision=precision)
        recipe = recipe.override(freeze=freeze or None, sync_batch_norm=sync_batch_norm or None)
        start = None if weights is None else workflow.initial_state(entry, weights, opened.train.classes, seed=seed)
        return entry, opened, recipe, start

    entry, opened, recipe, start = peers.agree_in_turn(prepare)
    folder = out or Path("runs") / f"{entry.name}-{Path(spec).stem}"
    if threads is None and peers.count > 1:
        from runtimes.base import usable_cores

        threads = max(1, usable_cores() // peers.local_count)  # torchrun's own default is 1

    from resnet_onnx.training.loop import train

    terminal.note(
        f"{entry.name} on {opened.train.name}: {len(opened.train)} pictures, {len(opened.train.classes)} classes"
    )
    terminal.note(
        f"recipe {recipe.name}: {counted(recipe.epochs, 'epoch')}, "
        f"{_batch(recipe, batch_per_process, peers)} · {folder}"
    )
    if peers.count > 1:
        terminal.note(f"{peers.count} processes, CPU threads of each: {threads}")
    if start is not None:
        terminal.note(f"start: {start.description}")

    def show(progress: Progress) -> None:
        _show(terminal, display, task, progress)
        if tensorboard and peers.first and progress.finished is not None:
            tensorboard_logs.log(folder / "tensorboard", progress.finished, progress.done)

    with terminal.progress() as display:
        task = display.add_task("training", total=None)
        result = train(
            entry,
            opened,
            recipe=recipe,
            out=folder,
            seed=seed,
            resume=resume,
            threads=threads,
            workers=workers,
            device=device,
            initial_state=None if start is None else start.state,
            progress=show,
            peers=peers,
            batch_per_process=batch_per_process,
            skip_bad=skip_bad,
        )
    if not peers.first:
        return
    if plot is not None:
        curves.draw(result.epochs, plot, title=f"{entry.name} on {opened.train.name}, recipe {recipe.name}")
    _tell(terminal, result, entry.name, plot)
    terminal.emit(
        {
            "checkpoint": str(result.checkpoint),
            "last": str(result.last),
            "epochs": result.epochs,
            "best": result.best,
            "test_top1": result.test_top1,
            "images_per_second": result.images_per_second,
            "resumed_from": result.resumed_from,
            "recipe": result.recipe.to_json(),
            "model": entry.name,
            "data": spec,
            "seed": seed,
            "processes": peers.count,
            "skipped": [{"image": one.name, "reason": one.reason} for one in result.skipped],
            "plot": plot,
        }
    )


def _batch(recipe: Recipe, per_process: int | None, peers: Peers) -> str:
    """Says how many pictures make a step, and what follows for the learning rate."""
    used = recipe if per_process is None else recipe.with_batch(per_process * peers.count)
    text = f"batch {used.batch_size}"
    if peers.count > 1:
        text += f" ({peers.count} processes × {used.batch_size / peers.count:g})"
    text += f", learning rate {used.learning_rate:g}"
    if used.batch_size != recipe.batch_size:
        text += f" (scaled linearly with the batch: {recipe.learning_rate:g} × {used.batch_size} / {recipe.batch_size})"
    return text


def _tell(terminal: Terminal, result: TrainingResult, name: str, plot: Path | None) -> None:
    """Says for people what the training came to."""
    if result.resumed_from is not None and not any(e["epoch"] > result.resumed_from for e in result.epochs):
        terminal.note("the training was complete already; nothing was done")
    for skipped in result.skipped:
        terminal.note(f"left out: {skipped.name}: {skipped.reason}")
    best, last = result.best, result.epochs[-1]
    chosen = "the last epoch" if best["top1"] is None else f"{100 * best['top1']:.2f} % on validation pictures"
    terminal.line(f"Best: epoch {best['epoch']}, {chosen} · training loss at the end {last['train_loss']:.4f}")
    if result.skipped:
        terminal.line(f"Left out because they can't be read: {len(result.skipped)}")
    if result.test_top1 is not None:
        terminal.line(f"Test (not used in any choice): {100 * result.test_top1:.2f} %")
    terminal.line(f"{result.images_per_second:.0f} img/s, {result.recipe.precision} · checkpoint {result.checkpoint}")
    if plot is not None:
        terminal.line(f"Curves: {plot}")
    terminal.line(f"Next: resnet-onnx export {result.checkpoint} -o {name}.onnx")


def show_step(display: Any, task: Any, progress: Progress, *, name: str = "") -> None:
    """Shows on a progress display where a training stands, after the network's name where there are several."""
    label = f"{name}: " * bool(name) + f"epoch {progress.epoch} of {progress.epochs}, {progress.stage}"
    if progress.loss is not None:
        label += f", loss {progress.loss:.3f}"
    if progress.top1 is not None:
        label += f", accuracy {100 * progress.top1:.1f} %"
    if progress.images_per_second is not None:
        label += f", {progress.images_per_second:.0f} img/s"
    # Of the whole training, so that the time left is too.
    display.update(task, description=label, completed=progress.done, total=progress.total or None)


def _show(terminal: Terminal, display: Any, task: Any, progress: Progress) -> None:
    show_step(display, task, progress)
    if progress.finished is not None:
        figures = progress.finished
        held = figures.get("validation_top1")
        terminal.note(
            f"epoch {figures['epoch']:>3}  loss {figures['train_loss']:.4f}  train {100 * figures['train_top1']:.2f} %"
            + (f"  validation {100 * held:.2f} %" if held is not None else "")
            + f"  {figures['images_per_second']:.0f} img/s"
        )


def _list_recipes(terminal: Terminal) -> None:
    from resnet_onnx.training.recipes import lookup_recipe, recipe_names

    recipes: list[Recipe] = [lookup_recipe(name) for name in recipe_names()]
    for recipe in recipes:
        figures = (
            f"{counted(recipe.epochs, 'epoch')}, batch {recipe.batch_size}, learning rate {recipe.learning_rate:g}"
        )
        terminal.line(f"{recipe.name}: {figures}\n  {recipe.source}")
    terminal.emit({"recipes": [dataclasses.asdict(recipe) for recipe in recipes]})
