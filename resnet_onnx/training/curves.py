"""The figures of a training's epochs, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_onnx.report.charts import COLOURS
from runtimes import files
from runtimes.errors import UsageError

FORMATS = (".png", ".svg", ".pdf")

_FEW = 30
"""Up to so many epochs, each is marked."""


def check_format(path: Path) -> None:
    """Raises ``UsageError`` where the suffix of a file name is not one of ``FORMATS``."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"the curves can't be drawn as '{path.name}': its ending names no format",
            fix=f"end it in {', '.join(FORMATS)}",
        )


def draw(history: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Draws error and loss against epochs, for training and validation, and the learning rate below.

    Raises:
        UsageError: The ending of `path`, which decides the format, is not one of ``FORMATS``.
        FileProblem: It can't be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    check_format(path)
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9.6, 4.4), layout="constrained", dpi=120)
    grid = figure.add_gridspec(2, 2, height_ratios=[4, 1])
    error, loss = (figure.add_subplot(grid[0, column]) for column in (0, 1))
    rate = figure.add_subplot(grid[1, :])
    mark = "o" if len(history) <= _FEW else None
    for split, label, colour in (
        ("train", "training, on augmented pictures", COLOURS[0]),
        ("validation", "validation", COLOURS[5]),
    ):
        if all(row[f"{split}_top1"] is None for row in history):
            continue
        errors = [100 * (1 - row[f"{split}_top1"]) for row in history]
        named = f"{label}: {errors[-1]:.1f} % at the end"
        error.plot(epochs, errors, color=colour, label=named, marker=mark, markersize=3)
        loss.plot(epochs, [row[f"{split}_loss"] for row in history], color=colour, marker=mark, markersize=3)
    rate.plot(epochs, [row["learning_rate"] for row in history], color=COLOURS[2], marker=mark, markersize=3)
    error.set_ylabel("top-1 error, %")
    loss.set_ylabel("cross-entropy")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch; learning rate of its last step")
    for axes in (error, loss, rate):
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    error.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1))
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".").lower())
