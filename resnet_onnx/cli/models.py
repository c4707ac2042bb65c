"""``resnet-onnx models``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from resnet_onnx.cli.options import make_command
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resnet_onnx.models.catalog import CatalogEntry
    from resnet_onnx.results.commands import ModelRecord


@make_command("models", example="resnet-onnx models --source timm --filter 'resnet50*'")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--source",
    type=click.Choice(["catalog", "timm", "torchvision"]),
    default="catalog",
    show_default=True,
    help="Whose networks to list.",
)
@click.option("--filter", "pattern", metavar="PATTERN", help="Only names like this: 'resnet*'.")
def command(terminal: Terminal, *, names: tuple[str, ...], source: str, pattern: str | None) -> None:
    """List networks: parameters, multiply-adds (counted), and what was published about each.

    NAME is a name of the catalog, timm:NAME or torchvision:NAME.
    """
    from resnet_onnx.results.commands import Models

    if names and (pattern or source != "catalog"):
        raise UsageError(
            "--source and --filter list networks, and some were named already", fix="give one or the other"
        )
    named = names or _listed(source, pattern)
    records: list[ModelRecord] = []
    notes: list[str] = []
    with terminal.progress() as display:
        task = display.add_task("counting", total=len(named))
        for name in named:
            try:
                records.append(_counted(name))
            except UsageError as error:
                if names:
                    raise
                notes.append(f"{name}: left out: {error.message}")
            display.update(task, advance=1)
    for note in notes:
        terminal.note(note)
    if source == "catalog" and not any(record.weights for record in records):
        _print_catalog(terminal, records)
    else:
        _print_libraries(terminal, records)
    terminal.emit(Models(models=records, notes=notes))


def _listed(source: str, pattern: str | None) -> Sequence[str]:
    import fnmatch

    from resnet_onnx.models import catalog, libraries

    wanted = pattern or "*"
    if source == "catalog":
        found = [name for name in catalog.names() if fnmatch.fnmatchcase(name, wanted)]
    else:
        library = next(library for library in libraries.LIBRARIES if library == source)
        found = [f"{library}:{name}" for name in libraries.names(library, wanted)]
    if not found:
        whose = "the catalog" if source == "catalog" else source
        raise UsageError(f"--filter '{wanted}': {whose} has no network of such a name", fix="'*' stands for any text")
    return found


def _counted(name: str) -> ModelRecord:
    from resnet_onnx.models import counting, libraries
    from resnet_onnx.results.commands import ModelRecord, PublishedRecord
    from resnet_onnx.results.writing import typed

    entry: CatalogEntry = libraries.lookup(name)
    counts = counting.count(entry.config, entry.image_size)
    tags, license = libraries.published(name)
    return ModelRecord(
        name=entry.name,
        parameters=counts.parameters,
        multiply_adds=counts.multiply_adds,
        image_size=entry.image_size,
        layers=counts.layers,
        variant=entry.variant,
        dataset=entry.dataset,
        published=typed(PublishedRecord, known) if (known := entry.published_json()) is not None else None,
        weights=tags,
        weights_license=license,
    )


def _figures(record: ModelRecord) -> list[str]:
    counted = record.multiply_adds / 1e9
    return [
        record.name,
        str(record.layers),
        f"{record.parameters:,}",
        f"{counted:.2f}" if counted >= 1 else f"{counted:.3f}",
    ]


_COUNTED = ["name", "layers", "parameters", "G multiply-adds"]


def _print_catalog(terminal: Terminal, records: Sequence[ModelRecord]) -> None:
    rows = []
    for record in records:
        published = record.published
        printed = None if published is None else published.multiply_adds_g
        error = published.errors[0] if published is not None and published.errors else None
        rows.append(
            [
                *_figures(record),
                f"{printed:.1f}" if printed else "–",
                str(record.image_size),
                f"{error.top1_percent:.2f} %" if error and error.top1_percent else "–",
                f"{error.protocol}; {error.source}" if error else "–",
            ]
        )
    terminal.table([*_COUNTED, "printed", "pixels", "published top-1 error", "measured on; source"], rows)
    terminal.line()
    terminal.line(
        "Multiply-adds are counted over all convolutions (projections included) and fully connected layers; "
        "'printed' is the paper's own figure."
    )
    terminal.line("CIFAR nets exist for every depth 6n+2; timm's and torchvision's networks too: --source timm.")
    terminal.advice("Next: resnet-onnx export --depth 50")


def _print_libraries(terminal: Terminal, records: Sequence[ModelRecord]) -> None:
    rows = [
        [
            *_figures(record),
            str(record.image_size),
            record.weights[0] + (f" and {len(record.weights) - 1} more" if len(record.weights) > 1 else "")
            if record.weights
            else "–",
            record.weights_license or "–",
        ]
        for record in records
    ]
    terminal.table([*_COUNTED, "pixels", "trained weights", "license, where stated"], rows)
    terminal.line()
    terminal.line("Multiply-adds are counted over all convolutions and fully connected layers.")
    terminal.advice(f"Next: resnet-onnx export --model {records[0].name}" if records else "")
