"""``resnet-onnx models``."""

from __future__ import annotations

import click

from resnet_onnx.cli.options import make_command
from resnet_onnx.cli.terminal import Terminal


@make_command("models", example="resnet-onnx models resnet50 resnet50-v1")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def command(terminal: Terminal, *, names: tuple[str, ...]) -> None:
    """List the networks: parameters, multiply-adds (counted), and what was published about each."""
    from resnet_onnx.models import catalog, counting
    from resnet_onnx.results.commands import ModelRecord, Models, PublishedRecord
    from resnet_onnx.results.writing import typed

    entries = [catalog.lookup(name) for name in names or catalog.names()]
    rows: list[list[str]] = []
    records: list[ModelRecord] = []
    for entry in entries:
        counts = counting.count(entry.config, entry.image_size)
        published = entry.published
        error = published.errors[0] if published and published.errors else None
        records.append(
            ModelRecord(
                name=entry.name,
                parameters=counts.parameters,
                multiply_adds=counts.multiply_adds,
                image_size=entry.image_size,
                layers=counts.layers,
                variant=entry.variant,
                dataset=entry.dataset,
                published=typed(PublishedRecord, known) if (known := entry.published_json()) is not None else None,
            )
        )
        counted = counts.multiply_adds / 1e9
        rows.append(
            [
                entry.name,
                str(counts.layers),
                f"{counts.parameters:,}",
                f"{counted:.2f}" if counted >= 1 else f"{counted:.3f}",
                f"{published.multiply_adds_g:.1f}" if published and published.multiply_adds_g else "–",
                str(entry.image_size),
                f"{error.top1_percent:.2f} %" if error and error.top1_percent else "–",
                f"{error.protocol}; {error.source}" if error else "–",
            ]
        )
    printed = ["printed", "pixels", "published top-1 error", "measured on; source"]
    terminal.table(["name", "layers", "parameters", "G multiply-adds", *printed], rows)
    terminal.line()
    terminal.line(
        "Multiply-adds are counted over all convolutions (projections included) and fully connected layers; "
        "'printed' is the paper's own figure."
    )
    terminal.line("CIFAR nets exist for every depth 6n+2. Next: resnet-onnx export --depth 50")
    terminal.emit(Models(models=records))
