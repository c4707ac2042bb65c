"""``resnet-onnx train``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.options import Triple, make_command, threads_option, training_data_option, workers_option
from resnet_onnx.cli.terminal import Terminal

if TYPE_CHECKING:
    from resnet_onnx.training.loop import Progress
    from resnet_onnx.training.recipes import Recipe


@make_command("train", example="resnet-onnx train --model cifar-resnet20 --data digits --out runs/digits")
@click.option("--model", "name", default="cifar-resnet20", show_default=True, metavar="NAME", help="Network to train.")
@training_data_option
@click.option("--recipe", "recipe_name", metavar="NAME", help="Named recipe; chosen by data and network by default.")
@click.option("--list-recipes", is_flag=True, help="List the recipes and leave.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the data; the recipe's by default.")
@click.option("--batch", type=click.IntRange(1), help="Pictures a step; the recipe's by default.")
@click.option("--lr", type=float, help="Peak learning rate; the recipe's by default.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Arithmetic; the recipe's by default.")
@click.option(
    "--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="Any other field of the recipe; repeat it."
)
@click.option("--image-size", type=click.IntRange(8, 4096), help="Side of the input picture, pixels.")
@click.option("--mean", type=Triple(), help="Mean per channel, as fractions of 255.")
@click.option("--std", type=Triple(), help="Standard deviation per channel, as fractions of 255.")
@click.option("--weights", metavar="imagenet|PATH", help="Start from trained weights; a fitting head is kept.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; runs/NAME by default.")
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
    lr: float | None,
    precision: str | None,
    assignments: tuple[str, ...],
    image_size: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    weights: str | None,
    out: Path | None,
    seed: int,
    resume: bool,
    workers: int | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Train a network on labelled pictures, by a named recipe.

    The checkpoint of the best epoch by validation is in OUT/best, the last one in OUT/last. Pictures of the test split
    never choose anything.
    """
    if list_recipes:
        _list_recipes(terminal)
        return

    from resnet_onnx import workflow
    from resnet_onnx.training.recipes import default_recipe, lookup_recipe, read_assignments
    from resnet_onnx.training.splits import open_training_data

    entry = workflow.training_entry(name, image_size=image_size, mean=mean, std=std)
    recipe = lookup_recipe(recipe_name, depth=entry.depth) if recipe_name else None
    spec = data or "digits"
    opened = open_training_data(spec)
    recipe = recipe or default_recipe(spec, image_size=entry.image_size, pictures=len(opened.train))
    recipe = recipe.override(**read_assignments(assignments))
    recipe = recipe.override(epochs=epochs, batch_size=batch, learning_rate=lr, precision=precision)
    initial = None if weights is None else workflow.initial_state(entry, weights, len(opened.train.classes))
    folder = out or Path("runs") / f"{entry.name}-{Path(spec).stem}"

    from resnet_onnx.training.loop import train

    terminal.note(
        f"{entry.name} on {opened.train.name}: {len(opened.train)} pictures, {len(opened.train.classes)} classes"
    )
    terminal.note(f"recipe {recipe.name}: {recipe.epochs} epochs, batch {recipe.batch_size} · {folder}")
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
            initial_state=initial,
            progress=lambda p: _show(terminal, display, task, p),
        )
    if result.resumed_from is not None and not any(e["epoch"] > result.resumed_from for e in result.epochs):
        terminal.note("the training was complete already; nothing was done")
    best, last = result.best, result.epochs[-1]
    chosen = "the last epoch" if best["top1"] is None else f"{100 * best['top1']:.2f} % on validation pictures"
    terminal.line(f"Best: epoch {best['epoch']}, {chosen} · training loss at the end {last['train_loss']:.4f}")
    if result.test_top1 is not None:
        terminal.line(f"Test (not used in any choice): {100 * result.test_top1:.2f} %")
    terminal.line(f"{result.images_per_second:.0f} img/s, {result.recipe.precision} · checkpoint {result.checkpoint}")
    terminal.line(f"Next: resnet-onnx export {result.checkpoint} -o {entry.name}.onnx")
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
        }
    )


def show_step(display: Any, task: Any, progress: Progress, *, name: str = "") -> None:
    """Shows on a progress display where a training stands, after the network's name where there are several."""
    label = f"{name}: " * bool(name) + f"epoch {progress.epoch} of {progress.epochs}, {progress.stage}"
    if progress.loss is not None:
        label += f", loss {progress.loss:.3f}"
    if progress.images_per_second is not None:
        label += f", {progress.images_per_second:.0f} img/s"
    display.update(task, description=label, completed=progress.step, total=progress.steps or None)


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
        figures = f"{recipe.epochs} epochs, batch {recipe.batch_size}, learning rate {recipe.learning_rate:g}"
        terminal.line(f"{recipe.name}: {figures}\n  {recipe.source}")
    terminal.emit({"recipes": [dataclasses.asdict(recipe) for recipe in recipes]})
