"""The figures of a training's epochs as a table for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resnet_onnx.report.tables import csv_text

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


def history_csv(history: Sequence[Mapping[str, Any]]) -> str:
    """Returns one line for each epoch under a line of ``COLUMNS``; what was not measured is empty."""
    return csv_text(COLUMNS, ([row.get(name) for name in COLUMNS] for row in history))
