"""``resnet-onnx reproduce``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from resnet_onnx.cli.options import (
    WholeNumbers,
    make_command,
    runtime_option,
    threads_option,
    training_data_option,
    workers_option,
)
from resnet_onnx.cli.terminal import Terminal
from resnet_onnx.cli.train import show_step
from resnet_onnx.report.words import counted
from runtimes.errors import UsageError

_GENERAL = frozenset({"experiment", "as_json", "quiet", "verbose", "cache_dir"})

if TYPE_CHECKING:
    from rich.progress import Progress as Display
    from rich.progress import TaskID

    from resnet_onnx.reproduction.degradation import DegradationPlan
    from resnet_onnx.results.reproduce import Degradation, ShortcutCost, Shortcuts
    from resnet_onnx.training.plan import Progress


@make_command("reproduce", example="resnet-onnx reproduce degradation --data cifar10 --epochs 15 --depths 20,56")
@click.argument("experiment", type=click.Choice(["degradation", "shortcuts", "table1"]))
@training_data_option
@click.option(
    "--depths", type=WholeNumbers("20,56"), help="Depths to compare: 6n+2, or 18,34 for ImageNet's.  [default: 20,56]"
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the data; the recipe's by default.")
@click.option(
    "--recipe", "recipe_name", metavar="NAME", help="Named recipe of all networks; chosen by data by default."
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of all trainings.  [default: 0]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to fill, or to go on in.  [default: degradation]")
@runtime_option(default="all", several=True)
@click.option("--no-bench", is_flag=True, help="Leave out what the shortcut costs in throughput.")
@workers_option
@click.option("--device", help="Of the training: cpu, cuda or cuda:N; a GPU where there is one by default.")
@threads_option
def command(
    terminal: Terminal,
    *,
    experiment: str,
    data: str | None,
    depths: tuple[int, ...] | None,
    epochs: int | None,
    recipe_name: str | None,
    seed: int | None,
    out: Path | None,
    runtimes: str,
    no_bench: bool,
    workers: int | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Run an experiment of the ResNet paper again (arXiv:1512.03385).

    \b
    degradation  plain and residual nets of several depths, trained alike: figures 1 and 6.
                 It goes on where it was stopped.
    shortcuts    one depth with the shortcut options A, B and C, trained alike: table 3, on CIFAR. It goes on too.
    table1       layers, output sizes, parameters and multiply-adds, beside the printed ones.
    """  # noqa: D301  (click keeps the lines of a paragraph that begins with this sign)
    if experiment == "table1":
        _refuse_options()
        _table1(terminal)
        return
    from resnet_onnx.reproduction import degradation, shortcuts
    from resnet_onnx.training.recipes import default_recipe, lookup_recipe
    from runtimes import registry

    options = experiment == "shortcuts"
    variants = shortcuts.variants(depths or ()) if options else degradation.variants(depths or (20, 56))
    spec = data or "digits"
    # One recipe for all: what the deepest needs at its start, all get.
    recipe = lookup_recipe(recipe_name, depth=variants[-1].depth) if recipe_name else None
    names = [] if no_bench or options else registry.parse_names(runtimes)
    registry.require_all(names)
    pictures, test = degradation.experiment_data(spec, seed or 0)
    image_size = variants[0].entry.image_size
    recipe = recipe or default_recipe(spec, image_size=image_size, pictures=len(pictures.train))
    plan = degradation.DegradationPlan(
        variants=variants,
        spec=spec,
        data=pictures,
        test=test,
        recipe=recipe.override(epochs=epochs, validation=0.0),
        seed=seed or 0,
        out=out or Path(experiment),
        runtimes=names,
        device=device,
        threads=threads,
        workers=workers,
    )
    terminal.note(_announcement(plan))
    with terminal.progress() as display:
        task = display.add_task("training", total=None)
        run: Callable[..., Any] = shortcuts.run if options else degradation.run
        result = run(
            plan,
            log=terminal.note,
            progress=lambda name, step: _show(terminal, display, task, name, step),
            status=lambda text: display.update(task, description=text, completed=0, total=None),
        )
    (_print_options if options else _print)(terminal, result)
    terminal.emit(result)


def _announcement(plan: DegradationPlan) -> str:
    recipe = plan.recipe
    names = ", ".join(variant.entry.name for variant in plan.variants)
    pictures = counted(len(plan.data.train), "picture")
    return (
        f"{names} on {pictures} of {plan.data.train.name}, {len(plan.test):,} to test on\n"
        f"recipe {recipe.name}: {counted(recipe.epochs, 'epoch')}, batch {recipe.batch_size}, seed {plan.seed}\n"
        "Time and memory are forecast after the first epoch. An interruption loses at most one epoch: "
        f"the same command goes on in {plan.out}."
    )


def _show(terminal: Terminal, display: Display, task: TaskID, name: str, progress: Progress) -> None:
    show_step(display, task, progress, name=name)
    if progress.finished is not None:
        figures = progress.finished
        terminal.note(
            f"{name}  epoch {figures['epoch']:>3}  loss {figures['train_loss']:.4f}"
            f"  training error {100 * (1 - figures['train_top1']):.2f} %"
            f"  test error {100 * (1 - figures['test_top1']):.2f} %  {figures['images_per_second']:.0f} img/s"
        )


def _print_rows(terminal: Terminal, result: Degradation | Shortcuts) -> None:
    from resnet_onnx.reproduction.forecast import duration

    terminal.table(
        ["network", "parameters", "epochs", "training error %", "test error %", "img/s", "training time"],
        [
            [
                row.model,
                f"{row.parameters:,}",
                str(row.epochs),
                f"{100 * row.training_error:.2f}",
                f"{100 * row.test_error:.2f}",
                f"{row.images_per_second:.0f}",
                duration(row.seconds),
            ]
            for row in result.rows
        ],
    )
    terminal.line("Errors after the last epoch, in fp32 on unchanged pictures; the test pictures chose nothing.")
    terminal.line()
    terminal.line(result.verdict)


_DECIDED = (
    "Decided by the pictures on which exactly one of the two is right (exact McNemar test, 5 %).\n"
    "That covers the chance in the pictures, for these trainings; another seed moves every network a little."
)


def _print_options(terminal: Terminal, result: Shortcuts) -> None:
    from resnet_onnx.reproduction.shortcuts import sentence

    _print_rows(terminal, result)
    for comparison in result.comparisons:
        terminal.line(f"  {sentence(comparison)}")
    terminal.line(_DECIDED)
    terminal.line()
    terminal.line(f"Numbers: {result.csv}")


def _print(terminal: Terminal, result: Degradation) -> None:
    from resnet_onnx.reproduction.degradation import sentence

    _print_rows(terminal, result)
    for comparison in result.comparisons:
        if comparison.pictures_of == "test":
            terminal.line(f"  On test pictures, {sentence(comparison)}.")
    terminal.line(_DECIDED)
    if result.shortcut_cost:
        terminal.line()
        _print_costs(terminal, result.shortcut_cost)
    terminal.line()
    terminal.line(f"Figure: {result.plot} · numbers: {result.csv}")


def _print_costs(terminal: Terminal, costs: Sequence[ShortcutCost]) -> None:
    terminal.line("What the shortcut costs: images per second of residual over plain, fp32")
    terminal.table(
        ["runtime", "layers", "batch", "plain", "residual", "ratio", "95 % interval"],
        [
            [
                cost.runtime + (" ~" if cost.doubts else ""),
                str(cost.depth),
                str(cost.batch),
                "–" if cost.plain_images_per_second is None else f"{cost.plain_images_per_second:,.0f}",
                "–" if cost.residual_images_per_second is None else f"{cost.residual_images_per_second:,.0f}",
                "–" if cost.ratio is None else f"{cost.ratio:.3f}",
                "–" if cost.ci95 is None else f"{cost.ci95[0]:.3f} – {cost.ci95[1]:.3f}",
            ]
            for cost in sorted(costs, key=lambda cost: (cost.runtime, cost.depth, cost.batch))
        ],
    )
    doubtful = [cost for cost in costs if cost.doubts]
    if doubtful:
        first = doubtful[0]
        terminal.line(
            f"~ {len(doubtful)} of {len(costs)} {'is' if len(doubtful) == 1 else 'are'} not stable, "
            f"{first.runtime} at {first.depth} layers and batch "
            f"{first.batch} since {first.doubts[0]}. The JSON has all reasons."
        )


def _refuse_options() -> None:
    """Refuses what was given on the command line and means nothing to an experiment that only counts."""
    context = click.get_current_context()
    useless = [
        option.opts[0]
        for option in context.command.params
        if option.name not in _GENERAL and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    ]
    if useless:
        raise UsageError(f"table1 counts and trains nothing, and {', '.join(useless)} was given", fix="leave it out")


def _table1(terminal: Terminal) -> None:
    from resnet_onnx.reproduction.table1 import conclude, table1
    from resnet_onnx.results.reproduce import Table1

    rows = table1()
    terminal.table(
        [
            "network", "layers", "output side × convolutions, by stage", "parameters", "printed M", "G multiply-adds",
            "printed G", "difference", "the printed figure is",
        ],
        [
            [
                row.model,
                str(row.layers),
                "  ".join(f"{stage.output[0]}×{stage.convolutions}" for stage in row.stages),
                f"{row.parameters:,}",
                f"{row.printed_parameters_m:.0f}" if row.printed_parameters_m else "–",
                f"{row.multiply_adds / 1e9:.3f}",
                f"{row.printed_multiply_adds_g:.1f}" if row.printed_multiply_adds_g else "–",
                "–" if row.difference is None else f"{100 * row.difference:+.1f} %",
                row.convention or "–",
            ]
            for row in rows
        ],
        left=3,
    )  # fmt: skip
    verdict = conclude(rows)
    terminal.line()
    terminal.line(verdict)
    terminal.emit(Table1(rows=rows, verdict=verdict, agrees=not any(row.differs for row in rows)))
