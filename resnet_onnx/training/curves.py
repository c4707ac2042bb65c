"""The figures of a training's epochs: as a table for other programs, for TensorBoard, and drawn."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtimes import files
from runtimes.environment import load_library

COLUMNS = (
    "epoch",
    "steps",
    "learning_rate",
    "train_loss",
    "train_top1",
    "validation_loss",
    "validation_top1",
    "seconds",
    "input_seconds",
    "images_per_second",
)
"""Of the table, in this order; accuracies are shares, times are of the training pass."""

_BLUE, _ORANGE = "#0072b2", "#e69f00"
"""Okabe and Ito, "Color Universal Design" (2008)."""


def history_csv(history: Sequence[Mapping[str, Any]]) -> str:
    """Returns one line for each epoch under a line of ``COLUMNS``; what was not measured is empty."""
    with io.StringIO(newline="") as text:
        table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(history)
        return text.getvalue()


def load_tensorboard() -> Any:
    """Returns torch's module that writes TensorBoard logs.

    Raises:
        RuntimeUnavailable: TensorBoard is not installed; the message names the extra.
    """
    load_library("tensorboard", runtime="TensorBoard logs", package="resnet-onnx[tensorboard]")
    return load_library("torch.utils.tensorboard", runtime="TensorBoard logs", package="resnet-onnx[tensorboard]")


def log_to_tensorboard(folder: Path, row: Mapping[str, Any], step: int) -> None:
    """Appends the figures of an epoch to the logs in a folder; TensorBoard reads its files as one run.

    Args:
        folder: Of the logs.
        row: Of ``TrainingResult.epochs``.
        step: Steps done in the whole training.
    """
    with load_tensorboard().SummaryWriter(str(folder), purge_step=step) as writer:
        for name in COLUMNS[2:]:
            value = row.get(name)
            if value is not None:
                writer.add_scalar(
                    name.replace("_", "/", 1) if name.startswith(("train", "valid")) else name, value, step
                )


def draw_history(history: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Draws error and loss against epochs, for training and validation.

    Args:
        history: As ``TrainingResult.epochs``.
        path: Where to; its ending decides the format.
        title: Over the picture.

    Raises:
        FileProblem: It can't be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    figure.suptitle(title)
    error, loss = figure.subplots(1, 2)
    mark = "o" if len(history) <= 30 else None
    for split, label, colour in (
        ("train", "training (augmented pictures)", _BLUE),
        ("validation", "validation", _ORANGE),
    ):
        if all(row[f"{split}_top1"] is None for row in history):
            continue
        errors = [100 * (1 - row[f"{split}_top1"]) for row in history]
        error.plot(epochs, errors, color=colour, label=label, marker=mark, markersize=3)
        loss.plot(epochs, [row[f"{split}_loss"] for row in history], color=colour, marker=mark, markersize=3)
    error.set_ylabel("top-1 error, %")
    loss.set_ylabel("cross-entropy")
    for axes in (error, loss):
        axes.set_xlabel("epoch")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    error.legend(frameon=False)
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".").lower() or "png", dpi=150)
