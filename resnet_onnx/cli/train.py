"""``resnet-onnx train``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.options import (
    OutputFile,
    Triple,
    make_command,
    resize_option,
    threads_option,
    training_data_option,
    weights_entry_option,
    workers_option,
)
from resnet_onnx.cli.terminal import Terminal
from resnet_onnx.report.words import counted
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress as Display
    from rich.progress import TaskID

    from resnet_onnx.bench.clock import Disturbance
    from resnet_onnx.models.catalog import CatalogEntry
    from resnet_onnx.results.commands import Train
    from resnet_onnx.training.distributed import ProcessGroup
    from resnet_onnx.training.plan import Progress, TrainingPlan, TrainingResult
    from resnet_onnx.training.recipes import Recipe
    from resnet_onnx.workflow.resolving import Start


@make_command("train", example="resnet-onnx train --model cifar-resnet20 --data digits --out runs/digits")
@click.option(
    "--model",
    "name",
    default="cifar-resnet20",
    show_default=True,
    metavar="NAME",
    help="Network to train; timm:NAME, torchvision:NAME too.",
)
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
@resize_option
@click.option("--mean", type=Triple(), help="Mean per channel, as fractions of 255.")
@click.option("--std", type=Triple(), help="Standard deviation per channel, as fractions of 255.")
@click.option(
    "--weights", metavar="imagenet|pretrained|PATH", help="Start from trained weights; a fitting head is kept."
)
@weights_entry_option
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
    resize: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    weights: str | None,
    weights_entry: str | None,
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
    from resnet_onnx.training.distributed import ProcessGroup

    group = ProcessGroup.from_environment()
    terminal.mute, terminal.final = not group.is_main, group.last_attempt
    if list_recipes:
        _list_recipes(terminal)
        return

    from resnet_onnx import workflow
    from resnet_onnx.training import curves, tensorboard_logs
    from resnet_onnx.training.plan import TrainingPlan
    from resnet_onnx.training.recipes import lookup_recipe
    from resnet_onnx.training.splits import open_training_data

    spec = data or "digits"
    fields = {"epochs": epochs, "batch_size": batch, "learning_rate": lr, "precision": precision,
              "freeze": freeze or None, "sync_batch_norm": sync_batch_norm or None}  # fmt: skip

    def make_plan() -> tuple[TrainingPlan, list[str]]:
        _check_batches(batch, batch_per_process)
        if plot is not None:
            curves.check_format(plot)
        if tensorboard:
            tensorboard_logs.load()
        entry = workflow.training_entry(name, image_size=image_size, resize=resize, mean=mean, std=std)
        if recipe_name:
            lookup_recipe(recipe_name)  # a wrong name is refused before any data is opened or downloaded
        pictures = open_training_data(spec)
        recipe = _recipe(recipe_name, entry, spec, len(pictures.train), assignments, fields)
        start = _start(entry, weights, weights_entry, pictures.train.classes, seed)
        plan = TrainingPlan(
            entry=entry,
            data=pictures,
            recipe=recipe if batch_per_process is None else recipe.with_batch(batch_per_process * group.world_size),
            out=out or _folder(entry, spec),
            seed=seed,
            resume=resume,
            device=device,
            threads=_threads(threads, group),
            workers=workers,
            initial_state=None if start is None else start.state,
            weights_license=None if start is None else start.license,
            skip_bad=skip_bad,
        )
        return plan, [*_announcement(plan, recipe, group), *([] if start is None else [f"start: {start.description}"])]

    plan, notes = group.local_main_first(make_plan)
    for note in notes:
        terminal.note(note)
    result = _train(terminal, plan, group, tensorboard=tensorboard)
    if not group.is_main:
        return
    if plot is not None:
        title = f"{plan.entry.name} on {plan.data.train.name}, recipe {plan.recipe.name}"
        curves.draw(result.epochs, plot, title=title)
    document = _document(result, plan, spec, plot, processes=group.world_size)
    _print(terminal, document)
    terminal.emit(document)


def _check_batches(whole: int | None, part: int | None) -> None:
    if whole is not None and part is not None:
        raise UsageError(
            "--batch is the whole batch and --batch-per-process a part of it; both were given", fix="give one"
        )


def _folder(entry: CatalogEntry, spec: str) -> Path:
    from resnet_onnx.models.network import file_stem

    return Path("runs") / f"{file_stem(entry.name)}-{Path(spec).stem}"


def _train(terminal: Terminal, plan: TrainingPlan, group: ProcessGroup, *, tensorboard: bool) -> TrainingResult:
    """Trains, and shows every step on the terminal."""
    from resnet_onnx.bench.clock import Watch
    from resnet_onnx.training import tensorboard_logs
    from resnet_onnx.training.loop import train

    watch, hinted = Watch(family=True), False

    def show(progress: Progress) -> None:
        nonlocal hinted
        _show(terminal, display, task, progress)
        if progress.finished is not None and not hinted and group.world_size == 1:
            hinted = True
            if hint := _hint(watch.stop(), plan.threads):
                terminal.note(hint)
        if tensorboard and group.is_main and progress.finished is not None:
            tensorboard_logs.log(plan.out / "tensorboard", progress.finished, progress.done)

    with terminal.progress() as display:
        task = display.add_task("training", total=None)
        return train(plan, progress=show, group=group)


def _hint(seen: Disturbance, threads: int | None) -> str:
    """Says what other programs do to a training on the CPU's cores, and what helps; "" where they do little."""
    from resnet_onnx.bench.record import OTHERS_LIMIT

    if seen.others_share + seen.stolen_share <= OTHERS_LIMIT:
        return ""
    busy = (seen.others_share + seen.stolen_share) * seen.cores
    said = f"other programs used {busy:.1f} of {seen.cores} cores"
    free = max(1, int(seen.cores - busy))
    if (threads or seen.cores) <= free:
        return said
    return f"{said}: every step waits for its slowest thread, and --threads {free} may train faster"


def _document(result: TrainingResult, plan: TrainingPlan, spec: str, plot: Path | None, *, processes: int) -> Train:
    from resnet_onnx.results.commands import EpochRecord, Train
    from resnet_onnx.results.writing import typed

    return Train(
        checkpoint=str(result.checkpoint),
        last=str(result.last),
        epochs=[typed(EpochRecord, epoch) for epoch in result.epochs],
        best=result.best,
        test_top1=result.test_top1,
        images_per_second=result.images_per_second,
        resumed_from=result.resumed_from,
        recipe=result.recipe.to_json(),
        model=plan.entry.name,
        data=spec,
        seed=plan.seed,
        processes=processes,
        skipped=result.skipped,
        plot=None if plot is None else str(plot),
        notes=plan.data.notes,
    )


def _recipe(
    name: str | None, entry: CatalogEntry, spec: str, pictures: int, assignments: Sequence[str], fields: dict[str, Any]
) -> Recipe:
    """Returns the named recipe, or that of network and data, with the fields that the options change."""
    from resnet_onnx.training.recipes import default_recipe, lookup_recipe, read_assignments

    recipe = default_recipe(spec, image_size=entry.image_size, pictures=pictures)
    if name:
        recipe = lookup_recipe(name, depth=entry.depth)
    return recipe.override(**read_assignments(assignments)).override(**fields)


def _threads(requested: int | None, group: ProcessGroup) -> int | None:
    """Returns the CPU threads of each process: of several on a machine, their part of its cores."""
    from runtimes.cores import allowed_cores, usable_cores

    if requested is None and group.world_size > 1:
        return max(1, usable_cores() // group.local_world_size)  # torchrun's own default is 1
    if requested is None and usable_cores() < allowed_cores():
        return usable_cores()  # torch does not know of a container's quota
    return requested


def _announcement(plan: TrainingPlan, recipe: Recipe, group: ProcessGroup) -> list[str]:
    """Returns lines that say what will be trained, on what and how."""
    pictures = plan.data.train
    used, count = plan.recipe, group.world_size
    batch = f"batch {used.batch_size}"
    if count > 1:
        batch += f" ({count} processes × {used.batch_size / count:g})"
    rate = f"learning rate {used.learning_rate:g}"
    if used.batch_size != recipe.batch_size:
        rate += f" (scaled linearly with the batch: {recipe.learning_rate:g} × {used.batch_size} / {recipe.batch_size})"
    return [
        f"{plan.entry.name} on {pictures.name}: {len(pictures)} pictures, {len(plan.labels)} classes",
        f"recipe {recipe.name}: {counted(recipe.epochs, 'epoch')}, {batch}, {rate} · {plan.out}",
        *plan.data.notes,
        *([f"{count} processes, CPU threads of each: {plan.threads}"] if count > 1 else []),
    ]


def _print(terminal: Terminal, found: Train) -> None:
    """Prints the result of the training for people."""
    from resnet_onnx.models.network import file_stem

    if found.resumed_from is not None and not any(epoch["epoch"] > found.resumed_from for epoch in found.epochs):
        terminal.note("the training was complete already; nothing was done")
    for skipped in found.skipped:
        terminal.note(f"left out: {skipped.image}: {skipped.reason}")
    best = found.best
    chosen = "the last epoch" if best["top1"] is None else f"{100 * best['top1']:.2f} % on validation pictures"
    loss = found.epochs[-1]["train_loss"]
    terminal.line(f"Best: epoch {best['epoch']}, {chosen} · training loss at the end {loss:.4f}")
    if found.skipped:
        terminal.line(f"Left out because they can't be read: {len(found.skipped)}")
    if found.test_top1 is not None:
        terminal.line(f"Test (not used in any choice): {100 * found.test_top1:.2f} %")
    terminal.line(f"{found.images_per_second:.0f} img/s, {found.recipe['precision']} · checkpoint {found.checkpoint}")
    if found.plot is not None:
        terminal.line(f"Curves: {found.plot}")
    terminal.advice(f"Next: resnet-onnx export {found.checkpoint} -o {file_stem(found.model)}.onnx")


def show_step(display: Display, task: TaskID, progress: Progress, *, name: str = "") -> None:
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


def _show(terminal: Terminal, display: Display, task: TaskID, progress: Progress) -> None:
    show_step(display, task, progress)
    if progress.finished is not None:
        figures = progress.finished
        held = figures.get("validation_top1")
        terminal.note(
            f"epoch {figures['epoch']:>3}  loss {figures['train_loss']:.4f}  train {100 * figures['train_top1']:.2f} %"
            + (f"  validation {100 * held:.2f} %" if held is not None else "")
            + f"  {figures['images_per_second']:.0f} img/s"
        )


def _start(
    entry: CatalogEntry, weights: str | None, weights_entry: str | None, classes: Sequence[str], seed: int
) -> Start | None:
    from resnet_onnx import workflow

    if weights is None:
        return None
    return workflow.initial_state(entry, weights, classes, seed=seed, weights_entry=weights_entry)


def _list_recipes(terminal: Terminal) -> None:
    from resnet_onnx.results.commands import Recipes
    from resnet_onnx.training.recipes import lookup_recipe, recipe_names

    recipes = [lookup_recipe(name) for name in recipe_names()]
    for recipe in recipes:
        epochs, rate = counted(recipe.epochs, "epoch"), recipe.learning_rate
        terminal.line(f"{recipe.name}: {epochs}, batch {recipe.batch_size}, learning rate {rate:g}")
        terminal.line(f"  {recipe.source}")
    terminal.emit(Recipes(recipes=[recipe.to_json() for recipe in recipes]))
